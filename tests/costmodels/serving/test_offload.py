"""Experts and caches in host memory: what they free on the device, and what fetching them costs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from costmodels.metrics import Metrics
from costmodels.serving.capacity import capacity
from costmodels.serving.engine import engines, fetch_time
from costmodels.serving.problem import serving_problem
from costmodels.serving.simulated import SimulatedServing
from costmodels.serving.stack import find_serving_stack
from costmodels.serving.statistics import Statistics
from costmodels.serving.steady_state import ServingModel
from costmodels.step_tables import Batch, step_time
from spaces.architecture import find
from spaces.columns import Columns
from spaces.hardware import find_device
from spaces.problem import Problem
from spaces.traffic import Lengths, Traffic


def test_offloaded_experts_leave_the_device_and_cross_the_link() -> None:
    model, device = find("mixtral-8x7b"), find_device("H100")
    fixed = {"devices": 1, "concurrency": 1, "input_tokens": 500, "output_tokens": 200, "max_batch": 8, "token_budget": 2048}
    problem = serving_problem(model, "vllm", device, fixed)
    plans = Columns.from_values({"expert_offload": np.array([0, 1]), "precision": np.array([3, 3])})
    found = ServingModel().evaluate(problem, plans)
    experts = model.layers * model.experts * 3 * model.hidden * model.moe_ffn
    held = capacity(model, find_serving_stack("vllm"), problem.at(plans))
    assert held.weights[0] - held.weights[1] == pytest.approx(experts, rel=0.02)
    assert held.on_host == pytest.approx([0.0, held.weights[0] - held.weights[1]])
    # one token a step reaches two experts a layer
    fetched = 2 / 8 * experts / (device.host_link_bandwidth * problem.scalars["link.host.copy"])
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


SHARES = np.array([0.0, 0.25, 0.5, 1.0])


def served(stack: str = "torch-graph", together: float = 16.0, link: float = 0.0, **fixed: float) -> tuple[Problem, Metrics]:
    """Llama-3.1-8B on one H100 at several shares of its cache on the host."""
    asked = {"devices": 1, "concurrency": together, "input_tokens": 4000, "output_tokens": 200}
    asked |= {"max_batch": 64, "token_budget": 8192}
    problem = serving_problem(find("llama-3.1-8b"), stack, find_device("H100"), {**asked, **fixed})
    if link:
        problem = dataclasses.replace(problem, scalars={**problem.scalars, "device.host_link_bandwidth": link})
    return problem, ServingModel().evaluate(problem, Columns.from_values({"kv_offload": SHARES}))


@pytest.mark.parametrize("stack", ["vllm", "torch-graph"])
def test_a_cache_on_the_host_is_never_faster_where_it_fits_and_holds_more(stack: str) -> None:
    _, found = served(stack)
    assert np.all(np.diff(found.value["tpot"]) >= 0)
    assert np.all(np.diff(found.value["request_latency"]) >= 0)  # first tokens may come sooner: fewer return at once
    assert np.all(np.diff(found.value["tokens_per_second"]) <= 0)
    assert np.all(np.diff(found.value["kv_capacity"]) > 0)
    assert found.parts["tpot"]["cache_fetch"][0] == 0
    assert np.all(found.parts["tpot"]["cache_fetch"] >= 0)
    assert sum(found.parts["tpot"].values()) == pytest.approx(found.value["tpot"])


def test_what_no_device_holds_is_served_from_the_host() -> None:
    _, found = served(input_tokens=700_000, together=1.0)
    assert (found.violation["memory"] > 0).tolist() == [True, True, False, False]


def test_a_faster_host_link_is_never_slower() -> None:
    times = np.array([served("vllm", link=link)[1].value["tpot"] for link in (8e9, 32e9, 64e9, 450e9)])
    assert np.all(np.diff(times, axis=0)[:, 1:] < 0)
    assert times[:, 0] == pytest.approx(times[0, 0])


def test_a_decode_step_reads_the_cache_over_the_link_once() -> None:
    model, device = find("llama-3.1-8b"), find_device("H100")
    whole = model.layers * 2 * model.kv_heads * model.head_dim * 2  # bytes a token: keys and values in 16 bits
    for stack, hides in (("vllm", False), ("torch-graph", True)):
        problem, _ = served(stack)
        tables, engine = engines(problem, Columns.from_values({"kv_offload": np.array([0.0, 0.5, 1.0])}))
        batch = Batch(decode_requests=8.0, decode_kv=8 * 4000.0)
        times = step_time(tables, engine, batch)
        fetch = np.array([0.5, 1.0]) * 8 * 4000 * whole / (device.host_link_bandwidth * problem.scalars["link.host.copy"])
        expected = np.maximum(times[0], fetch) if hides else times[0] + fetch
        assert times[1:] == pytest.approx(expected, rel=1e-9)
        prompt = step_time(tables, engine, Batch(prefill_queries=1000.0, prefill_pairs=5e5, prompts_finished=1.0))
        chunk = step_time(
            tables, engine, Batch(prefill_queries=1000.0, prefill_pairs=5e5, prefill_cached=9e5, prompts_finished=1.0)
        )
        assert chunk[0] == prompt[0]
        assert np.all(chunk[1:] > prompt[1:])


def test_the_host_bounds_the_cache_and_the_experts_it_holds() -> None:
    model = find("mixtral-8x7b")
    fixed = {"devices": 1, "concurrency": 1, "input_tokens": 500, "output_tokens": 200, "max_batch": 8, "token_budget": 2048}
    tokens = []
    for host in (100e9, 130e9, 1e15):
        problem = serving_problem(model, "torch-graph", find_device("H100"), {**fixed, "expert_offload": 1})
        problem = dataclasses.replace(problem, scalars={**problem.scalars, "device.host_memory": host})
        plans = Columns.from_values({"kv_offload": np.array([0.0, 1.0])})
        found = ServingModel().evaluate(problem, plans)
        tokens.append(found.value["kv_capacity"])
        experts = 2 * model.layers * model.experts * 3 * model.hidden * model.moe_ffn
        each = 2 * 2 * model.layers * model.kv_heads * model.head_dim
        if host == 130e9:
            assert tokens[-1][1] == pytest.approx((host - experts) / each, abs=1)
    assert tokens[0][1] < tokens[1][1] < tokens[2][1]
    assert tokens[0][0] == tokens[1][0] == tokens[2][0] < tokens[2][1]
    problem = dataclasses.replace(problem, scalars={**problem.scalars, "device.host_memory": 50e9})
    assert np.all(ServingModel().evaluate(problem, plans).violation["memory"] > 0)


@pytest.mark.parametrize("together", [2, 4, 8, 16])
def test_both_fidelities_fetch(together: int) -> None:
    problem, closed = served("vllm", together=together)
    plans = Columns.from_values({"kv_offload": SHARES})
    lengths = (Lengths(shape="fixed", mean=4000), Lengths(shape="fixed", mean=200))
    traffic = Traffic(lengths=lengths, concurrency=together, count=10 * together)
    simulated = SimulatedServing(closed=ServingModel(), traffic=traffic, asked=Statistics()).evaluate(problem, plans)
    assert np.all(np.diff(simulated.value["tpot"]) >= 0)
    for metric in ("tpot", "tokens_per_second"):
        assert simulated.value[metric] == pytest.approx(closed.value[metric], rel=0.1)
    # requests that wait beside a prompt fetch nothing meanwhile, which the closed form does not know
    near = np.where(SHARES > 0, 0.25, 0.1)
    assert np.all(np.abs(simulated.value["ttft"] / closed.value["ttft"] - 1.0) < near)


def preempted(link: float = 64e9, host: float = 256e9, batch: float = 64) -> tuple[float, float]:
    """Mean seconds a request of Llama-3.1-70B on two H100s whose cache is far too small: recomputed, swapped."""
    asked = {"devices": 2, "tensor": 2, "request_rate": 1.0, "input_tokens": 1500, "output_tokens": 1500}
    asked |= {"max_batch": batch, "token_budget": 8192, "kv_fraction": 0.95}
    asked |= {"device.host_link_bandwidth": link, "device.host_memory": host}
    problem = serving_problem(find("llama-3.1-70b"), "vllm", find_device("H100"), asked)
    lengths = (Lengths(shape="fixed", mean=1500), Lengths(shape="fixed", mean=1500))
    traffic = Traffic(lengths=lengths, rate=1.0, count=60)
    model = SimulatedServing(closed=ServingModel(), traffic=traffic, asked=Statistics())
    found = model.evaluate(problem, Columns.from_values({"preemption": np.array([0, 1])})).value["request_latency"]
    return float(found[0]), float(found[1])


def test_swapping_moves_what_recomputing_computes_again() -> None:
    """A fast link beats computing again, a slow one loses to it; without host memory, or with room enough, they are one."""
    recomputed, swapped = preempted()
    assert swapped < recomputed
    slow = preempted(link=1e8)
    assert slow[0] == recomputed < slow[1]
    assert preempted(host=1.0) == (recomputed, recomputed)
    alone = preempted(batch=1)
    assert alone[0] == alone[1]


def test_weights_on_the_host_leave_the_device_and_cross_the_link_every_step() -> None:
    model, device = find("llama-3.1-70b"), find_device("H100")
    fixed = {"devices": 2, "tensor": 2, "concurrency": 1, "input_tokens": 500, "output_tokens": 200}
    problem = serving_problem(model, "vllm", device, fixed)
    plans = Columns.from_values({"weight_offload": SHARES})
    found, held = ServingModel().evaluate(problem, plans), capacity(model, find_serving_stack("vllm"), problem.at(plans))
    layers = model.layers * (2 * model.hidden * (model.heads + model.kv_heads) * model.head_dim + 3 * model.hidden * model.ffn)
    assert held.on_host == pytest.approx(SHARES * layers * 2 / 2, rel=0.01)
    assert held.weights + held.on_host == pytest.approx(held.weights[0] + 0 * SHARES)
    assert held.tokens[-1] > held.tokens[0]
    longer = found.value["tpot"] - found.value["tpot"][0]
    assert longer == pytest.approx(held.on_host / (device.host_link_bandwidth * problem.scalars["link.host.read"]), rel=0.01)


def test_a_model_larger_than_its_device_is_served_from_the_host() -> None:
    problem = serving_problem(find("llama-3.1-70b"), "vllm", find_device("H100"), {"devices": 1, "concurrency": 1})
    found = ServingModel().evaluate(problem, Columns.from_values({"weight_offload": np.array([0.0, 0.6])}))
    assert found.violation["memory"][0] > 0 >= found.violation["memory"][1]
