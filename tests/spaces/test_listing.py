"""Runs of points listed from arrays alone: whatever the cut, together they are the space in its order."""

from __future__ import annotations

import pickle

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from spaces.listing import Listing
from spaces.space import Space
from tests.spaces.test_ranking import listed, spaces, training


def runs(listing: Listing, space: Space, size: int, rows: int) -> list[list[int]]:
    """Level codes of every point, run by run."""
    names = tuple(axis.name for axis in space.axes)
    return [
        list(point)
        for start in range(0, space.size(), size)
        for batch in listing.batches(start, min(size, space.size() - start), space.levels, names, rows)
        for point in zip(*(batch.codes[name].tolist() for name in names), strict=True)
    ]


@given(spaces(), st.integers(1, 40), st.integers(1, 20))
def test_runs_hold_the_space_in_order(space: Space, size: int, rows: int) -> None:
    assert runs(Listing.of(space), space, size, rows) == listed(space).T.tolist()


def test_any_run_of_a_training_space_and_a_copy_elsewhere() -> None:
    space = training()
    every, names = listed(space), tuple(axis.name for axis in space.axes)
    listing: Listing = pickle.loads(pickle.dumps(Listing.of(space)))
    random = np.random.default_rng(0)
    for start in random.integers(0, space.size() - 1, 20).tolist():
        n = int(random.integers(1, space.size() - start))
        batches = list(listing.batches(start, n, space.levels, names, 1 << 12))
        codes = np.concatenate([np.stack([batch.codes[name] for name in names]) for batch in batches], axis=1)
        assert np.array_equal(codes, every[:, start : start + n])
        assert all(batch.n == 1 << 12 for batch in batches[:-1])


def test_a_space_without_axes_is_one_point() -> None:
    (batch,) = Listing.of(Space(())).batches(0, 1, {}, (), 10)
    assert batch.n == 1
