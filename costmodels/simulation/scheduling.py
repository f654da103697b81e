"""One scheduler step: which requests decode, which prompt chunks go with them, who is admitted.

The order is vLLM v1's: running requests first (decode, then prompts begun), then the waiting ones while tokens, requests and
KV blocks allow, none of them after a preemption.
"""

from __future__ import annotations

import math

from costmodels.simulation import state as w
from costmodels.simulation.memory import blocks_for, grow, join_decode, next_gain, take
from costmodels.simulation.prefix_cache import cached_tokens, pinned_blocks, use
from costmodels.simulation.queues import first_waiting, pop_waiting, push_prefill, push_running
from costmodels.simulation.timing import batch_time
from spaces.columns import FloatArray, IntArray


def start(m: IntArray, f: FloatArray, u: int, now: float) -> None:
    """Schedule a cohort's next step on all ranks of its engine, or leave it idle."""
    e = m[u + w.C_ENGINE]
    p = m[e + w.E_POOL]
    seconds = plan(m, f, p, u, f[u + w.C_BEGAN] if m[p + w.P_AHEAD] else now)
    if seconds < 0 and m[p + w.P_AHEAD]:  # with nothing under way, what came since begins at once
        seconds = plan(m, f, p, u, now)
    if seconds < 0:
        m[u + w.C_STATE] = w.IDLE
        f[u + w.C_NEXT] = f[u + w.C_BEGAN] = math.inf
        return
    batch = 0
    for rank in range(m[p + w.P_RANKS]):
        c = m[u + w.C_CELL] + rank * w.CELL_WORDS
        if m[c + w.GAIN] > 0 or m[c + w.QUERIES] > 0:
            batch += m[c + w.ACTIVE]
    f[u + w.C_BEGAN] = now
    m[u + w.C_STATE] = w.RUNNING
    f[u + w.C_NEXT] = now + seconds
    f[u + w.C_BUSY] += seconds
    f[e + w.E_ENTRY] = now + seconds * f[p + w.P_SHARE]
    m[w.STEPS] += 1
    m[w.BATCH] += batch
    f[w.BATCH_TIME] += batch * seconds
    waiting = 0
    for rank in range(m[p + w.P_RANKS]):
        lane = m[m[u + w.C_CELL] + rank * w.CELL_WORDS + w.LANE]
        used = m[lane + w.L_TOTAL] - m[lane + w.L_FREE]
        f[lane + w.L_KV_TIME] += used * seconds
        m[lane + w.L_PEAK] = max(m[lane + w.L_PEAK], used)
        waiting += m[lane + w.L_WAITING]
    if waiting > 0 and m[p + w.P_STAGES] > 1:
        wake(m, f, e, now)


def plan(m: IntArray, f: FloatArray, p: int, u: int, seen: float) -> float:
    """Choose what a cohort's cells do among what had arrived by `seen`: seconds of the slowest; negative: nothing to do."""
    seconds = -1.0
    held = wait_for_others(m, f, p, u, seen) if m[p + w.P_PATIENCE] > 0 else 0
    for rank in range(m[p + w.P_RANKS]):
        c = m[u + w.C_CELL] + rank * w.CELL_WORDS
        f[c + w.SEEN] = seen
        schedule(m, f, p, c, held)
        if m[c + w.GAIN] > 0 or m[c + w.QUERIES] > 0:
            seconds = max(seconds, batch_time(m, f, p, c) + f[c + w.DELAY])
    return seconds


def wake(m: IntArray, f: FloatArray, e: int, now: float) -> None:
    """Let an engine's first idle cohort schedule as soon as its first stage is free."""
    for i in range(m[m[e + w.E_POOL] + w.P_STAGES]):
        u = m[e + w.E_COHORT] + i * w.COHORT_WORDS
        if m[u + w.C_STATE] == w.IDLE:
            m[u + w.C_STATE] = w.READY
            f[u + w.C_NEXT] = max(now, f[e + w.E_ENTRY])
            return


def wait_for_others(m: IntArray, f: FloatArray, p: int, u: int, seen: float) -> int:
    """Whether a cohort's ranks hold their prompts in this step: all of them decode, not all of them have a prompt, and they
    have not waited for `P_PATIENCE` steps. Steps count from the last that took prompts in, whether there were any or not."""
    prompts, decodes = 0, 0
    for rank in range(m[p + w.P_RANKS]):
        c = m[u + w.C_CELL] + rank * w.CELL_WORDS
        prompts += has_prompt(m, f, p, c, seen)
        decodes += 1 if m[c + w.DECODING_NOW] > 0 else 0
    m[u + w.C_WAITED] += 1
    if prompts == m[p + w.P_RANKS] or decodes < m[p + w.P_RANKS] or m[u + w.C_WAITED] >= m[p + w.P_PATIENCE]:
        m[u + w.C_WAITED] = 0
        return 0
    return 1


def has_prompt(m: IntArray, f: FloatArray, p: int, c: int, seen: float) -> int:
    """Whether a cell has a prompt begun, or one that waits and finds room."""
    lane = m[c + w.LANE]
    if m[c + w.PREFILL_HEAD] != 0:
        return 1
    r = first_waiting(m, lane)
    if r == 0 or m[r + w.STATE] != w.WAITING or f[r + w.ARRIVAL] > seen or m[lane + w.L_RUNNING] >= m[p + w.P_MAX_BATCH]:
        return 0
    return 1 if fits(m, p, lane, r) else 0


def schedule(m: IntArray, f: FloatArray, p: int, c: int, held: int) -> None:
    """Choose what a cell does in its next step; `held`: no prompts."""
    m[c + w.GAIN] = 0
    m[c + w.QUERIES] = 0
    m[c + w.FINISHED] = 0
    f[c + w.PAIRS] = 0.0
    m[c + w.FOUND] = 0
    f[c + w.DELAY] = 0.0
    m[c + w.BUDGET] = m[p + w.P_MAX_TOKENS]
    if m[c + w.ACTIVE] == 0:
        m[c + w.OPEN] = 1
    mixed = 1 if m[p + w.P_POLICY] == w.MIXED else 0
    if not mixed and not held:
        prefill(m, f, p, c)
        if m[p + w.P_POLICY] != w.STATIC or m[c + w.OPEN]:
            admit(m, f, p, c, m[c + w.GAIN], 1, 0)
        if m[c + w.QUERIES] > 0:
            return
    gain = next_gain(m, f, p, c)
    gave_way = grow(m, f, p, c, gain)
    m[c + w.BUDGET] -= m[c + w.DECODING_NOW] * m[p + w.P_VERIFIED]
    if mixed and not held:
        prefill(m, f, p, c)
    alone = gave_way and m[c + w.ACTIVE] == 0  # who gave way to itself comes back at once: nothing else would wake the engine
    if alone or not gave_way:
        admit(m, f, p, c, gain, 1 if alone else mixed * (1 - held), 1)
    if m[c + w.DECODING_NOW] > 0:
        m[c + w.GAIN] = gain
        m[c + w.OPEN] = 0


def prefill(m: IntArray, f: FloatArray, p: int, c: int) -> None:
    """Go on with the prompts begun."""
    r = m[c + w.PREFILL_HEAD]
    while r != 0 and m[c + w.BUDGET] > 0:
        chunk(m, f, p, c, r)
        r = m[r + w.AFTER]


def chunk(m: IntArray, f: FloatArray, p: int, c: int, r: int) -> None:
    """Put the next tokens of a prompt into the step."""
    tokens = m[r + w.PROMPT] + m[r + w.PRODUCED] - m[r + w.FILLED]
    left = tokens
    if m[p + w.P_CHUNKED]:
        tokens = min(tokens, m[c + w.BUDGET])
        if m[p + w.P_CHUNK] > 0:
            tokens = min(tokens, m[p + w.P_CHUNK])
    f[c + w.PAIRS] += tokens * float(m[r + w.FILLED]) + 0.5 * tokens * (tokens + 1.0)
    m[c + w.FOUND] += m[r + w.FILLED]
    m[c + w.QUERIES] += tokens
    m[c + w.BUDGET] -= tokens
    m[r + w.FILLED] += tokens
    if tokens == left:
        m[c + w.FINISHED] += 1


def admit(m: IntArray, f: FloatArray, p: int, c: int, gain: int, prefills: int, decodes: int) -> None:
    """Admit waiting requests in order until one does not fit: those to prefill, those whose KV cache came from elsewhere."""
    lane = m[c + w.LANE]
    most = m[p + w.P_MAX_BATCH]
    if m[p + w.P_STAGES] > 1:  # the engine's cohorts share its requests evenly
        together = min(most, m[lane + w.L_RUNNING] + m[lane + w.L_WAITING])
        most = (together + m[p + w.P_STAGES] - 1) // m[p + w.P_STAGES]
    while m[c + w.BUDGET] > 0 and m[lane + w.L_RUNNING] < m[p + w.P_MAX_BATCH] and m[c + w.ACTIVE] < most:
        r = first_waiting(m, lane)
        if r == 0 or f[r + w.ARRIVAL] > f[c + w.SEEN]:
            return
        if m[r + w.STATE] == w.WAITING:
            if not prefills or not admit_prompt(m, f, p, c, r):
                return
        elif not decodes or not admit_cached(m, f, p, c, r, gain):
            return


def room(m: IntArray, p: int, lane: int, blocks: int) -> bool:
    """Whether so many blocks may be taken for a request to admit."""
    kept_free = m[p + w.P_RESERVE] if m[lane + w.L_RUNNING] > 0 else 0
    return blocks + kept_free <= m[lane + w.L_FREE]


def fits(m: IntArray, p: int, lane: int, r: int) -> bool:
    """Whether the blocks of a request's prompt may be taken."""
    hit = cached_tokens(m, lane, r)
    own = blocks_for(m, p, r, m[r + w.PROMPT] + m[r + w.PRODUCED]) - hit // m[p + w.P_BLOCK]
    return room(m, p, lane, own + pinned_blocks(m, lane, r, hit))


def admit_prompt(m: IntArray, f: FloatArray, p: int, c: int, r: int) -> bool:
    """Begin a request's prefill if there is room; a prompt that goes in one step and exceeds the budget goes alone."""
    lane = m[c + w.LANE]
    target = m[r + w.PROMPT] + m[r + w.PRODUCED]
    hit = cached_tokens(m, lane, r)
    filled = max(hit, m[r + w.KNOWN])
    if not m[p + w.P_CHUNKED] and target - filled > m[c + w.BUDGET] and m[c + w.BUDGET] < m[p + w.P_MAX_TOKENS]:
        return False
    if not fits(m, p, lane, r):
        return False
    own = blocks_for(m, p, r, target) - hit // m[p + w.P_BLOCK]
    pop_waiting(m, lane, r)
    if hit > 0:
        use(m, lane, r, hit)
    take(m, lane, own)
    m[r + w.HIT] = hit
    m[r + w.FILLED] = filled
    begin(m, f, c, r)
    m[r + w.STATE] = w.PREFILLING
    push_prefill(m, c, r)
    chunk(m, f, p, c, r)
    return True


def admit_cached(m: IntArray, f: FloatArray, p: int, c: int, r: int, gain: int) -> bool:
    """Take up a request's decode in this step if there is room for its KV cache and the step's tokens."""
    lane = m[c + w.LANE]
    cached = m[r + w.PROMPT] + m[r + w.PRODUCED] - 1
    blocks = blocks_for(m, p, r, cached + gain)
    if m[c + w.BUDGET] < m[p + w.P_VERIFIED] or not room(m, p, lane, blocks):
        return False
    pop_waiting(m, lane, r)
    take(m, lane, blocks)
    if m[r + w.STATE] == w.SWAPPED:
        m[lane + w.L_ON_HOST] -= (cached + m[p + w.P_BLOCK] - 1) // m[p + w.P_BLOCK]
        f[c + w.DELAY] += cached * f[p + w.P_SWAP_TIME]
    m[c + w.BUDGET] -= m[p + w.P_VERIFIED]
    begin(m, f, c, r)
    join_decode(m, p, c, r)
    return True


def begin(m: IntArray, f: FloatArray, c: int, r: int) -> None:
    """Count a request among the running."""
    if f[r + w.ADMITTED] < 0:
        f[r + w.ADMITTED] = f[w.NOW]
    push_running(m, c, r)
