"""The closed form against the simulation, on the same tables: throughput, time per token, time to first token."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from costmodels.metrics import Metrics
from costmodels.serving.capacity import capacity
from costmodels.serving.engine import engines
from costmodels.serving.intake import lone_seconds
from costmodels.serving.problem import serving_problem
from costmodels.serving.replay import Replay, replay
from costmodels.serving.stack import find_serving_stack, plans_ahead
from costmodels.serving.steady_state import ServingModel
from spaces.architecture import find
from spaces.columns import Columns
from spaces.hardware import find_device
from spaces.problem import Problem
from spaces.serving_plan import serving_code

FP8, FP4 = (float(serving_code("precision", name)) for name in ("fp8", "nvfp4"))
CASES = {
    "llama-3.1-8b-vllm": ("llama-3.1-8b", "H100", "vllm", {"devices": 1}),
    "llama-3.1-8b-sglang": ("llama-3.1-8b", "H100", "sglang", {"devices": 1}),
    "llama-3.1-70b-vllm": ("llama-3.1-70b", "H100", "vllm", {"devices": 4, "tensor": 4}),
    "qwen3-30b-tensorrt-llm": ("qwen3-30b-a3b", "H200", "tensorrt-llm", {"devices": 2, "tensor": 2, "expert": 2}),
    "two-stages": ("llama-3.1-70b", "H100", "vllm", {"devices": 4, "tensor": 2, "pipeline": 2}),
    "two-stages-of-405b": ("llama-3.1-405b", "H100", "tensorrt-llm", {"devices": 16, "tensor": 8, "pipeline": 2}),
    "four-stages": ("llama-3.1-70b", "H100", "sglang", {"devices": 4, "pipeline": 4}),
    "eight-stages": ("llama-3.1-70b", "H100", "vllm", {"devices": 8, "pipeline": 8}),
    "two-groups": ("qwen3-30b-a3b", "H200", "vllm", {"devices": 2, "attention_data": 2, "expert": 2}),
    "two-groups-of-two": (
        "qwen3-30b-a3b",
        "H200",
        "tensorrt-llm",
        {"devices": 4, "tensor": 2, "attention_data": 2, "expert": 4},
    ),
    "eight-groups": ("deepseek-v3", "H200", "sglang", {"devices": 8, "attention_data": 8, "expert": 8, "precision": FP8}),
    "sixteen-groups": ("deepseek-v3", "H200", "vllm", {"devices": 16, "attention_data": 16, "expert": 16, "precision": FP8}),
}
CLOSED = ("llama-3.1-8b-vllm", "llama-3.1-8b-sglang", "llama-3.1-70b-vllm", "qwen3-30b-tensorrt-llm")
OTHERS = {
    "llama-3.1-8b-a100-tensorrt-llm": ("llama-3.1-8b", "A100-80GB", "tensorrt-llm", {"devices": 1}),
    "qwen3-32b-fp8-sglang": ("qwen3-32b", "H200", "sglang", {"devices": 2, "tensor": 2, "precision": FP8}),
    "llama-3.1-405b-sglang": ("llama-3.1-405b", "H200", "sglang", {"devices": 8, "tensor": 8}),
    "llama-3.1-70b-b200-vllm": ("llama-3.1-70b", "B200", "vllm", {"devices": 2, "tensor": 2}),
    "gpt-oss-120b-vllm": ("gpt-oss-120b", "H100", "vllm", {"devices": 2, "tensor": 2, "precision": FP4}),
}
"""More models, devices and servers."""
TIED = ("two-stages", "two-stages-of-405b", "eight-stages", "two-groups", "two-groups-of-two", "eight-groups", "sixteen-groups")
SHORT = [(1000, 50), (4000, 100), (200, 30)]
LENGTHS = [(1000, 300), (4000, 500), (200, 800)]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("load", [0.3, 0.8])
def test_steady_state_is_what_simulation_finds(case: str, lengths: tuple[int, int], load: float) -> None:
    model, device, stack, plan = CASES[case]
    prompt, output = lengths
    fixed = {"input_tokens": prompt, "output_tokens": output, "max_batch": 256, **plan}
    problem = serving_problem(find(model), stack, find_device(device), fixed)
    highest = ServingModel().evaluate(problem, Columns.from_values({"request_rate": np.array([1e6])})).value["request_rate"][0]
    points = Columns.from_values({"request_rate": np.array([load * highest])})
    expected = ServingModel().evaluate(problem, points)
    # so many that what runs at the ends is a small part of them
    requests = max(4000, int(15 * expected.value["running_requests"][0]))
    agree(problem, points, expected, rate=load * highest, requests=requests, steady=True)


@pytest.mark.parametrize("case", CLOSED)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("together", [1, 4, 16, 64])
def test_equal_requests_in_a_closed_loop_return_as_the_closed_form_says(
    case: str, lengths: tuple[int, int], together: int
) -> None:
    model, device, stack, plan = CASES[case]
    fixed = {"input_tokens": lengths[0], "output_tokens": lengths[1], "max_batch": 256, **plan}
    problem = serving_problem(find(model), stack, find_device(device), fixed)
    points = Columns.from_values({"concurrency": np.array([float(together)])})
    agree(problem, points, ServingModel().evaluate(problem, points), concurrency=together, requests=10 * together)


def agree(problem: Problem, points: Columns, expected: Metrics, **run: Any) -> None:
    """The simulation of a run of equal requests is within a tenth of what is expected."""
    tables, engine = engines(problem, points)
    bound, pace = problem.scalars, problem.scalars["kernel.host.pace"]
    whole = Replay(
        prompt=int(bound["input_tokens"]),
        output=int(bound["output_tokens"]),
        attention_data=int(bound["attention_data"]),
        max_batch=256,
        token_budget=int(bound["token_budget"]),
        kv_tokens=float(capacity(problem.architecture, find_serving_stack(problem.stack), problem.at(points)).tokens[0]),
        block_tokens=int(bound["stack.block_tokens"]),
        mixed=bound["stack.mixed_steps"] > 0,
        chunked=bound["stack.chunked"] > 0,
        whole_answer=bound["stack.reserve_output"] > 0,
        ahead=bool(plans_ahead(bound) > 0),
        overhead=float(lone_seconds(bound, bound["input_tokens"])),
        intake=(pace * bound["stack.intake.request"], pace * bound["stack.intake.token"]),
        **run,
    )
    found = replay(tables, int(engine[0]), whole)
    assert expected.value["tokens_per_second"][0] == pytest.approx(found.tokens_per_second, rel=0.1)
    assert expected.value["tpot"][0] == pytest.approx(found.tpot, rel=0.1)
    assert expected.value["ttft"][0] == pytest.approx(found.ttft, rel=0.1)


@pytest.mark.parametrize("case", CLOSED)
@pytest.mark.parametrize(
    "lengths", [(4000, 50), (2000, 100), (8000, 200), (1000, 1000), (4000, 100), (8000, 300), (1000, 50)], ids=str
)
@pytest.mark.parametrize("load", [0.3, 0.55, 0.8])
def test_prompts_that_wait_hold_up_the_answers_before_them(case: str, lengths: tuple[int, int], load: float) -> None:
    """Long prompts and short answers: what came while a request was prefilled is prefilled before it goes on."""
    hold_up(CASES[case], lengths, load)


@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("lengths", [*SHORT, (2000, 500)], ids=str)
@pytest.mark.parametrize("load", [0.3, 0.8])
def test_so_they_do_whatever_the_model_and_the_server(case: str, lengths: tuple[int, int], load: float) -> None:
    hold_up(OTHERS[case], lengths, load)


@pytest.mark.parametrize("case", TIED)
@pytest.mark.parametrize("lengths", SHORT, ids=str)
@pytest.mark.parametrize("load", [0.3, 0.8])
def test_clusters_of_prompts_go_through_batches_and_groups(case: str, lengths: tuple[int, int], load: float) -> None:
    hold_up(CASES[case], lengths, load)


def hold_up(case: tuple[str, str, str, dict[str, float]], lengths: tuple[int, int], load: float) -> None:
    """Poisson arrivals at that share of the highest rate, of so many requests that clusters come in all sizes."""
    model, device, stack, plan = case
    fixed = {"input_tokens": lengths[0], "output_tokens": lengths[1], "max_batch": 256, **plan}
    problem = serving_problem(find(model), stack, find_device(device), fixed)
    highest = ServingModel().evaluate(problem, Columns.from_values({"request_rate": np.array([1e6])})).value["request_rate"][0]
    points = Columns.from_values({"request_rate": np.array([load * highest])})
    expected = ServingModel().evaluate(problem, points)
    agree(problem, points, expected, rate=load * highest, requests=16000, steady=True)
