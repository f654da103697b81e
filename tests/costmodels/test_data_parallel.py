"""Gradient reduction, parameter gathering and the optimizer step by bytes and relations."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_points import TINY, plans, problem

from costmodels.data_parallel import DataParallelTime, data_parallel_time, exposed_time, shard_ranks

N = 1e9


def sync(dense: float = N, experts: float = 0.0, fixed: dict[str, float] | None = None, **plan: int) -> DataParallelTime:
    asked = problem(TINY, **{name.replace(".", "__"): value for name, value in (fixed or {}).items()})
    return data_parallel_time(asked.at(plans(plan)), np.array([dense]), np.array([experts]), 1.0)


def test_one_rank_has_nobody_to_talk_to() -> None:
    alone = sync()
    assert alone.reduce == alone.gather == alone.inner_bytes == alone.outer_bytes == 0
    assert alone.optimizer > 0


UNSHARDED = "under ZeRO-0 the copies count as replicas of shards of one rank: their bytes and their place are not seen"



def test_replicas_send_an_all_reduce_and_shards_half_of_it_each_way() -> None:
    """2(d−1)/d of the gradients per rank under ZeRO-0 and (d−1)/d of gradients and parameters under ZeRO-1 (Rajbhandari 2020
    §7.2); d = 8 within one domain, 2-byte gradients and parameters."""
    for zero in (0, 1):
        made = sync(data=8, zero_stage=zero)
        assert made.inner_bytes == pytest.approx(2 * (7 / 8) * 2 * N)
        assert made.outer_bytes == 0


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_a_reduction_and_a_gather_take_an_all_reduce_together(zero: int) -> None:
    whole, split = sync(data=8), sync(data=8, zero_stage=zero)
    assert whole.gather == 0
    assert split.reduce + split.gather == pytest.approx(whole.reduce, rel=0.05)


@given(st.sampled_from([2, 4, 8, 16, 64]), st.integers(0, 3), st.floats(1e6, 1e10))
def test_more_parameters_never_take_less_time(data: int, zero: int, count: float) -> None:
    less, more = (sync(n, data=data, zero_stage=zero) for n in (count, 2 * count))
    for field in fields(DataParallelTime):
        assert (getattr(less, field.name) <= getattr(more, field.name) * (1 + 1e-12)).all(), field.name


def test_the_optimizer_updates_its_shard() -> None:
    """Traffic of the update falls with the shards; what is left is reading and writing the whole once."""
    whole, half, eighth = (float(sync(data=d, zero_stage=1).optimizer[0]) for d in (1, 2, 8))
    updates = whole - half
    assert updates > 0
    assert half - eighth == pytest.approx(updates * (1 / 2 - 1 / 8) * 2, rel=0.02)



def test_copies_that_the_pipeline_lies_between_are_reached_over_the_network() -> None:
    """Two copies eight ranks apart on nodes of eight."""
    near, far = (sync(pipeline=8, data=2, rank_order=order) for order in (0, 1))
    assert far.reduce > 3 * near.reduce


def test_shards_that_the_pipeline_lies_between_are_reached_over_the_network() -> None:
    near, far = (sync(pipeline=8, data=2, zero_stage=1, rank_order=order) for order in (0, 1))
    assert far.reduce > 3 * near.reduce


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_across_nodes_pays_the_network(zero: int) -> None:
    within, across = (sync(data=16, zero_stage=zero, fixed={"device.domain": float(domain)}) for domain in (16, 8))
    assert within.outer_bytes == 0 < across.outer_bytes
    assert across.reduce > within.reduce


def test_hybrid_shards_cross_nodes_with_less() -> None:
    """HSDP: shards within the node, replicas across: (1/8) of the gradients crosses instead of all in turn."""
    full, hybrid = (sync(data=64, zero_stage=3, shard_degree=degree) for degree in (64, 8))
    assert hybrid.gather < full.gather
    assert hybrid.reduce > 0


SHARES = st.sampled_from([1, 2, 4, 8])


@given(SHARES, st.sampled_from([1, 2]), SHARES, SHARES)
def test_shards_divide_the_ranks_they_are_made_of(tensor: int, context: int, data: int, expert: int) -> None:
    if tensor * context * data % expert:
        return
    plan = {"tensor": tensor, "context": context, "data": data, "expert": expert, "zero_stage": 1}
    dense, experts = shard_ranks(problem(TINY).at(plans({**plan, "shard_degree": 0})))
    assert dense == context * data
    assert experts == tensor * context * data // expert



def test_naming_all_ranks_is_the_same_as_naming_none() -> None:
    plan = {"tensor": 4, "data": 8, "expert": 2, "zero_stage": 1}
    every, none = (shard_ranks(problem(TINY).at(plans({**plan, "shard_degree": degree}))) for degree in (8, 0))
    assert every == none


def test_expert_gradients_reduce_over_their_own_copies() -> None:
    """Eight expert ranks of eight devices leave one copy of each expert: nothing to reduce."""
    assert sync(0.0, N, data=8, expert=8).reduce == 0
    assert sync(0.0, N, data=8, expert=2).reduce > 0


def test_offloading_is_paid_at_the_hosts_rates() -> None:
    device, host = (float(sync(data=1, offload=o).optimizer[0]) for o in (0, 1))
    assert host > 5 * device


@given(st.floats(0, 10), st.floats(0, 10), st.floats(0, 1), st.floats(0, 1))
def test_exposed_time_is_between_what_is_left_and_all(time: float, available: float, share: float, contention: float) -> None:
    seconds = float(exposed_time(time, available, share, contention))
    assert max(time - available, time * (1 - share)) - 1e-12 <= seconds <= time + 1e-12
    assert exposed_time(time, available, share, 1.0) == pytest.approx(time)


def test_hybrid_shards_send_their_part_across_the_replicas() -> None:
    """Shards of eight within the node, eight nodes: an eighth of the 2-byte gradients is reduced across nodes."""
    hybrid = sync(data=64, zero_stage=3, shard_degree=8)
    assert hybrid.outer_bytes == pytest.approx(2 * (7 / 8) * 2 * N / 8)
