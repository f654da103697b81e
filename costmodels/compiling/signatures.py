"""What a function to be compiled says of itself: its name and the kinds of its parameters."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

KINDS = ("IntArray", "FloatArray", "int", "float", "bool", "None")
"""What parameters and results may be."""


class NotCompilable(TypeError):
    """A function uses something that is not compiled here."""


def plain(function: Callable[..., Any]) -> FunctionType:
    """The function, if its source can be read."""
    if not isinstance(function, FunctionType):
        raise NotCompilable(f"{function!r} is not a function written in Python")
    return function


def kind_of(function: FunctionType, parameter: str) -> str:
    """What a parameter, or `return`, is said to be."""
    kind = str(function.__annotations__.get(parameter, ""))
    if kind not in KINDS:
        raise NotCompilable(f"{function.__qualname__}: {parameter} is {kind or 'not annotated'}; one of {', '.join(KINDS)}")
    return kind


def symbol_of(function: FunctionType) -> str:
    """Its name in machine code."""
    return f"{function.__module__}.{function.__qualname__}"
