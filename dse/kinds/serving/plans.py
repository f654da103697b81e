"""From a serving job to what the engine takes: a problem, a space of plans, and single plans as points of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.serving.problem import serving_problem, serving_symbols
from costmodels.serving.stack import find_serving_stack
from dse.asking import ImpossiblePlan
from dse.kinds.serving.job import ServingJob
from dse.kinds.serving.schema import coded
from dse.measures import nearest
from spaces.columns import Columns
from spaces.facts import facts_in
from spaces.hardware import Device
from spaces.problem import Problem
from spaces.serving_plan import SERVING_NAMES, SERVING_PLAN
from spaces.serving_space import MODES, PREFILL, Pools, engine_devices, serving_space
from spaces.space import Axis, Space

SYMBOLS = ("mode", *SERVING_PLAN, *(PREFILL + symbol for symbol in SERVING_PLAN if symbol != "devices"))
"""Every choice of a serving plan, in the order people read them."""

_ENGINE = ("pipeline", "tensor", "attention_data", "expert", "expert_tensor")


def problem_of(job: ServingJob) -> Problem:
    """Everything that does not vary: model, requests, stack, and the device when there is only one."""
    traffic = job.traffic
    prompt, answer = traffic.means
    fixed = {
        "input_tokens": prompt,
        "output_tokens": answer,
        "request_rate": traffic.mean_rate,
        "concurrency": float(traffic.together),
        "prefix_hit": traffic.hit,
        "link_bandwidth": job.link or 0.0,
        **job.bound,
    }
    one = job.devices[0] if len(job.devices) == 1 else None
    problem = serving_problem(job.architecture, job.stack, one, fixed)
    names, generations = _device_names(job), _generations(job)
    labels = {**problem.labels, "mode": MODES, "device": names, "generation": generations, PREFILL + "device": names}
    shared = {name: float(values[0]) for name, values in _device_values(job).items() if one is None and _same(values)}
    if job.pools is not None:
        own = _device_values(job, PREFILL).items()
        shared |= {PREFILL + name: float(values[0]) for name, values in own if _same(values)}
    return dataclasses.replace(problem, labels=labels, scalars={**problem.scalars, **shared})


def _every(job: ServingJob) -> tuple[Device, ...]:
    """The devices of all pools, those of the decode pool first: positions are the codes of a kind."""
    return tuple(dict.fromkeys((*job.devices, *(job.pools[0].devices if job.pools is not None else ()))))


def _device_names(job: ServingJob) -> tuple[str, ...]:
    return tuple(device.name for device in _every(job))


def _generations(job: ServingJob) -> tuple[str, ...]:
    return tuple(dict.fromkeys(device.generation for device in _every(job)))


def _pool_devices(job: ServingJob, start: str) -> tuple[Device, ...]:
    """The kinds that the prefill pool may have, or the (decode) engines."""
    return job.pools[0].devices if start and job.pools is not None else job.devices


def _device_values(job: ServingJob, start: str = "") -> dict[str, NDArray[Any]]:
    """Every symbol that choosing a pool's device binds, shape (devices,); a rate that one lacks is 0 there."""
    devices = _pool_devices(job, start)
    figures = [serving_symbols(device) for device in devices]
    names = sorted({name for figure in figures for name in figure} - {"device", "generation"})
    values = {name: np.array([figure.get(name, 0.0) for figure in figures], np.float64) for name in names}
    every, generations = _every(job), _generations(job)
    codes = {
        "device": np.array([every.index(device) for device in devices]),
        "generation": np.array([generations.index(device.generation) for device in devices]),
    }
    return values | codes


def _same(values: NDArray[Any]) -> bool:
    return bool((values == values[0]).all())


def _hardware(job: ServingJob) -> tuple[Axis, ...]:
    """The kind of device of each pool when there are several, and the scale-up domain when it is a choice."""
    axes: list[Axis] = []
    for start in ("", PREFILL) if job.pools is not None else ("",):
        if len(_pool_devices(job, start)) > 1:
            values = {start + name: array for name, array in _device_values(job, start).items() if not _same(array)}
            code = start + "device"
            axes.append(Axis(name=code, symbols={code: values.pop(code), **values}))
    if job.domains:
        axes.append(Axis(name="device.domain", symbols={"device.domain": np.array(sorted(set(job.domains)), np.float64)}))
    return tuple(axes)


def space_of(job: ServingJob) -> Space:
    """Every legal plan that the experiment asks about."""
    pools = None
    if job.pools is not None:
        prefill, decode = job.pools
        pools = Pools(
            prefill=prefill.count, decode=decode.count, prefill_at_most=prefill.at_most, decode_at_most=decode.at_most
        )
    return serving_space(
        architecture=job.architecture,
        count=job.count,
        at_most=job.at_most is not None,
        modes=job.modes,
        options=job.options,
        prefill=job.prefill,
        pools=pools,
        defaults=find_serving_stack(job.stack).default,
        hardware=_hardware(job),
        labels={"device": _device_names(job), PREFILL + "device": _device_names(job)},
    )


def point(job: ServingJob, plan: Mapping[str, Any]) -> Columns:
    """One plan as a batch of one; choices left out take their resting value. Raises ImpossiblePlan, with the rule."""
    given = {symbol: float(value) for symbol, value in plan.items() if symbol in SYMBOLS}
    apart = given.get("mode", 1.0 if any(s.startswith(PREFILL) for s in given) else min(job.modes)) == 1
    options = {symbol: (value,) for symbol, value in _filled(job, given, "").items()}
    prefill = {symbol: (value,) for symbol, value in _filled(job, given, PREFILL).items()} if apart else {}
    devices = int(given.get("devices") or _devices(job, given, apart))
    single = dataclasses.replace(
        job,
        devices=(_device(job, plan.get("device"), ""),),
        modes=(int(apart),),
        options=options,
        prefill=prefill,
        count=devices,
        at_most=None,
        pools=None,
        domains=(),
    )
    space = space_of(single)
    found = next(iter(space.batches()), None)
    if found is None:
        reasons = dict.fromkeys(rule[1] for rule in space.removed())
        raise ImpossiblePlan(f"no legal plan on {devices} devices: {'; '.join(reasons) or 'structure leaves nothing'}")
    chosen = {"": single.devices[0]}
    if job.pools is not None:
        chosen[PREFILL] = _device(job, plan.get(PREFILL + "device"), PREFILL)
    return _on_devices(job, found.take(slice(0, 1)), chosen)


def _filled(job: ServingJob, given: Mapping[str, float], start: str) -> dict[str, float]:
    """One pool's choices with defaults where structure does not decide."""
    own = {symbol.removeprefix(start): value for symbol, value in given.items() if symbol.startswith(start)}
    own = {symbol: value for symbol, value in own.items() if symbol in SERVING_PLAN and symbol != "devices"}
    default = find_serving_stack(job.stack).default
    full: dict[str, float] = {"pipeline": 1, "tensor": 1, "attention_data": 1, **own}
    if not job.architecture.experts:
        full |= {"expert": 1, "expert_tensor": 1}
    elif "expert" not in full and "expert_tensor" not in full:
        full["expert"] = 1
    if start:
        return full | {"token_budget": own.get("token_budget", default["token_budget"])}
    resting = {name: default[name] for name in ("max_batch", "token_budget", "kv_fraction")}
    resting |= {name: job.options[name][0] for name in ("precision", "kv_precision")}
    none = dict.fromkeys(("speculation", "expert_offload", "weight_offload", "kv_offload", "preemption"), 0.0)
    return {**resting, "cuda_graphs": 1, **none, **full}


def _devices(job: ServingJob, given: Mapping[str, float], apart: bool) -> int:
    """Devices of a plan that does not say: all of them, or as many as its degrees multiply to."""
    if job.at_most is None and not apart:
        return job.count
    total = 0.0
    for start in ("", PREFILL) if apart else ("",):
        engine = {symbol: given.get(start + symbol, 1.0) for symbol in _ENGINE}
        total += float(engine_devices(engine)) * given.get(start + "data", 1.0)
    return int(total)


def _device(job: ServingJob, name: object, start: str) -> Device:
    """A pool's device of that name, or its first."""
    devices = _pool_devices(job, start)
    for device in devices:
        if name in (None, device.name, *device.aliases):
            return device
    raise ImpossiblePlan(f"the experiment has no {start}device {name!r}; it has {', '.join(one.name for one in devices)}")


def _on_devices(job: ServingJob, columns: Columns, chosen: Mapping[str, Device]) -> Columns:
    """The point with the devices of its pools bound as the experiment binds them: in the columns where they are an axis."""
    values = {symbol: columns[symbol] for symbol in columns.levels}
    if job.domains:
        values["device.domain"] = np.array([float(job.domains[0])])
    for start, device in chosen.items():
        devices = _pool_devices(job, start)
        if len(devices) > 1:
            index = devices.index(device)
            own = {start + name: array[[index]] for name, array in _device_values(job, start).items() if not _same(array)}
            values = {**own, **values}
    return Columns.from_values(values)


def one_device(job: ServingJob, codes: Mapping[str, Any]) -> ServingJob:
    """The job with the devices that a plan names (or the first of each pool) alone."""
    device = _device(job, codes.get("device"), "")
    if job.pools is None:
        return dataclasses.replace(job, devices=(device,))
    prefill, decode = job.pools
    pools = (
        dataclasses.replace(prefill, devices=(_device(job, codes.get(PREFILL + "device"), PREFILL),)),
        dataclasses.replace(decode, devices=(device,)),
    )
    return dataclasses.replace(job, devices=(device,), pools=pools)


_SHORT = {
    "tp": "tensor",
    "pp": "pipeline",
    "dp": "data",
    "ep": "expert",
    "etp": "expert_tensor",
    "attention_dp": "attention_data",
}


def plan_codes(job: ServingJob, plan: str | Mapping[str, Any]) -> dict[str, Any]:
    """A plan as codes, from `tensor=8,data=2` (or tp=8) or from names by symbol; `device` stays a name.

    Raises ImpossiblePlan with every choice that cannot be read.
    """
    given = plan if isinstance(plan, Mapping) else _split(plan)
    codes: dict[str, Any] = {}
    found = []
    for name, value in given.items():
        start, stem = (PREFILL, name.removeprefix(PREFILL)) if name.startswith(PREFILL) else ("", name)
        symbol = start + _SHORT.get(stem, stem)
        if stem == "device":
            codes[symbol] = _device(job, value, start).name
        elif symbol == "domain":
            codes[symbol] = int(value)
        elif symbol not in SYMBOLS:
            found.append(f"a plan has no choice {name!r}{nearest(name, SYMBOLS)}")
        else:
            try:
                codes[symbol] = value if symbol == PREFILL + "data" and value == 0 else coded(_SHORT.get(stem, stem))(value)
            except ValueError as error:
                found.append(f"{name}: {error}")
    if found:
        raise ImpossiblePlan("; ".join(found))
    return codes


def _split(text: str) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = part.partition("=")
        if not equals:
            raise ImpossiblePlan(f"expected choices like tensor=8,data=2, got {part!r}")
        plain = name.strip() in (*SERVING_NAMES, "mode", "device", PREFILL + "device")
        pairs[name.strip()] = value.strip() if plain else facts_in(value)
    return pairs
