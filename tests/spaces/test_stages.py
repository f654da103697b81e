"""Dealing layers to pipeline stages, against dealing them one at a time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.plan import StageLayout
from spaces.stages import FIRST, LAST, MIDDLE, chunk_sizes, stage_table

KINDS = ("dense", "moe")


def dealt(order: list[str], pipeline: int, virtual: int, layout: int) -> list[list[str]]:
    """Layers of every rank: chunk c goes to rank c mod pipeline (Narayanan 2021 §2.2)."""
    ranks: list[list[str]] = [[] for _ in range(pipeline)]
    start = 0
    for chunk, size in enumerate(chunk_sizes(len(order), pipeline * virtual, layout).tolist()):
        ranks[chunk % pipeline] += order[start : start + size]
        start += size
    return ranks


@given(st.integers(1, 130), st.integers(1, 64))
def test_even_chunks_hold_every_layer_and_differ_by_one_at_most(layers: int, chunks: int) -> None:
    sizes = chunk_sizes(layers, chunks, StageLayout.EVEN)
    assert len(sizes) == chunks
    assert sizes.sum() == layers
    assert sizes.max() - sizes.min() <= 1
    assert sizes[0] == sizes.min(), "the first chunk carries the embedding already"


@given(st.integers(2, 9), st.integers(3, 40))
def test_light_ends_hold_one_layer_less(each: int, chunks: int) -> None:
    layers = each * chunks - 2
    sizes = chunk_sizes(layers, chunks, StageLayout.LIGHT_ENDS)
    assert sizes.sum() == layers
    assert sizes[0] == sizes[-1] == each - 1
    assert set(sizes[1:-1].tolist()) == {each}


def test_llama_405b_is_dealt_as_published() -> None:
    """126 layers on 16 stages: 7 on the first and the last, 8 on the others (Llama 3 §3.3.2)."""
    assert chunk_sizes(126, 16, StageLayout.LIGHT_ENDS).tolist() == [7, *[8] * 14, 7]


@given(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=40),
    st.integers(1, 8),
    st.integers(1, 3),
    st.sampled_from(list(StageLayout)),
)
def test_profiles_are_those_of_dealing_layer_by_layer(order: list[str], pipeline: int, virtual: int, layout: int) -> None:
    if pipeline * virtual > len(order):
        pipeline, virtual = 1, 1
    if layout == StageLayout.LIGHT_ENDS and len(order) + 2 < 2 * pipeline * virtual:
        layout = StageLayout.EVEN
    ranks = dealt(order, pipeline, virtual, layout)
    table = stage_table(order, KINDS, np.array([pipeline]), np.array([virtual]), np.array([layout]))
    counts = [[rank.count(kind) for kind in KINDS] for rank in ranks]
    assert sum(map(sum, counts)) == len(order), "no layer is lost or dealt twice"
    assert table.counts[:, FIRST, 0].tolist() == counts[0]
    assert table.counts[:, LAST, 0].tolist() == counts[-1]
    middle = counts[1:-1] if pipeline > 2 else counts[-1:]
    assert table.counts[:, MIDDLE, 0].tolist() in middle
    assert table.counts[:, MIDDLE, 0].sum() == max(map(sum, middle))
    assert table.largest_chunk[0] == chunk_sizes(len(order), pipeline * virtual, layout).max()


def test_one_stage_is_the_whole_model() -> None:
    table = stage_table(["dense"] * 2 + ["moe"] * 5, KINDS, np.array([1]), np.array([1]), np.array([0]))
    np.testing.assert_array_equal(table.counts[:, :, 0], [[2, 2, 2], [5, 5, 5]])


@pytest.mark.parametrize("n", [0, 7])
def test_a_batch_is_its_rows(n: int) -> None:
    random = np.random.default_rng(3)
    pipeline, virtual, layout = random.integers(1, 5, n), random.integers(1, 3, n), random.integers(0, 2, n)
    order = ["dense"] * 30
    table = stage_table(order, KINDS, pipeline, virtual, layout)
    assert table.counts.shape == (2, 3, n)
    for i in range(n):
        row = stage_table(order, KINDS, *(column[i : i + 1] for column in (pipeline, virtual, layout)))
        np.testing.assert_array_equal(table.counts[:, :, i], row.counts[:, :, 0])
        assert table.largest_chunk[i] == row.largest_chunk[0]
