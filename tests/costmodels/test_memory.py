"""Peak memory of a step: parts, stages, sharding and recomputation, by relations and by the papers' counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_points import OLD, SPARSE, TINY, evaluate, legal_plans, one, problem

from costmodels.memory import PARTS
from costmodels.published import GIB, Fact, read_facts
from spaces.architecture import Architecture, find
from spaces.plan import Recompute, Schedule
from spaces.problem import Problem

FIGURE_1 = [f for f in read_facts() if f.metric == "activation_memory" and f.id.startswith("kort22-f1")]


def part(asked: Problem, name: str, **plan: int) -> float:
    return float(evaluate(asked, plan).parts["memory"][name][0])


@given(legal_plans())
def test_parts_are_not_negative_and_sum_to_what_must_fit(plan: dict[str, int]) -> None:
    metrics = evaluate(problem(TINY), plan)
    parts = metrics.parts["memory"]
    assert set(parts) == {*PARTS, "reserve"}
    assert all(values[0] >= 0 for values in parts.values())
    assert sum(values[0] for values in parts.values()) == pytest.approx(one(metrics, "memory"), rel=1e-9)
    assert one(metrics, "memory") > one(metrics, "peak_memory") > 0


@given(legal_plans(experts=16))
def test_sharding_more_never_needs_more_memory(plan: dict[str, int]) -> None:
    """ZeRO 0 to 3, apart from the units that stage 3 gathers whole."""
    stages = [{**plan, "zero_stage": zero, "shard_degree": plan["data"] * plan["context"]} for zero in range(4)]
    metrics = evaluate(problem(SPARSE), *stages)
    peak = metrics.value["peak_memory"] - metrics.parts["memory"]["gathered"]
    assert (np.diff(peak) <= 1e-9 * peak[0]).all()


@given(legal_plans())
def test_recomputing_more_keeps_less(plan: dict[str, int]) -> None:
    policies = [Recompute.NONE, Recompute.SELECTIVE, Recompute.FULL]
    rows = [{**plan, "recompute": int(policy), "recompute_layers": 0} for policy in policies]
    peak = evaluate(problem(OLD, stack="megatron-2022"), *rows).value["peak_memory"]
    assert peak[2] <= peak[0] * (1 + 1e-9)
    assert peak[1] <= peak[0] * (1 + 1e-9)


@given(st.integers(0, 4))
def test_first_k_lies_between_none_and_full(k: int) -> None:
    rows = [
        {"pipeline": 2, "recompute": Recompute.NONE},
        {"pipeline": 2, "recompute": Recompute.FIRST_K, "recompute_layers": k},
        {"pipeline": 2, "recompute": Recompute.FULL},
    ]
    none, some, full = evaluate(problem(TINY), *rows).value["step_time"]
    assert none * (1 - 1e-12) <= some <= full * (1 + 1e-12)


def test_a_split_model_has_its_share_of_weights_and_moments() -> None:
    asked = problem(TINY)
    whole = part(asked, "weights") + part(asked, "optimizer")
    for plan in ({"tensor": 4}, {"tensor": 4, "context": 2}, {"tensor": 2, "data": 4}):
        split = part(asked, "weights", **plan) + part(asked, "optimizer", **plan)
        assert split == pytest.approx(whole / plan["tensor"], rel=0.01)


def test_the_last_stage_of_tied_embeddings_holds_the_table_again() -> None:
    """Input and output tables are one parameter on one stage, a copy each on two (Shoeybi 2019 §3)."""
    two = problem(OLD, stack="megatron-2022")
    table = OLD.vocab * OLD.hidden
    layers = [part(two, "weights", pipeline=p) / 2 for p in (1, 2)]
    assert layers[1] == pytest.approx((layers[0] - table) / 2 + table, rel=0.02)


def test_a_shared_table_has_two_gradients_and_their_sum_when_the_pass_ends() -> None:
    """With few tokens that is the peak; apart, embedding and head have a gradient each."""
    shared = replace(TINY, tied_embeddings=True)

    def beside(model: Architecture) -> float:
        asked = problem(model, stack="torch-eager", sequence=64, global_batch=1)
        return one(evaluate(asked, {}), "peak_memory") - part(asked, "weights") - part(asked, "optimizer")

    assert beside(shared) - beside(TINY) == pytest.approx(2.0 * TINY.vocab * TINY.hidden, rel=0.05)


def test_gpipe_holds_every_microbatch_and_1f1b_one_a_stage() -> None:
    plan = {"pipeline": 4, "micro_batch": 1}
    few, many = (evaluate(problem(OLD, global_batch=b), {**plan, "schedule": Schedule.GPIPE}, plan) for b in (16, 64))
    grown = many.parts["memory"]["activations"] / few.parts["memory"]["activations"]
    assert grown[0] == pytest.approx(4.0, rel=0.1)
    assert grown[1] == pytest.approx(1.0)


def test_interleaving_holds_more_by_korthikantis_factor() -> None:
    """1 + (p − 1)/(p·v) of the first stage's activations (Korthikanti 2022 §4.2.3)."""
    plan = {"pipeline": 4, "micro_batch": 1}
    asked = problem(OLD.with_dimensions(vocab=512), global_batch=64)  # so that the first stage is the fullest
    plain, chunked = (part(asked, "activations", **plan, virtual=v) for v in (1, 2))
    assert chunked / plain == pytest.approx(1 + 3 / (4 * 2), rel=0.02)


@pytest.mark.parametrize("fact", FIGURE_1, ids=lambda fact: fact.id)
def test_activations_of_korthikanti_figure_1(fact: Fact) -> None:
    """Activations of the first stage, kept by the layers: within 2 % of the figure (norm statistics are left out there)."""
    cells = fact.inputs
    parallel = cells["recompute"].endswith("+sp")
    plan = {
        "tensor": int(cells["tp"]), "pipeline": int(cells["pp"]), "virtual": int(cells["vpp"]),
        "micro_batch": int(cells["micro_batch"]), "sequence_parallel": int(parallel),
        "recompute": Recompute.SELECTIVE if cells["recompute"].startswith("selective") else Recompute.NONE,
        "schedule": Schedule.INTERLEAVED if int(cells["vpp"]) > 1 else Schedule.ONE_F_ONE_B,
    }  # fmt: skip
    model, batch = find(cells["model"]), int(cells["global_batch"])
    asked = problem(model, stack="megatron-2022", device="A100-80GB-SXM", global_batch=batch)
    held = part(asked, "activations", **plan)
    assert held / GIB == pytest.approx(fact.value, rel=0.03)


def test_logits_of_a_large_vocabulary_weigh_what_they_weigh() -> None:
    """Twice fp32 logits of 8,192 tokens by 128,256 words: 8.4 GB of the last stage, split by vocabulary-parallel ranks."""
    asked = problem("llama-3.1-8b", sequence=8192, optimizer="adamw-bf16")
    logits = [part(asked, "logits", tensor=t, data=1, zero_stage=0, recompute=Recompute.FULL) for t in (1, 2)]
    assert logits[0] == pytest.approx(2 * 4 * 8192 * 128_256)
    assert logits[1] == pytest.approx(logits[0] / 2)


def test_offloaded_moments_are_not_on_the_device() -> None:
    asked = problem(TINY)
    assert part(asked, "optimizer", offload=1) == 0
    assert part(asked, "optimizer") > 0


def test_a_context_rank_keeps_its_share_of_the_sequence() -> None:
    asked = problem(TINY, sequence=16_384)
    alone, split = (part(asked, "activations", context=c) for c in (1, 4))
    assert split == pytest.approx(alone / 4, rel=1e-9)


def test_a_pipeline_keeps_gathered_parameters_and_whole_gradients_where_its_stack_does() -> None:
    """2 bytes of parameters and 4 of gradients for every parameter of a stage, and one gather and reduction a step."""
    stack = "torchtitan-compile"
    plan = {"zero_stage": 3, "data": 8, "pipeline": 2, "recompute": 2}
    keeps, lets_go = (
        evaluate(problem(TINY, stack=stack, stack__memory__pipeline_keeps=kept, global_batch=64), plan) for kept in (1.0, 0.0)
    )
    stage = problem(TINY, stack=stack).scalars["parameters"] / 2
    more = keeps.value["peak_memory"][0] - lets_go.value["peak_memory"][0]
    assert 4 * stage < more < 7 * stage
    parts = [float(found.parts["step_time"]["data_parallel_communication"][0]) for found in (keeps, lets_go)]
    assert parts[0] < 0.5 * parts[1]
    alone = {**plan, "pipeline": 1, "data": 16}
    one, other = (
        evaluate(problem(TINY, stack=stack, stack__memory__pipeline_keeps=kept, global_batch=64), alone) for kept in (1.0, 0.0)
    )
    assert one.value["peak_memory"][0] == other.value["peak_memory"][0]
    assert one.value["step_time"][0] == other.value["step_time"][0]
