"""The event loop's block of words for given pools and requests, and how to read it back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.simulation import state as w
from costmodels.simulation.limits import POLICIES, ROUTERS, KvLink, Pool
from spaces.columns import FloatArray, IntArray
from spaces.workload import Requests

LOG_STEPS = 1 << 16
"""Decode steps logged between two visits of the caller."""

_FAMILIES = (
    ((w.P_TOKENS, "tokens"), (w.P_TOKEN_TIME, "token_time")),
    ((w.P_SEQUENCES, "sequences"), (w.P_SEQUENCE_TIME, "sequence_time")),
    ((w.P_REQUESTS, "requests"), (w.P_DECODE_KV, "decode_kv"), (w.P_DECODE_TIME, "decode_time")),
    ((w.P_QUERIES, "queries"), (w.P_PAIRS, "pairs"), (w.P_PREFILL_TIME, "prefill_time")),
)
_LENGTHS = {
    "tokens": w.P_N_TOKENS,
    "sequences": w.P_N_SEQUENCES,
    "requests": w.P_N_REQUESTS,
    "decode_kv": w.P_N_DECODE_KV,
    "queries": w.P_N_QUERIES,
    "pairs": w.P_N_PAIRS,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """The words as integers `m` and floats `f`, (words,); first words and counts of its records."""

    m: IntArray
    f: FloatArray
    requests: int
    n: int
    lanes: int
    n_lanes: int
    cells: int
    n_cells: int
    cohorts: int
    n_cohorts: int
    engines: int
    pools: int

    def request(self, field: int) -> IntArray:
        """A field of all requests, (n,), seen in place."""
        return self.m[self.requests : self.requests + self.n * w.REQUEST_WORDS].reshape(self.n, -1)[:, field]

    def request_time(self, field: int) -> FloatArray:
        """A time of all requests, (n,), seen in place."""
        return self.f[self.requests : self.requests + self.n * w.REQUEST_WORDS].reshape(self.n, -1)[:, field]

    def lane(self, field: int) -> IntArray:
        """A field of all lanes."""
        return self.m[self.lanes + np.arange(self.n_lanes) * w.LANE_WORDS + field]

    def cell(self, field: int) -> IntArray:
        """A field of all cells."""
        return self.m[self.cells + np.arange(self.n_cells) * w.CELL_WORDS + field]

    def number_of_cell(self, word: IntArray) -> IntArray:
        """Cells' numbers from their first words."""
        return (word - self.cells) // w.CELL_WORDS


def layout(pools: Sequence[Pool], requests: Requests, link: KvLink, router: str, horizon: float) -> Block:
    """The state at time 0: one pool that does both, or a prefill pool and a decode pool."""
    n = len(requests)
    levels, level = _levels(requests)
    turns, prefixes = _turns(requests)
    heads = np.arange(n) if requests.follows is None else np.flatnonzero(requests.follows < 0)
    if requests.follows is not None:
        heads = heads[np.argsort(requests.arrival[heads], kind="stable")]
    closed = requests.concurrency > 0
    stages = [int(pool.tables.stages[pool.engine]) for pool in pools]
    n_engines, n_lanes = sum(pool.replicas for pool in pools), sum(pool.ranks for pool in pools)
    n_cohorts = sum(pool.replicas * stage for pool, stage in zip(pools, stages, strict=True))
    n_cells = sum(pool.ranks * stage for pool, stage in zip(pools, stages, strict=True))
    widest = max(pool.limits.max_batch * pool.limits.attention_dp for pool in pools)
    longest = int(np.max(requests.output, initial=1)) + max(pool.limits.verified_tokens for pool in pools)
    ring = 1 << longest.bit_length()
    most = max(pool.limits.block_size for pool in pools)
    returning = closed or len(turns) > 0 or len(pools) > 1
    tables = [np.ravel(part) for pool in pools for part in _parts(pool)]
    log_room, stint_room = LOG_STEPS + n_cells, 4 * widest + 64

    ends = np.cumsum(
        [
            *(w.RUN_WORDS, n * w.REQUEST_WORDS, turns.size, len(heads), len(pools) * w.POOL_WORDS, n_engines * w.ENGINE_WORDS),
            *(n_cohorts * w.COHORT_WORDS, n_cells * w.CELL_WORDS, n_cells * (ring + most + levels)),
            *(n_lanes * w.LANE_WORDS, n_lanes * 2 * levels, n_lanes * prefixes * w.PREFIX_WORDS),
            *(w.PENDING_WORDS * (n + 1) * returning, log_room * w.STEP_WORDS, stint_room * w.STINT_WORDS),
            sum(part.size for part in tables),
        ]
    )
    at = [0, *(int(end) for end in ends)]
    _, at_requests, at_turns, at_heads, at_pools, at_engines, at_cohorts, at_cells, at_lists = at[:9]
    at_lanes, at_queues, at_prefixes, at_pending, at_log, at_stints, at_tables, words = at[9:]
    m = np.zeros(words, np.int64)
    f = m.view(np.float64)
    block = Block(
        m=m,
        f=f,
        requests=at_requests,
        n=n,
        lanes=at_lanes,
        n_lanes=n_lanes,
        cells=at_cells,
        n_cells=n_cells,
        cohorts=at_cohorts,
        n_cohorts=n_cohorts,
        engines=at_engines,
        pools=at_pools,
    )
    first = min(requests.concurrency, len(heads)) if closed else len(heads)
    for field, value in (
        *((w.LIMIT, first), (w.SPARE, first), (w.CLOSED, closed), (w.ROUTER, ROUTERS.index(router)), (w.MARGIN, widest)),
        *((w.REQUESTS, at_requests), (w.TURNS, at_turns if len(turns) else 0), (w.HEADS, at_heads), (w.N_HEADS, len(heads))),
        *((w.POOLS, at_pools), (w.COHORTS, at_cohorts), (w.N_COHORTS, n_cohorts), (w.N_CELLS, n_cells), (w.LEVELS, levels)),
        *((w.RING_MASK, ring - 1), (w.PENDING, at_pending), (w.LOG, at_log), (w.LOG_ROOM, log_room)),
        *((w.STINTS, at_stints), (w.STINT_ROOM, stint_room)),
    ):
        m[field] = value
    f[w.HORIZON], f[w.TURNAROUND] = horizon, requests.turnaround
    _put_requests(block, requests, level, too_long(pools, requests))
    f[at_turns:at_heads] = np.ravel(turns)
    m[at_turns:at_heads].reshape(-1, w.TURN_WORDS)[:, : w.THINK] = turns[:, : w.THINK]
    m[at_heads:at_pools] = at_requests + heads * w.REQUEST_WORDS
    engine, cohort, cell, lane, table = at_engines, at_cohorts, at_cells, at_lanes, at_tables
    for number, (pool, stage) in enumerate(zip(pools, stages, strict=True)):
        p = at_pools + number * w.POOL_WORDS
        role = w.BOTH if len(pools) == 1 else w.DECODE if number else w.PREFILL
        table = _put_pool(block, p, pool, stage, role, link, lane, table)
        ranks = pool.limits.attention_dp
        for _ in range(pool.replicas):
            m[engine + w.E_POOL], m[engine + w.E_COHORT] = p, cohort
            for _ in range(stage):
                m[cohort + w.C_ENGINE], m[cohort + w.C_CELL] = engine, cell
                f[cohort + w.C_NEXT] = f[cohort + w.C_BEGAN] = math.inf
                cohort += w.COHORT_WORDS
                for rank in range(ranks):
                    lists = at_lists + (cell - at_cells) // w.CELL_WORDS * (ring + most + levels)
                    m[cell + w.LANE] = lane + rank * w.LANE_WORDS
                    m[cell + w.ENDING], m[cell + w.PHASES], m[cell + w.TAILS] = lists, lists + ring, lists + ring + most
                    cell += w.CELL_WORDS
            for _ in range(ranks):
                place = (lane - at_lanes) // w.LANE_WORDS
                m[lane + w.L_FREE] = m[lane + w.L_TOTAL] = pool.limits.kv_blocks
                m[lane + w.L_ENGINE], m[lane + w.L_POOL] = engine, p
                m[lane + w.L_QUEUES] = at_queues + place * 2 * levels
                m[lane + w.L_PREFIXES] = at_prefixes + place * prefixes * w.PREFIX_WORDS
                lane += w.LANE_WORDS
            engine += w.ENGINE_WORDS
    f[at_tables:words] = np.concatenate(tables)
    return block


def too_long(pools: Sequence[Pool], requests: Requests) -> IntArray:
    """Whether each request can never be served, (n,): 1 longer than a context, 2 than an engine's whole KV cache, else 0."""
    why = np.zeros(len(requests), np.int64)
    total = requests.prompt + requests.output
    for number, pool in enumerate(pools):
        limits = pool.limits
        moved = len(pools) > 1 and number == 0
        cached = requests.prompt if moved else total - 1 + limits.verified_tokens - 1
        why[-(-cached // limits.block_size) > limits.kv_blocks] = 2
    for pool in pools:
        if pool.limits.context:
            why[total > pool.limits.context] = 1
    return why


def _levels(requests: Requests) -> tuple[int, IntArray | int]:
    if requests.priority is None or len(requests) == 0:
        return 1, 0
    values, level = np.unique(requests.priority, return_inverse=True)
    return len(values), level


def _turns(requests: Requests) -> tuple[FloatArray, int]:
    """What joins requests, (n, TURN_WORDS) or (0, TURN_WORDS), and how many prefixes there are."""
    if requests.prefix is None and requests.follows is None:
        return np.zeros((0, w.TURN_WORDS)), 0
    turns = np.zeros((len(requests), w.TURN_WORDS))
    turns[:, w.PREFIX] = turns[:, w.SUCCESSOR] = -1
    prefixes = 0
    if requests.prefix is not None and np.any(requests.prefix >= 0):
        values, number = np.unique(requests.prefix, return_inverse=True)
        own = requests.prefix >= 0
        turns[own, w.PREFIX] = number[own] - int(np.sum(values < 0))
        prefixes = int(np.sum(values >= 0))
        turns[:, w.SHARED] = 0 if requests.shared is None else np.minimum(requests.shared, requests.prompt)
        turns[:, w.KEEPS] = 0 if requests.keeps is None else requests.keeps
    if requests.follows is not None:
        rows = np.flatnonzero(requests.follows >= 0)
        turns[requests.follows[rows], w.SUCCESSOR] = rows
        turns[requests.follows[rows], w.THINK] = 0 if requests.think is None else requests.think[rows]
    return turns, prefixes


def _put_requests(block: Block, requests: Requests, level: IntArray | int, why: IntArray) -> None:
    block.request_time(w.ARRIVAL)[:] = requests.arrival
    for field in (w.ADMITTED, w.FIRST, w.FINISH, w.JOINED):
        block.request_time(field)[:] = -1.0
    block.request(w.PROMPT)[:], block.request(w.OUTPUT)[:] = requests.prompt, requests.output
    block.request(w.LEVEL)[:] = level
    block.request(w.KNOWN)[:] = 0 if requests.known is None else np.minimum(requests.known, requests.prompt - 1)
    block.request(w.STATE)[why > 0] = w.REJECTED


def _parts(pool: Pool) -> list[FloatArray]:
    """The grids and the engine's row of every table, family by family."""
    grids = [[getattr(pool.tables, name) for _, name in family] for family in _FAMILIES]
    return [part for *axes, table in grids for part in (*axes, table[pool.engine])]


def _put_pool(block: Block, p: int, pool: Pool, stages: int, role: int, link: KvLink, lane: int, table: int) -> int:
    """Write a pool's record; its tables begin at word `table`, and the next pool's at the word returned."""
    m, f, limits, tables, row = block.m, block.f, pool.limits, pool.tables, pool.engine
    parts = iter(_parts(pool))
    for family in _FAMILIES:
        for field, name in family:
            m[p + field] = table
            part = next(parts)
            if name in _LENGTHS:
                m[p + _LENGTHS[name]] = len(part)
            table += part.size
    whole = limits.reserve == "whole" and role != w.PREFILL  # a prefill engine sees no answer
    for field, value in (
        *((w.P_HOST, tables.host[row]), (w.P_HOST_PER_SEQUENCE, tables.host_per_sequence[row])),
        *((w.P_HOST_OVERLAP, tables.host_overlap[row]), (w.P_LAUNCH, tables.launch[row])),
        *((w.P_GRAPH_SEQUENCES, tables.graph_sequences[row]), (w.P_SHARE, tables.slowest_share[row])),
        *((w.P_FETCH, tables.fetch[row]), (w.P_FETCH_OVERLAP, tables.fetch_overlap[row])),
        *((w.P_SWAP_TIME, limits.swap_time_per_token), (w.P_ACCEPTED, limits.accepted_tokens)),
        *((w.P_LINK_LATENCY, link.latency), (w.P_LINK_TIME, link.time_per_token)),
    ):
        f[p + field] = value
    for field, count in (
        *((w.P_MAX_BATCH, limits.max_batch), (w.P_MAX_TOKENS, limits.max_tokens), (w.P_CHUNK, limits.chunk)),
        *((w.P_CHUNKED, limits.chunked), (w.P_POLICY, POLICIES.index(limits.policy)), (w.P_WHOLE, whole)),
        *((w.P_SWAP, limits.preemption == "swap"), (w.P_HOST_BLOCKS, limits.host_blocks), (w.P_BLOCK, limits.block_size)),
        *((w.P_RESERVE, math.ceil(limits.watermark * limits.kv_blocks)), (w.P_VERIFIED, limits.verified_tokens)),
        *((w.P_STAGES, stages), (w.P_RANKS, limits.attention_dp), (w.P_ROLE, role)),
        *((w.P_REPLICAS, pool.replicas), (w.P_FIRST_LANE, lane), (w.P_AHEAD, limits.ahead)),
        (w.P_PATIENCE, limits.patience if limits.attention_dp > 1 and role != w.DECODE else 0),
    ):
        m[p + field] = count
    return table
