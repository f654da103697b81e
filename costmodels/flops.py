"""FLOPs by the published convention: what `mfu`, `hfu` and TFLOP/s per device divide by.

Three times the forward matrix FLOPs, attention over the full s², LM head included, recomputation excluded; `hfu` adds the
recomputed forward by the same count; `mfu_causal` counts attention over the causal half (Chowdhery 2022 app. B; DESIGN of
Narayanan 2021 eq. 3 is the same with full recomputation added).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from costmodels.block_kernels import attention_pairs, product_shape
from costmodels.constants import Stack
from spaces.blocks import Model, placement
from spaces.columns import FloatArray, IntArray, Value
from spaces.expressions import SymbolTable
from spaces.graph import MATRIX_KINDS, Graph, Kind
from spaces.plan import Recompute


@dataclass(frozen=True, slots=True, eq=False)
class ConventionFlops:
    """FLOPs of one sequence, forward only; `again` (3, n) is the recomputed part by policy."""

    full: FloatArray
    causal: FloatArray
    again: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class DeviceFlops:
    """FLOPs of a step on one device by the convention, forward and backward; arrays of shape (n,).

    `model` counts attention over the full s², `causal` over the causal half; `hardware` adds to the first what is recomputed.
    """

    model: FloatArray
    hardware: FloatArray
    causal: FloatArray


def device_flops(at: SymbolTable, of: ConventionFlops, place: IntArray, policy: IntArray, first_k: FloatArray) -> DeviceFlops:
    """FLOPs of n plans whose sequences are at `place` (n,) of the convention's, under their recomputation `policy` (n,).

    first_k: the share of layers that first-k recomputes, read where that is the policy.
    """
    again = np.where(np.asarray(at["recompute"]) == Recompute.FIRST_K, first_k * of.again[2, place], of.again[policy, place])
    sequences = np.asarray(at["global_batch"], np.float64) / at["devices"]
    full = 3.0 * of.full[place]
    return DeviceFlops(model=full * sequences, hardware=(full + again) * sequences, causal=3.0 * of.causal[place] * sequences)


@dataclass(frozen=True, slots=True)
class _Whole:
    """One sequence on one device: every degree is one."""

    at: SymbolTable

    def __getitem__(self, symbol: str) -> Value:
        if symbol in ("tensor", "context", "expert", "expert_tensor", "micro_batch", "stream_shards"):
            return 1
        return self.at[symbol]


def convention_flops(model: Model, stack: Stack, at: SymbolTable, n: int) -> ConventionFlops:
    """FLOPs of one sequence for n combinations of symbols."""
    here = _Whole(at)
    full, causal, again = np.zeros(n), np.zeros(n), np.zeros((3, n))
    counts = {kind: model.order.count(kind) for kind in model.layers}
    for graph, count in [(model.layers[kind], counts[kind]) for kind in counts] + [(model.head, 1)]:
        whole, half = _forward(graph, frozenset(op.name for op in graph.operators), here)
        full += count * whole
        causal += count * half
        if graph is not model.head:
            for policy, name in ((1, stack.selective), (2, "full")):
                rerun = graph.operators if name == "full" else graph.recomputed(name)
                again[policy] += count * _forward(graph, frozenset(op.name for op in rerun), here)[0]
    return ConventionFlops(full, causal, again)


def _forward(graph: Graph, names: frozenset[str], at: SymbolTable) -> tuple[Value, Value]:
    """(attention over s², attention over the causal pairs) FLOPs of the named operators."""
    where = placement(sequence_parallel=False, vocab_parallel=True)
    products: Value = 0.0
    for op in graph.operators:
        if op.kind in MATRIX_KINDS and op.name in names:
            groups, m, n, k = product_shape(graph, op, where, at)
            products = products + 2.0 * groups * m * n * k
    square: Value = 0.0
    half: Value = 0.0
    for op in graph.operators:
        if op.kind is Kind.ATTENTION and op.name in names:
            widths = {"scores": ("qk_dim",), "attend": ("value_dim",)}.get(op.name, ("qk_dim", "value_dim"))
            width = sum(graph.size(dim).evaluate(at) for dim in widths)
            heads = graph.size("heads").evaluate(at)
            square = square + 2.0 * heads * width * np.asarray(at["sequence"], np.float64) ** 2
            half = half + 2.0 * heads * width * attention_pairs(at, at["sequence"])
    return products + square, products + half
