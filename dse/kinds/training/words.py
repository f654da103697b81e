"""A training job and its plans in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dse.kinds.training.job import TrainingJob
from spaces.plan import PLAN_SYMBOLS, spell
from spaces.problem import Problem

_RESTING: Mapping[str, Any] = {
    "context": 1,
    "expert": 1,
    "expert_tensor": 1,
    "virtual": 1,
    "sequence_parallel": 0,
    "stage_layout": "even",
    "recompute": "none",
    "recompute_layers": 0,
    "offload": "none",
    "rank_order": "tensor-context-data-pipeline",
    "trainable": "all",
}
_SPELLING: Mapping[str, str] = {
    "tensor": "tp{}",
    "context": "cp{}",
    "pipeline": "pp{}",
    "data": "dp{}",
    "expert": "ep{}",
    "expert_tensor": "etp{}",
    "virtual": "vpp{}",
    "micro_batch": "micro{}",
    "zero_stage": "zero{}",
    "shard_degree": "shard{}",
    "sequence_parallel": "sp",
    "recompute": "recompute-{}",
    "recompute_layers": "k{}",
    "offload": "offload-{}",
    "domain": "domain{}",
}


def plan_text(plan: Mapping[str, Any]) -> str:
    """A plan in one line: `tp8 pp4 dp2 interleaved micro1 zero1 recompute-full bf16`, resting choices left out."""
    hidden = {"devices", "device"}
    if plan.get("pipeline") == 1:
        hidden.add("schedule")
    if plan.get("shard_degree") in (0, 1, plan.get("data", 1) * plan.get("context", 1)):
        hidden.add("shard_degree")
    shown = ((symbol, value) for symbol, value in plan.items() if symbol not in hidden)
    return " ".join(_SPELLING.get(s, "{}").format(v) for s, v in shown if s not in _RESTING or v != _RESTING[s])


def spelled(problem: Problem, point: Mapping[str, Any]) -> dict[str, Any]:
    """A design point by name, in reading order: device, devices, then the plan's choices."""
    bound = {**problem.scalars, **point}
    named: dict[str, Any] = {}
    if "device.domain" in point:
        named["domain"] = int(point["device.domain"])
    for symbol in ("device", *PLAN_SYMBOLS):
        if symbol in bound:
            value = problem.label(symbol, bound[symbol]) if symbol in problem.labels else spell(symbol, bound[symbol])
            named[symbol] = int(value) if isinstance(value, float) and value == int(value) else value
    return named


def title(job: TrainingJob) -> str:
    """The question in one line."""
    devices = " or ".join(device.name for device in job.devices)
    count = f"{job.count:,}" if job.at_most is None else f"at most {job.count:,}"
    return (
        f"{job.architecture.name} on {count} × {devices}; sequences of {job.sequence:,}, "
        f"global batch {job.global_batch:,}; {job.stack}"
    )


def assumptions(job: TrainingJob) -> tuple[str, ...]:
    """What the figures take for granted, in words."""
    said = [
        f"The global batch is {job.global_batch:,} sequences in every plan; it is never changed.",
        "MFU counts three times the forward matrix FLOPs over the full sequence, head included, recomputation excluded; "
        "times use executed FLOPs.",
        "Device memory adds fragmentation, context and communication buffers to the allocator's peak; it must fit what the "
        "driver reports, not the nameplate.",
        f"Constants are those of the stack {job.stack}; peaks are dense.",
    ]
    for device in job.devices:
        low, high = device.price_range
        price = f"{device.price_per_hour:.2f} USD a device-hour (offers {low:.2f}–{high:.2f})"
        said.append(f"{device.name}: {price}; {device.source}.")
        if device.estimated:
            said.append(f"{device.name}: no source states {', '.join(device.estimated)}; estimated.")
    if job.purchase is not None:
        prices = ", ".join(
            f"{device.name} {price:,.0f} USD" for device, price in zip(job.devices, job.purchase.device_prices, strict=True)
        )
        said.append(
            f"Bought for {job.purchase.years:g} years: {prices}; hosts, network, depreciation, interest, site and energy as "
            "metered, as in docs/hardware.md. The training price is that of renting by the hour."
        )
    restricted = ", ".join(job.options)
    if restricted:
        said.append(f"The experiment restricts {restricted}; every other axis holds every legal value.")
    return tuple(said)
