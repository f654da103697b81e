"""A numbering against a dictionary of Python's."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from search.numbering import Numbering

ORDINALS = st.one_of(st.integers(0, 60), st.integers(0, (1 << 62) - 1))


@given(st.lists(st.lists(ORDINALS, max_size=30), max_size=8), st.lists(ORDINALS, max_size=40))
def test_numbers_are_those_of_a_dictionary(batches: list[list[int]], asked: list[int]) -> None:
    numbering, expected = Numbering(), dict[int, int]()
    for batch in batches:
        fresh = [ordinal for ordinal in dict.fromkeys(batch) if ordinal not in expected]
        expected |= {ordinal: len(expected) + i for i, ordinal in enumerate(fresh)}
        numbering.add(np.array(fresh, np.int64))
    every = np.array([*expected, *asked], np.int64)
    assert len(numbering) == len(expected)
    assert numbering.find(every).tolist() == [expected.get(ordinal, -1) for ordinal in every.tolist()]
    assert numbering.known(every).tolist() == [ordinal in expected for ordinal in every.tolist()]


def test_a_numbering_grows_and_consecutive_ordinals_do_not_crowd() -> None:
    numbering, rows = Numbering(), np.arange(50_000)
    for start in range(0, len(rows), 700):
        numbering.add(rows[start : start + 700] * 3)
    assert np.array_equal(numbering.find(rows * 3), rows)
    assert not numbering.known(rows * 3 + 1).any()
    assert np.array_equal(Numbering(rows * 3).find(rows[::-1] * 3), rows[::-1])
