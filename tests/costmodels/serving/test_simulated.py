"""Plans simulated: what the closed form counts of a request or a plan, the simulation counts as well."""

from __future__ import annotations

import numpy as np
import pytest

from costmodels.metrics import Metrics
from costmodels.serving.capacity import capacity
from costmodels.serving.engine import engines
from costmodels.serving.problem import serving_problem
from costmodels.serving.simulated import SimulatedServing
from costmodels.serving.speculation import draft_shares
from costmodels.serving.stack import find_serving_stack
from costmodels.serving.statistics import Statistics
from costmodels.serving.steady_state import ServingModel
from costmodels.simulation.limits import ROUTERS
from spaces.architecture import find
from spaces.columns import Columns
from spaces.hardware import find_device
from spaces.serving_plan import serving_code
from spaces.traffic import Lengths, Traffic

RATE = 4.0


def both(**changed: float) -> tuple[list[Metrics], list[Metrics]]:
    """Llama-3.1-8B on one H100 as it is and with something changed, in closed form and simulated."""
    asked = {"devices": 1, "input_tokens": 2000, "output_tokens": 200, "request_rate": RATE, "max_batch": 64}
    problem = serving_problem(find("llama-3.1-8b"), "vllm", find_device("H100"), asked)
    levels = {name: np.array([problem.scalars[name], value]) for name, value in changed.items()}
    closed, simulated = [], []
    for row in (0, 1):
        point = Columns.from_values({name: values[[row]] for name, values in levels.items()})
        hit = float(levels["prefix_hit"][row]) if "prefix_hit" in levels else 0.0
        lengths = (Lengths(shape="fixed", mean=2000), Lengths(shape="fixed", mean=200))
        traffic = Traffic(lengths=lengths, rate=RATE, prefix_hit=hit, count=3000)
        model = SimulatedServing(closed=ServingModel(), traffic=traffic, asked=Statistics())
        closed.append(ServingModel().evaluate(problem, point))
        simulated.append(model.evaluate(problem, point))
    return closed, simulated


@pytest.mark.parametrize(
    "changed",
    [
        {"speculation": 3},
        {"speculation": 3, "draft_share": 0.4, "acceptance": 0.9},
        {"prefix_hit": 0.6},
        {"lora_rank": 64},
        {"cuda_graphs": 0},
        {"precision": 8},
        {"kv_precision": 3},
    ],
    ids=str,
)
def test_both_fidelities_count_the_same(changed: dict[str, float]) -> None:
    closed, simulated = both(**changed)
    moved = False
    for row in (0, 1):
        for metric in ("tpot", "ttft"):
            assert simulated[row].value[metric][0] == pytest.approx(closed[row].value[metric][0], rel=0.1)
    for metric in ("tpot", "ttft"):
        ratio = [found[1].value[metric][0] / found[0].value[metric][0] for found in (closed, simulated)]
        moved |= abs(ratio[1] - 1) > 0.01
        assert ratio[1] == pytest.approx(ratio[0], rel=0.08)
    assert moved


def test_drafting_costs_its_share_of_a_step_and_of_the_memory() -> None:
    """Where nothing drafted is accepted, every token takes a step and the drafts; the draft's weights leave less cache."""
    asked = {"devices": 1, "input_tokens": 1000, "output_tokens": 200, "concurrency": 1.0, "acceptance": 0.0}
    problem = serving_problem(find("llama-3.1-8b"), "vllm", find_device("H100"), asked)
    points = Columns.from_values({"speculation": np.array([0, 1, 4]), "draft_share": np.array([0.2, 0.2, 0.2])})
    found = ServingModel().evaluate(problem, points)
    tpot = found.value["tpot"]
    assert tpot[2] / tpot[0] == pytest.approx(1 + 4 * 0.2, rel=0.05)
    assert (tpot[2] - tpot[0]) / (tpot[1] - tpot[0]) == pytest.approx(4, rel=0.15)
    assert found.parts["tpot"]["drafting"][0] == 0
    tables, engine = engines(problem, points)
    own, with_four = (tables.decode_time[engine[i]] - tables.draft_time[engine[i]] for i in (0, 2))
    assert with_four == pytest.approx(own, rel=1e-9)  # attention is the model's, whatever is drafted
    assert found.parts["tpot"]["drafting"][2] == pytest.approx(4 * 0.2 * tpot[0], rel=0.05)
    free = ServingModel().evaluate(problem, Columns.from_values({"speculation": np.array([4]), "draft_share": np.array([0.0])}))
    assert free.value["tpot"][0] == pytest.approx(tpot[0], rel=0.05)


def test_turns_of_sessions_come_at_the_rate_that_is_asked_for() -> None:
    lengths = (Lengths(shape="fixed", mean=200), Lengths(shape="fixed", mean=100))
    asked = {"devices": 1, "input_tokens": 800, "output_tokens": 100, "request_rate": RATE, "max_batch": 64}
    problem = serving_problem(find("llama-3.1-8b"), "vllm", find_device("H100"), asked)
    for turns in (1, 4):
        traffic = Traffic(lengths=lengths, rate=RATE, turns=turns, think=1.0, count=4000)
        model = SimulatedServing(closed=ServingModel(), traffic=traffic, asked=Statistics())
        found = model.evaluate(problem, Columns.from_values({"max_batch": np.array([64])}))
        assert found.value["tokens_per_second"][0] == pytest.approx(RATE * 100, rel=0.05)


def test_a_server_without_graphs_waits_for_its_host_and_needs_no_memory_for_them() -> None:
    for stack in ("vllm", "sglang", "tensorrt-llm", "torch-graph"):
        problem = serving_problem(
            find("llama-3.1-70b"), stack, find_device("H100"), {"devices": 8, "tensor": 8, "concurrency": 1}
        )
        found = ServingModel().evaluate(problem, Columns.from_values({"cuda_graphs": np.array([0, 1])}))
        assert found.value["tpot"][0] > 1.2 * found.value["tpot"][1]


def test_four_bit_weights_multiplied_in_eight_bits_are_read_in_four() -> None:
    """Decoding one request reads the weights; a large prefill multiplies them at the rate of eight bits."""
    for device, eight in (("H100", "fp8"), ("A100-80GB", "int8")):
        names = ("bf16", eight, "int4", "w4a8")
        codes = np.array([serving_code("precision", name) for name in names])
        fixed = {"devices": 1, "input_tokens": 8000, "output_tokens": 200, "concurrency": 1.0}
        problem = serving_problem(find("llama-3.1-8b"), "torch-graph", find_device(device), fixed)
        found = ServingModel().evaluate(problem, Columns.from_values({"precision": codes}))
        token, first = (dict(zip(names, found.value[name], strict=True)) for name in ("tpot", "ttft"))
        assert token["w4a8"] < 0.85 * token[eight]
        assert first["w4a8"] < 0.9 * first["int4"]


def test_adapters_take_two_thin_matrices_of_every_linear_layer() -> None:
    model = find("llama-3.1-8b")
    plans = Columns.from_values({"lora_rank": np.array([0, 16, 16, 64]), "adapters": np.array([1, 1, 8, 1])})
    problem = serving_problem(model, "vllm", find_device("H100"), {"devices": 1, "concurrency": 16.0})
    held = capacity(model, find_serving_stack("vllm"), problem.at(plans)).weights
    h, q, f = model.hidden, (model.heads + 2 * model.kv_heads) * model.head_dim, model.ffn
    ends = (h + q) + (h + h) + (h + 2 * f) + (f + h)
    assert np.diff(held[[0, 1]]) == pytest.approx(16 * ends * model.layers * 2)
    assert (held[2] - held[0]) / (held[1] - held[0]) == pytest.approx(8)
    assert (held[3] - held[0]) / (held[1] - held[0]) == pytest.approx(4)
    tpot = ServingModel().evaluate(problem, plans).value["tpot"]
    assert tpot[0] < tpot[1] < tpot[2]


def test_a_drafts_share_is_its_parameters() -> None:
    small, large = find("llama-3.2-1b"), find("llama-3.1-8b")
    assert draft_shares(large, large) == pytest.approx((1.0, 1.0))
    read, held = draft_shares(large, small)
    assert read == held == pytest.approx(1.24e9 / (8.03e9 - large.vocab * large.hidden), rel=0.01)
    ones, twos = (draft_shares(large, layers=layers) for layers in (1, 2))
    assert ones[1] == pytest.approx(1 / (large.layers + large.vocab * large.hidden / 218.1e6), rel=0.01)
    assert twos[0] - ones[0] == pytest.approx(twos[1] - ones[1])
    experts = find("mixtral-8x7b")  # a token reads two experts of eight, memory holds all
    read, held = draft_shares(experts, small)
    assert read / held == pytest.approx(46.6 / 12.75, rel=0.02)


def test_requests_of_a_session_are_sent_where_their_prefix_is() -> None:
    lengths = (Lengths(shape="fixed", mean=1000), Lengths(shape="fixed", mean=100))
    asked = {"devices": 4, "data": 4, "input_tokens": 3750, "output_tokens": 100, "request_rate": 8.0, "max_batch": 64}
    problem = serving_problem(find("llama-3.1-8b"), "vllm", find_device("H100"), asked)
    traffic = Traffic(lengths=lengths, rate=8.0, turns=6, think=2.0, count=1500)
    first = {}
    for router in ROUTERS:
        model = SimulatedServing(closed=ServingModel(), traffic=traffic, asked=Statistics(), router=router)
        first[router] = model.evaluate(problem, Columns.from_values({"max_batch": np.array([64])})).value["ttft"][0]
    assert first["prefix-aware"] < 0.8 * min(first["round-robin"], first["least-loaded"])
