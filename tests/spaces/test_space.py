"""Spaces against brute force: the product of all levels, filtered point by point."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.space import Axis, Space

Point = Mapping[str, int]
# (reason, the symbol read, rule on two numbers); None reads nothing
Checks = list[tuple[str, str | None, Callable[[Any, Any], Any]]]

RULES: dict[str, Callable[[Any, Any], Any]] = {
    "divides": lambda before, value: before % value == 0,
    "at most": lambda before, value: value <= before,
    "differs": lambda before, value: value != before,
    "odd sum": lambda before, value: (before + value) % 2 == 1,
}


def build(levels: list[list[int]], checks: list[Checks]) -> Space:
    """Axes a0, a1, … with rules that read one earlier axis each."""

    def rule(read: str | None, test: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        return lambda chosen, values: test(chosen[read] if read else 2, values)

    return Space(
        tuple(
            Axis(
                name=f"a{i}",
                symbols={f"a{i}": np.array(values, np.int64)},
                rules=tuple((reason, rule(read, test)) for reason, read, test in checks[i]),
            )
            for i, values in enumerate(levels)
        )
    )


def brute_force(levels: list[list[int]], checks: list[Checks]) -> list[tuple[int, ...]]:
    """Every combination that passes every check, in lexicographic order."""

    def legal(point: tuple[int, ...]) -> bool:
        return all(
            bool(test(point[int(read[1:])] if read else 2, value))
            for i, value in enumerate(point)
            for _, read, test in checks[i]
        )

    return [point for point in itertools.product(*levels) if legal(point)]


@st.composite
def spaces(draw: st.DrawFn) -> tuple[list[list[int]], list[Checks]]:
    levels = draw(st.lists(st.lists(st.integers(1, 8), min_size=0, max_size=4, unique=True), min_size=1, max_size=6))
    checks: list[Checks] = []
    for i in range(len(levels)):
        names = draw(st.lists(st.sampled_from(sorted(RULES)), max_size=2, unique=True))
        reads = [draw(st.sampled_from([None, *(f"a{j}" for j in range(i))])) for _ in names]
        checks.append([(name, read, RULES[name]) for name, read in zip(names, reads, strict=True)])
    return levels, checks


def listed(space: Space, rows: int) -> list[tuple[int, ...]]:
    return [
        tuple(row.values())
        for batch in space.batches(rows)
        for row in (batch.row(i) for i in range(len(batch)))
    ]


@given(spaces(), st.integers(1, 50))
def test_batches_list_exactly_the_legal_points_in_order(
    drawn: tuple[list[list[int]], list[Checks]], rows: int
) -> None:
    levels, checks = drawn
    assert listed(build(levels, checks), rows) == brute_force(levels, checks)


@given(spaces())
def test_size_counts_without_listing(drawn: tuple[list[list[int]], list[Checks]]) -> None:
    levels, checks = drawn
    assert build(levels, checks).size() == len(brute_force(levels, checks))


@given(spaces(), st.integers(1, 30))
def test_every_batch_but_the_last_is_full(drawn: tuple[list[list[int]], list[Checks]], rows: int) -> None:
    sizes = [len(batch) for batch in build(*drawn).batches(rows)]
    assert all(size == rows for size in sizes[:-1])
    assert all(0 < size <= rows for size in sizes[-1:])


@given(spaces())
def test_what_structure_removed_is_counted_by_the_first_reason(drawn: tuple[list[list[int]], list[Checks]]) -> None:
    levels, checks = drawn
    expected: dict[tuple[str, str], int] = {}
    for depth in range(len(levels)):
        for before in brute_force(levels[:depth], checks[:depth]):
            for value in levels[depth]:
                for reason, read, test in checks[depth]:
                    if not test(before[int(read[1:])] if read else 2, value):
                        expected[f"a{depth}", reason] = expected.get((f"a{depth}", reason), 0) + 1
                        break
    space = build(levels, checks)
    told: dict[tuple[str, str], int] = {}
    for _ in space.batches(removed=told):
        pass
    assert space.removed() == told == expected


def test_a_space_too_large_to_list_is_counted_and_can_be_begun() -> None:
    levels = [list(range(1, 101))] * 12
    space = build(levels, [[] for _ in levels])
    assert space.size() == 100**12
    assert len(next(space.batches(1000))) == 1000


def test_axes_that_contradict_themselves_are_refused() -> None:
    with pytest.raises(ValueError, match="does not bind its own symbol"):
        Axis(name="tensor", symbols={"data": np.array([1])})
    with pytest.raises(ValueError, match="one value per level"):
        Axis(name="device", symbols={"device": np.arange(2), "device.power": np.arange(3)})
    with pytest.raises(ValueError, match="a level twice"):
        Axis(name="tensor", symbols={"tensor": np.array([2, 2])})
    with pytest.raises(ValueError, match="both bind 'tensor'"):
        Space((Axis(name="tensor", symbols={"tensor": np.array([1])}),) * 2)


def test_a_rule_may_read_earlier_axes_only() -> None:
    space = Space(
        (
            Axis(name="a", symbols={"a": np.array([1, 2])}, rules=(("later", lambda x, v: x["b"] == v),)),
            Axis(name="b", symbols={"b": np.array([1, 2])}),
        )
    )
    with pytest.raises(KeyError, match="'b', which no earlier axis binds"):
        space.size()


def test_one_choice_binds_all_symbols_of_its_axis() -> None:
    device = Axis(name="device", symbols={"device": np.arange(2), "device.power": np.array([700.0, 1000.0])})
    cheap = Axis(
        name="tensor",
        symbols={"tensor": np.array([1, 2, 4])},
        rules=(("power", lambda x, t: t * x["device.power"] <= 2000.0),),
    )
    (batch,) = Space((device, cheap)).batches()
    assert [tuple(batch.row(i).values()) for i in range(len(batch))] == [
        (0, 700.0, 1), (0, 700.0, 2), (1, 1000.0, 1), (1, 1000.0, 2),
    ]  # fmt: skip
