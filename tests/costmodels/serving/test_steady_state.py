"""The closed form of serving: relations that hold whatever the constants."""

from __future__ import annotations

import numpy as np
import pytest

from costmodels.metrics import CostModel, Metrics
from costmodels.serving import pools as pools_
from costmodels.serving.problem import serving_problem, serving_symbols
from costmodels.serving.speculation import accepted_tokens
from costmodels.serving.steady_state import ServingModel
from spaces.architecture import find
from spaces.columns import Columns
from spaces.hardware import find_device
from spaces.serving_space import serving_space

WORK = {"devices": 1, "input_tokens": 1000, "output_tokens": 400}


def served(model: str = "llama-3.1-8b", stack: str = "vllm", device: str = "H100", **columns: list[float]) -> Metrics:
    problem = serving_problem(find(model), stack, find_device(device), WORK)
    return ServingModel().evaluate(problem, Columns.from_values({name: np.array(v) for name, v in columns.items()}))


def test_it_is_a_cost_model() -> None:
    assert isinstance(ServingModel(), CostModel)


def test_few_metrics_are_those_of_the_whole_answer() -> None:
    problem = serving_problem(find("llama-3.1-8b"), "vllm", find_device("H100"), WORK)
    points = Columns.from_values({"request_rate": np.array([0.5, 6.0, 1000.0])})
    whole = ServingModel().evaluate(problem, points)
    for names in ({"ttft"}, {"tpot", "energy_per_token", "price_per_million_tokens"}):
        few = ServingModel().only(problem, points, frozenset(names))
        assert few.value.keys() == names
        assert all(np.array_equal(few.value[name], whole.value[name]) for name in names)
        assert all(np.array_equal(few.violation[name], over) for name, over in whole.violation.items())


def test_little_s_law_holds_in_an_open_loop() -> None:
    """Running requests are the rate times how long each decodes (Little 1961)."""
    m = served(request_rate=[0.5, 2.0, 6.0, 10.0])
    decodes = 399 * m.value["tpot"]
    assert m.value["running_requests"] == pytest.approx(m.value["request_rate"] * decodes, rel=0.03)


def test_little_s_law_holds_in_a_closed_loop_without_a_first_burst() -> None:
    m = served(concurrency=[1.0, 8.0, 64.0])
    assert np.all(m.value["request_rate"] * m.value["request_latency"] >= np.array([1.0, 8.0, 64.0]) * 0.999)
    assert m.value["request_rate"][0] * m.value["request_latency"][0] == pytest.approx(1.0, rel=1e-6)


def test_more_load_is_never_quicker() -> None:
    m = served(request_rate=[0.1, 1.0, 3.0, 6.0, 9.0, 12.0, 20.0])
    for name in ("ttft", "tpot", "request_latency", "running_requests"):
        assert np.all(np.diff(m.value[name]) >= -1e-12), name
    assert np.all(np.diff(m.value["kv_headroom"]) <= 0)


def test_a_rate_nobody_can_carry_is_a_violation_that_says_by_how_much() -> None:
    m = served(request_rate=[1.0, 1000.0])
    assert m.violation["rate"][0] < 0
    assert m.violation["rate"][1] > 1
    assert m.value["request_rate"][1] == pytest.approx(1000.0 / (1.0 + m.violation["rate"][1]), rel=1e-9)


def test_the_parts_of_the_time_per_token_sum_to_it() -> None:
    m = served(request_rate=[0.5, 5.0, 0.0, 0.0], concurrency=[0.0, 0.0, 4.0, 300.0])
    assert sum(m.parts["tpot"].values()) == pytest.approx(m.value["tpot"], rel=1e-12)
    assert all(np.all(part >= -1e-12) for part in m.parts["tpot"].values())


def test_replicas_share_the_load_and_keep_their_own_metrics() -> None:
    one = served(request_rate=[3.0], data=[1], devices=[1])
    four = served(request_rate=[12.0], data=[4], devices=[4])
    for name in ("ttft", "tpot", "tokens_per_second_per_device"):
        assert four.value[name] == pytest.approx(one.value[name], rel=1e-12)
    assert four.value["tokens_per_second"] == pytest.approx(4 * one.value["tokens_per_second"], rel=1e-12)


def test_rows_do_not_depend_on_their_batch_or_on_where_a_symbol_is_bound() -> None:
    limits = {"max_batch": 64.0, "token_budget": 2048.0, "kv_fraction": 0.9}
    options = {"max_batch": [8, 64], "token_budget": [2048]}
    space = serving_space(architecture=find("qwen3-30b-a3b"), count=4, options=options, defaults=limits)
    batch = next(space.batches())
    problem = serving_problem(find("qwen3-30b-a3b"), "sglang", find_device("H200"), {**WORK, "request_rate": 3.0})
    whole = ServingModel().evaluate(problem, batch)
    for i in range(0, batch.n, 7):
        alone = ServingModel().evaluate(problem, batch.take(np.array([i])))
        fixed = {name: float(value) for name, value in batch.row(i).items()}
        bound = serving_problem(find("qwen3-30b-a3b"), "sglang", find_device("H200"), {**WORK, "request_rate": 3.0, **fixed})
        scalar = ServingModel().evaluate(bound, Columns(n=1, codes={}, levels={}))
        for name, value in whole.value.items():
            assert alone.value[name][0] == pytest.approx(value[i], rel=1e-12), name
            assert scalar.value[name][0] == pytest.approx(value[i], rel=1e-12), name


def test_hardware_and_workload_may_be_columns() -> None:
    devices = [serving_symbols(find_device(name)) for name in ("H100", "A100-80GB")]
    names = [name for name in devices[0] if name in devices[1] and name not in ("device", "generation")]
    lengths = np.array([500, 2000])
    columns = {name: np.array([d[name] for d in devices]) for name in names} | {"input_tokens": lengths}
    given = {**WORK, "request_rate": 1.0, "max_batch": 256, "token_budget": 8192}  # else each device has its own
    problem = serving_problem(find("llama-3.1-8b"), "vllm", None, given)
    both = ServingModel().evaluate(problem, Columns.from_values(columns))
    for i, name in enumerate(("H100", "A100-80GB")):
        fixed = {**given, "input_tokens": float(lengths[i])}
        own = serving_problem(find("llama-3.1-8b"), "vllm", find_device(name), fixed)
        alone = ServingModel().evaluate(own, Columns(n=1, codes={}, levels={}))
        for metric in ("ttft", "tpot", "memory", "tokens_per_second"):
            assert both.value[metric][i] == pytest.approx(alone.value[metric][0], rel=1e-9)


def test_no_points_give_no_rows_and_bounds_are_optimistic() -> None:
    problem = serving_problem(find("llama-3.1-8b"), "vllm", find_device("H100"), {**WORK, "request_rate": 1.0})
    none = Columns.from_values({"max_batch": np.array([], np.int64)})
    assert ServingModel().evaluate(problem, none).n == 0
    some = Columns.from_values({"max_batch": np.array([8, 512])})
    bound, exact = ServingModel().bound(problem, some), ServingModel().evaluate(problem, some)
    assert np.all(bound.violation["memory"] <= exact.violation["memory"])


def test_a_found_prefix_saves_prefill_and_speculation_pays_where_tokens_are_accepted() -> None:
    m = served(request_rate=[4.0, 4.0], prefix_hit=[0.0, 0.8])
    assert m.value["ttft"][1] < m.value["ttft"][0]
    drafted = served(concurrency=[1.0] * 3, speculation=[0, 3, 3], acceptance=[0.5, 0.8, 0.0])
    assert drafted.value["tpot"][1] < drafted.value["tpot"][0] < drafted.value["tpot"][2]


@pytest.mark.parametrize(("drafted", "chance", "tokens"), [(0, 0.7, 1.0), (3, 0.0, 1.0), (3, 1.0, 4.0), (1, 0.5, 1.5)])
def test_accepted_tokens(drafted: int, chance: float, tokens: float) -> None:
    assert accepted_tokens(drafted, chance) == pytest.approx(tokens)


@pytest.mark.parametrize("rank", [16.0])
def test_adapters_cost_time(rank: float) -> None:
    m = served(concurrency=[8.0, 8.0], lora_rank=[0.0, rank])
    assert m.value["tpot"][1] > m.value["tpot"][0]


def test_the_rate_of_two_pools_is_where_the_requests_in_flight_meet_those_asked_for() -> None:
    """Against bisection on the same curves, from nearly idle to saturated."""
    random = np.random.default_rng(3)
    n = 400
    pools = []
    for scale in (0.1, 0.01):
        times = scale * np.cumsum(random.uniform(0.0, 1.0, (5, pools_.RATES)) ** 4, axis=1) + 1e-3
        pools.append((random.uniform(1.0, 50.0, n), times, random.integers(0, 5, n)))
    gaps, cross = random.uniform(1.0, 500.0, n), random.uniform(0.0, 0.1, n)
    together = 10.0 ** random.uniform(-5.0, 5.0, n)
    low, high = np.zeros(n), np.minimum(pools[0][0], pools[1][0])
    for _ in range(80):
        middle = (low + high) / 2.0
        stay = cross + pools_._read(pools[0], middle) + gaps * pools_._read(pools[1], middle)
        few = middle * stay <= together
        low, high = np.where(few, middle, low), np.where(few, high, middle)
    np.testing.assert_allclose(pools_._meeting(pools[0], pools[1], gaps, cross, together), low, rtol=1e-9)
