"""Where ranks sit: strides along a declared order, and the worst-placed group, against an enumeration of all groups."""

import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.mesh import ORDER, devices, share_of_domain, strides, worst_group

SMALL = st.integers(min_value=1, max_value=12)


def _every_group(size: int, stride: int, total: int) -> list[list[int]]:
    """All groups of a cluster of `total` ranks, as rank numbers."""
    starts = [block + offset for block in range(0, total, size * stride) for offset in range(stride)]
    return [[start + member * stride for member in range(size)] for start in starts]


def _worst_by_enumeration(size: int, stride: int, domain: int, total: int) -> tuple[int, int]:
    held = [Counter(rank // domain for rank in group) for group in _every_group(size, stride, total)]
    return min(min(counts.values()) for counts in held), max(len(counts) for counts in held)


@given(st.integers(1, 24), SMALL, st.integers(1, 24))
def test_worst_group_is_what_enumerating_every_group_finds(size: int, stride: int, domain: int) -> None:
    total = math.lcm(size * stride, domain)
    expected = _worst_by_enumeration(size, stride, domain, total)
    assert tuple(int(part) for part in worst_group(size, stride, domain)) == expected
    assert tuple(int(part) for part in worst_group(size, stride, domain, total)) == expected


@given(st.lists(st.tuples(st.integers(1, 40), SMALL, st.sampled_from([1, 2, 3, 4, 8, 16, 72])), max_size=30))
def test_a_batch_is_its_rows(rows: list[tuple[int, int, int]]) -> None:
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    held, spanned = worst_group(*columns)
    assert held.shape == spanned.shape == (len(rows),)
    for index, row in enumerate(rows):
        assert (held[index], spanned[index]) == worst_group(*row)


@pytest.mark.parametrize(("size", "held"), [(1, 1), (2, 2), (3, 1), (4, 4), (6, 2), (8, 8), (16, 8), (24, 8)])
def test_groups_of_three_and_six_straddle_a_node_of_eight(size: int, held: int) -> None:
    assert worst_group(size, 1, 8)[0] == held


def test_a_cluster_within_one_domain_is_never_straddled() -> None:
    held, spanned = worst_group([3, 6, 6], 1, 8, total=[6, 6, 24])
    assert held.tolist() == [3, 6, 2]
    assert spanned.tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    ("domain", "node", "total", "taken"),
    [(72, 4, 64, 72), (72, 4, 256, 64), (72, 4, 144, 72), (72, 4, 180, 60), (72, 4, 76, 72), (8, 8, 24, 8), (8, 8, 12, 8)],
)
def test_a_job_takes_as_many_whole_nodes_of_every_domain(domain: int, node: int, total: int, taken: int) -> None:
    assert share_of_domain(domain, node, total) == taken
    assert share_of_domain([domain, 8], [node, 8], [total, 64]).tolist() == [taken, 8]


@given(st.integers(1, 400))
def test_no_group_that_divides_what_a_job_takes_of_a_rack_straddles_two(nodes: int) -> None:
    taken = int(share_of_domain(72, 4, 4 * nodes))
    assert 36 < taken <= 72
    if (4 * nodes) % taken == 0:
        for size in (size for size in range(1, taken + 1) if taken % size == 0):
            assert worst_group(size, 1, taken, 4 * nodes) == (size, 1)


def test_a_group_further_apart_than_a_node_has_one_rank_on_each() -> None:
    assert worst_group(16, 8, 8) == (1, 16)
    assert worst_group(5, 9, 8) == (1, 5)


def test_the_default_order_lays_tensor_ranks_side_by_side() -> None:
    found = strides(ORDER, {"tensor": 8, "context": 2, "data": 4, "pipeline": 16})
    assert {axis: int(stride) for axis, stride in found.items()} == {
        "tensor": 1,
        "context": 8,
        "data": 16,
        "pipeline": 64,
    }


def test_experts_re_mesh_the_ranks_of_a_stage() -> None:
    found = strides(
        ORDER,
        {"tensor": 2, "context": 2, "data": 16, "pipeline": 4, "expert_tensor": 1, "expert": 8, "expert_data": 8},
    )
    assert [int(found[axis]) for axis in ("expert_tensor", "expert", "expert_data")] == [1, 1, 8]
    assert int(found["pipeline"]) == 64


@given(st.tuples(SMALL, SMALL, SMALL, SMALL), st.permutations(["tensor", "context", "data", "pipeline"]))
def test_strides_number_every_rank_once(degrees: tuple[int, ...], order: list[str]) -> None:
    named = dict(zip(("tensor", "context", "data", "pipeline"), degrees, strict=True))
    found = strides(order, named)
    axes = list(named)
    grids = np.meshgrid(*(np.arange(named[axis]) for axis in axes), indexing="ij")
    ranks = sum(grid * found[axis] for grid, axis in zip(grids, axes, strict=True))
    assert np.array_equal(np.sort(np.ravel(ranks)), np.arange(devices(named)))


@pytest.mark.parametrize("order", list(permutations(ORDER))[::7])
def test_experts_need_a_stage_that_lies_together(order: tuple[str, ...]) -> None:
    degrees = {"tensor": 2, "context": 2, "data": 4, "pipeline": 3, "expert_tensor": 2, "expert": 2, "expert_data": 4}
    if "pipeline" in (order[0], order[-1]):
        assert strides(order, degrees)["pipeline"] == (1 if order[0] == "pipeline" else 16)
    else:
        with pytest.raises(ValueError, match="pipeline"):
            strides(order, degrees)


def test_degrees_broadcast() -> None:
    found = strides(ORDER, {"tensor": np.array([1, 2, 4]), "data": 8})
    assert found["pipeline"].tolist() == [8, 16, 32]
    assert devices({"tensor": np.array([1, 2, 4]), "data": 8}).tolist() == [8, 16, 32]


@pytest.mark.parametrize(
    ("order", "degrees", "words"),
    [
        (("tensor", "data"), {"tensor": 2}, "names each of"),
        (("tensor", "tensor", "context", "data", "pipeline"), {"tensor": 2}, "names each of"),
        (ORDER, {"tensro": 2}, "no such axis: tensro"),
        (ORDER, {"tensor": 0}, "tensor must be whole numbers from 1"),
        (ORDER, {"tensor": 1.5}, "tensor must be whole numbers from 1"),
        (ORDER, {"tensor": 8, "expert": 3}, "must equal"),
        (("tensor", "context", "data", "pipeline"), {"tensor": 8, "expert": 8}, "where `expert` goes"),
    ],
)
def test_an_impossible_layout_is_refused_in_words(order: tuple[str, ...], degrees: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        strides(order, degrees)
