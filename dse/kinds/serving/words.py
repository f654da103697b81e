"""A serving job and its plans in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from costmodels.serving.stack import find_serving_stack
from dse.kinds.serving.job import ServingJob
from dse.kinds.serving.plans import SYMBOLS
from spaces.problem import Problem
from spaces.serving_plan import SERVING_NAMES
from spaces.serving_space import MODES, PREFILL
from spaces.traffic import Pairs, Traffic

if TYPE_CHECKING:
    from dse.answers import PlanAnswer

_SPELLING: Mapping[str, str] = {
    "tensor": "tp{}",
    "pipeline": "pp{}",
    "data": "×{}",
    "attention_data": "adp{}",
    "expert": "ep{}",
    "expert_tensor": "etp{}",
    "max_batch": "batch{}",
    "token_budget": "budget{}",
    "kv_fraction": "kv{}",
    "kv_precision": "kv-{}",
    "cuda_graphs": "eager",
    "speculation": "draft{}",
    "expert_offload": "experts-on-host",
    "weight_offload": "weights-on-host{}",
    "kv_offload": "kv-on-host{}",
    "preemption": "preempt-{}",
    "domain": "domain{}",
}
_RESTING: Mapping[str, Any] = {
    "pipeline": 1,
    "attention_data": 1,
    "expert": 1,
    "expert_tensor": 1,
    "data": 1,
    "kv_precision": "bf16",
    "cuda_graphs": 1,
    "speculation": 0,
    "expert_offload": 0,
    "weight_offload": 0,
    "kv_offload": 0,
    "preemption": "recompute",
    "kv_fraction": 0.9,
}
_HIDDEN = frozenset({"devices", "device", "mode"})


def spelled(problem: Problem, point: Mapping[str, Any]) -> dict[str, Any]:
    """A design point by name, in reading order; the prefill pool's choices only where there is one."""
    bound = {**problem.scalars, **point}
    apart = int(bound.get("mode", 0)) == 1
    named: dict[str, Any] = {}
    kinds = ("device", PREFILL + "device")  # told apart where they differ, also where neither was a choice
    if "device.domain" in point:
        named["domain"] = int(point["device.domain"])
    for symbol in ("device", PREFILL + "device", *SYMBOLS):
        if symbol not in bound or (symbol.startswith(PREFILL) and not apart):
            continue
        if symbol.startswith(PREFILL) and symbol not in point and (symbol != kinds[1] or bound[kinds[0]] == bound[kinds[1]]):
            continue
        value = bound[symbol]
        if symbol in problem.labels:
            value = problem.label(symbol, value)
        elif symbol in SERVING_NAMES:
            value = SERVING_NAMES[symbol][int(value)]
        named[symbol] = int(value) if isinstance(value, float) and value == int(value) else value
    return named


def plan_text(plan: Mapping[str, Any]) -> str:
    """A plan in one line: `tp4 ×8 batch64 budget2048 fp8`, or `prefill tp2 ×4 budget8192 | decode tp8 ×3 batch128`."""
    own = {symbol: value for symbol, value in plan.items() if not symbol.startswith(PREFILL) and symbol not in _HIDDEN}
    if plan.get("mode") != MODES[1]:
        return _pool(own)
    both = {symbol.removeprefix(PREFILL): value for symbol, value in plan.items() if symbol.startswith(PREFILL)}
    prefill = {symbol: value for symbol, value in both.items() if symbol not in _HIDDEN}
    decode = {symbol: value for symbol, value in own.items() if symbol != "token_budget"}
    named = PREFILL + "device" in plan
    kinds = [f"{plan[symbol]} " if named and symbol in plan else "" for symbol in (PREFILL + "device", "device")]
    return f"prefill {kinds[0]}{_pool(prefill)} | decode {kinds[1]}{_pool(decode)}"


def _pool(plan: Mapping[str, Any]) -> str:
    resting = dict(_RESTING)
    if plan.get("expert_tensor") == plan.get("tensor", 1) * plan.get("attention_data", 1):
        resting["expert_tensor"] = plan.get("expert_tensor")
    order = ("domain", "tensor", "pipeline", "attention_data", "expert", "expert_tensor", "data")
    symbols = (*(s for s in order if s in plan), *(s for s in plan if s not in order))
    return " ".join(_SPELLING.get(s, "{}").format(plan[s]) for s in symbols if s not in resting or plan[s] != resting[s])


def title(job: ServingJob) -> str:
    """The question in one line."""
    if job.pools is None:
        devices = " or ".join(device.name for device in job.devices)
        count = f"{job.count:,}" if job.at_most is None else f"at most {job.count:,}"
        machines = f"{count} × {devices}"
    else:
        machines = " + ".join(
            f"{'at most ' if pool.at_most else ''}{pool.count:,} × {' or '.join(d.name for d in pool.devices)} for {name}"
            for name, pool in zip(("prefill", "decode"), job.pools, strict=True)
        )
    return f"{job.architecture.name} served on {machines}; {described(job.traffic)}; {job.stack}"


def described(traffic: Traffic) -> str:
    """The requests in one line."""
    prompt, answer = traffic.means
    if traffic.trace is not None:
        long = f" ({traffic.too_long:,} of them longer than the context: refused)" if traffic.too_long else ""
        many = "1 request" if len(traffic.trace) == 1 else f"{len(traffic.trace):,} requests"
        lengths = f"a trace of {many}{long}, {prompt:,.0f} tokens in and {answer:,.0f} out on average"
    elif isinstance(traffic.lengths, Pairs):
        lengths = f"lengths of {traffic.lengths.name}, {prompt:,.0f} tokens in and {answer:,.0f} out on average"
    else:
        lengths = f"{prompt:,.0f} tokens in, {answer:,.0f} out"
    if traffic.turns > 1:
        lengths += f", sessions of {traffic.turns} turns"
    if traffic.concurrency:
        return f"{lengths}, {traffic.concurrency:,} at once"
    rate = traffic.mean_rate
    return f"{lengths}, {rate:,.4g} request{'' if rate == 1 else 's'}/s" if rate else f"{lengths}, all at once"


def rate_text(answer: PlanAnswer, excess: float) -> str:
    """By how much a plan carries too few requests a second, and what it is full of then."""
    carried = answer.figures["highest_rate"].value
    said = f"rate: {carried * (1 + excess):,.4g} requests/s asked, {carried:,.4g} carried at most"
    running = answer.figures["running_requests"].value
    full = "cache" if answer.figures["kv_headroom"].value < _FULL else "batch, or the token budget of its steps,"
    parts = answer.parts.get("tpot", {})
    most = max(parts, key=lambda name: parts[name], default="")
    share = parts[most] / answer.figures["tpot"].value if most else 0.0
    spent = f", and the time per token goes to {most.replace('_', ' ')} ({100 * share:.0f} %)" if most else ""
    return f"{said}: its {full} is full with {running:,.0f} requests{spent}"


_FULL = 0.1
"""Share of a cache left free below which it counts as full: answers grow into the rest."""


def context_text(answer: PlanAnswer, excess: float) -> str:
    """How much longer than the model's context the mean request is."""
    del answer
    return f"context: the mean request is {100 * excess:.0f} % longer than the model's"


def assumptions(job: ServingJob) -> tuple[str, ...]:
    """What the figures take for granted, in words."""
    said = [
        "TTFT counts the wait in the queue; TPOT is the mean time per output token after the first; percentiles over requests.",
        "Times of the front are simulated iteration by iteration; means of plans that were only screened are in closed form.",
        "Device memory is what weights, cache, graphs and the largest step take together; it must fit what the driver reports.",
        f"Constants are those of the stack {job.stack}: {find_serving_stack(job.stack).source}.",
    ]
    if 1 in job.modes:
        link = "the devices' own NICs" if job.link is None else f"a link of {job.link / 1e9:g} GB/s a device"
        said.append(f"Disaggregated pools are joined by rate; every prompt's cache crosses {link}.")
    for device in dict.fromkeys((*job.devices, *(job.pools[0].devices if job.pools else ()))):
        low, high = device.price_range
        price = f"{device.price_per_hour:.2f} USD a device-hour (offers {low:.2f}–{high:.2f})"
        said.append(f"{device.name}: {price}; {device.source}.")
        if device.estimated:
            said.append(f"{device.name}: no source states {', '.join(device.estimated)}; estimated.")
    if job.traffic.too_long:
        many = f"{job.traffic.too_long:,} of the trace's {len(job.traffic.trace or ()):,} requests"
        said.append(f"{many} are longer than the context of {job.context:,} tokens: they are refused, and outside the SLO.")
    restricted = ", ".join(axis for axis in job.options if axis not in SERVING_NAMES)
    if restricted:
        said.append(f"The experiment restricts {restricted}; every other axis holds every legal value.")
    return tuple(said)
