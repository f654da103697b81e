"""Numbers of legal points: a tested inverse of generation, exact counts, uniform draws and mended mixtures."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.architecture import find
from spaces.hardware import find_device
from spaces.ranking import Ranking, ranking
from spaces.space import Axis, Space
from spaces.training import training_space


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Up to five axes; each may be ruled by any earlier one, so that dead ends and empty spaces occur."""
    axes: list[Axis] = []
    for i in range(draw(st.integers(1, 5))):
        rules: list[tuple[str, Any]] = []
        for j in range(i):
            if draw(st.booleans()):
                modulus, rest = draw(st.integers(1, 3)), draw(st.integers(0, 2))
                rules.append((f"rule {j}", _rule(axes[j].name, modulus, rest)))
        values = np.arange(draw(st.integers(1, 5)))
        axes.append(Axis(name=f"a{i}", symbols={f"a{i}": values}, rules=tuple(rules)))
    return Space(tuple(axes))


def _rule(name: str, modulus: int, rest: int) -> Any:
    return lambda chosen, values: (chosen[name] + values) % modulus <= rest


def listed(space: Space) -> np.ndarray[Any, Any]:
    """Level codes of every point in order, (axes, n)."""
    batches = [np.stack([batch.codes[axis.name] for axis in space.axes]) for batch in space.batches(1000)]
    return np.concatenate(batches, axis=1) if batches else np.empty((len(space.axes), 0), np.int64)


def training(count: int = 16) -> Space:
    return training_space(
        architecture=find("llama-3.1-8b"),
        devices=(find_device("H100"),),
        count=count,
        at_most=True,
        global_batch=32,
        sequence=4096,
        options={"context": (1, 2), "offload": (0,)},
    )


@given(spaces())
def test_the_nth_point_is_the_nth_generated(space: Space) -> None:
    numbered, codes = ranking(space), listed(space)
    assert numbered.size == space.size() == codes.shape[1]
    everything = np.arange(numbered.size)
    assert np.array_equal(numbered.unrank(everything), codes)
    assert np.array_equal(numbered.rank(codes), everything)


def test_a_training_space_is_numbered_in_its_own_order() -> None:
    space = training()
    numbered, codes = ranking(space), listed(space)
    assert np.array_equal(numbered.unrank(np.arange(numbered.size)), codes)
    assert np.array_equal(numbered.rank(codes), np.arange(codes.shape[1]))
    assert np.array_equal(numbered.columns(np.array([5]))["tensor"], space.columns(codes[:, [5]])["tensor"])


@given(spaces(), st.integers(0, 99))
def test_any_codes_are_mended_to_a_legal_point_and_legal_points_stay(space: Space, seed: int) -> None:
    numbered, random = ranking(space), np.random.default_rng(seed)
    wild = np.stack([random.integers(0, len(axis.values), 40) for axis in space.axes])
    legal = set(map(tuple, listed(space).T.tolist()))
    assert [tuple(column) in legal for column in wild.T.tolist()] == (numbered.rank(wild) >= 0).tolist()
    if not legal:
        with pytest.raises(ValueError, match="no points"):
            numbered.nearest(wild)
        return
    for mended in (numbered.nearest(wild), numbered.nearest(np.where(random.random(wild.shape) < 0.5, -1, wild), random)):
        assert (numbered.rank(mended) >= 0).all()
    assert np.array_equal(numbered.nearest(listed(space)), listed(space))


@given(spaces())
def test_each_choice_is_the_closest_that_can_still_be_completed(space: Space) -> None:
    codes = listed(space)
    if not codes.shape[1]:
        return
    target = np.array([[len(axis.values) - 1] for axis in space.axes])
    mended = ranking(space).nearest(target)[:, 0]
    open_ = codes
    for row, level in enumerate(mended):
        distance = np.abs(open_[row] - target[row, 0])
        assert abs(level - target[row, 0]) == distance.min()
        open_ = open_[:, open_[row] == level]


def test_draws_are_distinct_and_uniform() -> None:
    numbered = ranking(Space((_axis("a", 7), _axis("b", 5, ("odd", lambda x, v: (x["a"] + v) % 2 == 0)))))
    counts: Counter[int] = Counter()
    for seed in range(2000):
        drawn = numbered.draw(np.random.default_rng(seed), 3)
        assert len(set(drawn.tolist())) == 3
        counts.update(drawn.tolist())
    expected = 2000 * 3 / numbered.size
    assert len(counts) == numbered.size
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 2 * numbered.size
    assert sorted(numbered.draw(np.random.default_rng(0), 999).tolist()) == list(range(numbered.size))


def _axis(name: str, count: int, *rules: Any) -> Axis:
    return Axis(name=name, symbols={name: np.arange(count)}, rules=rules)


def test_huge_spaces_are_numbered_without_listing_them() -> None:
    numbered: Ranking = ranking(Space(tuple(_axis(f"a{i}", 30) for i in range(12))))
    assert numbered.size == 30**12
    last = np.array([0, 1, numbered.size - 1])
    assert np.array_equal(numbered.rank(numbered.unrank(last)), last)
    with pytest.raises(ValueError, match=r"2\^62"):
        ranking(Space(tuple(_axis(f"a{i}", 30) for i in range(13))))


def test_numbers_outside_the_space_are_refused() -> None:
    numbered = ranking(Space((_axis("a", 3),)))
    with pytest.raises(ValueError, match="from 0 to 2"):
        numbered.unrank(np.array([3]))
