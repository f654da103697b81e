"""Many models, of which the stacked memory holds some: what a switch costs, and what makes it cost less."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.kernel_models.dataflow import Dataflow
from costmodels.metrics import Metrics
from costmodels.serving.problem import serving_problem
from costmodels.serving.steady_state import ServingModel
from costmodels.serving.switching import SwitchingModel
from spaces.architecture import find
from spaces.columns import Columns
from spaces.hardware import find_device

PLAIN = ServingModel(Dataflow())
LLAMA = find("llama-2-7b")
PROBLEM = serving_problem(
    LLAMA, "vllm", find_device("H100"),
    {"input_tokens": 256, "output_tokens": 20, "concurrency": 4, "request_rate": 0, "devices": 1, "max_batch": 8},
)  # fmt: skip


def asked(models: float, **symbols: list[float]) -> Metrics:
    return SwitchingModel(model=PLAIN, models=models).evaluate(
        PROBLEM, Columns.from_values({name: np.array(values, float) for name, values in symbols.items()})
    )


def test_models_that_all_fit_cost_nothing() -> None:
    points = Columns.from_values({"device.host_link_bandwidth": np.array([1e9, 1e11])})
    plain = PLAIN.evaluate(PROBLEM, points).value
    few = SwitchingModel(model=PLAIN, models=3.0).evaluate(PROBLEM, points).value
    assert few["models_held"].tolist() == [3.0, 3.0]
    for name, values in plain.items():
        np.testing.assert_allclose(few[name], values, rtol=1e-12, err_msg=name)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.floats(1e9, 1e12), min_size=2, max_size=4, unique=True).map(sorted),
    st.lists(st.floats(4e10, 3e11), min_size=2, max_size=4, unique=True).map(sorted),
    st.integers(4, 200),
)
def test_a_faster_tier_or_more_stacked_memory_is_never_slower(links: list[float], sizes: list[float], models: int) -> None:
    host = {"device.host_memory": [1e13]}
    for name, values in (("device.host_link_bandwidth", links), ("device.memory_capacity", sizes)):
        found = asked(models, **{name: values}, **{key: value * len(values) for key, value in host.items()}).value
        assert np.all(np.diff(found["request_latency"]) <= 1e-12)
        assert np.all(np.diff(found["tokens_per_second"]) >= -1e-9)
        assert np.all(np.diff(found["models_held"]) >= 0)


def test_the_mean_switch_is_what_a_request_waits_for() -> None:
    """Latency grows by misses times bytes over bandwidth; requests a second fall by as much; energy by what idles meanwhile."""
    one, many = (asked(models, **{"device.host_memory": [1e13]}) for models in (1.0, 100.0))
    size = SwitchingModel(model=PLAIN, models=1.0).bound(PROBLEM, Columns.from_values({"device.host_memory": np.array([1e13])}))
    weights = (size.violation["far_memory"][0] + 1.0) * 1e13
    held, link = many.value["models_held"][0], find_device("H100").host_link_bandwidth
    wait = (1.0 - held / 100.0) * weights / link
    run = one.value["request_latency"][0]
    assert many.value["request_latency"][0] == pytest.approx(run + wait)
    assert many.value["tokens_per_second"][0] == pytest.approx(one.value["tokens_per_second"][0] * run / (run + wait))
    watts = [m.value["energy_per_token"][0] * m.value["tokens_per_second"][0] for m in (one, many)]
    share = wait / (run + wait)
    assert watts[1] == pytest.approx(watts[0] * (1 - share) + find_device("H100").idle_power * share)


def test_a_tier_that_does_not_hold_all_models_is_a_violation() -> None:
    found = asked(100.0, **{"device.host_memory": [1e12, 2e12]})
    assert found.violation["far_memory"][0] > 0 >= found.violation["far_memory"][1]
