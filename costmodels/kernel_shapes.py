"""Which matrix products and attention calls a plan runs: their shapes on one device, as rows that the suite can measure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from costmodels.block import placed, rerun_operators
from costmodels.block_kernels import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, Kernel, kernels
from costmodels.block_table import blocks_of, graphs
from costmodels.constants import Stack, find_stack
from costmodels.training import stages_of
from spaces.columns import Columns
from spaces.expressions import SymbolTable
from spaces.graph import MATRIX_KINDS, Graph, Kind, Operator, Placement
from spaces.plan import Precision, Recompute
from spaces.problem import Problem

_DTYPE = {Precision.FP32: "fp32", Precision.FP16: "fp16", Precision.FP8: "fp8"}
_LAYOUT = {FORWARD: "forward", INPUT_GRADIENT: "dgrad", WEIGHT_GRADIENT: "wgrad"}
_IMPLEMENTATION = {"flash1": "efficient", "flash2": "flash", "flash3": "cudnn"}
"""Generations of attention kernels, and which of PyTorch's is of that generation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelShape:
    """One shape: a row of text cells, how often in a step a device of the stage that has most of it runs it, and for what."""

    row: Mapping[str, str]
    calls: float
    operators: tuple[str, ...]


def kernel_shapes(problem: Problem, plan: Columns) -> tuple[KernelShape, ...]:
    """Distinct shapes of the plan, in order of execution; `plan` is a batch of one.

    Rows have the columns of `dse predict --kind kernel` without `gpu`. What the suite cannot run is left out: grouped products
    in 8 bits or less and their weight gradients, formats below 8 bits, sliding windows.
    """
    found: dict[tuple[tuple[str, str], ...], tuple[float, dict[str, None]]] = {}
    for operator, row, calls in _calls(problem, plan):
        before, names = found.get(tuple(row.items()), (0.0, {}))
        found[tuple(row.items())] = before + calls, {**names, operator: None}
    return tuple(KernelShape(row=dict(row), calls=calls, operators=tuple(names)) for row, (calls, names) in found.items())


def _calls(problem: Problem, plan: Columns) -> Iterator[tuple[str, dict[str, str], float]]:
    """(operator, row, calls in a step) of every kernel that has a row."""
    stack, at = find_stack(problem.stack), problem.at(plan)
    attention = _implementation(problem, stack, at)
    parallel = bool(_one(at, "sequence_parallel") and _one(at, "tensor") > 1)
    where, local = placed(at, parallel)
    microbatches = _one(at, "global_batch") // (_one(at, "data") * _one(at, "micro_batch"))
    for graph, count, again in _blocks(problem, plan, stack):
        operators = {op.name: op for op in graph.operators}
        for kernel in kernels(graph, where, local):
            twice = kernel.phase == FORWARD and kernel.operator in again
            calls = count * microbatches * (2 if twice else 1)
            if not np.max(kernel.time):
                continue
            if kernel.kind in MATRIX_KINDS:
                row = _product(kernel, operators[kernel.operator], local)
            elif kernel.kind is Kind.ATTENTION and kernel.operator != "attend":
                row = _attention(graph, operators[kernel.operator], kernel.phase, where, local, attention)
                calls *= max(_one(at, "context") / 2, 1.0)
            else:
                continue
            if row:
                yield kernel.operator, row, float(calls)


def _blocks(problem: Problem, plan: Columns, stack: Stack) -> Iterator[tuple[Graph, float, frozenset[str]]]:
    """(block, how many of it the stage with most of them holds, operators it runs again)."""
    policy = _one(problem.at(plan), "recompute")
    stages, place = stages_of(problem, plan, stack)
    layers = stages.counts[:, :, place[0]].max(axis=1).tolist()
    blocks = blocks_of(graphs(problem.architecture, stack.traits))
    for position, (graph, count) in enumerate(zip(blocks, [*layers, 1, 1], strict=True)):
        layer = position < len(layers) and policy != Recompute.FIRST_K
        if count:
            yield graph, float(count), rerun_operators(graph, stack, policy) if layer else frozenset()


def _product(kernel: Kernel, op: Operator, at: SymbolTable) -> dict[str, str]:
    """A matrix product as the suite writes it; empty when it cannot run it."""
    groups, x, y, z = (int(np.ceil(np.max(value))) for value in kernel.shape)
    precision, layout = Precision(_one(at, "precision")), _LAYOUT[kernel.phase]
    dtype = _DTYPE.get(precision, "bf16") if op.quantised or precision < Precision.FP8 else "bf16"
    if op.quantised and precision > Precision.FP8:
        return {}
    if groups > 1 and (dtype == "fp8" or layout == "wgrad"):
        return {}
    m, n = (y, x) if layout == "wgrad" else (x, y)  # the suite computes the weights' gradient as (outputs, inputs)
    layout = "forward" if dtype == "fp8" or groups > 1 else layout  # 8-bit operands are transposed beforehand
    return {"op": "gemm", "dtype": dtype, "layout": layout, "m": f"{m}", "n": f"{n}", "k": f"{z}", "groups": f"{groups}"}


def _attention(
    graph: Graph, op: Operator, phase: str, where: Placement, at: SymbolTable, implementation: str
) -> dict[str, str]:
    """An attention call; under context parallelism one exchange of the ring, half of which are masked out whole."""
    context, length = _one(at, "context"), _one(at, "sequence")
    if np.max(graph.size("key_length").evaluate(at)) < length:
        return {}
    q_len = -(-length // context)
    kv_heads = op.reads[1][1][1] if len(op.reads) > 2 else "heads"
    sizes = {
        "batch": _one(at, "micro_batch"),
        "heads": np.max(graph.local("heads", where).evaluate(at)),
        "kv_heads": np.max(graph.local(kv_heads, where).evaluate(at)),
        "q_len": q_len,
        "kv_len": q_len,
        "head_dim": np.max(graph.size("qk_dim").evaluate(at)),
    }
    named = "attention_prefill" if phase == FORWARD else "attention_backward"
    dtype = {Precision.FP16: "fp16", Precision.FP32: "fp32"}.get(Precision(_one(at, "precision")), "bf16")
    shape = {name: f"{int(value)}" for name, value in sizes.items()}
    causal = "true" if context == 1 else "false"
    return {"op": named, "dtype": dtype, **shape, "causal": causal, "implementation": implementation}


def _implementation(problem: Problem, stack: Stack, at: SymbolTable) -> str:
    """What the stack runs attention with, as PyTorch names it; `default` where the stack leaves the choice to PyTorch."""
    if stack.traits.unfused_attention:
        return "unfused"
    names = problem.labels.get("generation", ("unknown",))
    generation = names[_one(at, "generation")] if len(names) > 1 else names[0]
    meeting = {**stack.generations.get("default", {}), **stack.generations.get(generation, {})}
    return _IMPLEMENTATION.get(str(meeting.get("attention", "")), "default")


def _one(at: SymbolTable, symbol: str) -> int:
    """A whole number that the batch of one holds."""
    return int(np.max(at[symbol]))
