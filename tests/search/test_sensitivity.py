"""Elasticities and break-evens of functions whose answers are known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.sensitivity import BEYOND, GROWTH, break_evens, elasticities, next_bottleneck
from spaces.columns import FloatArray


def roofline(at: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
    """Work is done at the slower of two rates."""
    return {"rate": np.minimum(at["compute"], 2.0 * at["memory"]), "price": at["compute"] + at["memory"]}


@given(st.floats(min_value=-2, max_value=2), st.floats(min_value=-2, max_value=2))
def test_powers_have_their_exponents(a: float, b: float) -> None:
    def power(at: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        return {"f": at["x"] ** a * at["y"] ** b}

    found = elasticities(power, {"x": 3.0, "y": 7.0}, ("x", "y"), ("f",), {})
    for row, exponent in zip(found, (a, b), strict=True):
        assert row.up == pytest.approx(exponent, abs=1e-9)
        assert row.down == pytest.approx(exponent, abs=1e-9)


def test_the_slower_rate_is_the_bottleneck() -> None:
    here = {"compute": 10.0, "memory": 3.0}
    found = elasticities(roofline, here, ("compute", "memory"), ("rate",), {})
    assert next_bottleneck(found, "rate") == "memory"
    assert next_bottleneck([e for e in found if e.parameter == "compute"], "rate") is None


def test_memory_stops_to_pay_until_compute_grows() -> None:
    """min(compute, 2·memory) with compute 10: memory beyond 5 buys nothing until compute passes 10."""
    here = {"compute": 10.0, "memory": 3.0}
    found = {even.parameter: even for even in break_evens(roofline, here, ("compute", "memory"), "rate", {})}
    memory = found["memory"]
    assert 5.0 <= memory.value <= 5.0 * GROWTH[1]
    assert memory.other == "compute"
    assert memory.at is not None
    assert memory.at > 10.0
    assert found["compute"].value == 10.0
    assert found["compute"].other == "memory"


def test_what_always_pays_has_no_break_even() -> None:
    assert break_evens(lambda at: {"f": at["x"]}, {"x": 1.0}, ("x",), "f", {}) == ()


def test_what_cannot_be_is_no_break_even_and_no_bottleneck() -> None:
    """Area is compute and memory: compute would pay, but no die holds 13 of it; memory is not said to pay again beyond that."""

    def bounded(at: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        return {**roofline(at), BEYOND: (at["compute"] + at["memory"]) / 16.0 - 1.0}

    here = {"compute": 6.0, "memory": 9.9}
    found = elasticities(bounded, here, ("compute", "memory"), ("rate",), {})
    assert [(e.parameter, e.up > 0, e.grows) for e in found] == [("compute", True, False), ("memory", False, False)]
    assert next_bottleneck(found, "rate") is None
    evens = {even.parameter: even for even in break_evens(bounded, here, ("compute", "memory"), "rate", {})}
    assert evens["compute"].beyond
    assert evens["compute"].value == pytest.approx(6.0 * GROWTH[1])
    free = {even.parameter: even for even in break_evens(bounded, {"compute": 3.0, "memory": 2.0}, tuple(here), "rate", {})}
    assert not free["memory"].beyond
    assert free["memory"].other == "compute"
    assert free["memory"].at == 4.5
    impossible = {"compute": 10.0, "memory": 9.0}
    assert break_evens(bounded, impossible, ("compute", "memory"), "rate", {}) == ()


def test_whole_numbers_move_by_whole_steps() -> None:
    seen: list[float] = []

    def watched(at: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        seen.extend(at["n"].tolist())
        return {"f": at["n"] * 1.0}

    found = elasticities(watched, {"n": 8.0}, ("n",), ("f",), {"n": "whole"})
    assert all(value == int(value) for value in seen)
    assert found[0].up == pytest.approx(1.0)
    elasticities(watched, {"n": 8.0}, ("n",), ("f",), {"n": "double"})
    assert seen[-2:] == [4.0, 16.0]
