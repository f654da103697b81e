"""Paged KV memory in the event loop: what a request holds, what decode takes next, who gives way when there is no more.

Nobody counts blocks one by one: a request of n cached tokens holds ceil(n / block) of them less those it shares, and the
requests of a cell that need another block now are those whose residue the token counter has reached.
"""

from __future__ import annotations

import math

from costmodels.simulation import state as w
from costmodels.simulation.prefix_cache import evict, leave
from costmodels.simulation.queues import pop_ending, pop_prefill, pop_running, push_ending, push_waiting
from spaces.columns import FloatArray, IntArray


def take(m: IntArray, lane: int, blocks: int) -> None:
    """Use free blocks, those of unused prefixes last."""
    m[lane + w.L_FREE] -= blocks
    if m[lane + w.L_EVICTABLE] > m[lane + w.L_FREE]:
        evict(m, lane)


def blocks_for(m: IntArray, p: int, r: int, cached: int) -> int:
    """Blocks a request holds with so many tokens cached: those of the whole answer where they are taken at once."""
    if m[p + w.P_WHOLE]:
        cached = m[r + w.PROMPT] + m[r + w.OUTPUT] - 1
    return (cached + m[p + w.P_BLOCK] - 1) // m[p + w.P_BLOCK]


def give_back(m: IntArray, p: int, lane: int, r: int, cached: int) -> None:
    """Free what a request holds."""
    m[lane + w.L_FREE] += blocks_for(m, p, r, cached) - m[r + w.HIT] // m[p + w.P_BLOCK]
    if m[r + w.HIT] > 0:
        leave(m, lane, r)
        m[r + w.HIT] = 0


def cached_in_decode(m: IntArray, c: int, r: int) -> int:
    """Tokens a decoding request has cached."""
    return m[r + w.PROMPT] + m[r + w.OUTPUT] - (m[r + w.KEY] - m[c + w.TOKENS]) - 1


def phase(m: IntArray, p: int, c: int, cached: int) -> int:
    """Where the cell counts requests with the residue of one that has `cached` tokens now."""
    return m[c + w.PHASES] + (m[c + w.TOKENS] - cached) % m[p + w.P_BLOCK]


def join_decode(m: IntArray, p: int, c: int, r: int) -> None:
    """Decode from the cell's next step on; `PRODUCED` tokens are out, the last of them not cached."""
    m[r + w.STATE] = w.DECODING
    m[r + w.KEY] = m[c + w.TOKENS] + m[r + w.OUTPUT] - m[r + w.PRODUCED]
    m[r + w.BEGIN] = m[c + w.DECODE_STEPS] + 1
    cached = m[r + w.PROMPT] + m[r + w.PRODUCED] - 1
    m[c + w.KV] += cached
    m[c + w.DECODING_NOW] += 1
    m[phase(m, p, c, cached)] += 1
    push_ending(m, c, r)


def leave_decode(m: IntArray, p: int, c: int, r: int) -> int:
    """Decode no more, with or without all tokens out; returns the tokens cached."""
    cached = cached_in_decode(m, c, r)
    m[c + w.KV] -= cached
    m[c + w.DECODING_NOW] -= 1
    m[phase(m, p, c, cached)] -= 1
    pop_ending(m, c, r)
    return cached


def next_gain(m: IntArray, f: FloatArray, p: int, c: int) -> int:
    """Tokens every request of a cell gains in its next decode step: the running total is floor(accepted · steps)."""
    if f[p + w.P_ACCEPTED] == 1.0:
        return 1
    return math.floor(f[p + w.P_ACCEPTED] * (m[c + w.DECODE_STEPS] + 1) + 1e-9) - m[c + w.TOKENS]


def growth(m: IntArray, p: int, c: int, gain: int) -> int:
    """Blocks that the requests of a cell need for the next `gain` tokens each."""
    need = 0
    if not m[p + w.P_WHOLE]:
        for i in range(gain):
            need += m[m[c + w.PHASES] + (m[c + w.TOKENS] + i) % m[p + w.P_BLOCK]]
    return need


def grow(m: IntArray, f: FloatArray, p: int, c: int, gain: int) -> bool:
    """Take the blocks of a decode step; whether somebody had to give way."""
    lane = m[c + w.LANE]
    gave_way = False
    need = growth(m, p, c, gain)
    while need > m[lane + w.L_FREE]:
        preempt(m, f, p, c)
        gave_way = True
        need = growth(m, p, c, gain)
    take(m, lane, need)
    return gave_way


def preempt(m: IntArray, f: FloatArray, p: int, c: int) -> None:
    """The last admitted of the least priority goes back to the head of the queue, to be recomputed or swapped in."""
    tail = m[c + w.TAILS] + m[w.LEVELS] - 1
    while m[tail] == 0:
        tail -= 1
    r = m[tail]
    lane = m[c + w.LANE]
    m[w.PREEMPTIONS] += 1
    m[r + w.PREEMPTED] += 1
    waits = w.WAITING
    if m[r + w.STATE] == w.DECODING:
        note_stint(m, f, c, r)
        if m[c + w.DECODE_STEPS] >= m[r + w.BEGIN]:
            f[r + w.JOINED] = f[c + w.LAST]
        cached = leave_decode(m, p, c, r)
        m[r + w.PRODUCED] = cached - m[r + w.PROMPT] + 1
        m[r + w.BEGIN] = 0
        blocks = (cached + m[p + w.P_BLOCK] - 1) // m[p + w.P_BLOCK]
        if m[p + w.P_SWAP] and m[lane + w.L_ON_HOST] + blocks <= m[p + w.P_HOST_BLOCKS]:
            waits = w.SWAPPED
            m[lane + w.L_ON_HOST] += blocks
            f[c + w.DELAY] += cached * f[p + w.P_SWAP_TIME]
    else:
        pop_prefill(m, c, r)
        cached = m[r + w.PROMPT] + m[r + w.PRODUCED]
    give_back(m, p, lane, r, cached)
    pop_running(m, c, r)
    m[r + w.STATE] = waits
    push_waiting(m, lane, r, 1)


def note_stint(m: IntArray, f: FloatArray, c: int, r: int) -> None:
    """Write down a stretch of decode that ends before its request does; it may have no step."""
    stint = m[w.STINTS] + m[w.N_STINTS] * w.STINT_WORDS
    m[stint + w.S_REQUEST] = r
    m[stint + w.S_CELL] = c
    m[stint + w.S_BEGIN] = m[r + w.BEGIN] - 1
    m[stint + w.S_END] = m[c + w.DECODE_STEPS]
    f[stint + w.S_JOINED] = f[r + w.JOINED]
    m[w.N_STINTS] += 1
