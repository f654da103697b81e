"""Collectives of a serving step: which way a sum goes, by size, ranks and server, and how tokens reach experts."""

from __future__ import annotations

import csv
from importlib.resources import files

import numpy as np
import pytest

from costmodels.serving.exchanges import expert_exchange, reduction
from costmodels.serving.local import Local
from costmodels.serving.problem import serving_problem
from costmodels.serving.stack import find_serving_stack
from costmodels.serving.step_graph import token_calls
from spaces.architecture import find
from spaces.columns import Columns
from spaces.hardware import find_device
from spaces.serving_plan import serving_code

MIB = float(1 << 20)


def local(stack: str = "vllm", device: str = "H100", tokens: float = 64.0, **plan: float) -> Local:
    problem = serving_problem(find("deepseek-v3"), stack, find_device(device))
    columns = Columns.from_values({name: np.array([value]) for name, value in plan.items()} or {"tensor": np.array([1.0])})
    return Local(problem.at(columns), np.array([[tokens]]))


def own(size: float, ranks: float, stack: str = "vllm", device: str = "H100") -> float:
    """Seconds of the server's own way, inf where it leaves the sum to NCCL."""
    return float(np.max(reduction(local(stack, device, tensor=ranks), ranks, np.array([[size]])).own))


@pytest.mark.parametrize(
    ("ranks", "size", "seconds"),
    [(2, 0.5, 7e-6), (4, 0.5, 17e-6), (4, 2, 26.5e-6), (4, 4, 42.5e-6), (6, 0.125, 9e-6), (8, 1, 14e-6), (8, 4, 27e-6)],
)
def test_sums_of_vllm_take_what_was_published_of_eight_h100(ranks: float, size: float, seconds: float) -> None:
    # vllm-project/vllm#24111 and #42324, in ms to three places
    assert own(size * MIB, ranks) == pytest.approx(seconds, rel=0.3)


@pytest.mark.parametrize("folder", ["h100-80gb-sxm", "h200-141gb-sxm"])
@pytest.mark.parametrize("stack", ["vllm", "sglang", "tensorrt-llm"])
def test_sums_of_servers_take_what_somebody_measured(stack: str, folder: str) -> None:
    """The constants are of H100; over more than two cards the switch may be quicker than a server's own kernel."""
    text = files("costmodels").joinpath(f"data/published/kernels/{folder}/all_reduce.csv").read_text(encoding="utf-8")
    rows = [row for row in csv.DictReader(text.splitlines()) if row["stack"] == stack and float(row["bytes"]) <= 2 * MIB]
    device = {"h100-80gb-sxm": "H100", "h200-141gb-sxm": "H200"}[folder]
    few = [row for row in rows if row["ranks"] == "2" or (row["ranks"] == "4" and float(row["bytes"]) < MIB / 2)]
    errors = [own(float(r["bytes"]), float(r["ranks"]), stack, device) / float(r["time_s"]) - 1.0 for r in few]
    assert np.mean(np.abs(errors)) < 0.06
    assert np.max(np.abs(errors)) < 0.25
    for row in rows:
        assert own(float(row["bytes"]), float(row["ranks"]), stack, device) < 1.25 * float(row["time_s"])


def test_two_ranks_read_each_other_once_and_more_ranks_cut_large_sums_in_two() -> None:
    def change(ranks: float) -> float:
        below, above = (own(size, ranks, "sglang", "A100-80GB") for size in (524287.0, 524289.0))
        return abs(above / below - 1.0)

    assert change(4.0) > 0.1
    assert change(2.0) < 1e-3


def test_switches_sum_large_messages_where_they_can() -> None:
    for stack in ("vllm", "sglang", "tensorrt-llm"):
        at = local(stack, tensor=8.0)
        cap = reduction(at, 8.0, np.array([[32 * MIB]])).cap
        assert 150e-6 < float(np.max(cap)) < 210e-6  # 165 us by multimem, 195 by NCCL (vllm-project/vllm#42324)
    older = reduction(local(device="A100-80GB", tensor=8.0), 8.0, np.array([[32 * MIB]]))
    assert np.all(np.isinf(older.cap))
    assert np.all(np.isinf(older.own))
    assert np.all(np.isinf(reduction(local(tensor=2.0), 2.0, np.array([[32 * MIB]])).cap))


def test_few_ranks_gather_tokens_and_many_send_them() -> None:
    for groups, sent in ((8.0, False), (16.0, True)):
        at = local(attention_data=groups, expert=groups)
        calls = [call for call in expert_exchange(at, np.array([[64.0]]), experts=True) if np.any(np.asarray(call.times) > 0)]
        assert [bool(np.all(np.isfinite(call.cap))) for call in calls] == [sent, sent]


@pytest.mark.parametrize(("stack", "fused"), [("tensorrt-llm", True), ("vllm", False)])
def test_only_the_servers_own_sum_norms_and_casts_what_it_sums(stack: str, fused: bool) -> None:
    def kernels(tokens: float, ranks: float) -> float:
        problem = serving_problem(find("llama-3.1-70b"), stack, find_device("H100"))
        plan = {"tensor": ranks, "precision": float(serving_code("precision", "fp8"))}
        at = problem.at(Columns.from_values({name: np.array([value]) for name, value in plan.items()}))
        calls = token_calls(find("llama-3.1-70b"), find_serving_stack(stack), at, np.array([[tokens]]))
        streams = [call for call in calls if call.op in ("copy", "quantise_fp8")]
        return float(sum(np.max(np.asarray(call.times) * np.ones(1)) for call in streams))

    alone, few, many = kernels(8.0, 1.0), kernels(8.0, 2.0), kernels(8192.0, 2.0)
    assert many == alone
    assert (alone - few) / 80 == (4.0 if fused else 0.0)  # two norms and two casts a layer
