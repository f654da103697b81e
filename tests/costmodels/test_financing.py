"""Buying beside renting: what adds up, what grows with what, and where the two meet."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dse
from costmodels.machines.price import HOURS_PER_YEAR, energy_per_hour, holding, ownership_per_hour
from costmodels.machines.tables import constants
from dse.experiment import ExperimentError, load
from spaces.hardware import find_device

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "hardware" / "buy-or-rent-70b-fine-tuning.yaml"
QUESTION: dict[str, Any] = {
    "kind": "training",
    "model": "llama-3.2-1b",
    "hardware": {"device": "H100", "devices": {"at_most": 16}},
    "workload": {"sequence": 2048, "global_batch": 32, "tokens": 1e11},
    "stack": "megatron",
    "finance": {"years": 1},
    "space": {"tensor": 1, "pipeline": 1, "context": 1,
              "zero_stage": 1, "micro_batch": 1, "recompute": "none", "offload": "none"},
    "objectives": ["training_days", "buying_price", "break_even_days", "devices"],
}  # fmt: skip


def asked(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(QUESTION), **changes}


@given(st.floats(1e3, 1e9), st.floats(0.1, 8), st.floats(0, 4))
def test_holding_never_falls_with_capital_or_time_and_writes_off_once(capital: float, years: float, more: float) -> None:
    now, later = holding(capital, years), holding(capital, years + more)
    assert all(later[name] >= now[name] for name in now)
    assert all(part == pytest.approx(2 * now[name]) for name, part in holding(2 * capital, years).items())
    assert later["depreciation"] <= capital


def test_an_hour_of_owning_is_a_year_of_holding_over_its_used_hours() -> None:
    at = find_device("H100").symbols()
    hour = ownership_per_hour(at, 1e6, 700.0, 32)
    used = HOURS_PER_YEAR * constants("operating")["utilisation"]
    assert sum(hour.values()) * used == pytest.approx(
        sum(holding(1e6, 1.0).values()) + energy_per_hour(at, 700.0, 32) * used
    )


def test_parts_add_up_capital_grows_and_renting_is_linear() -> None:
    run = dse.run(asked())
    assert len(run.front) > 2
    for answer in run.front:
        bought = answer.figures["buying_price"]
        assert sum(answer.parts["buying_price"].values()) == pytest.approx(bought.value)
        assert bought.low < bought.value < bought.high
        hours, devices = answer.figures["training_days"].value * 24, answer.plan["devices"]
        rented = answer.figures["training_price"].value
        assert rented == pytest.approx(hours * devices * find_device("H100").price_per_hour)
        # at the days of use where they meet, as many hours rented cost what is held costs and its energy
        even = answer.figures["break_even_days"].value * 24
        energy = answer.parts["buying_price"]["energy"] / hours * even
        held = bought.value - answer.parts["buying_price"]["energy"]
        assert held + energy == pytest.approx(rented / hours * even)
    by_count = sorted(run.front, key=lambda answer: answer.plan["devices"])
    capital = [answer.figures["cluster_capital"].value for answer in by_count]
    assert np.all(np.diff(capital) >= 0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"finance": None}, "buying_price needs finance"),
        ({"workload": {"sequence": 2048, "global_batch": 32}}, "needs workload.tokens"),
        ({"hardware": {"device": "A100-80GB-PCIe", "devices": 8}}, "nothing says what .* sells for: give device_price"),
    ],
)
def test_what_buying_needs_is_said(changes: dict[str, Any], words: str) -> None:
    question = {name: value for name, value in asked(**changes).items() if value is not None}
    with pytest.raises(ExperimentError, match=words):
        load(question)


def test_a_price_given_is_the_price() -> None:
    asks = [asked(finance={"years": 1, "device_price": price}, objectives=["buying_price"]) for price in (1e4, 4e4)]
    cheap, dear = (dse.run(ask).front[0] for ask in asks)
    assert dear.figures["cluster_capital"].value > cheap.figures["cluster_capital"].value


def test_the_shipped_experiment_runs_small() -> None:
    run = dse.run(EXPERIMENT, overrides=["hardware.devices=32", "hardware.device=H100"])
    assert run.certificate["complete"]
    assert run.front
    assert all(answer.figures["training_days"].value <= 365 for answer in run.front)
