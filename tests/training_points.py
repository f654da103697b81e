"""Training problems and plans in one line, for tests: what is not said takes the plan's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import strategies as st

from costmodels.constants import device_symbols
from costmodels.metrics import Metrics
from costmodels.training import TrainingModel, training_problem
from spaces.architecture import Architecture, find
from spaces.columns import Columns
from spaces.hardware import Device, find_device
from spaces.plan import DEFAULTS, PLAN_SYMBOLS, Schedule
from spaces.problem import Problem

TINY = Architecture(
    name="tiny", layers=8, hidden=1024, heads=16, kv_heads=4, head_dim=64, ffn=4096, vocab=32_000, max_sequence=4096
)
"""A Llama of eight layers."""
SPARSE = replace(TINY, name="sparse", experts=16, experts_per_token=2, moe_ffn=2048, dense_layers=2)
"""The same with experts in its last six layers."""
OLD = Architecture(
    name="old", layers=8, hidden=1024, heads=16, kv_heads=16, head_dim=64, ffn=4096, vocab=51_200, max_sequence=2048,
    gated=False, activation="gelu", norm="layernorm", positions="learned", max_positions=2048, tied_embeddings=True,
    biases=frozenset({"qkv", "attention_output", "mlp", "norm"}),
)  # fmt: skip
"""A GPT of eight layers."""


def problem(
    model: str | Architecture = TINY,
    *,
    stack: str = "megatron",
    device: str | Device = "H100",
    optimizer: str | None = None,
    without: frozenset[str] = frozenset(),
    **fixed: float,
) -> Problem:
    """A training problem; `fixed` names symbols with `__` for the dot, `without` leaves symbols for columns to bind."""
    architecture = find(model) if isinstance(model, str) else model
    chosen = find_device(device) if isinstance(device, str) else device
    bound = {"sequence": 2048, "global_batch": 64} | {name.replace("__", "."): value for name, value in fixed.items()}
    made = training_problem(architecture, stack, chosen, bound, optimizer)
    return replace(made, scalars={name: value for name, value in made.scalars.items() if name not in without})


def whole(**given: int) -> dict[str, int]:
    """Every symbol of one plan; devices follow from the degrees, and all data · context ranks shard."""
    chosen = {**DEFAULTS, "data": 1, **given}
    chosen.setdefault("devices", chosen["tensor"] * chosen["context"] * chosen["pipeline"] * chosen["data"])
    chosen.setdefault("shard_degree", chosen["data"] * chosen["context"] if chosen["zero_stage"] else 1)
    if chosen["virtual"] > 1:
        chosen["schedule"] = given.get("schedule", Schedule.INTERLEAVED)
    return {name: int(value) for name, value in chosen.items()}


def plans(*rows: Mapping[str, int]) -> Columns:
    """Plans as columns, each completed by `whole`."""
    full = [whole(**row) for row in rows]
    return Columns.from_values({name: np.array([row[name] for row in full], np.int64) for name in full[0]})


def evaluate(asked: Problem, *rows: Mapping[str, int]) -> Metrics:
    """All metrics of some plans."""
    return TrainingModel().evaluate(asked, plans(*rows))


def step(asked: Problem, **plan: int) -> float:
    """Seconds of a step of one plan."""
    return float(evaluate(asked, plan).value["step_time"][0])


def one(metrics: Metrics, name: str) -> float:
    """A metric of the first plan."""
    return float(metrics.value[name][0])


def device_values(names: list[str], stack: str, codes: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Every symbol of some devices as plain arrays, one value per code."""
    figures = [device_symbols(find_device(name), stack) for name in names]
    return {symbol: np.array([figure[symbol] for figure in figures])[codes] for symbol in figures[0]}


@st.composite
def legal_plans(draw: st.DrawFn, *, layers: int = 8, global_batch: int = 64, experts: int = 0) -> dict[str, int]:
    """A legal plan of a model of 8 layers and 16 heads on at most 64 devices."""
    power = st.sampled_from([1, 2, 4])
    tensor, context, pipeline, data = draw(power), draw(st.sampled_from([1, 2])), draw(power), draw(power)
    chunks = draw(st.sampled_from([1, 2])) if pipeline > 1 and layers % (2 * pipeline) == 0 else 1
    micro = draw(power)
    count = global_batch // (data * micro)
    chunks = chunks if count % pipeline == 0 else 1
    single = [Schedule.GPIPE, Schedule.ONE_F_ONE_B, Schedule.ZERO_BUBBLE]
    schedule = Schedule.INTERLEAVED if chunks > 1 else draw(st.sampled_from(single)) if pipeline > 1 else Schedule.ONE_F_ONE_B
    ranks = tensor * context * data
    zero = draw(st.integers(0, 3)) if data * context > 1 else 0
    recompute = draw(st.integers(0, 3))
    per_stage = layers // pipeline
    if recompute == 3 and per_stage < 2:
        recompute = 2
    plan = {
        "tensor": tensor, "context": context, "pipeline": pipeline, "data": data, "virtual": chunks, "micro_batch": micro,
        "schedule": int(schedule), "zero_stage": zero, "recompute": recompute,
        "recompute_layers": per_stage // 2 if recompute == 3 else 0,
        "sequence_parallel": draw(st.integers(0, 1)) if tensor > 1 and not experts else int(tensor > 1),
        "expert": draw(st.sampled_from([e for e in (1, 2, 4, 8) if ranks % e == 0])) if experts else 1,
        "offload": draw(st.integers(0, 1)), "rank_order": draw(st.integers(0, 1)) if pipeline > 1 and data > 1 else 0,
        "precision": draw(st.sampled_from([2, 3])),
    }  # fmt: skip
    return whole(**plan)


assert set(PLAN_SYMBOLS) == set(whole()), "a plan binds every symbol"
