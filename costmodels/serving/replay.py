"""A measured run replayed: equal requests in a closed or an open loop on one plan, step by step, and its means."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from costmodels.serving.intake import held_up, since_sent, waits
from costmodels.simulation import Limits, Outcome, simulate
from costmodels.step_tables import StepTables
from spaces.columns import IntArray
from spaces.workload import Requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What is run on `replicas` engines alike.

    `requests` of `prompt` and `output` tokens: `concurrency` in flight, all started at time 0, or Poisson arrivals at `rate` a
    second. `max_batch`, `token_budget` and `kv_tokens` bound one of the `attention_data` groups of a replica, which hold their
    prompts for each other for `patience` steps, and of which a request goes `by_load` to the one with the fewest, or to each
    in turn. `mixed`: prompts
    share steps with decoding; `whole_answer`: a request is admitted only where all of its answer fits; `ahead`: a step is
    planned while the one before it runs; `overhead` seconds between client and scheduler, part of the time to first token;
    `steady` drops the first and last tenth. Lengths are even between the shares `shortest` and `longest` of those
    given, or where `exponential` about them as means: what is known of conversations of which only means are told. Those that
    start a closed loop wait `compiling` seconds for kernels of their shapes. A request, and each token of its prompt, keep the
    front of a replica's attention group for the seconds of `intake`. A step verifies `drafted` tokens of every
    request and one of its own, of which `accepted` are new.
    """

    prompt: int
    output: int
    rate: float = 0.0
    concurrency: int = 0
    requests: int
    replicas: int = 1
    attention_data: int = 1
    patience: int = 0
    by_load: bool = False
    max_batch: int = 256
    token_budget: int = 8192
    kv_tokens: float = math.inf
    block_tokens: int = 16
    mixed: bool = True
    chunked: bool = True
    whole_answer: bool = False
    ahead: bool = False
    overhead: float = 0.0
    shortest: float = 1.0
    longest: float = 1.0
    exponential: bool = False
    compiling: float = 0.0
    intake: tuple[float, float] = (0.0, 0.0)
    prefix_hit: float = 0.0
    drafted: int = 0
    accepted: float = 1.0
    steady: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """Means over requests: seconds, and output tokens a second of all replicas; `simulated` of the requests, where not all."""

    ttft: float
    tpot: float
    latency: float
    tokens_per_second: float
    simulated: int = 0


_BOUNDLESS = 1 << 29  # blocks


def limits_of(run: Replay) -> Limits:
    """The scheduler's limits; a plan without room for one request is given a boundless cache."""
    roomy = run.kv_tokens >= math.ceil((run.prompt + run.output) * run.longest)
    blocks = int(run.kv_tokens // run.block_tokens) if roomy and math.isfinite(run.kv_tokens) else _BOUNDLESS
    budget = max(run.token_budget, 1)
    # a prompt that may not be cut needs a step that holds it
    verified = 1 + run.drafted
    batch = max(min(run.max_batch, budget // verified), 1)
    return Limits(
        max_batch=batch,
        max_tokens=max(budget, verified),
        chunked=run.chunked,
        policy="mixed" if run.mixed else "prefill-first",
        kv_blocks=blocks,
        block_size=run.block_tokens,
        reserve="whole" if run.whole_answer else "prompt",
        attention_dp=run.attention_data,
        patience=run.patience,
        ahead=run.ahead,
        verified_tokens=verified,
        accepted_tokens=float(np.clip(run.accepted, 1, verified)),
    )


STEPS = 20_000_000
"""Steps up to which a run is simulated as it is; a longer closed loop goes on as its last rounds did."""
MOST = 40_000_000
"""Steps that a run may take at all."""


class TooLong(ValueError):
    """A run of more steps than are simulated; the message says what would do."""


def replay(tables: StepTables, engine: int, run: Replay) -> Replayed:
    """Simulate the run. In a closed loop the next request reaches the scheduler `overhead` after one ends. Raises TooLong."""
    width = _width(run, int(tables.stages[engine]))
    count = max(run.requests, 1)
    if run.concurrency and _steps(run, count, width) > STEPS:
        first = run.concurrency + 2 * width
        second = first + max(2 * width, run.concurrency // 4)
        if second < 0.8 * count:
            return replace(_continued(tables, engine, run, first, second, width), simulated=second)
    return _told(run, _totals(tables, engine, run, count, width))


def _width(run: Replay, stages: int) -> int:
    """Requests that all engines together may have running."""
    limits = limits_of(run)
    fit = limits.kv_blocks * limits.block_size // (run.prompt + run.output)
    each = max(min(limits.max_batch, fit), 1) * run.attention_data * run.replicas
    return max(min(each, run.concurrency or each), min(run.replicas * stages, run.concurrency or run.requests, each))


def _steps(run: Replay, count: int, width: int) -> float:
    """Steps that `count` requests take, about: each engine's own, those of prompts included."""
    engines = min(run.replicas, width)
    return count * (run.output * engines / width + math.ceil(run.prompt / max(run.token_budget, 1)))


@dataclass(frozen=True, slots=True)
class _Totals:
    """Sums over `count` requests: seconds to the first token, between tokens, in all; and output tokens a second."""

    count: float
    first: float
    token: float
    latency: float
    rate: float


def _totals(tables: StepTables, engine: int, run: Replay, count: int, width: int) -> _Totals:
    steps = _steps(run, count, width)
    if steps > MOST:
        fewer = int(count * MOST / steps)
        hint = f"num_requests of {fewer:,} or fewer would do" if fewer >= max(run.concurrency, 1) else "shorten osl"
        raise TooLong(f"the run takes some {steps:,.0f} steps, and {MOST:,} are simulated at most; {hint}")
    prompt, output = _lengths(run, count)
    known = np.floor(prompt * run.prefix_hit).astype(np.int64) if run.prefix_hit > 0 else None
    if run.concurrency:
        requests = Requests(
            arrival=np.zeros(count),
            prompt=prompt,
            output=output,
            known=known,
            concurrency=run.concurrency,
            turnaround=run.overhead,
        )
    else:
        gaps = np.random.default_rng(run.seed).exponential(1.0, count)
        # scaled to the rate, which a few hundred random gaps miss by ten per cent (as get_request in vllm/benchmarks/serve.py)
        times = np.cumsum(gaps) * (count / (run.rate * np.sum(gaps)))
        requests = Requests(arrival=times, prompt=prompt, output=output, known=known)
    waited = waits(requests, run.intake[0] + run.intake[1] * prompt.astype(np.float64), run.replicas * run.attention_data)
    asked = held_up(requests, waited)
    router = "least-loaded" if run.by_load and run.attention_data > 1 else "round-robin"
    outcome: Outcome = since_sent(
        simulate(tables, engine, asked, limits_of(run), replicas=run.replicas, router=router, log=False), waited
    )
    # requests that all end at once leave no middle to look at: then all of them count
    steady = run.steady and math.isfinite(outcome.token_throughput(steady=True))
    first, latency = outcome.mean("ttft", steady=steady), outcome.mean("latency", steady=steady)
    token = outcome.mean("tpot", steady=steady) if run.output > 1 else 0.0
    rate = outcome.token_throughput(steady=steady)
    # a lone client's kernels are compiled by the request that benchmarks send to try the server
    stalled = min(run.concurrency, count) * run.compiling if run.concurrency > 1 and not run.steady else 0.0
    if stalled and rate > 0 and math.isfinite(rate):
        tokens = float(np.sum(output))
        rate = tokens / (tokens / rate + run.compiling)
    return _Totals(count, first * count + stalled, token * count, latency * count + stalled, rate)


def _lengths(run: Replay, count: int) -> tuple[IntArray, IntArray]:
    """(prompts, answers) in tokens, (count,) each: even over the range, or the quantiles of an exponential distribution, and
    those of a shorter run the first of a longer one's.

    Multiples of irrational numbers, less whole ones, fill an interval evenly at every count (Weyl 1916).
    """

    def each(length: int, step: float) -> IntArray:
        even = (np.arange(count) + 0.5) * step % 1.0
        spread = run.shortest + (run.longest - run.shortest) * even
        shares = np.asarray(-np.log1p(-even) if run.exponential else spread)
        return np.maximum(np.round(length * shares), 1).astype(np.int64)

    return each(run.prompt, (math.sqrt(5.0) - 1.0) / 2.0), each(run.output, math.sqrt(2.0) - 1.0)


def _continued(tables: StepTables, engine: int, run: Replay, few: int, more: int, width: int) -> Replayed:
    """A closed loop of many rounds from two of fewer: start and end are in both, what lies between goes on evenly."""
    plain = replace(run, steady=False)
    one, two = (_totals(tables, engine, plain, count, width) for count in (few, more))
    further = (run.requests - two.count) / (two.count - one.count)
    if run.steady:  # the even part alone
        n = two.count - one.count
        span = (two.count / two.rate - one.count / one.rate) * run.output
        first, token, latency = (getattr(two, name) - getattr(one, name) for name in ("first", "token", "latency"))
        return _told(run, _Totals(n, first, token, latency, n * run.output / span))
    count = float(run.requests)
    span = run.output * (two.count / two.rate + further * (two.count / two.rate - one.count / one.rate))
    first, token, latency = (
        getattr(two, name) + further * (getattr(two, name) - getattr(one, name)) for name in ("first", "token", "latency")
    )
    return _told(run, _Totals(count, first, token, latency, count * run.output / span))


def _told(run: Replay, sums: _Totals) -> Replayed:
    """Means as a client sees them."""
    return Replayed(
        ttft=sums.first / sums.count + run.overhead,
        tpot=sums.token / sums.count,
        latency=sums.latency / sums.count + run.overhead,
        tokens_per_second=sums.rate,
    )
