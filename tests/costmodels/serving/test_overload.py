"""Plans proven to miss their deadlines do miss them in simulation, whatever the load, the lengths and the plan."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from costmodels.serving.overload import Deadlines, cannot_keep
from costmodels.serving.problem import serving_problem
from costmodels.serving.simulated import SimulatedServing, serve
from costmodels.serving.statistics import Statistics
from costmodels.serving.steady_state import ServingModel
from costmodels.simulation.outcome import Slo
from spaces.architecture import find
from spaces.columns import Columns
from spaces.hardware import find_device
from spaces.problem import Problem
from spaces.traffic import Lengths, Traffic, requests

PLANS = Columns.from_values(
    {"tensor": np.array([1, 2, 1, 2]), "pipeline": np.array([1, 1, 2, 1]), "data": np.array([1, 1, 1, 2]),
     "max_batch": np.array([8, 64, 64, 64])}
)  # fmt: skip


def asked(**fixed: float) -> Problem:
    """Llama-3.1-8B on H100s."""
    given_ = {"devices": 4, "token_budget": 2048, "kv_fraction": 0.9, "request_rate": 1.0}
    return serving_problem(find("llama-3.1-8b"), "vllm", find_device("H100"), {**given_, **fixed})


def traffic(rate: float, prompt: float, output: float, shape: str = "exponential") -> Traffic:
    """Poisson arrivals of lengths that vary."""
    lengths = (Lengths(shape="fixed", mean=prompt), Lengths(shape=shape, mean=output))
    return Traffic(lengths=lengths, rate=rate, count=120)


@settings(max_examples=12, deadline=None)
@given(
    st.floats(1, 400),
    st.sampled_from([50.0, 800.0, 3000.0]),
    st.sampled_from([2.0, 60.0]),
    st.floats(0.02, 3),
    st.floats(0.002, 0.05),
    st.sampled_from([0.5, 0.95]),
    st.booleans(),
)
def test_what_is_proven_happens(
    rate: float, prompt: float, output: float, ttft: float, tpot: float, share: float, whole: bool
) -> None:
    problem = asked(input_tokens=prompt, output_tokens=output)
    wanted = requests(traffic(rate, prompt, output), 120, 1)
    late = cannot_keep(problem, PLANS, wanted, Deadlines(ttft=ttft, tpot=tpot, share=share), whole)
    for row in np.flatnonzero(late):
        outcome, _ = serve(problem, PLANS.take(np.array([row])), wanted)
        assert outcome.attainment(Slo(ttft=ttft, tpot=tpot), steady=not whole) < share


@settings(max_examples=12, deadline=None)
@given(st.floats(20, 1000), st.sampled_from([60.0, 800.0, 3000.0]), st.sampled_from([2.0, 80.0]), st.sampled_from([0.5, 0.95]))
def test_what_a_server_just_keeps_is_never_ruled_out(rate: float, prompt: float, output: float, share: float) -> None:
    """Deadlines are what a loaded server made of the requests, so that nothing could be tighter."""
    problem = asked(input_tokens=prompt, output_tokens=output)
    wanted = requests(traffic(rate, prompt, output, "fixed"), 120, 1)
    for row in range(PLANS.n):
        plan = PLANS.take(np.array([row]))
        outcome, _ = serve(problem, plan, wanted)
        ttft, latency, tpot = (outcome.percentile(name, 100 * share) for name in ("ttft", "latency", "tpot"))
        for kept in (Deadlines(ttft=ttft, share=share), Deadlines(latency=latency, share=share)):
            assert not cannot_keep(problem, plan, wanted, kept, whole=True)
        both = Deadlines(ttft=ttft, tpot=tpot, share=2 * share - 1, mean_tpot=outcome.mean("tpot"))
        assert not cannot_keep(problem, plan, wanted, both, whole=True)


def test_it_proves_where_there_is_something_to_prove() -> None:
    """A hundred times what a server carries is proven, and a time per token of nothing; a trickle is not."""
    problem = asked(input_tokens=1000, output_tokens=200)
    kept = Deadlines(ttft=1.0, tpot=0.05, share=0.95)
    assert cannot_keep(problem, PLANS, requests(traffic(1000, 1000, 200), 2000, 0), kept, whole=False).all()
    assert not cannot_keep(problem, PLANS, requests(traffic(0.1, 1000, 200), 200, 0), kept, whole=False).any()
    quick = Deadlines(mean_tpot=1e-4)
    fixed = requests(traffic(0.1, 1000, 200, "fixed"), 200, 0)
    assert cannot_keep(problem, PLANS, fixed, quick, whole=False).all()


def test_what_it_cannot_judge_is_left_alone() -> None:
    """Closed loops, sessions, cached prefixes and speculation may do with less than a token's time each."""
    problem, kept = asked(input_tokens=1000, output_tokens=200), Deadlines(ttft=1e-3, tpot=1e-6, share=0.95)
    many = requests(traffic(1000, 1000, 200), 500, 0)
    assert cannot_keep(problem, PLANS, many, kept, whole=False).all()
    drafted = Columns(n=4, codes={**PLANS.codes}, levels={**PLANS.levels, "speculation": ("data", np.array([3, 3]))})
    assert not cannot_keep(problem, drafted, many, kept, whole=False).any()
    assert not cannot_keep(asked(prefix_hit=0.5, input_tokens=1000, output_tokens=200), PLANS, many, kept, whole=False).any()
    sessions = Traffic(lengths=traffic(1, 1000, 200).lengths, rate=1000, turns=3, count=300)
    assert not cannot_keep(problem, PLANS, requests(sessions, 300, 0), kept, whole=False).any()


def test_the_count_of_requests_is_the_batchs_own() -> None:
    problem = asked(input_tokens=1000, output_tokens=200)
    model = SimulatedServing(closed=ServingModel(), traffic=traffic(1, 1000, 200), asked=Statistics())
    assert model.count(ServingModel().evaluate(problem, PLANS)) == 120
    assert pytest.approx(1.0) == problem.scalars["request_rate"]
