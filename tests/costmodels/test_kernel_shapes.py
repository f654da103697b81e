"""The shapes a plan runs hold the work its cost model counts, in the suite's layouts."""

from __future__ import annotations

import numpy as np
import pytest

from costmodels.explanation import operator_times
from costmodels.kernel_shapes import KernelShape, kernel_shapes
from costmodels.training import training_problem
from spaces.architecture import find
from spaces.columns import Columns
from spaces.hardware import find_device
from spaces.plan import DEFAULTS, NAMES


def shapes(model: str = "llama-3.1-8b", stack: str = "megatron", **plan: int) -> tuple[KernelShape, ...]:
    problem = training_problem(find(model), stack, find_device("H100"), {"sequence": 4096, "global_batch": 32})
    values = {**DEFAULTS, "devices": 8, "data": 8, **plan}
    return kernel_shapes(problem, Columns.from_values({name: np.array([int(value)]) for name, value in values.items()}))


def gemm(found: tuple[KernelShape, ...], operator: str, layout: str) -> tuple[int, int, int]:
    (row,) = [s.row for s in found if operator in s.operators and s.row["layout"] == layout]
    return int(row["m"]), int(row["n"]), int(row["k"])


def test_the_three_products_of_a_layer_are_laid_out_as_the_suite_measures_them() -> None:
    found = shapes()
    assert gemm(found, "down_proj", "forward") == (4096, 4096, 14336)
    assert gemm(found, "down_proj", "dgrad") == (4096, 14336, 4096)
    assert gemm(found, "down_proj", "wgrad") == (4096, 14336, 4096)
    assert gemm(found, "qkv", "wgrad") == (6144, 4096, 4096)
    assert gemm(found, "qkv", "forward") == (4096, 6144, 4096)


def test_tensor_parallel_halves_what_it_shards() -> None:
    found = shapes(tensor=2, data=4, sequence_parallel=1)
    assert gemm(found, "qkv", "forward") == (4096, 3072, 4096)
    assert gemm(found, "down_proj", "forward") == (4096, 4096, 7168)
    attention = next(s.row for s in found if s.row["op"] == "attention_prefill")
    assert (attention["heads"], attention["kv_heads"]) == ("16", "4")


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("stack", ["megatron", "torch-eager"])
def test_matrix_work_is_that_of_the_cost_model(recompute: str, stack: str) -> None:
    plan = {"recompute": NAMES["recompute"].index(recompute)}
    problem = training_problem(find("llama-3.1-8b"), stack, find_device("H100"), {"sequence": 4096, "global_batch": 32})
    values = {**DEFAULTS, "devices": 8, "data": 8, **plan}
    columns = Columns.from_values({name: np.array([int(value)]) for name, value in values.items()})
    counted = sum(op.flops for op in operator_times(problem, columns) if op.kind == "gemm")
    rows = [s for s in kernel_shapes(problem, columns) if s.row["op"] == "gemm"]
    listed = sum(2.0 * s.calls * np.prod([float(s.row[name]) for name in ("m", "n", "k", "groups")]) for s in rows)
    assert listed == pytest.approx(counted, rel=1e-9)


def test_context_parallel_attention_is_the_exchanges_of_a_ring() -> None:
    whole, ring = shapes(), shapes(context=4, data=2)
    one, part = (next(s for s in found if s.row["op"] == "attention_prefill") for found in (whole, ring))
    assert (part.row["q_len"], part.row["kv_len"], part.row["causal"]) == ("1024", "1024", "false")

    def pairs(shape: KernelShape) -> float:
        causal = 0.5 if shape.row["causal"] == "true" else 1.0
        return causal * shape.calls * float(shape.row["q_len"]) * float(shape.row["kv_len"])

    assert pairs(part) == pytest.approx(pairs(one))  # a quarter of the work for four times as many microbatches


def test_attention_is_the_one_the_stack_runs() -> None:
    by_stack = {
        stack: next(s.row["implementation"] for s in shapes(stack=stack) if s.row["op"] == "attention_prefill")
        for stack in ("megatron", "megatron-2022", "torchtitan-compile", "torch-eager")
    }
    assert by_stack["megatron-2022"] == "unfused"
    assert by_stack["megatron"] == "cudnn"
    assert by_stack["torchtitan-compile"] == "flash"


def test_what_the_suite_cannot_run_is_left_out() -> None:
    moe = shapes("mixtral-8x7b", expert=2, precision=NAMES["precision"].index("fp8"))
    assert not [s for s in moe if s.row["op"] == "gemm" and s.row["groups"] != "1"]
    plain = [s.row for s in shapes("mixtral-8x7b", expert=2) if s.row.get("groups", "1") != "1"]
    assert plain
    assert all(row["layout"] == "forward" for row in plain)
