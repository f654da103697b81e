"""Time of one serving step as a sum of tables of at most two dimensions, shared by both fidelities.

A step of continuous batching processes new tokens of prompts (prefill) and one token (or a few, under speculation) of every
running request (decode). Its time on an engine is a sum over operator families, each a function of one or two totals of the
batch: linear layers and collectives of the new tokens, the head of the sampled sequences, decode attention of (requests, Σkv),
prefill attention of (Σq, Σ query-key pairs). A cell is read by linear interpolation; beyond the last cell, by the last slope.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spaces.columns import FloatArray, IntArray, Value


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepTables:
    """Tables of c engines (distinct local shapes of one model's plans) over shared grids; seconds on one engine.

    An engine is one replica: pipeline · tensor · attention_dp devices. All totals are those of ONE attention-data-parallel
    rank. Grids ascend strictly and are positive except that `pairs` and `decode_kv` may begin at 0.

    - `tokens` (T,), `token_time` (c, T): everything that grows with new tokens Σq (prompt and decode tokens together): linear
      layers, experts, norms, activations, embedding, collectives. All layers of all stages.
    - `sequences` (S,), `sequence_time` (c, S): head, its collective and sampling, by sequences sampled in the step.
    - `requests` (R,), `decode_kv` (K,), `decode_time` (c, R, K): decode attention of all layers by running requests and Σkv.
      K is the total of cached tokens over the requests. `draft_time` (c, R, K): what drafting takes of it.
    - `queries` (Q,), `pairs` (P,), `prefill_time` (c, Q, P): prefill attention by Σq of prompt chunks and Σ q·kv executed pairs
      (causal halves already taken).
    - Host, (c,): `host` and `host_per_sequence` seconds of scheduler and sampling a step, of which the share
      `host_overlap` (0..1) runs beside the device (the cubic norm of both); `launch` seconds to launch a step eagerly, paid
      instead of the device time
      where it is larger and the step is not in a CUDA graph; a step of decode tokens alone is in one up to
      `graph_sequences` sequences (0: never).
    - `fetch` (c,): seconds that a token of cache takes over the host link, one way, all layers, where a share of it stays in
      host memory (0: none does); the share `fetch_overlap` (c,) of it hides behind the device.
    - `stages` (c,): pipeline stages. The sum above is the latency through all of them; batches follow each other every
      `latency · slowest_share`, where `slowest_share` (c,) is the slowest stage's share (1 without a pipeline).
    """

    tokens: FloatArray
    token_time: FloatArray
    sequences: FloatArray
    sequence_time: FloatArray
    requests: FloatArray
    decode_kv: FloatArray
    decode_time: FloatArray
    draft_time: FloatArray
    queries: FloatArray
    pairs: FloatArray
    prefill_time: FloatArray
    host: FloatArray
    host_per_sequence: FloatArray
    host_overlap: FloatArray
    launch: FloatArray
    graph_sequences: FloatArray
    fetch: FloatArray
    fetch_overlap: FloatArray
    stages: FloatArray
    slowest_share: FloatArray

    def __len__(self) -> int:
        return len(self.host)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Batch:
    """Totals of n steps on one attention-data-parallel rank; arrays of shape (n,) or scalars.

    `decode_requests` requests decode with `decode_kv` cached tokens in all; prompt chunks bring `prefill_queries` tokens and
    `prefill_pairs` query-key pairs, with `prefill_cached` tokens of their prompts cached before; `prompts_finished` prompts are
    sampled for the first time. `decode_tokens` is the number of new tokens of the decoding requests: `decode_requests` unless
    several are verified at once.
    """

    decode_requests: Value = 0.0
    decode_kv: Value = 0.0
    decode_tokens: Value | None = None
    prefill_queries: Value = 0.0
    prefill_pairs: Value = 0.0
    prefill_cached: Value = 0.0
    prompts_finished: Value = 0.0


def step_time(tables: StepTables, engine: IntArray | int, batch: Batch) -> FloatArray:
    """Seconds of n steps (latency through all stages, host included); `engine` (n,) or a scalar indexes the tables' rows."""
    decoding = batch.decode_requests if batch.decode_tokens is None else batch.decode_tokens
    new_tokens = np.asarray(decoding, np.float64) + batch.prefill_queries
    sampled = np.asarray(decoding, np.float64) + batch.prompts_finished
    engine, new_tokens, sampled = np.broadcast_arrays(np.asarray(engine), new_tokens, sampled)
    kernels = _kernels(tables, engine, batch, new_tokens, sampled)
    return _step_time(tables, engine, batch, new_tokens, sampled, np.asarray(sum(kernels.values())))


def _kernels(
    tables: StepTables, engine: IntArray, batch: Batch, new_tokens: FloatArray, sampled: FloatArray
) -> dict[str, FloatArray]:
    """Seconds of the kernels of n steps by what grows them; their sum is the device's own time."""
    return {
        "tokens": read_1d(tables.tokens, tables.token_time, engine, new_tokens),
        "head": read_1d(tables.sequences, tables.sequence_time, engine, sampled),
        "decode_attention": read_2d(
            tables.requests, tables.decode_kv, tables.decode_time, engine, batch.decode_requests, batch.decode_kv
        ),
        "prefill_attention": read_2d(
            tables.queries, tables.pairs, tables.prefill_time, engine, batch.prefill_queries, batch.prefill_pairs
        ),
    }


def _step_time(
    tables: StepTables, engine: IntArray, batch: Batch, new_tokens: FloatArray, sampled: FloatArray, device: FloatArray
) -> FloatArray:
    """Seconds of n steps whose kernels take `device` together, started one by one or as a graph, and the host's beside them."""
    graphed = (np.asarray(batch.prefill_queries) == 0) & (sampled <= tables.graph_sequences[engine])
    device = np.where(graphed, device, np.maximum(device, tables.launch[engine]))
    host = tables.host[engine] + tables.host_per_sequence[engine] * sampled
    beside = host * tables.host_overlap[engine]
    fetch = _exposed_fetch(tables, engine, batch, new_tokens, device)
    return np.asarray(together(device, beside) + fetch + host - beside, np.float64)


def together(one: FloatArray, other: FloatArray) -> FloatArray:
    """Seconds of two that run beside each other and hide less of one another the nearer they are.

    Their cubic norm to 0.1 %, without a root: longer · (1 + x³ / (3 + 0.847 x³)), x the shorter over the longer.
    """
    longer, shorter = np.maximum(one, other), np.minimum(one, other)
    cube = (shorter / np.where(longer > 0, longer, 1.0)) ** 3
    return np.asarray(longer * (1.0 + cube / (3.0 + 0.847 * cube)), np.float64)


def _exposed_fetch(
    tables: StepTables, engine: IntArray, batch: Batch, new_tokens: FloatArray, device: FloatArray
) -> FloatArray | float:
    """Seconds of fetching caches from the host that the device's own work does not hide; reads and writes pass each other."""
    if not np.any(tables.fetch):
        return 0.0
    moved = np.maximum(np.asarray(batch.decode_kv, np.float64) + batch.prefill_cached, new_tokens)
    fetch = tables.fetch[engine] * moved
    return np.asarray(fetch - np.minimum(fetch * tables.fetch_overlap[engine], device))


def parts_of(tables: StepTables, engine: IntArray, batch: Batch) -> dict[str, FloatArray]:
    """The step of n engines (n,) by what takes it: tokens, head, both attentions, drafts, fetched caches and exposed host."""
    decoding = np.asarray(batch.decode_requests if batch.decode_tokens is None else batch.decode_tokens, np.float64)
    new_tokens, sampled = decoding + batch.prefill_queries, decoding + batch.prompts_finished
    parts = _kernels(tables, engine, batch, new_tokens, sampled)
    device = np.asarray(sum(parts.values()))
    whole = _step_time(tables, engine, batch, new_tokens, sampled, device)
    fetched = np.minimum(_exposed_fetch(tables, engine, batch, new_tokens, device), whole - device)
    drafting = np.zeros_like(parts["decode_attention"])
    if np.any(tables.draft_time):
        at = batch.decode_requests, batch.decode_kv
        drafting = read_2d(tables.requests, tables.decode_kv, tables.draft_time, engine, *at)
    parts |= {"decode_attention": parts["decode_attention"] - drafting, "drafting": drafting}
    return parts | {"cache_fetch": np.broadcast_to(fetched, whole.shape).copy(), "host": whole - device - fetched}


def read_1d(grid: FloatArray, table: FloatArray, row: IntArray, at: Value) -> FloatArray:
    """Linear interpolation in `table[row]` (c, G) at `at`; 0 where `at` is 0; the first cell below the grid; (n,)."""
    at = np.asarray(at, np.float64)
    left, share = _cell(grid, at)
    low, high = table[row, left], table[row, np.minimum(left + 1, len(grid) - 1)]
    return np.asarray(np.where(at > 0, low + share * (high - low), 0.0), np.float64)


def read_2d(
    first: FloatArray, second: FloatArray, table: FloatArray, row: IntArray, at_first: Value, at_second: Value
) -> FloatArray:
    """Bilinear interpolation in `table[row]` (c, F, S); 0 where the first coordinate is 0; (n,)."""
    x, y = np.asarray(at_first, np.float64), np.asarray(at_second, np.float64)
    if not np.any(x):  # no prompts in steps that only decode
        return np.zeros(np.broadcast_shapes(np.shape(row), x.shape, y.shape))
    i, u = _cell(first, x)
    j, v = _cell(second, y)
    above, right = np.minimum(i + 1, len(first) - 1), np.minimum(j + 1, len(second) - 1)
    bottom = table[row, i, j] * (1 - v) + table[row, i, right] * v
    top = table[row, above, j] * (1 - v) + table[row, above, right] * v
    return np.asarray(np.where(x > 0, bottom * (1 - u) + top * u, 0.0), np.float64)


def _cell(grid: FloatArray, at: FloatArray) -> tuple[IntArray, FloatArray]:
    """Index of the cell's left edge and the position in it: clamped at 0 below the grid, above 1 beyond its end."""
    if len(grid) == 1:
        return np.zeros(np.shape(at), np.int64), np.zeros(np.shape(at))
    left = np.minimum(np.maximum(grid.searchsorted(at, side="right") - 1, 0), len(grid) - 2)
    share = (at - grid[left]) / (grid[left + 1] - grid[left])
    return left, np.maximum(share, 0.0)
