"""Intervals of serving figures: how they are refitted, and which factor belongs to which figure."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.intervals import quantile
from benchmarks.serving_intervals import DOUBLED, KINDS, Residual, errors, farther, of_a_new_source, width
from costmodels.serving.intervals import pairs, sides, table


def rows(stack: str, source: str, values: list[float], kind: str = "first_") -> list[Residual]:
    return [Residual(stack=stack, generation="hopper", kind=kind, source=source, value=value) for value in values]


def test_the_quantile_holds_nine_in_ten_and_one_more() -> None:
    assert quantile([0.01 * i for i in range(1, 20)]) == pytest.approx(0.18)
    assert quantile([-0.3, 0.1]) == pytest.approx(0.3)


def test_a_source_is_one_whatever_the_number_of_its_rows() -> None:
    few = [[0.1] * 40, [0.3] * 3, [0.2] * 5]
    assert of_a_new_source(few) == pytest.approx(0.3)
    assert of_a_new_source([few[0] * 10, *few[1:]]) == pytest.approx(0.3)
    found = rows("vllm", "one", [0.1] * 40) + rows("vllm", "two", [0.9] * 2)
    assert len(errors(found, "first_")) == 1  # two rows are too few to count


def test_nine_in_ten_of_rows_of_many_like_sources_are_held() -> None:
    draw = np.random.default_rng(0)
    sources = [abs(draw.normal(draw.normal(0.0, 0.1), 0.1, 20)).tolist() for _ in range(200)]
    half = of_a_new_source(sources[:100])
    assert 0.86 < np.mean([error <= half for source in sources[100:] for error in source]) < 0.95


def test_the_source_left_out_says_how_much_farther_a_new_one_misses() -> None:
    one, two, far = rows("vllm", "one", [0.1] * 3), rows("vllm", "two", [0.1] * 3), rows("vllm", "far", [0.3] * 3)
    assert farther(errors(one, "first_")) == DOUBLED  # nothing was left out
    assert farther(errors(one + two, "first_")) == pytest.approx(1.0)
    assert farther(errors(one + two + far, "first_")) == pytest.approx(3.0)


def test_a_pair_of_few_sources_takes_its_stacks_and_then_all() -> None:
    many = [one for i in range(9) for one in rows("sglang", f"source {i}", [0.1 + 0.01 * i] * 3)]
    few = rows("vllm", "three", [0.5] * 3) + rows("vllm", "four", [0.5] * 3)
    assert width(many + few, "sglang", "hopper", "first_") == (pytest.approx(0.18), "9")
    half, rests = width(many + few, "vllm", "hopper", "first_")
    assert (half, rests) == (pytest.approx(0.5), "11 of all servers")


def test_one_source_or_none_is_wider_than_two() -> None:
    two = rows("vllm", "one", [0.1] * 3) + rows("vllm", "two", [0.2] * 3)
    alone = rows("sglang", "three", [0.1] * 3)
    wide, rests = width(two + alone, "sglang", "hopper", "first_")
    assert wide == pytest.approx(2.0 * width(two + alone, "vllm", "hopper", "first_")[0])  # 0.2 over 0.1, left out
    assert "wider" in rests
    assert width(two, "sglang", "hopper", "first_")[0] > width(two, "vllm", "hopper", "first_")[0]


def test_figures_that_gave_constants_are_doubled() -> None:
    found = rows("vllm", "one", [0.1] * 10, "") + rows("vllm", "two", [0.1] * 10, "")
    assert width(found, "vllm", "hopper", "")[0] == pytest.approx(0.2)


def test_what_nothing_covers_is_no_surer_than_what_something_does() -> None:
    own = table()
    for prefix in KINDS.values():
        low, high = sides(pairs("no-such-stack", "none"), prefix)
        for stack in own:
            for generation in own[stack] if stack != "default" else ():
                below, above = sides(pairs(stack, generation), prefix)
                assert low <= below + 1e-9
                assert high >= above - 1e-9


@pytest.mark.parametrize("prefix", KINDS.values())
def test_every_pair_holds_its_prediction(prefix: str) -> None:
    for stack, generations in table().items():
        for generation in generations if stack != "default" else ["unknown"]:
            low, high = sides(pairs(stack, generation), prefix)
            assert 0 < low <= 1 <= high < math.inf


def test_a_rates_factors_are_those_of_its_seconds_turned_over() -> None:
    assert sides({"rate_low": 0.5, "rate_high": 4.0}, "rate_") == (0.25, 2.0)
