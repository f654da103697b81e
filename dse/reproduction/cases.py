"""What a claim may ask of the engine; every question answers with named figures in SI, each with its unit.

A question is a function from its arguments to figures and one line in `CASES`. None has a constant of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from dse.measures import measure

Figures: TypeAlias = dict[str, tuple[float, str]]
"""Value and unit by name; dotted names are parts: `memory.weights`."""


def plan(experiment: Mapping[str, Any], plan: Mapping[str, Any] | None = None) -> Figures:
    """One plan of an experiment: its metrics and their parts; the cost model is the experiment's last."""
    from dse.asking import models_of, plan_codes, point, problem_of
    from dse.experiment import load

    asked = load(experiment)
    problem, columns = problem_of(asked), point(asked, plan_codes(asked, plan or {}))
    return _figures(models_of(asked)[-1].model.evaluate(problem, columns))


def best(experiment: Mapping[str, Any], by: str) -> Figures:
    """The best plan of an experiment by one metric: its metrics and parts, and its numbers as `plan.tensor`, ….

    Raises ValueError where nothing is feasible.
    """
    from dse.experiment import load
    from dse.runner import answer_to

    asked = load({**experiment, "objectives": [by], "search": {"top": 1, "sample": 1}})
    front = answer_to(asked).front
    if not front:
        raise ValueError("no plan of the experiment is feasible")
    found: Figures = {}
    for name, figure in front[0].figures.items():
        unit = measure(name).dimension
        found[name] = (figure.value, unit)
        found |= {f"{name}.{part}": (share, unit) for part, share in front[0].parts.get(name, {}).items()}
    numbers = {name: value for name, value in front[0].plan.items() if isinstance(value, int | float)}
    return found | {f"plan.{name}": (float(value), "") for name, value in numbers.items()}


def _figures(metrics: Any) -> Figures:
    """The metrics of a batch of one, and their parts."""
    found: Figures = {}
    for name, value in metrics.value.items():
        unit = measure(name).dimension
        found[name] = (float(value[0]), unit)
        for part, share in metrics.parts.get(name, {}).items():
            found[f"{name}.{part}"] = (float(share[0]), unit)
    return found


def model(name: str, sequence: int) -> Figures:
    """Counts of a model at a sequence length: parameters, those a token meets, FLOPs a token, cached bytes a token in bf16.

    `forward_flops` has attention over the whole sequence, `forward_flops_causal` over the causal pairs; training is three
    times either.
    """
    from costmodels.block_table import graphs
    from costmodels.constants import find_stack
    from costmodels.flops import convention_flops
    from costmodels.serving.attention import values_per_token
    from costmodels.serving.local import Local
    from costmodels.training import training_problem
    from spaces.architecture import find
    from spaces.columns import Columns

    architecture, stack = find(name), find_stack("megatron")
    problem = training_problem(architecture, "megatron", fixed={"sequence": sequence, "global_batch": 1})
    at = problem.at(Columns(n=1, codes={}, levels={}))
    whole = graphs(architecture, stack.traits)
    flops = convention_flops(whole, stack, at, 1)
    cached = float(values_per_token(architecture, Local(at, 1))) * 2.0 * architecture.layers
    return {
        "parameters": (float(whole.parameters()), ""),
        "forward_flops": (float(flops.full[0]) / sequence, "FLOP"),
        "forward_flops_causal": (float(flops.causal[0]) / sequence, "FLOP"),
        "cached_bytes": (cached, "B"),
    }


def state(parameters: float, ranks: int, zero_stage: int, optimizer: str = "adam-fp16") -> Figures:
    """Bytes of model state on one of the ranks that divide it."""
    from costmodels.model_state import model_state_bytes

    return {"bytes": (float(model_state_bytes(float(parameters), ranks, zero_stage, optimizer=optimizer)), "B")}


def schedule(stages: int, microbatches: int, name: str = "1f1b", virtual: int = 1) -> Figures:
    """A pipeline of equal stages whose microbatch takes a third of a unit forward and two thirds backward on one device.

    `time` in units of one microbatch through the whole model on one device; `bubble` as a share of the time.
    """
    from costmodels.schedule import StageTimes, pipeline_time
    from spaces.plan import NAMES

    each = {f"{way}_{end}": np.array([share / stages]) for end in ("first", "middle", "last")
            for way, share in (("forward", 1 / 3), ("backward", 2 / 3), ("weight", 1 / 3))}  # fmt: skip
    sums = {"forward_sum": np.array([1 / 3]), "backward_sum": np.array([2 / 3]), "send": np.zeros(1)}
    found = pipeline_time(StageTimes(**each, **sums), stages, virtual, microbatches, NAMES["schedule"].index(name))
    return {"time": (float(found.total[0]), ""), "bubble": (float(found.bubble[0] / found.total[0]), "")}


def exchange(collective: str, size: float, ranks: int) -> Figures:
    """Bytes that each rank of a group within one node sends in a collective of `size` bytes."""
    from costmodels.collectives import collective_bytes

    inner, outer = collective_bytes(collective, float(size), ranks, ranks)
    return {"bytes": (float(inner + outer), "B")}


def kernel(operation: str, device: str, **shape: float | str) -> Figures:
    """FLOPs and bytes of one kernel at a shape, counted."""
    from costmodels.kernel_models.operations import traffic_and_work
    from costmodels.kernel_models.symbols import kernel_symbols
    from spaces.hardware import find_device

    shapes = {name: np.array([value]) for name, value in shape.items()}
    work = traffic_and_work(operation, shapes, kernel_symbols(find_device(device)))
    return {"flops": (float(work.flops[0]), "FLOP"), "bytes": (float(work.traffic[0]), "B")}


def attention_buffer(mapping: str, queries: int, keys: int, width: int) -> Figures:
    """Bytes on chip that a mapping of attention needs for a block of queries, and its passes over the keys."""
    from costmodels.machines.cascades import PASSES, buffer_bytes

    return {"bytes": (float(buffer_bytes(mapping, queries, keys, width)), "B"), "passes": (float(PASSES[mapping]), "")}


def switch(size: float, bandwidth: float | None = None, device: str | None = None) -> Figures:
    """Seconds to bring a model of `size` bytes into the memory it runs from, at bytes/s or over a device's host link.

    Raises ValueError where neither or both are given.
    """
    from costmodels.machines.tiers import switch_time
    from spaces.hardware import find_device

    if (bandwidth is None) == (device is None):
        raise ValueError("switch wants a bandwidth in bytes/s, or a device whose host link is used")
    link = find_device(device).host_link_bandwidth if device is not None else bandwidth
    return {"time": (float(switch_time(float(size), link)), "s")}


CASES: Mapping[str, Callable[..., Figures]] = {
    question.__name__: question for question in (plan, best, model, state, schedule, exchange, kernel, attention_buffer, switch)
}
"""Every question by name."""
