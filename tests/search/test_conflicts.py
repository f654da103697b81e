"""The smallest set of constraints that no point satisfies."""

from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from search.conflicts import smallest_conflict


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=12))
def test_it_conflicts_and_nothing_smaller_does(rows: list[list[bool]]) -> None:
    holds = np.array(rows)
    found = smallest_conflict(holds)
    if found is None:
        assert holds.all(axis=1).any()
        return
    assert not holds[:, found].all(axis=1).any()
    smaller = (c for size in range(len(found)) for c in combinations(range(4), size))
    assert all(holds[:, list(c)].all(axis=1).any() for c in smaller)


def test_three_that_only_conflict_together() -> None:
    holds = np.array([[1, 1, 0, 1], [1, 0, 1, 1], [0, 1, 1, 1]], np.bool_)
    assert smallest_conflict(holds) == (0, 1, 2)
