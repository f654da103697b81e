"""The event loop's queues: linked lists through the requests' records, and a heap of what comes back later; O(1), O(log n)."""

from __future__ import annotations

from costmodels.simulation.state import (
    ACTIVE,
    AFTER,
    BEFORE,
    CELL,
    ENDING,
    KEY,
    L_QUEUES,
    L_RUNNING,
    L_WAITING,
    LANE,
    LEVEL,
    LEVELS,
    N_PENDING,
    NEXT,
    PENDING,
    PREFILL_HEAD,
    PREFILL_TAIL,
    PREV,
    RING_MASK,
    TAILS,
)
from spaces.columns import FloatArray, IntArray


def push_waiting(m: IntArray, lane: int, r: int, front: int) -> None:
    """Queue a request on a lane behind its priority, or before it (it was preempted)."""
    first = m[lane + L_QUEUES] + 2 * m[r + LEVEL]
    head = m[first]
    m[lane + L_WAITING] += 1
    m[r + NEXT] = head if front else 0
    if head == 0:
        m[first] = r
        m[first + 1] = r
    elif front:
        m[first] = r
    else:
        m[m[first + 1] + NEXT] = r
        m[first + 1] = r


def first_waiting(m: IntArray, lane: int) -> int:
    """The request to admit next; 0: none."""
    if m[lane + L_WAITING] > 0:
        for level in range(m[LEVELS]):
            r = m[m[lane + L_QUEUES] + 2 * level]
            if r != 0:
                return r
    return 0


def pop_waiting(m: IntArray, lane: int, r: int) -> None:
    """Take the first of its priority out of a lane's queue."""
    first = m[lane + L_QUEUES] + 2 * m[r + LEVEL]
    m[first] = m[r + NEXT]
    if m[r + NEXT] == 0:
        m[first + 1] = 0
    m[lane + L_WAITING] -= 1


def push_running(m: IntArray, c: int, r: int) -> None:
    """Last admitted of its priority."""
    tail = m[c + TAILS] + m[r + LEVEL]
    last = m[tail]
    m[r + PREV] = last
    m[r + NEXT] = 0
    if last != 0:
        m[last + NEXT] = r
    m[tail] = r
    m[r + CELL] = c
    m[c + ACTIVE] += 1
    m[m[c + LANE] + L_RUNNING] += 1


def pop_running(m: IntArray, c: int, r: int) -> None:
    """Out of the running, wherever it stands."""
    before, after = m[r + PREV], m[r + NEXT]
    if before != 0:
        m[before + NEXT] = after
    if after != 0:
        m[after + PREV] = before
    else:
        m[m[c + TAILS] + m[r + LEVEL]] = before
    m[c + ACTIVE] -= 1
    m[m[c + LANE] + L_RUNNING] -= 1


def push_prefill(m: IntArray, c: int, r: int) -> None:
    """Last of those in prefill."""
    last = m[c + PREFILL_TAIL]
    m[r + BEFORE] = last
    m[r + AFTER] = 0
    m[last + AFTER if last != 0 else c + PREFILL_HEAD] = r
    m[c + PREFILL_TAIL] = r


def pop_prefill(m: IntArray, c: int, r: int) -> None:
    """Out of those in prefill."""
    before, after = m[r + BEFORE], m[r + AFTER]
    m[before + AFTER if before != 0 else c + PREFILL_HEAD] = after
    m[after + BEFORE if after != 0 else c + PREFILL_TAIL] = before


def push_ending(m: IntArray, c: int, r: int) -> None:
    """Among those that end at its key."""
    place = m[c + ENDING] + (m[r + KEY] & m[RING_MASK])
    first = m[place]
    m[r + BEFORE] = 0
    m[r + AFTER] = first
    if first != 0:
        m[first + BEFORE] = r
    m[place] = r


def pop_ending(m: IntArray, c: int, r: int) -> None:
    """Out of those that end at its key."""
    before, after = m[r + BEFORE], m[r + AFTER]
    m[before + AFTER if before != 0 else m[c + ENDING] + (m[r + KEY] & m[RING_MASK])] = after
    if after != 0:
        m[after + BEFORE] = before


def push_pending(m: IntArray, f: FloatArray, time: float, r: int) -> None:
    """A request comes back at a time: it arrives, or its KV cache does."""
    heap = m[PENDING]
    i = m[N_PENDING]
    m[N_PENDING] = i + 1
    while i > 0:
        parent = (i - 1) >> 1
        at = heap + 2 * parent
        if f[at] < time or (f[at] == time and m[at + 1] < r):
            break
        f[heap + 2 * i] = f[at]
        m[heap + 2 * i + 1] = m[at + 1]
        i = parent
    f[heap + 2 * i] = time
    m[heap + 2 * i + 1] = r


def pop_pending(m: IntArray, f: FloatArray) -> int:
    """The earliest, lowest number first."""
    heap = m[PENDING]
    top = m[heap + 1]
    n = m[N_PENDING] - 1
    m[N_PENDING] = n
    time, r = f[heap + 2 * n], m[heap + 2 * n + 1]
    i = 0
    while 2 * i + 1 < n:
        child = 2 * i + 1
        at = heap + 2 * child
        if child + 1 < n and (f[at + 2] < f[at] or (f[at + 2] == f[at] and m[at + 3] < m[at + 1])):
            child += 1
            at += 2
        if time < f[at] or (time == f[at] and r < m[at + 1]):
            break
        f[heap + 2 * i] = f[at]
        m[heap + 2 * i + 1] = m[at + 1]
        i = child
    f[heap + 2 * i] = time
    m[heap + 2 * i + 1] = r
    return top
