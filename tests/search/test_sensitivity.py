"""Elasticities and break-evens of functions whose answers are known."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.sensitivity import GROWTH, break_evens, elasticities, next_bottleneck
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
