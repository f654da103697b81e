"""Shared prefixes in a lane's KV pool: whole blocks, kept after use until their place is needed, the least recently used first.

Blocks of a prefix that a running request uses are pinned; those that none uses are evictable, and count as free. Requests
that run at once share them; two that compute the same prefix at once keep a copy each, and one of them stays.
"""

from __future__ import annotations

from costmodels.simulation.state import (
    CACHED,
    HIT,
    L_EVICTABLE,
    L_FREE,
    L_NEWEST,
    L_OLDEST,
    L_POOL,
    L_PREFIXES,
    NEWER,
    OLDER,
    P_BLOCK,
    PREFIX,
    PREFIX_WORDS,
    PRODUCED,
    PROMPT,
    REQUEST_WORDS,
    REQUESTS,
    SHARED,
    TURN_WORDS,
    TURNS,
    USERS,
)
from spaces.columns import IntArray


def turn_of(m: IntArray, r: int) -> int:
    """What joins a request to others; 0 when nothing joins any."""
    if m[TURNS] == 0:
        return 0
    return m[TURNS] + (r - m[REQUESTS]) // REQUEST_WORDS * TURN_WORDS


def prefix_of(m: IntArray, lane: int, r: int) -> int:
    """A request's prefix on a lane; 0: it has none."""
    turn = turn_of(m, r)
    if turn == 0 or m[turn + PREFIX] < 0:
        return 0
    return m[lane + L_PREFIXES] + m[turn + PREFIX] * PREFIX_WORDS


def cached_tokens(m: IntArray, lane: int, r: int) -> int:
    """Tokens of a prompt found in the lane's cache, whole blocks; the last token of a prompt is always computed."""
    prefix = prefix_of(m, lane, r)
    if prefix == 0:
        return 0
    block = m[m[lane + L_POOL] + P_BLOCK]
    usable = min(m[turn_of(m, r) + SHARED], m[r + PROMPT] + m[r + PRODUCED] - 1)
    return min(m[prefix + CACHED], usable // block * block)


def pinned_blocks(m: IntArray, lane: int, r: int, hit: int) -> int:
    """Free blocks that stop being free when a request uses `hit` tokens of its prefix."""
    if hit == 0 or m[prefix_of(m, lane, r) + USERS] > 0:
        return 0
    return hit // m[m[lane + L_POOL] + P_BLOCK]


def use(m: IntArray, lane: int, r: int, hit: int) -> None:
    """One more request uses `hit` tokens of its prefix; the first to do so drops what it does not share."""
    prefix = prefix_of(m, lane, r)
    if m[prefix + USERS] == 0:
        unlink(m, lane, prefix)
        block = m[m[lane + L_POOL] + P_BLOCK]
        m[lane + L_EVICTABLE] -= m[prefix + CACHED] // block
        m[lane + L_FREE] -= hit // block
        m[prefix + CACHED] = hit
    m[prefix + USERS] += 1


def leave(m: IntArray, lane: int, r: int) -> None:
    """One less; the last leaves the blocks evictable."""
    prefix = prefix_of(m, lane, r)
    m[prefix + USERS] -= 1
    if m[prefix + USERS] == 0:
        blocks = m[prefix + CACHED] // m[m[lane + L_POOL] + P_BLOCK]
        m[lane + L_EVICTABLE] += blocks
        m[lane + L_FREE] += blocks
        newest = m[lane + L_NEWEST]
        m[prefix + OLDER] = newest
        m[prefix + NEWER] = 0
        m[newest + NEWER if newest != 0 else lane + L_OLDEST] = prefix
        m[lane + L_NEWEST] = prefix


def unlink(m: IntArray, lane: int, prefix: int) -> None:
    """Out of the list of evictable prefixes."""
    older, newer = m[prefix + OLDER], m[prefix + NEWER]
    m[older + NEWER if older != 0 else lane + L_OLDEST] = newer
    m[newer + OLDER if newer != 0 else lane + L_NEWEST] = older


def evict(m: IntArray, lane: int) -> None:
    """Drop the ends of the oldest prefixes until no block is both free and taken."""
    block = m[m[lane + L_POOL] + P_BLOCK]
    while m[lane + L_EVICTABLE] > m[lane + L_FREE]:
        prefix = m[lane + L_OLDEST]
        dropped = min(m[lane + L_EVICTABLE] - m[lane + L_FREE], m[prefix + CACHED] // block)
        m[prefix + CACHED] -= dropped * block
        m[lane + L_EVICTABLE] -= dropped
        if m[prefix + CACHED] == 0:
            unlink(m, lane, prefix)


def contribute(m: IntArray, lane: int, r: int, tokens: int) -> None:
    """Give the first `tokens` of a request's context to its prefix, where they extend it; the request goes on using them."""
    prefix = prefix_of(m, lane, r)
    if prefix == 0:
        return
    block = m[m[lane + L_POOL] + P_BLOCK]
    whole = tokens // block * block
    hit = m[r + HIT]
    if whole <= hit or m[prefix + CACHED] != hit:
        return
    if hit == 0:
        m[prefix + USERS] += 1  # nothing was cached, so it used nothing
    m[prefix + CACHED] = whole
    m[r + HIT] = whole
