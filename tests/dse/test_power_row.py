"""Servers under one power budget: what fits, what it grows with, and what bad rows are told."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

import dse
from costmodels.machines.price import server_power
from dse.experiment import ExperimentError, load
from spaces.hardware import find_device

EXPERIMENT = Path(__file__).parents[2] / "experiments" / "hardware" / "power-capped-row.yaml"
QUESTION: dict[str, Any] = {
    "kind": "serving",
    "model": "llama-3.1-8b",
    "hardware": {"device": "A100-80GB", "devices": 1, "row": {"power_budget": "100 kW"}},
    "workload": {"input_tokens": 1000, "output_tokens": 100, "request_rate": "2 /s", "requests": 100},
    "stack": "vllm",
    "space": {"max_batch": 32, "token_budget": 2048},
    "objectives": ["max: row_servers"],
}


def servers(**row: Any) -> tuple[float, float, float, float]:
    """(servers fed, by rated power, tokens a second of the row, of one server)."""
    question = copy.deepcopy(QUESTION)
    question["hardware"]["row"] |= row
    figures = dse.run(question).front[0].figures
    names = ("row_servers", "rated_row_servers", "row_tokens_per_second", "tokens_per_second")
    fed, rated, row_rate, rate = (figures[name].value for name in names)
    return fed, rated, row_rate, rate


def test_the_row_holds_what_rated_power_allows_and_more() -> None:
    fed, rated, row_rate, rate = servers()
    assert rated == 100_000 // server_power(find_device("A100-80GB").symbols(), 400.0, 1)
    assert fed > rated
    assert row_rate == pytest.approx(fed * rate)


def test_fewer_fit_when_servers_peak_together_or_less_is_risked() -> None:
    fed = [servers(correlation=share)[0] for share in (0.0, 0.5, 1.0)]
    assert fed == sorted(fed, reverse=True)
    assert fed[0] > fed[-1]
    assert servers(risk=1e-6)[0] <= servers(risk=1e-2)[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hardware": {"device": "H100", "devices": 1}}, "row_servers needs hardware.row"),
        ({"hardware": {"device": "H100", "devices": 1, "row": {"power_budget": "5 GB"}}}, "power_budget"),
        ({"hardware": {"device": "H100", "devices": 1, "row": {"power_budget": "5 kW", "correlation": 2}}}, "correlation"),
    ],
)
def test_bad_rows_are_told(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ExperimentError, match=words):
        load({**copy.deepcopy(QUESTION), **changes})


def test_the_shipped_row_runs_small() -> None:
    run = dse.run(EXPERIMENT, overrides=["search.simulate=2", "workload.requests=100", "space.max_batch=64"])
    assert run.certificate["complete"]
    assert all(answer.figures["row_servers"].value >= answer.figures["rated_row_servers"].value > 0 for answer in run.front)
