"""Power of served steps: against what was measured while steps ran, and what more work must do to it."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from costmodels.constants import DATA
from costmodels.serving.problem import serving_problem
from costmodels.serving.steady_state import ServingModel
from spaces.architecture import Architecture, find
from spaces.columns import Columns
from spaces.hardware import find_device

FIXED = {"devices": 1, "output_tokens": 512, "max_batch": 256}


def watts(prompt: float, concurrency: list[float], device: str = "H100", **fixed: float) -> np.ndarray:
    asked = {**FIXED, "input_tokens": prompt, **fixed}
    problem = serving_problem(find("llama-3.1-8b"), "torch-graph", find_device(device), asked)
    found = ServingModel().evaluate(problem, Columns.from_values({"concurrency": np.array(concurrency)})).value
    return found["energy_per_token"] * found["tokens_per_second"]


def test_decoding_draws_about_what_was_counted() -> None:
    """Answers so long that prompts do not matter, of models that gave no constant."""
    with (DATA / "energy" / "h200-141gb-sxm" / "serving.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["op"], row["dtype"], row["half"]) == ("decode", "bf16", "held")]
    off = []
    for row in rows:
        sizes = {name: int(row[name]) for name in ("hidden", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab")}
        length = float(row["seq"])
        asked = {"devices": 1, "input_tokens": 1, "output_tokens": 2 * length - 1, "max_batch": 256, "kv_fraction": 0.95}
        model = Architecture(name="counted", **sizes, max_sequence=65536)
        problem = serving_problem(model, "torch-graph", find_device("H200"), asked)
        found = ServingModel().evaluate(problem, Columns.from_values({"concurrency": np.array([float(row["batch"])])})).value
        off.append(float(found["energy_per_token"][0] * found["tokens_per_second"][0]) / float(row["power_w"]) - 1.0)
    assert len(off) >= 10
    assert max(map(abs, off)) < 0.15
    assert float(np.mean(np.abs(off))) < 0.06


def test_more_at_once_and_longer_caches_draw_more_and_an_idle_server_draws_little() -> None:
    assert np.all(np.diff(watts(1000, [1.0, 4.0, 16.0, 64.0])) > 0)
    assert watts(16000, [16.0])[0] > watts(1000, [16.0])[0]
    problem = serving_problem(find("llama-3.1-8b"), "vllm", find_device("H100"), {**FIXED, "input_tokens": 1000})
    found = ServingModel().evaluate(problem, Columns.from_values({"request_rate": np.array([1e-4, 1.0, 5.0])})).value
    drawn = found["energy_per_token"] * found["tokens_per_second"]
    assert drawn[0] == pytest.approx(problem.scalars["device.idle_power"], rel=0.02)
    assert np.all(np.diff(drawn) > 0)
    assert drawn[-1] <= problem.scalars["device.power"]


def test_a_token_of_a_mixture_costs_less_alone_than_with_many_beside_it_in_watts() -> None:
    fixed = {"devices": 2, "tensor": 2, "expert_tensor": 2, "input_tokens": 500.0, "output_tokens": 200.0}
    problem = serving_problem(find("mixtral-8x7b"), "vllm", find_device("H100"), fixed)
    found = ServingModel().evaluate(problem, Columns.from_values({"concurrency": np.array([1.0, 16.0])})).value
    drawn = found["energy_per_token"] * found["tokens_per_second"]
    assert drawn[0] < drawn[1] <= 2 * problem.scalars["device.power"]
