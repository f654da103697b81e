"""From a training job to what the engine takes: a problem, a space of plans, and single plans as points of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.constants import device_symbols, find_stack
from costmodels.training import training_problem
from dse.asking import ImpossiblePlan
from dse.kinds.training.job import TrainingJob, mesh
from dse.kinds.training.schema import coded
from dse.measures import nearest
from spaces.columns import Columns
from spaces.facts import facts_in
from spaces.hardware import Device
from spaces.plan import DEFAULTS, NAMES, PLAN_SYMBOLS, spell
from spaces.problem import Problem
from spaces.space import Axis, Space
from spaces.training import training_space


def problem_of(job: TrainingJob) -> Problem:
    """Everything that does not vary: model, workload, stack, and the device when there is only one."""
    fixed: dict[str, float] = {"sequence": job.sequence, "global_batch": job.global_batch}
    if job.tokens is not None:
        fixed["workload.tokens"] = job.tokens
    if job.failures is not None:
        fixed["reliability.failures_per_device_hour"] = job.failures.per_device_hour
        fixed["reliability.checkpoint_bandwidth"] = job.failures.checkpoint_bandwidth
        fixed["reliability.restart_time"] = job.failures.restart_time
    one = job.devices[0] if len(job.devices) == 1 else None
    problem = training_problem(job.architecture, job.stack, one, fixed, job.optimizer, calibration=job.calibration)
    if one is not None:
        return problem
    names = {"device": tuple(device.name for device in job.devices), "generation": generations(job.devices)}
    shared = {name: float(values[0]) for name, values in _device_values(job).items() if _same(values)}
    return dataclasses.replace(problem, labels={**problem.labels, **names}, scalars={**problem.scalars, **shared})


def generations(devices: Sequence[Device]) -> tuple[str, ...]:
    """The distinct generations of some devices, in order; the position is the code."""
    return tuple(dict.fromkeys(device.generation for device in devices))


def _device_values(job: TrainingJob) -> dict[str, NDArray[Any]]:
    """Every symbol that choosing one of the devices binds, shape (devices,); a rate that one lacks is 0 there."""
    figures = [device_symbols(device, job.stack) for device in job.devices]
    names = sorted({name for figure in figures for name in figure} - ({"device.domain"} if job.domains else set()))
    values = {name: np.array([figure.get(name, 0.0) for figure in figures], np.float64) for name in names}
    known = generations(job.devices)
    return values | {"generation": np.array([known.index(device.generation) for device in job.devices])}


def _same(values: NDArray[Any]) -> bool:
    """Whether a symbol does not depend on the device: the problem binds it then, not the axis."""
    return bool((values == values[0]).all())


def space_of(job: TrainingJob) -> Space:
    """Every legal plan that the experiment asks about."""
    legal = find_stack(job.stack).legal
    options = {**legal, **job.options, **_precision(job)}
    return _space(job, job.devices, job.count, options)


def _precision(job: TrainingJob) -> dict[str, tuple[int, ...]]:
    return {"precision": job.precisions}


def _space(job: TrainingJob, devices: tuple[Device, ...], count: int, options: Mapping[str, tuple[int, ...]]) -> Space:
    space = training_space(
        architecture=job.architecture,
        devices=devices,
        count=count,
        at_most=job.at_most is not None and count == job.at_most,
        global_batch=job.global_batch,
        sequence=job.sequence,
        options=options,
        domains=job.domains or None,
    )
    return Space(tuple(_with_constants(axis, job) for axis in space.axes), space.labels)


def _with_constants(axis: Axis, job: TrainingJob) -> Axis:
    """The device axis binds the kernel and link constants that differ between the devices too."""
    if axis.name != "device":
        return axis
    values = {name: array for name, array in _device_values(job).items() if not _same(array)}
    return dataclasses.replace(axis, symbols={"device": axis.values, **values})


def point(job: TrainingJob, plan: Mapping[str, Any]) -> Columns:
    """One plan as a batch of one; choices left out take their resting value.

    `plan` holds codes; `device` is a name. Raises ImpossiblePlan, with the rule that rules it out.
    """
    given = {symbol: int(value) for symbol, value in plan.items() if symbol in PLAN_SYMBOLS}
    device = _device(job, plan.get("device"))
    devices = given.get("devices") or _devices(job, given)
    options = {s: (v,) for s, v in _filled(job, given).items() if s not in ("devices", "data")}
    single = dataclasses.replace(job, at_most=None, count=devices, domains=_domain(job, plan))
    space = _space(single, (device,), devices, options)
    found = next(iter(space.batches()), None)
    if found is None:
        raise ImpossiblePlan(_why(space, {**DEFAULTS, **given, "devices": devices}))
    return _on_device(job, found.take(slice(0, 1)), device)


def _devices(job: TrainingJob, given: Mapping[str, int]) -> int:
    """Devices of a plan that does not say: all of them, or as many as its degrees multiply to."""
    return job.count if job.at_most is None else mesh(given) * given.get("data", 1)


def _domain(job: TrainingJob, plan: Mapping[str, Any]) -> tuple[int, ...]:
    """The domain a plan names, or the first asked about."""
    named = plan.get("domain", plan.get("device.domain"))
    if named is not None and job.domains:
        return (int(named),)
    return job.domains[:1]


def _device(job: TrainingJob, name: object) -> Device:
    """The experiment's device of that name, or its first."""
    for device in job.devices:
        if name in (None, device.name, *device.aliases):
            return device
    known = ", ".join(device.name for device in job.devices)
    raise ImpossiblePlan(f"the experiment has no device {name!r}; it has {known}")


def _filled(job: TrainingJob, given: Mapping[str, int]) -> dict[str, int]:
    """The plan with defaults where structure does not decide; what decides itself is left open."""
    full: dict[str, int] = {**DEFAULTS, "precision": job.precisions[0], **given}
    if full["virtual"] > 1 and "schedule" not in given:
        full["schedule"] = NAMES["schedule"].index("interleaved")
    along = find_stack(job.stack).default_sequence_parallel or job.architecture.experts
    if full["tensor"] > 1 and along and "sequence_parallel" not in given:
        full["sequence_parallel"] = 1
    if "stage_layout" not in given:
        del full["stage_layout"]
    return full


def _why(space: Space, plan: Mapping[str, int]) -> str:
    """Which rules left nothing."""
    text = ", ".join(f"{symbol}={spell(symbol, plan[symbol])}" for symbol in ("devices", "tensor", "context", "pipeline"))
    reasons = dict.fromkeys(reason for _, reason in space.removed())
    return f"no legal plan ({text}): {'; '.join(reasons) or 'structure leaves nothing'}"


def _on_device(job: TrainingJob, columns: Columns, device: Device) -> Columns:
    """The point with its device bound as the experiment binds it: in the columns when the device is an axis."""
    values = {symbol: columns[symbol] for symbol in columns.levels}
    if len(job.devices) > 1:
        index = job.devices.index(device)
        own = {name: array[[index]] for name, array in _device_values(job).items() if not _same(array)}
        values = {**own, "device": np.array([index]), **values}
    return Columns.from_values(values)


_SHORT = {"tp": "tensor", "cp": "context", "pp": "pipeline", "dp": "data", "ep": "expert", "vpp": "virtual"}


def plan_codes(job: TrainingJob, plan: str | Mapping[str, Any]) -> dict[str, Any]:
    """A plan as codes, from `tensor=8,schedule=1f1b` (or tp=8) or from names by symbol; `device` stays a name.

    Raises ImpossiblePlan with every choice that cannot be read.
    """
    given = plan if isinstance(plan, Mapping) else _split(plan)
    codes: dict[str, Any] = {}
    faults = []
    for name, value in given.items():
        symbol = _SHORT.get(name, name)
        if symbol in ("device", "domain"):
            codes[symbol] = _device(job, value).name if symbol == "device" else int(value)
            continue
        if symbol not in PLAN_SYMBOLS:
            faults.append(f"a plan has no choice {name!r}{nearest(name, PLAN_SYMBOLS)}")
            continue
        try:
            codes[symbol] = coded(symbol)(value)
        except ValueError as error:
            faults.append(f"{name}: {error}")
    if faults:
        raise ImpossiblePlan("; ".join(faults))
    return codes


def _split(text: str) -> dict[str, Any]:
    """`tensor=8,recompute=full` as a mapping; numbers and true/false as YAML reads them, words as they are."""
    pairs: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise ImpossiblePlan(f"expected choices like tensor=8,pipeline=4, got {part!r}")
        symbol = _SHORT.get(name.strip(), name.strip())
        pairs[symbol] = value.strip() if symbol in (*NAMES, "device") else facts_in(value)
    return pairs


def one_device(job: TrainingJob, name: object) -> TrainingJob:
    """The experiment with the device of that name (or its first) alone."""
    return dataclasses.replace(job, devices=(_device(job, name),))


def space_around(job: TrainingJob, here: Mapping[str, Any], axis: str) -> Space:
    """The plans that differ from `here` (codes by symbol) in one axis, on as many devices, and in what follows from it."""
    follows = {"data", "shard_degree", axis}
    if axis in ("virtual", "schedule", "pipeline"):
        follows |= {"schedule", "virtual", "stage_layout"}
    if axis in ("recompute", "recompute_layers"):
        follows |= {"recompute", "recompute_layers"}
    fixed = [symbol for symbol in PLAN_SYMBOLS if symbol in here and symbol not in {*follows, "devices"}]
    options = {**find_stack(job.stack).legal, **{symbol: (int(here[symbol]),) for symbol in fixed}}
    if here.get("recompute_layers") == 0:
        options.pop("recompute_layers", None)
    if axis == "precision":
        options["precision"] = job.precisions
    single = dataclasses.replace(job, at_most=None, domains=_domain(job, here))
    return _space(single, job.devices, int(here["devices"]), options)
