"""Run the event loop: pools and requests in, what became of every request out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from costmodels.simulation import state as w
from costmodels.simulation.layout import Block, layout, too_long
from costmodels.simulation.limits import ROUTERS, KvLink, Limits, Pool
from costmodels.simulation.outcome import Outcome, outcome_of
from costmodels.simulation.state import ENDED, LOG_FULL, PAUSED, STINTS_FULL
from costmodels.simulation.token_log import token_log
from costmodels.step_tables import StepTables
from spaces.columns import IntArray
from spaces.workload import Requests

NEVER = 1 << 62


def simulate(
    tables: StepTables,
    engine: int,
    requests: Requests,
    limits: Limits,
    *,
    replicas: int = 1,
    router: str = "round-robin",
    horizon: float = math.inf,
    watch: Callable[[Block], None] | None = None,
    log: bool = True,
) -> Outcome:
    """Serve `requests` with `replicas` engines, each row `engine` of `tables` under `limits`, step by step.

    `router` is `round-robin`, `least-loaded` (fewest requests) or `prefix-aware` (where most of the prompt is cached, unless
    that engine holds over twice the requests of the least loaded). Stops at `horizon` seconds; what has not ended by then is
    reported as unfinished. `watch` sees the state after every step, for audits. Without a `log` the times of single tokens are
    not kept: memory then does not grow with the steps. The same arguments give the same outcome.
    Raises ValueError for unknown names.
    """
    pool = Pool(tables=tables, engine=engine, limits=limits, replicas=replicas)
    return _run((pool,), requests, KvLink(), router, horizon, watch, log)


def simulate_disaggregated(
    prefill: Pool,
    decode: Pool,
    requests: Requests,
    link: KvLink,
    *,
    router: str = "least-loaded",
    horizon: float = math.inf,
    watch: Callable[[Block], None] | None = None,
) -> Outcome:
    """Serve `requests` with a prefill pool that hands each KV cache over `link` to a decode pool.

    The first token comes from the prefill engine, whose KV blocks are held until the cache has crossed; caches of one
    prefill engine cross one after another, and wait outside the decode engine's memory until it admits them.
    """
    return _run((prefill, decode), requests, link, router, horizon, watch)


def _run(
    pools: Sequence[Pool],
    requests: Requests,
    link: KvLink,
    router: str,
    horizon: float,
    watch: Callable[[Block], None] | None,
    log: bool = True,
) -> Outcome:
    if router not in ROUTERS:
        raise ValueError(f"router {router!r} is unknown ({', '.join(ROUTERS)})")
    from costmodels.simulation.entry import event_loop

    block = layout(pools, requests, link, router, horizon)
    run = event_loop()
    m = block.m
    steps: list[IntArray] = []
    stints: list[IntArray] = []
    why = PAUSED
    while why != ENDED:
        if not log:
            m[w.N_LOG] = m[w.N_STINTS] = 0
        why = run(m, block.f, int(m[w.STEPS]) + 1 if watch else NEVER)
        if watch and why == PAUSED:
            watch(block)
        if log and why in (LOG_FULL, ENDED):
            steps.append(_drained(m, w.LOG, w.N_LOG, w.STEP_WORDS))
        if log and why in (STINTS_FULL, ENDED):
            stints.append(_drained(m, w.STINTS, w.N_STINTS, w.STINT_WORDS))
    kept = token_log(block, steps, stints) if log else None
    return outcome_of(block, requests, too_long(pools, requests), kept)


def _drained(m: IntArray, base: int, count: int, words: int) -> IntArray:
    """Take what the loop logged, (entries, words), and let it begin again."""
    first, entries = int(m[base]), int(m[count])
    m[count] = 0
    return m[first : first + entries * words].reshape(entries, words).copy()
