"""What a serving experiment asks, checked: model, machines or pools of them, requests, stack, and restrictions on its axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from costmodels.serving.speculation import draft_shares
from costmodels.serving.statistics import Statistics
from dse.experiment import trace_name
from dse.kinds.machines import capped, cluster_faults, fabrics, named_devices
from dse.locations import Fault
from dse.measures import NEED_ROW, percentile
from spaces.architecture import Architecture
from spaces.hardware import Device
from spaces.serving_plan import SERVING_NAMES
from spaces.serving_space import MODES
from spaces.traffic import Lengths, Traffic

if TYPE_CHECKING:
    from dse.kinds.serving.schema import File, Hardware, Slo, Workload

NEED_SLO = frozenset({"slo_attainment", "goodput", "goodput_per_device"})
"""Metrics that exist only when `slo` says what a request must keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolMachines:
    """Devices of one pool, of one of the kinds: exactly `count`, or at most."""

    devices: tuple[Device, ...]
    count: int
    at_most: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerRow:
    """What feeds a row of servers: W, the share of time it may be overdrawn, the correlation of two servers' power."""

    budget: float
    risk: float
    correlation: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingJob:
    """A model to serve. Codes are those of `spaces.serving`; `options` and `prefill` restrict axes, an absent axis is open.

    With `pools` (prefill, decode) each pool has its own devices and `devices` is the decode pool's alone. `context` is the
    longest prompt and answer together, tokens; `router` deals requests out to replicas; `bound` are symbols of drafts and
    adapters that the file sets, `draft` the model that drafts. `statistics` are what objectives and constraints ask of
    requests; at most `simulate` plans are simulated.
    """

    architecture: Architecture
    devices: tuple[Device, ...]
    count: int
    at_most: int | None
    pools: tuple[PoolMachines, PoolMachines] | None
    link: float | None
    domains: tuple[int, ...]
    traffic: Traffic
    context: int
    stack: str
    modes: tuple[int, ...]
    options: Mapping[str, tuple[float, ...]]
    prefill: Mapping[str, tuple[float, ...]]
    statistics: Statistics
    simulate: int
    seed: int
    row: PowerRow | None = None
    router: str = "least-loaded"
    bound: Mapping[str, float] = dataclasses.field(default_factory=dict)
    draft: Architecture | None = None


def job_of(file: File) -> ServingJob:
    """The job that checked sections describe."""
    hardware, space = file.hardware, {} if file.space is None else file.space.given()
    pools = _pools(hardware)
    prefill = space.pop("prefill", None)
    decode = space.pop("decode", None)
    options: dict[str, tuple[float, ...]] = {axis: _distinct(values) for axis, values in space.items() if axis != "mode"}
    options |= {} if decode is None else {axis: _distinct(values) for axis, values in decode.given().items()}
    options |= {"precision": _distinct(file.precision), "kv_precision": _distinct(file.kv_precision)}
    how, count = _count(hardware)
    named = [choice.metric for choice in file.objectives or ()] + [limit.metric for limit in file.constraints]
    named += [] if file.objectives else list(default_objectives(file))
    modes = (1,) if pools else tuple(sorted(int(code) for code in space.get("mode", (0,))))
    return ServingJob(
        architecture=file.model,
        devices=pools[1].devices if pools else fabrics(hardware),
        count=count,
        at_most=count if how == "at_most" else None,
        pools=pools,
        link=hardware.link,
        domains=tuple(hardware.domain or ()),
        traffic=_traffic(file.workload, _context(file)),
        context=_context(file),
        stack=file.stack,
        modes=modes,
        options=MappingProxyType(options),
        prefill=MappingProxyType({} if prefill is None else {a: _distinct(v) for a, v in prefill.given().items()}),
        statistics=_statistics(file.slo, named),
        simulate=file.search.simulate,
        seed=file.search.seed,
        row=None
        if hardware.row is None
        else PowerRow(budget=hardware.row.power_budget, risk=hardware.row.risk, correlation=hardware.row.correlation),
        router=file.router,
        bound=MappingProxyType(_bound(file)),
        draft=None if file.draft is None else file.draft.model,
    )


def _bound(file: File) -> dict[str, float]:
    """Symbols of what drafts tokens, and of adapters, where the file says."""
    bound: dict[str, float] = {}
    draft = file.draft
    if draft is not None:
        bound["acceptance"] = draft.acceptance
        if draft.share is not None:
            bound |= {"draft_share": draft.share, "draft_held": draft.share}
        elif draft.model is not None or draft.layers is not None:
            share, held = draft_shares(file.model, draft.model, draft.layers or 1)
            bound |= {"draft_share": share, "draft_held": held}
    if file.adapters is not None:
        bound |= {"lora_rank": float(file.adapters.rank), "adapters": float(file.adapters.count)}
    return bound


def _context(file: File) -> int:
    """The longest prompt and answer together, tokens."""
    return file.workload.context or file.model.max_sequence


def _distinct(values: Iterable[float]) -> tuple[float, ...]:
    return tuple(dict.fromkeys(values))


def _count(hardware: Hardware) -> tuple[str, int]:
    """How the number of devices is meant, and the number; of pools together."""
    if hardware.pools is None:
        return hardware.devices or ("exactly", 1)
    both = (hardware.pools.prefill.devices, hardware.pools.decode.devices)
    how = "at_most" if any(how == "at_most" for how, _ in both) else "exactly"
    return how, sum(count for _, count in both)


def _pools(hardware: Hardware) -> tuple[PoolMachines, PoolMachines] | None:
    if hardware.pools is None:
        return None
    changes: dict[str, Any] = {} if hardware.devices_per_node is None else {"devices_per_node": hardware.devices_per_node}
    both = [
        PoolMachines(
            devices=capped((dataclasses.replace(d, **changes) if changes else d for d in pool.device), pool.power_cap),
            count=pool.devices[1],
            at_most=pool.devices[0] == "at_most",
        )
        for pool in (hardware.pools.prefill, hardware.pools.decode)
    ]
    return both[0], both[1]


def _statistics(slo: Slo | None, named: Iterable[str]) -> Statistics:
    """What is asked of requests beside means: the percentiles among the names, and the objective."""
    asked = {} if slo is None else slo.given()
    return Statistics(
        percentiles=tuple(dict.fromkeys(name for name in named if percentile(name))),
        ttft=asked.get("ttft") or math.inf,
        tpot=asked.get("tpot") or math.inf,
        latency=asked.get("request_latency") or math.inf,
        goodput=any(name.startswith("goodput") for name in named),
    )


def _traffic(workload: Workload, context: int) -> Traffic:
    sessions, shared = workload.sessions, workload.shared_prefix
    spread = {"poisson": 1.0, "constant": 0.0}.get(workload.arrivals, workload.burstiness or 1.0)
    return Traffic(
        lengths=workload.lengths or (workload.input_tokens or _ONE, workload.output_tokens or _ONE),
        trace=workload.trace,
        rate=workload.request_rate or 0.0,
        concurrency=workload.concurrency or 0,
        burstiness=spread,
        turns=1 if sessions is None else sessions.turns,
        think=0.0 if sessions is None else sessions.think_time,
        shared=0 if shared is None else shared.tokens,
        groups=1 if shared is None else shared.groups,
        prefix_hit=workload.prefix_hit or 0.0,
        count=workload.requests or 0,
        context=context,
    )


_ONE = Lengths(shape="fixed", mean=1)  # of a trace, which has lengths of its own


def default_objectives(file: File) -> tuple[str, ...]:
    """What is looked for when the file does not say: latency under a rate, speed against throughput under concurrency."""
    if file.workload.concurrency is not None:
        chosen = ("tokens_per_second_per_device", "tokens_per_second_per_user")
    else:
        chosen = ("ttft_p95", "tpot")
    return (*chosen, "devices") if _how(file) == "at_most" else chosen


def _how(file: File) -> str:
    return "exactly" if file.hardware.pools is None and file.hardware.devices is None else _count(file.hardware)[0]


def baseline(file: File) -> Mapping[str, Any] | None:
    """The plan run today, as codes; the prefill pool's under `prefill.`."""
    if file.baseline is None:
        return None
    given = file.baseline.given()
    device, prefill, decode = (given.pop(key, None) for key in ("device", "prefill", "decode"))
    given |= {} if decode is None else decode.given()
    given |= {} if prefill is None else {f"prefill.{name}": value for name, value in prefill.given().items()}
    return MappingProxyType(given | ({} if device is None else {"device": device.name}))


def resolved(file: File, value: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that a resolved file spells out: devices, stack and formats by the names that the catalogues have."""
    hardware = dict(value["hardware"])
    if file.hardware.pools is None:
        hardware = named_devices(hardware, file.hardware)
    spelled = {
        symbol: [SERVING_NAMES[symbol][int(code)] for code in codes]
        for symbol, codes in (("precision", file.precision), ("kv_precision", file.kv_precision))
    }
    workload = dict(value["workload"])
    if "trace" in workload:
        workload["trace"] = trace_name(workload)
    return {"hardware": hardware, "workload": workload, "stack": file.stack, **spelled}


# --- what no section can see alone ------------------------------------------------------------------------------------------


def faults(file: File) -> Iterable[Fault]:
    """What no section can see alone."""
    yield from _machine_faults(file)
    yield from _length_faults(file)
    yield from _arrival_faults(file.workload)
    yield from _metric_faults(file)
    yield from _plan_faults(file)


def _plan_faults(file: File) -> Iterable[Fault]:
    """What is said of drafts that no plan has, and of shares that something else says."""
    spaces = [] if file.space is None else [file.space, file.space.given().get("decode")]
    drafted = [value for space in spaces if space is not None for value in space.given().get("speculation", ())]
    if file.draft is not None and not any(drafted):
        message = "nothing is drafted unless a plan may: give space: {speculation: [0, 3]}, tokens drafted a step"
        yield Fault(path=("draft",), message=message)
    if file.workload.prefix_hit is not None and (file.workload.sessions or file.workload.shared_prefix):
        message = "sessions and shared prefixes say themselves what is found cached: leave out prefix_hit, or them"
        yield Fault(path=("workload", "prefix_hit"), message=message)


def _machine_faults(file: File) -> Iterable[Fault]:
    hardware = file.hardware
    modes = () if file.space is None else tuple(MODES[int(code)] for code in file.space.given().get("mode", ()))
    if hardware.pools is None:
        for key, example in (("device", "H100"), ("devices", "8")):
            if getattr(hardware, key) is None:
                yield Fault(path=("hardware", key), message=f"is missing; for example {key}: {example} (or give pools)")
        if hardware.device is not None and hardware.devices is not None:
            yield from cluster_faults(hardware)
        if modes == ("disaggregated",) and hardware.devices is not None and hardware.devices[1] < 2:
            message = "a pool for prefill and one for decode take a device each, or more; got 1"
            yield Fault(path=("hardware", "devices"), message=message)
        return
    if hardware.row is not None:
        yield Fault(path=("hardware", "row"), message="a row is of servers that do both phases: leave out pools, or row")
    if hardware.device is not None or hardware.devices is not None:
        yield Fault(path=("hardware", "pools"), message="pools have devices of their own: leave out device and devices")
    if "aggregated" in modes:
        yield Fault(path=("space", "mode"), message="pools on devices of their own are disaggregated, never aggregated")


def _length_faults(file: File) -> Iterable[Fault]:
    """Requests without lengths, with two of them, or longer than the model reads."""
    workload = file.workload
    both = workload.input_tokens is not None and workload.output_tokens is not None
    ways = [both, workload.lengths is not None, workload.trace is not None]
    if sum(ways) != 1 or (not both and (workload.input_tokens or workload.output_tokens)):
        given = "nothing says" if not any(ways) else "several things say"
        message = f"{given} how long requests are: give input_tokens and output_tokens, or lengths, or a trace"
        yield Fault(path=("workload",), message=message)
        return
    context = _context(file)
    if workload.trace is not None and np.min(workload.trace.prompt + workload.trace.output) > context:
        shortest = int(np.min(workload.trace.prompt + workload.trace.output))
        message = f"every request is longer than the context of {context:,} tokens; the shortest has {shortest:,} in and out"
        yield Fault(path=("workload", "trace"), message=message)
    if workload.input_tokens is None or workload.output_tokens is None:
        return
    total = workload.input_tokens.mean + workload.output_tokens.mean
    if workload.input_tokens.spread == workload.output_tokens.spread == 0 and total > context:
        yield Fault(
            path=("workload", "input_tokens"),
            message=f"every request is longer than the context: {total:,.0f} tokens in and out, {context:,} allowed",
        )


def _arrival_faults(workload: Workload) -> Iterable[Fault]:
    """Requests that come in no way, or in two."""
    if workload.request_rate is not None and workload.concurrency is not None:
        yield Fault(path=("workload", "concurrency"), message="requests come at a request_rate or with a concurrency, not both")
    if workload.request_rate is None and workload.concurrency is None and workload.trace is None:
        message = "nothing says when requests come: give request_rate (4 /s), concurrency, or a trace"
        yield Fault(path=("workload",), message=message)
    if workload.burstiness is not None and workload.arrivals != "gamma":
        yield Fault(path=("workload", "burstiness"), message="needs arrivals: gamma")
    if workload.trace is not None and (workload.sessions is not None or workload.shared_prefix is not None):
        yield Fault(path=("workload", "trace"), message="a trace has no sessions and no shared prefixes of its own")


def _metric_faults(file: File) -> Iterable[Fault]:
    named = [(("objectives", i), choice.metric) for i, choice in enumerate(file.objectives or ())]
    named += [(("constraints", i), limit.metric) for i, limit in enumerate(file.constraints)]
    for path, metric in named:
        if metric in NEED_ROW and file.hardware.row is None:
            yield Fault(path=path, message=f"{metric} needs hardware.row, what feeds servers: row: {{power_budget: 250 kW}}")
        if metric in NEED_SLO and (file.slo is None or not file.slo.given()):
            yield Fault(path=path, message=f"{metric} needs slo, what a request must keep: slo: {{ttft: 300 ms, tpot: 10 ms}}")
