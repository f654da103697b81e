"""The event loop: arrivals, steps that end, KV caches that arrive, in the order of their times.

At one time arrivals come first, so that a scheduler sees them; then steps end, engine by engine.
"""

from __future__ import annotations

import math

from costmodels.simulation import state as w
from costmodels.simulation.memory import give_back, join_decode, leave_decode
from costmodels.simulation.prefix_cache import cached_tokens, contribute, turn_of
from costmodels.simulation.queues import pop_pending, pop_prefill, pop_running, push_pending, push_waiting
from costmodels.simulation.scheduling import start, wake
from spaces.columns import FloatArray, IntArray


def advance(m: IntArray, f: FloatArray, pause: int) -> int:
    """Run until all is done, the horizon or step number `pause` is reached, or a log is full; says which."""
    first, cohorts = m[w.COHORTS], m[w.N_COHORTS]
    while True:
        if m[w.N_LOG] + m[w.N_CELLS] > m[w.LOG_ROOM]:
            return w.LOG_FULL
        if m[w.N_STINTS] + m[w.MARGIN] > m[w.STINT_ROOM]:
            return w.STINTS_FULL
        u = first
        for i in range(1, cohorts):
            other = first + i * w.COHORT_WORDS
            if f[other + w.C_NEXT] < f[u + w.C_NEXT]:
                u = other
        time = f[u + w.C_NEXT]
        arrival = next_arrival(m, f)
        now = min(time, arrival)
        if now > f[w.HORIZON] or now == math.inf:
            return w.ENDED
        f[w.NOW] = now
        if arrival <= time:
            arrive(m, f, now)
            continue
        if m[u + w.C_STATE] == w.RUNNING:
            complete(m, f, u, now)
            if next_arrival(m, f) <= now:
                continue
        start(m, f, u, now)
        if m[w.STEPS] >= pause:
            return w.PAUSED


def next_arrival(m: IntArray, f: FloatArray) -> float:
    """Time of the next request or KV cache to come; infinite: none."""
    time = math.inf
    if m[w.HEAD] < m[w.LIMIT]:
        time = f[m[m[w.HEADS] + m[w.HEAD]] + w.ARRIVAL]
    if m[w.N_PENDING] > 0:
        time = min(time, f[m[w.PENDING]])
    return time


def arrive(m: IntArray, f: FloatArray, now: float) -> None:
    """Take in the next request, or a KV cache that reached the decode pool; those that came back go first."""
    if m[w.N_PENDING] > 0 and f[m[w.PENDING]] <= now:
        r = pop_pending(m, f)
    else:
        r = m[m[w.HEADS] + m[w.HEAD]]
        m[w.HEAD] += 1
    p = m[w.POOLS]
    if m[r + w.STATE] == w.MOVING:
        leave_prefill(m, f, r, now)
        m[r + w.STATE] = w.ARRIVED
        p += w.POOL_WORDS
    else:
        f[r + w.ARRIVAL] = now
        if m[r + w.STATE] == w.REJECTED:
            follow(m, f, r, now)
            return
        m[r + w.STATE] = w.WAITING
    lane = route(m, p, r)
    push_waiting(m, lane, r, 0)
    wake(m, f, m[lane + w.L_ENGINE], now)


def route(m: IntArray, p: int, r: int) -> int:
    """The lane a request goes to."""
    first, ranks = m[p + w.P_FIRST_LANE], m[p + w.P_RANKS]
    lanes = m[p + w.P_REPLICAS] * ranks
    if lanes == 1:
        return first
    if m[w.ROUTER] == w.ROUND_ROBIN:
        turn = m[p + w.P_TURN]
        m[p + w.P_TURN] = (turn + 1) % lanes
        return first + ((turn % m[p + w.P_REPLICAS]) * ranks + turn // m[p + w.P_REPLICAS]) * w.LANE_WORDS
    best = first
    fewest = m[first + w.L_WAITING] + m[first + w.L_RUNNING]
    for i in range(1, lanes):
        lane = first + i * w.LANE_WORDS
        load = m[lane + w.L_WAITING] + m[lane + w.L_RUNNING]
        if load < fewest:
            best, fewest = lane, load
    if m[w.ROUTER] == w.PREFIX_AWARE and m[p + w.P_ROLE] != w.DECODE:
        longest = 0
        for i in range(lanes):
            lane = first + i * w.LANE_WORDS
            hit = cached_tokens(m, lane, r)
            if hit > longest and m[lane + w.L_WAITING] + m[lane + w.L_RUNNING] <= 2 * fewest + 4:
                best, longest = lane, hit
    return best


def follow(m: IntArray, f: FloatArray, r: int, now: float) -> None:
    """Who comes when a request has ended: its session's next turn, or a closed loop's next."""
    turn = turn_of(m, r)
    if turn != 0 and m[turn + w.SUCCESSOR] >= 0:
        push_pending(m, f, now + f[turn + w.THINK], m[w.REQUESTS] + m[turn + w.SUCCESSOR] * w.REQUEST_WORDS)
    elif m[w.CLOSED] and m[w.SPARE] < m[w.N_HEADS]:
        push_pending(m, f, now + f[w.TURNAROUND], m[m[w.HEADS] + m[w.SPARE]])
        m[w.SPARE] += 1


def complete(m: IntArray, f: FloatArray, u: int, now: float) -> None:
    """End a cohort's step: tokens come out, requests end, prompts begin to decode."""
    p = m[m[u + w.C_ENGINE] + w.E_POOL]
    for rank in range(m[p + w.P_RANKS]):
        c = m[u + w.C_CELL] + rank * w.CELL_WORDS
        if m[c + w.GAIN] > 0:
            end_decode(m, f, p, c, now)
            m[c + w.GAIN] = 0
        if m[c + w.QUERIES] > 0:
            r = m[c + w.PREFILL_HEAD]
            while r != 0:
                after = m[r + w.AFTER]
                if m[r + w.FILLED] == m[r + w.PROMPT] + m[r + w.PRODUCED]:
                    end_prefill(m, f, p, c, r, now)
                r = after
    m[u + w.C_STATE] = w.READY


def end_decode(m: IntArray, f: FloatArray, p: int, c: int, now: float) -> None:
    """Every decoding request of a cell gains its tokens."""
    before = m[c + w.TOKENS]
    m[c + w.TOKENS] = before + m[c + w.GAIN]
    m[c + w.DECODE_STEPS] += 1
    m[c + w.KV] += m[c + w.DECODING_NOW] * m[c + w.GAIN]
    f[c + w.LAST] = now
    log = m[w.LOG] + m[w.N_LOG] * w.STEP_WORDS
    f[log + w.STEP_END] = now
    m[log + w.STEP_CELL] = c
    m[w.N_LOG] += 1
    for key in range(before + 1, before + m[c + w.GAIN] + 1):
        place = m[c + w.ENDING] + (key & m[w.RING_MASK])
        while m[place] != 0:
            r = m[place]
            cached = leave_decode(m, p, c, r)
            finish(m, f, p, c, r, cached, now)


def end_prefill(m: IntArray, f: FloatArray, p: int, c: int, r: int, now: float) -> None:
    """A prompt's last chunk yields a token; the request goes on to decode here, or in the decode pool."""
    lane = m[c + w.LANE]
    pop_prefill(m, c, r)
    cached = m[r + w.PROMPT] + m[r + w.PRODUCED]
    m[r + w.PRODUCED] += 1
    f[r + w.JOINED] = now
    if f[r + w.FIRST] < 0:
        f[r + w.FIRST] = now
    turn = turn_of(m, r)
    if turn != 0:
        contribute(m, lane, r, min(m[turn + w.SHARED], m[r + w.PROMPT]))
    if m[r + w.PRODUCED] == m[r + w.OUTPUT]:
        finish(m, f, p, c, r, cached, now)
    elif m[p + w.P_ROLE] == w.PREFILL:
        pop_running(m, c, r)
        m[r + w.STATE] = w.MOVING
        e = m[lane + w.L_ENGINE]
        f[e + w.E_LINK] = max(f[e + w.E_LINK], now) + m[r + w.PROMPT] * f[p + w.P_LINK_TIME]
        push_pending(m, f, f[e + w.E_LINK] + f[p + w.P_LINK_LATENCY], r)
    else:
        join_decode(m, p, c, r)


def leave_prefill(m: IntArray, f: FloatArray, r: int, now: float) -> None:
    """A request's KV cache has left its prefill engine."""
    lane = m[m[r + w.CELL] + w.LANE]
    turn = turn_of(m, r)
    if turn != 0 and m[turn + w.KEEPS]:
        contribute(m, lane, r, m[r + w.PROMPT])
    give_back(m, m[lane + w.L_POOL], lane, r, m[r + w.PROMPT])
    wake(m, f, m[lane + w.L_ENGINE], now)


def finish(m: IntArray, f: FloatArray, p: int, c: int, r: int, cached: int, now: float) -> None:
    """A request ends; its memory is free, its context stays as a prefix where it may be wanted again."""
    lane = m[c + w.LANE]
    pop_running(m, c, r)
    turn = turn_of(m, r)
    if turn != 0 and m[turn + w.KEEPS]:
        contribute(m, lane, r, min(cached, m[r + w.PROMPT] + m[r + w.OUTPUT] - 1))
    give_back(m, p, lane, r, cached)
    m[r + w.PRODUCED] = m[r + w.OUTPUT]
    m[r + w.STATE] = w.DONE
    f[r + w.FINISH] = now
    follow(m, f, r, now)
