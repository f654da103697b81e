"""Small integer expressions over symbols: how sizes are written in the dataflow graph.

An expression is built once with `*`, `+`, `-`, `ceil_divide`, `minimum`, `maximum`, and evaluated for scalars and for arrays
of design points alike.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol, TypeAlias

import numpy as np


class SymbolTable(Protocol):
    """Anything that answers for a symbol: a mapping, or `Bindings`."""

    def __getitem__(self, symbol: str, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Expression:
    """An operator and its operands; `Expression("symbol", ("hidden",))` and `Expression("constant", (2,))` are the leaves."""

    operator: str
    operands: tuple[Any, ...]

    def __mul__(self, other: Size) -> Expression:
        return Expression("product", (self, expression(other)))

    __rmul__ = __mul__

    def __add__(self, other: Size) -> Expression:
        return Expression("sum", (self, expression(other)))

    __radd__ = __add__

    def __sub__(self, other: Size) -> Expression:
        return Expression("difference", (self, expression(other)))

    def __rsub__(self, other: Size) -> Expression:
        return Expression("difference", (expression(other), self))

    @property
    def symbols(self) -> frozenset[str]:
        """Every symbol the value depends on."""
        if self.operator == "symbol":
            return frozenset(self.operands)
        return frozenset().union(*(part.symbols for part in self.operands if isinstance(part, Expression)))

    def evaluate(self, at: SymbolTable) -> Any:
        """The value under the given symbols: a number, or an array where a symbol is an array."""
        if self.operator == "constant":
            return self.operands[0]
        if self.operator == "symbol":
            return at[self.operands[0]]
        if self.operator not in _OPERATORS:
            raise ValueError(f"unknown operator '{self.operator}'")
        left, right = self.operands
        return _OPERATORS[self.operator](left.evaluate(at), right.evaluate(at))


_OPERATORS: Mapping[str, Callable[[Any, Any], Any]] = {
    "product": operator.mul,
    "sum": operator.add,
    "difference": operator.sub,
    "ceil_divide": lambda left, right: -(-left // right),
    "divide": operator.truediv,
    "minimum": np.minimum,
    "maximum": np.maximum,
}

Size: TypeAlias = Expression | int | float | str


def expression(size: Size) -> Expression:
    """A number or a symbol's name as an expression; an expression is returned as it is."""
    if isinstance(size, Expression):
        return size
    return Expression("symbol", (size,)) if isinstance(size, str) else Expression("constant", (size,))


def symbol(name: str) -> Expression:
    """The value bound to a symbol."""
    return Expression("symbol", (name,))


def product(*sizes: Size) -> Expression:
    """Product of the sizes; one when there are none."""
    return reduce(lambda left, right: left * right, map(expression, sizes)) if sizes else expression(1)


def ceil_divide(size: Size, degree: Size) -> Expression:
    """Smallest integer not below size / degree: the largest share when a dimension is cut into `degree` pieces."""
    return Expression("ceil_divide", (expression(size), expression(degree)))


def divide(size: Size, degree: Size) -> Expression:
    """Exact quotient: the mean share."""
    return Expression("divide", (expression(size), expression(degree)))


def minimum(left: Size, right: Size) -> Expression:
    """The smaller of the two."""
    return Expression("minimum", (expression(left), expression(right)))


def maximum(left: Size, right: Size) -> Expression:
    """The larger of the two."""
    return Expression("maximum", (expression(left), expression(right)))


def evaluate_all(expressions: Mapping[str, Expression], at: SymbolTable) -> dict[str, Any]:
    """Every named expression under the given symbols."""
    return {name: size.evaluate(at) for name, size in expressions.items()}
