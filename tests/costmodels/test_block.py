"""Kernels and exchanges of one block: FLOPs, traffic and bytes against counts by hand, times against their rooflines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_points import OLD, SPARSE, TINY, plans, problem, whole

from costmodels.block import FAMILIES, BlockTime, block_time
from costmodels.block_kernels import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, kernels
from costmodels.block_memory import block_memory
from costmodels.block_table import Known, graphs
from costmodels.constants import find_stack, stack_names
from spaces.architecture import Architecture
from spaces.blocks import placement
from spaces.columns import Columns
from spaces.graph import MATRIX_KINDS, Kind
from spaces.plan import Schedule


class Local(dict[str, Any]):
    """Symbols of a plan with those that follow from its placement."""


def local(architecture: Architecture, stack: str, **plan: int) -> Local:
    at = Local(problem(architecture, stack=stack).scalars) | whole(**plan)
    at |= {"stream_shards": at["tensor"] if at["sequence_parallel"] else 1, "activation_bytes": 2.0}
    return Local(at | {name: at[f"stack.{name}"] for name in ("dispatch_bytes", "logits_bytes")})


def timed(
    architecture: Architecture, stack: str, kind: str = "dense", fixed: Mapping[str, float] | None = None, **plan: int
) -> BlockTime:
    graph = graphs(architecture, find_stack(stack).traits).layers[kind]
    at = {**problem(architecture, stack=stack).scalars, **whole(**plan), **(fixed or {})}
    return block_time(graph, find_stack(stack), at, 1, sequence_parallel=bool(plan.get("sequence_parallel")))


@pytest.mark.parametrize(("architecture", "stack"), [(OLD, "megatron-2022"), (TINY, "megatron"), (SPARSE, "megatron")])
def test_products_execute_twice_their_weights_forward_and_four_times_backward(architecture: Architecture, stack: str) -> None:
    """2·N·tokens forward; each gradient as much again (k of E experts of a sparse layer)."""
    at = local(architecture, stack)
    where = placement(sequence_parallel=False, vocab_parallel=True)
    model = graphs(architecture, find_stack(stack).traits)
    for graph in (*model.layers.values(), model.head):
        owned = 0.0
        for op in graph.operators:
            if op.kind in MATRIX_KINDS:
                matrices = [dims for dims in op.weights if set(op.contracted) <= set(dims)] or [("hidden", "vocab")]
                share = architecture.experts_per_token / architecture.experts if op.kind is Kind.GROUPED_GEMM else 1.0
                owned += share * sum(graph.elements(dims, where).evaluate(at) for dims in matrices)
        made = list(kernels(graph, where, at))
        for phase in (FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT):
            flops = sum(float(k.flops) for k in made if k.kind in MATRIX_KINDS and k.phase == phase)
            assert flops == pytest.approx(2 * owned * 2048, rel=1e-12), phase


@given(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2]), st.booleans())
def test_devices_share_the_flops_of_a_block(tensor: int, context: int, micro: int, parallel: bool) -> None:
    """Executed FLOPs of all tensor · context ranks together are those of one device."""
    plan = {"tensor": tensor, "context": context, "sequence_parallel": int(parallel and tensor > 1)}
    split = timed(TINY, "megatron", micro_batch=micro, **plan)
    alone = timed(TINY, "megatron", micro_batch=micro)
    np.testing.assert_allclose(split.flops * tensor * context, alone.flops, rtol=1e-12)


@pytest.mark.parametrize("stack", stack_names())
@pytest.mark.parametrize("plan", [{}, {"tensor": 4}, {"tensor": 2, "context": 2, "sequence_parallel": 1}])
def test_families_and_recomputation_are_all_of_the_time(stack: str, plan: dict[str, int]) -> None:
    made = timed(OLD if stack == "megatron-2022" else TINY, stack, **plan)
    assert made.families.shape == (3, len(FAMILIES), 1)
    np.testing.assert_allclose(made.families.sum(axis=1) + made.recompute, made.forward + made.backward, rtol=1e-12)
    assert (made.weight <= made.backward).all()
    assert (made.families >= 0).all()


@pytest.mark.parametrize(("architecture", "stack"), [(OLD, "megatron-2022"), (TINY, "megatron"), (TINY, "torchtitan-compile")])
def test_recomputation_costs_time_and_saves_memory(architecture: Architecture, stack: str) -> None:
    """None, selective, full: never less time, never more kept, and full at most one more forward pass."""
    made = timed(architecture, stack)
    assert (np.diff(made.recompute[:, 0]) >= 0).all()
    assert made.recompute[0, 0] == 0
    assert made.recompute[2, 0] <= made.forward[0] * (1 + 1e-12)
    graph = graphs(architecture, find_stack(stack).traits).layers["dense"]
    at = {**problem(architecture, stack=stack).scalars, **whole(zero_stage=find_stack(stack).default_zero)}
    kept = block_memory(graph, find_stack(stack), at, 1, sequence_parallel=False).kept[:, 0]
    assert (np.diff(kept) <= 0).all()
    assert kept[2] == 2 * 2048 * architecture.hidden


def test_no_kernel_is_faster_than_the_datasheet_allows() -> None:
    cases = ((OLD, "megatron-2022", "dense"), (TINY, "megatron", "dense"), (SPARSE, "megatron", "moe"))
    for architecture, stack, kind in cases:
        at = local(architecture, stack)
        graph = graphs(architecture, find_stack(stack).traits).layers[kind]
        for kernel in kernels(graph, placement(sequence_parallel=False, vocab_parallel=True), at):
            assert kernel.time >= kernel.flops / at["device.matrix_flops.bf16"], f"{kernel.operator} {kernel.phase}"
            if kernel.kind is not Kind.ATTENTION:  # unfused scores go through the cache
                assert kernel.time >= kernel.traffic / at["device.memory_bandwidth"], f"{kernel.operator} {kernel.phase}"


def test_causal_attention_skips_the_masked_half_where_it_is_fused() -> None:
    fused = timed(TINY, "megatron", fixed={"sequence": 8192})
    unfused = timed(OLD, "megatron-2022", fixed={"sequence": 8192})
    products = {"megatron": TINY, "megatron-2022": OLD}
    for stack, made, share, backward in (("megatron", fused, 0.5, 2.5), ("megatron-2022", unfused, 1.0, 2.0)):
        a = products[stack]
        graph = graphs(a, find_stack(stack).traits).layers["dense"]
        at = local(a, stack) | {"sequence": 8192}
        work = kernels(graph, placement(sequence_parallel=False, vocab_parallel=True), at)
        dense = sum(float(k.flops) for k in work if k.kind in MATRIX_KINDS)
        scores = 4.0 * a.heads * a.head_dim * 8192**2 * share * (1 + backward)
        assert float(made.flops[0, 0]) == pytest.approx(dense + scores, rel=2e-3)


@pytest.mark.parametrize("phase", ["forward", "backward"])
def test_small_eager_layers_wait_for_the_host(phase: str) -> None:
    """A layer of a few tokens takes as long as launching it, whatever the device."""
    slow = timed(TINY, "torch-eager", fixed={"sequence": 16})
    fast = timed(TINY, "torch-eager", fixed={"sequence": 16, "device.memory_bandwidth": 1e15})
    assert slow.families[0, -1, 0] > 0
    assert getattr(slow, phase).ravel()[0] == pytest.approx(getattr(fast, phase).ravel()[0], rel=0.02)


def test_experts_launched_one_by_one_wait_for_the_host_and_others_do_not() -> None:
    """Of little work each: a layer takes as long as launching the experts that a device holds."""
    each = problem(SPARSE).scalars["stack.host_per_expert"]
    assert each > 0
    few, many = (timed(SPARSE, "megatron", "moe", {"sequence": 64}, data=8, expert=expert) for expert in (8, 1))
    took = [float(block.forward[0] + block.backward[0, 0]) for block in (few, many)]
    assert took[1] - took[0] == pytest.approx(each * SPARSE.experts * (1 - 1 / 8), rel=0.02)
    none = {"sequence": 64, "stack.host_per_expert": 0.0}
    assert timed(SPARSE, "megatron", "moe", none, data=8).forward[0] < many.forward[0]
    dense = [timed(SPARSE, "megatron", "dense", fixed, data=8).forward[0] for fixed in (none, {"sequence": 64})]
    assert dense[0] == dense[1]


def test_experts_on_more_ranks_hold_fewer_parameters_and_exchange_more() -> None:
    stack = find_stack("megatron")
    graph = graphs(SPARSE, stack.traits).layers["moe"]
    held, moved = [], []
    for expert in (1, 2, 4, 8):
        at = {**problem(SPARSE).scalars, **whole(data=8, expert=expert)}
        held.append(float(block_memory(graph, stack, at, 1, sequence_parallel=False).expert[0]))
        moved.append(float(timed(SPARSE, "megatron", "moe", data=8, expert=expert).inner_bytes[0, 0]))
    np.testing.assert_allclose(held, 3 * 16 * SPARSE.hidden * SPARSE.moe_ffn / np.array([1, 2, 4, 8]))
    assert moved[0] == 0
    assert np.all(np.diff(moved) > 0)


def test_fp8_speeds_up_linear_layers_alone() -> None:
    half, eighth = (timed(TINY, "megatron", fixed={"sequence": 8192}, micro_batch=4, precision=p) for p in (2, 3))
    gemm, attention = FAMILIES.index("gemm"), FAMILIES.index("attention")
    assert 1.2 < half.families[0, gemm, 0] / eighth.families[0, gemm, 0] < 2.0
    assert half.families[0, attention, 0] == eighth.families[0, attention, 0]


@dataclass(frozen=True)
class Doubled:
    """A record of one array."""

    value: np.ndarray[Any, Any]


@given(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=8), min_size=1, max_size=5))
def test_a_table_answers_alike_whatever_was_asked_before(batches: list[list[int]]) -> None:
    """Points of one batch may say the same in different codes, as designs do."""
    known, question = Known(), problem(TINY)
    for batch in batches:
        codes = {"design": np.arange(len(batch), dtype=np.int32)}
        points = Columns(n=len(batch), codes=codes, levels={"clock": ("design", np.array(batch, float))})
        table, rows = known.found(question, points, Doubled, lambda few: Doubled(2.0 * few["clock"]))
        assert table.value[rows].tolist() == [2.0 * value for value in batch]


def test_blocks_are_shared_by_plans_that_they_cannot_tell_apart_and_by_no_others() -> None:
    """Blocks with experts and without, together and each plan by itself."""
    asked, stack = problem(SPARSE), find_stack("megatron")
    many = [
        {
            "tensor": tensor,
            "expert": expert,
            "data": 16 // tensor,
            "schedule": schedule,
            "pipeline": 2,
            "sequence_parallel": tensor - 1,
        }
        for tensor in (1, 2)
        for expert in (1, 2, 8)
        for schedule in (Schedule.ONE_F_ONE_B, Schedule.ZERO_BUBBLE, Schedule.DUALPIPE)
    ]
    table = Known().blocks(asked, plans(*many), stack, with_time=True)
    assert table.time is not None
    for row, plan in enumerate(many):
        alone = Known().blocks(asked, plans(plan), stack, with_time=True)
        assert alone.time is not None
        np.testing.assert_allclose(table.time.backward[..., table.by_time[row]], alone.time.backward[..., 0], rtol=1e-13)
        np.testing.assert_allclose(table.time.families[..., table.by_time[row]], alone.time.families[..., 0], rtol=1e-13)
        np.testing.assert_allclose(table.memory.backward[..., table.index[row]], alone.memory.backward[..., 0], rtol=1e-13)
    sparse = table.time.forward[1, table.by_time]
    assert len(set(sparse.tolist())) > len(set(table.time.forward[0, table.by_time].tolist())) == 2
