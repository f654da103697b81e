"""Plans that cannot keep an objective on given requests, proven without simulating them.

The simulator reads the same step tables: a rank's step of n new tokens takes `token_time(n)` of its slowest stage at least, so
whatever the scheduler does, a token costs a rank the least of token_time(n) / n. Requests that keep their deadlines need that
for all their tokens between the first arrival and the last deadline; where the ranks have not so much time, too few keep them.
And no token comes sooner than from a step of its own request alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.serving.engine import engines
from costmodels.serving.pools import side
from costmodels.simulation.outcome import STEADY_MARGIN
from costmodels.step_tables import StepTables
from spaces.columns import Columns, FloatArray, IntArray
from spaces.problem import Problem
from spaces.serving_space import PREFILL
from spaces.workload import Requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """What a `share` of the requests must keep, seconds (infinite: none): first token, time per token, whole request.

    `mean_tpot` is the most that the mean time per token may be. Shares are of the requests but for the first and last tenth.
    """

    ttft: float = np.inf
    tpot: float = np.inf
    latency: float = np.inf
    share: float = 0.0
    mean_tpot: float = np.inf


def cannot_keep(problem: Problem, points: Columns, asked: Requests, deadlines: Deadlines, whole: bool) -> NDArray[np.bool_]:
    """Whether each of n plans is proven to miss the deadlines on these requests; False says nothing. `whole`: of all requests.

    Requests that share prefixes or follow each other, and plans that verify several tokens a step, are never judged.
    """
    at = problem.at(points)
    told = np.zeros(points.n, np.bool_)
    single = asked.shared is None and asked.follows is None and not asked.concurrency
    if not single or float(problem.scalars.get("prefix_hit", 0.0)):
        return told
    mode = np.broadcast_to(np.asarray(at.get("mode", 0)), (points.n,))
    plain = np.broadcast_to(np.asarray(at["speculation"]) == 0, (points.n,))
    together = np.flatnonzero((mode == 0) & plain)
    told[together] = _pool_cannot(problem, points.take(together), asked, deadlines, whole, prompts=True, answers=True)
    apart = np.flatnonzero((mode == 1) & plain)
    if len(apart):
        some = points.take(apart)
        for start in (PREFILL, ""):
            pool, columns = side(problem, some, start)
            own = _pool_cannot(pool, columns, asked, deadlines, whole, prompts=bool(start), answers=not start)
            told[apart] |= own
    return told


def _pool_cannot(
    problem: Problem, points: Columns, asked: Requests, deadlines: Deadlines, whole: bool, *, prompts: bool, answers: bool
) -> NDArray[np.bool_]:
    if not points.n:
        return np.zeros(0, np.bool_)
    tables, engine = engines(problem, points)
    kept = _kept(asked, whole)
    prompt, output, arrival = (np.asarray(v, np.float64)[kept] for v in (asked.prompt, asked.output, asked.arrival))
    first = arrival + deadlines.ttft
    last = np.minimum(first + deadlines.tpot * np.maximum(output - 1, 0), arrival + deadlines.latency)
    at = problem.at(points)
    ranks = np.asarray(at["data"], np.float64) * at["attention_data"]
    each = _seconds_a_token(tables)[engine]
    need = int(np.ceil(deadlines.share * len(prompt) - 1e-9))
    late = np.zeros(points.n, np.bool_)
    for judged, end, tokens in ((prompts, first, prompt), (answers, last, prompt * prompts + output - 1)):
        if judged and len(end) and np.isfinite(end).all():
            work = float(np.sum(np.sort(tokens)[:need]))
            late |= work * each > ranks * float(np.max(end) - np.min(arrival)) * _ROUNDING
    if answers and np.all(output > 1):
        fastest = _step_alone(tables, float(np.min(prompt)))[engine]
        late |= fastest > np.minimum(deadlines.tpot if need else np.inf, deadlines.mean_tpot) * _ROUNDING
    return late


_ROUNDING = 1.0 + 1e-9


def _kept(asked: Requests, whole: bool) -> IntArray:
    """The requests that statistics are of, in the order of their arrival."""
    order = np.argsort(asked.arrival, kind="stable")
    margin = 0 if whole else int(STEADY_MARGIN * len(order))
    return np.asarray(order[margin : len(order) - margin], np.int64)


def _seconds_a_token(tables: StepTables) -> FloatArray:
    """The least that a token costs a rank of each engine, (c,): linear between cells, so at one of them or beyond the last."""
    each = (tables.token_time / tables.tokens).min(axis=1)
    beyond = (tables.token_time[:, -1] - tables.token_time[:, -2]) / (tables.tokens[-1] - tables.tokens[-2])
    return np.asarray(np.minimum(each, beyond) * tables.slowest_share)


def _step_alone(tables: StepTables, cached: float) -> FloatArray:
    """No step that decodes takes less, (c,): one token, one sequence, and the attention to so many cached tokens alone."""
    place = int(np.clip(np.searchsorted(tables.decode_kv, cached, side="right") - 1, 0, len(tables.decode_kv) - 1))
    attention = tables.decode_time[:, :, place].min(axis=1)
    return np.asarray(tables.token_time[:, 0] + tables.sequence_time[:, 0] + attention)
