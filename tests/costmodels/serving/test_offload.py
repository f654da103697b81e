"""Experts in host memory: what they free on the device, and what fetching them costs."""

from __future__ import annotations

import numpy as np
import pytest

from costmodels.serving.engine import fetch_time
from costmodels.serving.problem import serving_problem
from costmodels.serving.steady_state import ServingModel
from spaces.architecture import find
from spaces.columns import Columns
from spaces.hardware import find_device


def test_offloaded_experts_leave_the_device_and_cross_the_link() -> None:
    model, device = find("mixtral-8x7b"), find_device("H100")
    fixed = {"devices": 1, "concurrency": 1, "input_tokens": 500, "output_tokens": 200, "max_batch": 8, "token_budget": 2048}
    problem = serving_problem(model, "vllm", device, fixed)
    plans = Columns.from_values({"expert_offload": np.array([0, 1]), "precision": np.array([3, 3])})
    found = ServingModel().evaluate(problem, plans)
    experts = model.layers * model.experts * 3 * model.hidden * model.moe_ffn
    freed = found.violation["memory"][0] - found.violation["memory"][1]
    assert freed * 0.9 * device.memory_capacity == pytest.approx(experts, rel=0.02)
    # one token a step reaches two experts a layer
    fetched = 2 / 8 * experts / device.host_link_bandwidth
    assert found.value["tpot"][1] - found.value["tpot"][0] == pytest.approx(fetched, rel=0.05)


def test_fetching_grows_with_the_batch_to_all_experts_and_no_further() -> None:
    model, device = find("mixtral-8x7b"), find_device("H100")
    problem = serving_problem(model, "vllm", device, {"devices": 1, "expert_offload": 1})
    tokens = np.array([[1.0, 2.0, 8.0, 1e6]])
    seconds = fetch_time(model, problem.at(Columns.from_values({"tensor": np.array([1])})), tokens)[0]
    assert np.all(np.diff(seconds) > 0)
    assert seconds[-1] / seconds[0] == pytest.approx(model.experts / model.experts_per_token)
    dense = find("llama-3.1-8b")
    problem = serving_problem(dense, "vllm", device, {"devices": 1, "expert_offload": 1})
    assert not fetch_time(dense, problem.at(Columns.from_values({"tensor": np.array([1])})), tokens).any()
