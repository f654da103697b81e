"""The training space: every parallel plan of a model on a number of devices, as ordered axes with structural rules.

The axes carry the symbols of `spaces.plan`, so each legal point binds every one of them. Where a choice has no meaning (a
schedule with one stage, a shard group of one rank) only its neutral value is legal, whatever was asked for: no two points
mean the same plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from spaces.architecture import Architecture
from spaces.hardware import Device
from spaces.plan import NAMES, PLAN_SYMBOLS, Offload
from spaces.space import Axis, Space
from spaces.training_axes import degrees, shards, stages
from spaces.training_axes.scope import Options, Scope, plain


def training_space(
    *,
    architecture: Architecture,
    devices: tuple[Device, ...],
    count: int,
    at_most: bool = False,
    global_batch: int,
    sequence: int,
    options: Options | None = None,
    domains: Sequence[int] | None = None,
    uneven: bool = True,
) -> Space:
    """All legal training plans, in the order of `PLAN_SYMBOLS` as far as their rules allow.

    `count` devices exactly, or with `at_most` any number up to it, so that a larger limit loses no plan. `global_batch` is
    sequences per step, `sequence` tokens. `options[name]` restricts an axis to some values (codes for categorical ones); an
    empty sequence opens all of them; absent means all, except that
    `precision` is bf16, `trainable` all, `expert_tensor` 1 and `shard_degree` every data·context rank, and that ZeRO 2 and 3
    are combined with a pipeline only when `zero_stage` is named. `uneven` lets a pipeline of one chunk per device deal
    layers that divide by no layout as evenly as they go.

    Two or more `devices` make an axis `device` that binds every device symbol; with one, the caller binds them in the
    problem. `domains` (devices per scale-up domain) adds an axis `device.domain` in place of the devices' own. Raises
    ValueError, with every fault in one message, for unknown options, values that are not positive, and no devices.
    """
    asked = dict(options or {})
    _check(devices, count, global_batch, sequence, asked, domains)
    scope = Scope(
        architecture=architecture,
        nodes=np.array([device.devices_per_node for device in devices]),
        counts=tuple(range(1, count + 1)) if at_most else (count,),
        global_batch=global_batch,
        sequence=sequence,
        options=asked,
        uneven=uneven,
    )
    axes = (*_hardware_axes(devices, domains), *(make(scope) for make in _AXES))
    labels = dict(NAMES) | {"device": tuple(device.name for device in devices)}
    return Space(axes=axes, labels=labels)


def _check(
    devices: tuple[Device, ...],
    count: int,
    global_batch: int,
    sequence: int,
    options: Options,
    domains: Sequence[int] | None,
) -> None:
    """Raise ValueError for what no space can be built from, every fault in one message."""
    faults = [] if devices else ["no device was given"]
    if len({device.name for device in devices}) < len(devices):
        faults.append(f"a device is named twice: {', '.join(device.name for device in devices)}")
    for name, value in (("count", count), ("global_batch", global_batch), ("sequence", sequence)):
        if value < 1:
            faults.append(f"{name} must be at least 1, got {value}")
    if domains is not None and (not domains or min(domains) < 1):
        faults.append(f"domains must be positive numbers of devices, got {list(domains)}")
    known = [symbol for symbol in PLAN_SYMBOLS if symbol != "devices"]
    for name, values in options.items():
        if name not in known:
            faults.append(f"there is no training axis '{name}'; the axes are {', '.join(known)}")
            continue
        lowest, highest = _range(name)
        outside = [value for value in values if not lowest <= value <= highest]
        if outside:
            faults.append(f"{name} cannot be {', '.join(map(str, outside))}")
    if faults:
        raise ValueError("; ".join(faults))


def _range(name: str) -> tuple[int, float]:
    """Lowest and highest value of an axis that can have any meaning."""
    if name in NAMES:
        return 0, len(NAMES[name]) - 1
    return {"zero_stage": (0, 3), "sequence_parallel": (0, 1), "recompute_layers": (0, np.inf)}.get(name, (1, np.inf))


def _hardware_axes(devices: tuple[Device, ...], domains: Sequence[int] | None) -> tuple[Axis, ...]:
    """The kind of device when there are several, and the scale-up domain when it is a choice."""
    axes: list[Axis] = []
    if len(devices) > 1:
        figures = [device.symbols() for device in devices]
        keep = [name for name in figures[0] if domains is None or name != "device.domain"]
        symbols = {name: np.array([figure[name] for figure in figures], np.float64) for name in keep}
        axes.append(Axis(name="device", symbols={"device": np.arange(len(devices)), **symbols}))
    if domains is not None:
        values = np.array(sorted(set(domains)), np.float64)
        axes.append(Axis(name="device.domain", symbols={"device.domain": values}))
    return tuple(axes)


_AXES: tuple[Callable[[Scope], Axis], ...] = (
    degrees.devices,
    degrees.tensor,
    degrees.context,
    degrees.pipeline,
    degrees.data,
    degrees.micro_batch,
    degrees.expert,
    degrees.expert_tensor,
    stages.virtual,
    stages.stage_layout,
    stages.schedule,
    shards.zero_stage,
    shards.shard_degree,
    shards.sequence_parallel,
    shards.recompute,
    shards.recompute_layers,
    plain("offload", Offload),
    plain("precision", range(len(NAMES["precision"]))),
    degrees.rank_order,
    plain("trainable", range(len(NAMES["trainable"]))),
)
