"""The training step as a whole: what faster parts, more devices and other plans must do, and a few published figures."""

from __future__ import annotations

import pickle
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_points import OLD, SPARSE, TINY, evaluate, legal_plans, one, plans, problem, step

from costmodels import block_table
from costmodels.block import BlockTime, block_time
from costmodels.constants import Stack
from costmodels.published import Fact, read_facts
from costmodels.training import TrainingModel
from spaces.architecture import find
from spaces.columns import Bindings, Columns
from spaces.graph import Graph
from spaces.plan import Recompute, Schedule

MODELS = {"old": (OLD, "megatron-2022"), "tiny": (TINY, "megatron"), "eager": (TINY, "torchtitan-eager")}
FASTER = (
    "device.matrix_flops.bf16",
    "device.memory_bandwidth",
    "device.scale_up_bandwidth",
    "device.peer_bandwidth",
    "device.nic_bandwidth",
    "device.host_link_bandwidth",
)
"""Rates of which more is never slower."""


@given(legal_plans(), st.sampled_from(["old", "tiny", "eager"]))
def test_a_step_takes_a_positive_finite_time_made_of_its_parts(plan: dict[str, int], name: str) -> None:
    architecture, stack = MODELS[name]
    metrics = evaluate(problem(architecture, stack=stack), plan)
    parts = {part: float(values[0]) for part, values in metrics.parts["step_time"].items()}
    assert 0 < one(metrics, "step_time") < 1e6
    assert sum(parts.values()) == pytest.approx(one(metrics, "step_time"), rel=1e-9)
    assert all(seconds >= -1e-9 * one(metrics, "step_time") for seconds in parts.values()), parts
    assert metrics.low["step_time"][0] <= one(metrics, "step_time") <= metrics.high["step_time"][0]


@given(legal_plans(), st.sampled_from(["old", "tiny"]))
def test_utilisation_is_a_share(plan: dict[str, int], name: str) -> None:
    """Never above the peak of the plan's own format: fp8 plans may pass the 16-bit peak that utilisation refers to."""
    architecture, stack = MODELS[name]
    metrics = evaluate(problem(architecture, stack=stack), {**plan, "precision": 2})
    assert 0 < one(metrics, "mfu_causal") <= one(metrics, "mfu") <= one(metrics, "hfu") <= 1
    assert (one(metrics, "hfu") > one(metrics, "mfu")) == (plan["recompute"] > 1 or (plan["recompute"] == 1 and name == "old"))


@given(legal_plans(), st.sampled_from(["old", "tiny"]))
def test_no_interval_reaches_beyond_the_datasheet(plan: dict[str, int], name: str) -> None:
    """The optimistic end executes no more than the peak: every causal FLOP, and the recomputed ones, in 16 bits."""
    architecture, stack = MODELS[name]
    asked = problem(architecture, stack=stack, device__matrix_flops__bf16=2e14, device__matrix_flops__fp16=2e14)
    metrics = evaluate(asked, {**plan, "precision": 2})
    assert metrics.low["step_time"][0] <= one(metrics, "step_time")
    again = one(metrics, "hfu") / one(metrics, "mfu")
    assert metrics.high["mfu_causal"][0] * again <= max(1.0, one(metrics, "mfu_causal") * again) * (1 + 1e-9)


@settings(max_examples=25)
@given(legal_plans(), st.sampled_from(["old", "tiny", "eager"]), st.floats(1.1, 8.0))
def test_faster_parts_are_never_slower(plan: dict[str, int], name: str, factor: float) -> None:
    architecture, stack = MODELS[name]
    asked = problem(architecture, stack=stack)
    base = np.array([float(asked.scalars[symbol]) for symbol in FASTER])
    rows = len(FASTER) + 1
    values = {symbol: np.full(rows, rate) for symbol, rate in zip(FASTER, base, strict=True)}
    for i, symbol in enumerate(FASTER, start=1):
        values[symbol][i] *= factor
    columns = Columns.from_values(values | {symbol: np.full(rows, value) for symbol, value in plan.items()})
    seconds = TrainingModel().evaluate(asked, columns).value["step_time"]
    assert (seconds[1:] <= seconds[0] * (1 + 1e-9)).all(), dict(zip(FASTER, seconds[1:] / seconds[0], strict=True))


@given(legal_plans())
def test_a_wider_domain_is_never_slower(plan: dict[str, int]) -> None:
    seconds = [step(problem(TINY, device__domain=domain), **plan) for domain in (8, 64)]
    assert seconds[1] <= seconds[0] * (1 + 1e-9)


@given(legal_plans(global_batch=64), st.sampled_from([2, 4]))
def test_a_larger_batch_takes_longer_and_fills_the_pipeline_better(plan: dict[str, int], factor: int) -> None:
    small, large = (evaluate(problem(TINY, global_batch=64 * f), plan) for f in (1, factor))
    assert one(small, "step_time") < one(large, "step_time") <= factor * one(small, "step_time") * (1 + 1e-9)
    assert one(large, "mfu") >= one(small, "mfu") * (1 - 1e-9)


def test_twice_the_replicas_are_faster_but_not_twice_as_fast() -> None:
    seconds = [step(problem(TINY, global_batch=512), data=d, zero_stage=int(d > 1), micro_batch=2) for d in (1, 2, 4, 8, 16)]
    for fewer, more in pairwise(seconds):
        assert fewer / 2 <= more < fewer


@pytest.mark.parametrize("schedule", [Schedule.GPIPE, Schedule.ONE_F_ONE_B, Schedule.ZERO_BUBBLE])
@pytest.mark.parametrize("pipeline", [2, 4, 8])
def test_a_pipeline_of_one_microbatch_gains_nothing(schedule: Schedule, pipeline: int) -> None:
    asked = problem(TINY, global_batch=1)
    alone, piped = evaluate(asked, {}), evaluate(asked, {"pipeline": pipeline, "schedule": schedule})
    late = ("data_parallel_communication", "accumulation", "optimizer", "step_overhead")
    seconds = [one(m, "step_time") - sum(m.parts["step_time"][part][0] for part in late) for m in (alone, piped)]
    # the weight gradients of zero-bubble schedules fill the drain
    assert seconds[1] >= seconds[0] * (0.6 if schedule == Schedule.ZERO_BUBBLE else 1 - 1e-9)


def test_one_stage_has_no_bubble_and_sends_nothing() -> None:
    metrics = evaluate(problem(TINY), {}, {"tensor": 4, "data": 2})
    for part in ("bubble", "pipeline_communication"):
        np.testing.assert_allclose(metrics.parts["step_time"][part], 0, atol=1e-12)


def test_on_one_stage_a_step_is_the_longer_of_all_calls_and_all_kernels() -> None:
    """Whatever the order: the host gets ahead wherever the device is the slower, into the update and the next step."""
    plan = {"micro_batch": 1}

    def seconds(each: float, **sizes: float) -> float:
        fixed = {f"stack__host_per_{name}": 0.0 for name in ("step", "checkpoint", "collective", "unit")}
        return step(problem(TINY, stack="torch-eager", global_batch=1, stack__host_per_operator=each, **fixed, **sizes), **plan)

    issued = seconds(1e-3) / 1e-3  # calls: with such a host nothing else counts
    device = seconds(0.0)
    for each in np.geomspace(1e-7, 1e-3, 30):
        assert seconds(each) == pytest.approx(max(device, issued * each), rel=1e-6)


def test_interleaving_shrinks_the_bubble_and_sends_more() -> None:
    asked = problem(TINY, global_batch=16)
    plain, chunked = (evaluate(asked, {"pipeline": 4, "virtual": v}) for v in (1, 2))
    assert chunked.parts["step_time"]["bubble"][0] < plain.parts["step_time"]["bubble"][0]
    assert chunked.parts["step_time"]["pipeline_communication"][0] > plain.parts["step_time"]["pipeline_communication"][0]


def test_zero_bubble_is_no_slower_than_1f1b_and_gpipe_no_faster() -> None:
    asked = problem(OLD, stack="megatron-2022", global_batch=16)
    order = [Schedule.ZERO_BUBBLE, Schedule.ONE_F_ONE_B, Schedule.GPIPE]
    seconds = evaluate(asked, *({"pipeline": 4, "schedule": s} for s in order)).value["step_time"]
    assert (np.diff(seconds) >= -1e-9 * seconds[0]).all()


@given(legal_plans())
def test_recomputation_trades_time_for_memory(plan: dict[str, int]) -> None:
    rows = [{**plan, "recompute": int(r), "recompute_layers": 0} for r in (Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL)]
    metrics = evaluate(problem(OLD, stack="megatron-2022"), *rows)
    time, memory = metrics.value["step_time"], metrics.value["peak_memory"]
    assert time[0] <= time[1] * (1 + 1e-9) <= time[2] * (1 + 1e-9)
    assert memory[0] >= memory[1] * (1 - 1e-9) >= memory[2] * (1 - 1e-9)
    assert time[2] < 1.6 * time[0]


def test_adapters_train_faster_in_less_memory() -> None:
    full, adapters = (evaluate(problem("llama-3.1-8b"), {"trainable": t, "data": 8, "zero_stage": 1}) for t in (0, 1))
    assert one(adapters, "step_time") < one(full, "step_time")
    assert one(adapters, "peak_memory") < one(full, "peak_memory")


def test_spreading_experts_saves_memory_and_costs_exchanges() -> None:
    metrics = evaluate(problem(SPARSE), *({"data": 8, "expert": e} for e in (1, 2, 4, 8)))
    assert (np.diff(metrics.parts["memory"]["weights"]) < 0).all()
    exchanges = metrics.parts["step_time"]["expert_communication"]
    assert exchanges[0] == 0
    assert (np.diff(exchanges) > 0).all()


def test_offloading_saves_memory_and_costs_time() -> None:
    here, there = (evaluate(problem("llama-3.1-8b"), {"data": 8, "zero_stage": 1, "offload": o}) for o in (0, 1))
    assert one(there, "peak_memory") < one(here, "peak_memory")
    assert one(there, "step_time") > one(here, "step_time")


def test_a_run_takes_its_tokens_over_its_rate() -> None:
    metrics = evaluate(problem(TINY, workload__tokens=1e12), {"data": 8})
    days = 1e12 / one(metrics, "tokens_per_second") / 86_400
    assert any(value[0] == pytest.approx(days) for value in metrics.value.values())


# ---- published figures --------------------------------------------------------------------------------------------------


def published_plan(fact: Fact) -> dict[str, int]:
    cells = fact.inputs
    recompute, _, parallel = cells["recompute"].partition("+")
    chunks = int(cells["vpp"] or 1)
    return {
        "tensor": int(cells["tp"]), "pipeline": int(cells["pp"]), "data": int(cells["dp"]), "virtual": chunks,
        "micro_batch": int(cells["micro_batch"]), "sequence_parallel": int(parallel == "sp"),
        "recompute": {"none": Recompute.NONE, "selective": Recompute.SELECTIVE, "full": Recompute.FULL}[recompute],
        "schedule": Schedule.INTERLEAVED if chunks > 1 else Schedule.ONE_F_ONE_B,
    }  # fmt: skip


PAPERS = [
    fact
    for fact in read_facts()
    if fact.metric == "step_time" and fact.usable and fact.id.startswith(("kort22-t5", "mlm21-t1-"))
    and fact.inputs["model"] in ("gpt-22B", "gpt-175B", "gpt-530B", "gpt-1T", "gpt-18.4B", "gpt-39.1B", "gpt-145.6B")
]  # fmt: skip


def test_the_papers_have_figures() -> None:
    assert len(PAPERS) >= 8


@pytest.mark.parametrize("fact", PAPERS, ids=lambda fact: fact.id)
def test_published_steps_are_met_within_ten_percent(fact: Fact) -> None:
    """Narayanan 2021 table 1 and Korthikanti 2022 table 5: A100 with 80 GB, eight to a node."""
    cells = fact.inputs
    asked = problem(
        find(cells["model"]),
        stack="megatron-2022",
        device="A100-80GB-SXM",
        sequence=int(cells["seq"]),
        global_batch=int(cells["global_batch"]),
    )
    assert step(asked, **published_plan(fact)) == pytest.approx(fact.value, rel=0.10)


def test_a_model_that_has_been_asked_before_answers_the_same() -> None:
    """Blocks are remembered by the values they depend on: of one problem, whatever columns ask, and never of another."""
    first = plans({"tensor": 2, "micro_batch": 2}, {"tensor": 4}, {"tensor": 2, "micro_batch": 2, "recompute": 2})
    asked, other = problem(TINY), problem(TINY, sequence=4096)
    model = TrainingModel()
    model.bound(asked, first)
    for job in (asked, other, asked):
        for points in (first, plans({"tensor": 8}, {"tensor": 4}), first.take(slice(0, 0)), first.take(slice(1, 2))):
            fresh, again = TrainingModel().evaluate(job, points), model.evaluate(job, points)
            for name, value in fresh.value.items():
                assert np.array_equal(value, again.value[name]), name
    assert pickle.loads(pickle.dumps(model)) == model


@pytest.mark.parametrize("together", [True, False])
def test_blocks_of_what_was_bounded_are_timed_together(together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for all of them; or where one of them is at fault, by themselves as they are asked for."""
    asked, points = problem(TINY), plans({"tensor": 2}, {"tensor": 4}, {"tensor": 8})
    calls: list[int] = []

    def counted(graph: Graph, stack: Stack, at: Bindings, n: int, **how: Any) -> BlockTime:
        calls.append(n)
        if n > 1 and not together:
            raise ArithmeticError
        return block_time(graph, stack, at, n, **how)

    monkeypatch.setattr(block_table, "block_time", counted)
    model = TrainingModel()
    model.bound(asked, points)
    steps = [model.evaluate(asked, points.take(slice(row, row + 1))).value["step_time"][0] for row in range(points.n)]
    assert set(calls) == ({3} if together else {3, 1})
    assert steps == [step(asked, **plan) for plan in ({"tensor": 2}, {"tensor": 4}, {"tensor": 8})]
