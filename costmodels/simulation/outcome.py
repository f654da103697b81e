"""What became of every request of a simulation, and the statistics people ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.simulation import state as w
from costmodels.simulation.layout import Block
from costmodels.simulation.token_log import TokenLog
from spaces.columns import FloatArray, IntArray
from spaces.workload import Requests

STEADY_MARGIN = 0.1
"""Share of the requests left out at either end in steady statistics."""

MEASURES = ("ttft", "tpot", "latency", "queueing", "inter_token")


@dataclass(frozen=True, slots=True, kw_only=True)
class Slo:
    """Service-level objective of one request: seconds, each at most; infinite where nothing is asked."""

    ttft: float = math.inf
    tpot: float = math.inf
    latency: float = math.inf

    def __post_init__(self) -> None:
        for name in ("ttft", "tpot", "latency"):
            if not getattr(self, name) > 0:
                raise ValueError(f"the objective for {name} is {getattr(self, name)} s: it must be positive")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """n requests, arrays of shape (n,) in the order they were given; seconds, NaN where it did not happen.

    `arrival` (as it came about in closed loops and sessions), `admitted`, `first` token, `finish`; `too_long`: 0, or 1 for
    longer than the context and 2 for more than an engine's KV cache, both refused. `preemptions` a request. Per lane (rank of
    an engine): `kv_peak` blocks, `kv_mean` blocks over busy time. `steps` scheduled, `mean_batch` running requests a step,
    `busy` seconds of steps a cohort, `makespan` from 0 to the last event.
    """

    arrival: FloatArray
    admitted: FloatArray
    first: FloatArray
    finish: FloatArray
    prompt: IntArray
    output: IntArray
    too_long: IntArray
    preemptions: IntArray
    tokens: TokenLog | None
    kv_peak: IntArray
    kv_mean: FloatArray
    kv_blocks: IntArray
    busy: FloatArray
    steps: int
    mean_batch: float
    makespan: float

    def __len__(self) -> int:
        return len(self.arrival)

    @property
    def completed(self) -> NDArray[np.bool_]:
        """Whether each request ended."""
        return np.isfinite(self.finish)

    @property
    def counts(self) -> dict[str, int]:
        """Requests by what became of them; they sum to n."""
        done = int(np.sum(self.completed))
        context, memory = int(np.sum(self.too_long == 1)), int(np.sum(self.too_long == 2))
        left = len(self) - done - context - memory
        return {"completed": done, "longer_than_context": context, "larger_than_kv_cache": memory, "unfinished": left}

    @property
    def ttft(self) -> FloatArray:
        """Time to first token, queueing included."""
        return np.asarray(self.first - self.arrival)

    @property
    def queueing(self) -> FloatArray:
        """From arrival to admission."""
        return np.asarray(self.admitted - self.arrival)

    @property
    def latency(self) -> FloatArray:
        """From arrival to the last token."""
        return np.asarray(self.finish - self.arrival)

    @property
    def tpot(self) -> FloatArray:
        """Mean time per output token after the first; NaN for answers of one token."""
        gaps = np.where(self.output > 1, self.output - 1, 1)
        return np.where(self.output > 1, (self.finish - self.first) / gaps, math.nan)

    def _gaps(self, steady: bool) -> tuple[FloatArray, IntArray]:
        """Times between tokens and how often each came about. Raises ValueError where no token's time was kept."""
        if self.tokens is None:
            raise ValueError("the simulation kept no log, so nothing is known of single tokens: simulate with log=True")
        return self.tokens.gaps(self.kept(steady))

    def kept(self, steady: bool) -> NDArray[np.bool_]:
        """All requests, or without the first and last tenth that arrived."""
        if not steady:
            return np.ones(len(self), np.bool_)
        rank = np.empty(len(self), np.int64)
        rank[np.argsort(self.arrival, kind="stable")] = np.arange(len(self))
        margin = int(STEADY_MARGIN * len(self))
        return (rank >= margin) & (rank < len(self) - margin)

    def values(self, measure: str, *, steady: bool = False) -> FloatArray:
        """`ttft`, `tpot`, `latency` or `queueing` of the requests that have one."""
        if measure not in MEASURES or measure == "inter_token":
            raise ValueError(f"no measure {measure!r} of a request ({', '.join(MEASURES[:-1])})")
        found: FloatArray = getattr(self, measure)[self.kept(steady)]
        return found[np.isfinite(found)]

    def mean(self, measure: str, *, steady: bool = False) -> float:
        """Mean over requests (`inter_token`: over tokens); NaN when there is none."""
        if measure == "inter_token":
            gaps, weights = self._gaps(steady)
            return float(np.sum(gaps * weights) / np.sum(weights)) if np.sum(weights) else math.nan
        found = self.values(measure, steady=steady)
        return float(np.mean(found)) if len(found) else math.nan

    def percentile(self, measure: str, q: float, *, steady: bool = False) -> float:
        """The smallest value that `q` percent of requests (`inter_token`: of tokens) do not exceed; NaN when there is none."""
        if not 0 <= q <= 100:
            raise ValueError(f"percentile {q}: between 0 and 100")
        if measure == "inter_token":
            return weighted_percentile(*self._gaps(steady), q)
        found = self.values(measure, steady=steady)
        return float(np.percentile(found, q, method="inverted_cdf")) if len(found) else math.nan

    def attainment(self, slo: Slo, *, steady: bool = False) -> float:
        """Share of requests that met the objective; those refused or unfinished did not."""
        kept = self.kept(steady)
        if not np.any(kept):
            return math.nan
        tpot = np.where(self.output > 1, self.tpot, 0.0)
        met = self.completed & (self.ttft <= slo.ttft) & (tpot <= slo.tpot) & (self.latency <= slo.latency)
        return float(np.mean(met[kept]))

    def token_throughput(self, *, steady: bool = False) -> float:
        """Output tokens of completed requests a second: over the makespan, or without the first and last tenth to end."""
        return self._rate(self.output, steady)

    def request_throughput(self, *, steady: bool = False) -> float:
        """Completed requests a second, as above."""
        return self._rate(np.ones(len(self), np.int64), steady)

    def _rate(self, weight: IntArray, steady: bool) -> float:
        rows = np.flatnonzero(self.completed)
        rows = rows[np.argsort(self.finish[rows], kind="stable")]
        margin = int(STEADY_MARGIN * len(rows)) if steady else 0
        if len(rows) == 0:
            return 0.0
        since = float(self.finish[rows[margin - 1]]) if margin else float(np.min(self.arrival[rows]))
        inside = rows[margin : len(rows) - margin]
        seconds = float(self.finish[inside[-1]]) - since
        return float(np.sum(weight[inside])) / seconds if seconds > 0 else math.inf

    def queue_length(self) -> tuple[float, int]:
        """Requests waiting for their first admission: mean over the makespan, and the most at any time."""
        since = np.sort(self.arrival[np.isfinite(self.arrival) & (self.too_long == 0)])
        until = np.sort(np.where(np.isfinite(self.admitted), self.admitted, self.makespan)[self.too_long == 0])
        if len(since) == 0 or self.makespan <= 0:
            return 0.0, 0
        waiting = np.arange(1, len(since) + 1) - np.searchsorted(until, since, side="right")
        return float(np.sum(until - since)) / self.makespan, int(np.max(waiting, initial=0))


def outcome_of(block: Block, requests: Requests, why: IntArray, tokens: TokenLog | None) -> Outcome:
    """Read the loop's final state."""
    m, f = block.m, block.f
    admitted, first, finish = (block.request_time(field) for field in (w.ADMITTED, w.FIRST, w.FINISH))
    for array in (admitted, first, finish):
        array[array < 0] = math.nan
    cohorts = block.cohorts + np.arange(block.n_cohorts) * w.COHORT_WORDS
    busy = f[cohorts + w.C_BUSY]
    engine, of_lane = m[cohorts + w.C_ENGINE], block.lane(w.L_ENGINE)
    busy_lane = np.asarray([np.sum(busy[engine == one]) for one in of_lane])
    kv_time = block.lane(w.L_KV_TIME).view(np.float64)
    steps = int(m[w.STEPS])
    return Outcome(
        arrival=block.request_time(w.ARRIVAL),
        admitted=admitted,
        first=first,
        finish=finish,
        prompt=requests.prompt,
        output=requests.output,
        too_long=why,
        preemptions=block.request(w.PREEMPTED),
        tokens=tokens,
        kv_peak=block.lane(w.L_PEAK),
        kv_mean=kv_time / np.where(busy_lane > 0, busy_lane, 1.0),
        kv_blocks=block.lane(w.L_TOTAL),
        busy=busy,
        steps=steps,
        mean_batch=float(m[w.BATCH]) / max(steps, 1),
        makespan=float(f[w.NOW]),
    )


def weighted_percentile(values: FloatArray, weights: IntArray, q: float) -> float:
    """The smallest value that `q` percent of the weight does not exceed; NaN without weight."""
    if not np.sum(weights):
        return math.nan
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, q / 100 * reached[-1] - 1e-9 * reached[-1], side="left")])
