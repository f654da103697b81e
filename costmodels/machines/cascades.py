"""Attention as a cascade of einsums: how often a mapping passes over the keys, and the buffer that it needs on chip.

Nayak et al. (FuseMax, MICRO 2024) classify softmax cascades by passes over the key rank: `unfused` stores the scores and passes
three times (maximum, exponentials and their sum, quotient); `flat` (Kao et al., ASPLOS 2023) keeps the three passes on chip
for a block of queries, so its buffer grows with the keys; `fusemax` takes one pass with running maximum and denominator
(as FlashAttention-2 does), so its buffer does not know the length. Bytes, FLOP and seconds; everything broadcasts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from costmodels.machines.tables import constants
from spaces.columns import FloatArray, Value
from spaces.expressions import SymbolTable

PASSES: Mapping[str, int] = MappingProxyType({"unfused": 3, "flat": 3, "fusemax": 1})
"""Passes over the keys by mapping."""
ACCUMULATOR = 4.0
"""Bytes of a running maximum, denominator, or partial output."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AttentionCost:
    """Attention of one device, shape (n,): seconds by limit and together, memory traffic in bytes, buffer a core in bytes.

    `spilled`: the buffer does not hold one block of queries, so scores pass through memory as if unfused.
    """

    time: FloatArray
    matrix: FloatArray
    vector: FloatArray
    memory: FloatArray
    traffic: FloatArray
    buffer: FloatArray
    spilled: FloatArray


def buffer_bytes(
    mapping: str, queries: Value, keys: Value, width: Value, block: Value = 128.0, element: float = 2.0
) -> FloatArray:
    """Bytes on chip to run a block of `queries` against `keys` keys of `width`, with key blocks of `block`.

    flat: all scores of the block beside Q, and key and value blocks, double buffered: grows with the keys. fusemax: one block
    of scores, running maximum and denominator, partial outputs: independent of the keys. unfused: operand blocks alone.
    Raises ValueError for another mapping.
    """
    _known(mapping)
    streams = 2.0 * 2.0 * element * np.asarray(block) * width + element * np.asarray(queries) * width
    if mapping == "unfused":
        return np.asarray(streams + ACCUMULATOR * np.asarray(queries) * block)
    running = np.asarray(queries) * (ACCUMULATOR * np.asarray(width) + 2.0 * ACCUMULATOR)
    scores = ACCUMULATOR * np.asarray(queries, np.float64) * (keys if mapping == "flat" else np.minimum(block, keys))
    return np.asarray(streams + running + scores)


def query_block(mapping: str, size: Value, keys: Value, width: Value, block: Value = 128.0, element: float = 2.0) -> FloatArray:
    """The most queries whose buffer fits in `size` bytes; 0 where not even one does (linear in the queries, so exact)."""
    none = buffer_bytes(mapping, 0.0, keys, width, block, element)
    each = buffer_bytes(mapping, 1.0, keys, width, block, element) - none
    return np.maximum(np.floor((np.asarray(size, np.float64) - none) / each), 0.0)


def attention_traffic(
    mapping: str, queries: Value, keys: Value, width: Value, block: Value, *, heads: Value = 1.0, shared: Value = 1.0,
    element: float = 2.0,
) -> FloatArray:  # fmt: skip
    """Bytes through memory of `heads` query heads, `shared` of them to one key head, with `block` queries on chip at a time.

    Fused: Q and O once, K and V once for every block of the queries that share them. Unfused: the scores are written once, and
    read and written in each further pass (2·passes − 1 times), beside K and V once.
    """
    _known(mapping)
    q, k, h = (np.asarray(value, np.float64) for value in (queries, keys, heads))
    ends = 2.0 * element * h * q * width
    if mapping == "unfused":
        return np.asarray(ends + 2.0 * element * h / shared * k * width + element * h * q * k * (2 * PASSES[mapping] - 1))
    blocks = np.ceil(q * shared / np.maximum(np.asarray(block, np.float64), 1.0))
    return np.asarray(ends + 2.0 * element * h / shared * k * width * blocks)


def attention_cost(
    mapping: str, at: SymbolTable, batch: Value, heads: Value, queries: Value, keys: Value, width: Value, *,
    shared: Value = 1.0, causal: Value = 0.0, clock_share: Value = 1.0,
) -> AttentionCost:  # fmt: skip
    """Attention on the accelerator whose `chip.*` symbols `at` binds; `causal` (0 or 1) halves the scores.

    Matrix time: two products at the arrays' fill (a block smaller than an array leaves rows idle). Vector time: exponential,
    maximum, sum and rescaling of every score. fusemax overlaps the two and memory; flat overlaps memory alone, for its
    softmax waits for a whole row; unfused adds all three. Where flat cannot hold one row of arrays it spills: as unfused.
    """
    _known(mapping)
    cost = constants("dataflow")
    q, k, d, b, h = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (queries, keys, width, batch, heads)))
    size = np.asarray(at["chip.l1_bytes"] + at["chip.register_bytes"], np.float64)
    rows = np.asarray(at["chip.array_rows"], np.float64)
    held = query_block(mapping, size, k, d)
    in_step = np.where(np.asarray(at["chip.l2_bytes"]) > 0, at["chip.cores"], 1.0)  # cores pass over shared keys in step
    fits = np.minimum(held, q * shared)
    spilled = np.where(mapping == "flat", held < np.minimum(rows, q * shared), False)
    live = 1.0 - 0.5 * np.asarray(causal, np.float64)
    scores = b * h * q * k * live
    clock = at["chip.clock"] * np.asarray(clock_share, np.float64)
    fill = np.minimum(np.where(spilled | (mapping == "unfused"), rows, np.maximum(fits, 1.0)), rows) / rows
    matrix = 2.0 * scores * d / (at["chip.cores"] * at["chip.matrix_fma"] * clock * fill)
    work = cost["softmax_operations"] + (cost["rescaling_operations"] if mapping == "fusemax" else 0.0)
    vector = scores * work / (2.0 * at["chip.cores"] * at["chip.vector_fma"] * clock)
    fused = attention_traffic(mapping, q, k, d, fits * in_step, heads=h, shared=shared) * b
    apart = attention_traffic("unfused", q, k, d, fits, heads=h, shared=shared) * b
    traffic = np.where(spilled, apart, fused)
    memory = traffic / np.maximum(at["device.memory_bandwidth"], 1.0)
    together = {
        "fusemax": np.maximum(np.maximum(matrix, vector), memory),
        "flat": np.maximum(matrix + vector, memory),
        "unfused": matrix + vector + memory,
    }
    time = np.where(spilled, together["unfused"], together[mapping])
    return AttentionCost(
        time=time,
        matrix=np.broadcast_to(matrix, time.shape),
        vector=np.broadcast_to(vector, time.shape),
        memory=np.broadcast_to(memory, time.shape),
        traffic=traffic,
        buffer=buffer_bytes(mapping, np.maximum(fits, np.minimum(rows, q * shared)), k, d),
        spilled=np.broadcast_to(spilled, time.shape),
    )


def _known(mapping: str) -> None:
    if mapping not in PASSES:
        raise ValueError(f"attention has no mapping {mapping!r}; there are {', '.join(PASSES)}")
