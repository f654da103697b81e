"""Intervals of serving figures: how they are refitted, and which factor belongs to which figure."""

from __future__ import annotations

import math

import pytest

from benchmarks.intervals import quantile
from benchmarks.serving_intervals import DOUBLED, KINDS, Residual, factor, width
from costmodels.serving.intervals import pairs, sides, table


def rows(stack: str, source: str, values: list[float], kind: str = "first_") -> list[Residual]:
    return [Residual(stack=stack, generation="hopper", kind=kind, source=source, value=value) for value in values]


def test_the_quantile_holds_nine_in_ten_and_one_more() -> None:
    assert quantile([0.01 * i for i in range(1, 20)]) == pytest.approx(0.18)
    assert quantile([-0.3, 0.1]) == pytest.approx(0.3)


def test_a_source_that_misses_farther_widens_all() -> None:
    near = rows("vllm", "one", [0.1] * 20)
    assert factor(near) == DOUBLED  # nothing was left out
    assert factor(near + rows("vllm", "two", [0.1] * 20)) == pytest.approx(1.0)
    assert factor(near + rows("vllm", "two", [0.3] * 20)) == pytest.approx(3.0)


def test_a_pair_of_few_rows_takes_its_stacks_and_then_all() -> None:
    many = rows("sglang", "one", [0.5] * 10) + rows("sglang", "two", [0.5] * 10)
    few = rows("vllm", "three", [0.1] * 2)
    half, rests = width(many + few, "vllm", "hopper", "first_", 1.5)
    assert (half, rests) == (pytest.approx(0.75), "22 of all servers")
    half, rests = width(many + few, "sglang", "hopper", "first_", 1.5)
    assert (half, rests) == (pytest.approx(0.75), "20")


def test_figures_that_gave_constants_are_doubled() -> None:
    found = rows("vllm", "one", [0.1] * 10, "") + rows("vllm", "two", [0.1] * 10, "")
    assert width(found, "vllm", "hopper", "", 1.2)[0] == pytest.approx(0.2)


@pytest.mark.parametrize("prefix", KINDS.values())
def test_every_pair_holds_its_prediction(prefix: str) -> None:
    for stack, generations in table().items():
        for generation in generations if stack != "default" else ["unknown"]:
            low, high = sides(pairs(stack, generation), prefix)
            assert 0 < low <= 1 <= high < math.inf


def test_a_rates_factors_are_those_of_its_seconds_turned_over() -> None:
    assert sides({"rate_low": 0.5, "rate_high": 4.0}, "rate_") == (0.25, 2.0)
