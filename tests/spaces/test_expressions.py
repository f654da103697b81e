"""Size expressions: one formula for numbers and for arrays of design points."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.expressions import (
    Expression,
    ceil_divide,
    divide,
    evaluate_all,
    expression,
    maximum,
    minimum,
    product,
    symbol,
)

SYMBOLS = ("tensor", "sequence", "hidden")
Plain = Callable[[Mapping[str, int]], int]

MEANINGS: dict[str, tuple[Callable[[Any, Any], Expression], Callable[[int, int], int]]] = {
    "product": (lambda x, y: x * y, lambda x, y: x * y),
    "sum": (lambda x, y: x + y, lambda x, y: x + y),
    "minimum": (minimum, min),
    "maximum": (maximum, max),
    "ceil_divide": (lambda x, y: ceil_divide(x, maximum(1, y)), lambda x, y: math.ceil(Fraction(x, max(1, y)))),
    "difference": (lambda x, y: maximum(x - y, 0), lambda x, y: max(x - y, 0)),
}


@st.composite
def formulas(draw: st.DrawFn, depth: int = 3) -> tuple[Expression, Plain]:
    """An expression and the same in plain arithmetic on integers."""
    if depth == 0 or draw(st.booleans()):
        name = draw(st.sampled_from(SYMBOLS))
        value = draw(st.integers(0, 12))
        if draw(st.booleans()):
            return symbol(name), lambda at: at[name]
        return expression(value), lambda _: value
    build, meaning = MEANINGS[draw(st.sampled_from(sorted(MEANINGS)))]
    left, plain_left = draw(formulas(depth=depth - 1))
    right, plain_right = draw(formulas(depth=depth - 1))
    return build(left, right), lambda at: meaning(plain_left(at), plain_right(at))


POINTS = st.lists(st.fixed_dictionaries({name: st.integers(1, 99) for name in SYMBOLS}), min_size=1, max_size=5)


@given(formulas(), POINTS)
def test_a_formula_means_the_same_for_numbers_and_for_arrays(
    drawn: tuple[Expression, Plain], points: list[dict[str, int]]
) -> None:
    size, plain = drawn
    expected = [plain(point) for point in points]
    assert [size.evaluate(point) for point in points] == expected
    columns = {name: np.array([point[name] for point in points]) for name in SYMBOLS}
    np.testing.assert_array_equal(np.broadcast_to(size.evaluate(columns), (len(points),)), expected)


@given(formulas(), POINTS)
def test_a_formula_reads_exactly_the_symbols_it_names(drawn: tuple[Expression, Plain], points: list[dict[str, int]]) -> None:
    size, _ = drawn

    class Recorder(dict[str, int]):
        read: set[str]

        def __getitem__(self, name: str) -> int:
            self.read.add(name)
            return super().__getitem__(name)

    table = Recorder(points[0])
    table.read = set()
    size.evaluate(table)
    assert table.read == size.symbols


def test_a_number_may_stand_on_either_side() -> None:
    at = {"hidden": 7}
    assert (symbol("hidden") - 2).evaluate(at) == 5
    assert (2 - symbol("hidden")).evaluate(at) == -5
    assert (3 * symbol("hidden") + "hidden").evaluate(at) == 28
    assert (1 + symbol("hidden") * "hidden").evaluate(at) == 50


def test_a_product_of_nothing_is_one() -> None:
    assert product().evaluate({}) == 1
    assert product("hidden", 2, symbol("hidden")).evaluate({"hidden": 3}) == 18


@given(st.integers(0, 10_000), st.integers(1, 64))
def test_shares_cover_the_whole(size: int, degree: int) -> None:
    """The largest share times the degree is never less than the size, and never a whole share more."""
    share = ceil_divide("size", "degree").evaluate({"size": size, "degree": degree})
    assert size <= share * degree < size + degree
    assert divide("size", "degree").evaluate({"size": size, "degree": degree}) <= share


def test_equal_formulas_are_equal_and_hash_alike() -> None:
    first, second = product("tensor", 2) + 1, product("tensor", 2) + 1
    assert first == second
    assert hash(first) == hash(second)
    assert first != product("tensor", 2) + 2


def test_an_operator_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="modulo"):
        Expression("modulo", (expression(1), expression(2))).evaluate({})


def test_named_formulas_are_evaluated_together() -> None:
    assert evaluate_all({"twice": symbol("a") * 2, "self": symbol("a")}, {"a": 4}) == {"twice": 8, "self": 4}
