"""Traffic: how long requests are and when they come, as distributions; drawn, it becomes the requests that are simulated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces.columns import FloatArray, IntArray
from spaces.facts import facts_in
from spaces.workload import Requests

LENGTHS = Path(__file__).parent / "data" / "lengths"
"""Published joint distributions of prompt and answer, one file each."""

SHAPES = ("fixed", "uniform", "lognormal", "exponential")
ARRIVALS = ("poisson", "gamma", "constant")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """A distribution of token counts of at least 1: its mean, and its standard deviation over the mean (0: fixed)."""

    shape: str
    mean: float
    spread: float = 0.0

    def draw(self, n: int, random: np.random.Generator) -> IntArray:
        """n token counts, (n,)."""
        if self.shape == "uniform":
            half = self.spread * self.mean * 3**0.5
            values = random.uniform(self.mean - half, self.mean + half, n)
        elif self.shape == "lognormal":
            variance = np.log1p(self.spread**2)
            values = random.lognormal(np.log(self.mean) - variance / 2, variance**0.5, n)
        elif self.shape == "exponential":
            values = random.exponential(self.mean, n)
        else:
            values = np.full(n, self.mean)
        return np.maximum(np.round(values), 1).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pairs:
    """A joint distribution of prompt and answer as published pairs, (k,) each, all equally likely."""

    name: str
    prompt: IntArray
    output: IntArray
    source: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Traffic:
    """What is asked of the servers: `rate` requests a second, or `concurrency` at once (0: an open loop).

    `lengths` are independent distributions of prompt and answer, or published pairs; a `trace` has lengths and times of its
    own, which `rate` scales when it is given. Gaps between arrivals have the coefficient of variation `burstiness` (1:
    Poisson, 0: constant, others: gamma). Sessions have `turns`, each `think` seconds after the last and with all that came
    before as its prompt's beginning; else prompts begin with `shared` tokens of one of `groups`. `count` requests are
    simulated (0: enough). Requests of a trace beyond `context` tokens in and out (0: no limit) are refused, and so do not
    count in its means.
    """

    lengths: tuple[Lengths, Lengths] | Pairs
    trace: Requests | None = None
    rate: float = 0.0
    concurrency: int = 0
    burstiness: float = 1.0
    turns: int = 1
    think: float = 0.0
    shared: int = 0
    groups: int = 1
    prefix_hit: float = 0.0
    count: int = 0
    context: int = 0

    @property
    def too_long(self) -> int:
        """Requests of the trace that are longer than the context."""
        return 0 if self.trace is None else len(self.trace) - int(np.sum(self._short(self.trace)))

    def _short(self, trace: Requests) -> NDArray[np.bool_]:
        return np.asarray((trace.prompt + trace.output <= self.context) | (self.context == 0))

    @property
    def means(self) -> tuple[float, float]:
        """Mean tokens of prompt and answer; in sessions of the whole prompt, what came before included; of a trace, those of
        requests within the context."""
        if self.trace is not None:
            short = self._short(self.trace)
            kept = short if np.any(short) else ~short
            return float(np.mean(self.trace.prompt[kept])), float(np.mean(self.trace.output[kept]))
        if isinstance(self.lengths, Pairs):
            prompt, output = float(np.mean(self.lengths.prompt)), float(np.mean(self.lengths.output))
        else:
            prompt, output = self.lengths[0].mean, self.lengths[1].mean
        return prompt + (self.turns - 1) / 2 * (prompt + output), output

    @property
    def mean_rate(self) -> float:
        """Requests a second in the mean; 0 in a closed loop."""
        if self.rate or self.trace is None or self.concurrency:
            return self.rate
        return self.trace.rate

    @property
    def together(self) -> int:
        """Requests in flight where there is no rate: those of a closed loop, or all of a trace that come at once."""
        return self.concurrency or (0 if self.trace is None or self.mean_rate else len(self.trace))

    @property
    def hit(self) -> float:
        """Share of prompt tokens that are found in the cache, in the mean, where caches hold all that may be reused."""
        if self.prefix_hit:
            return self.prefix_hit
        prompt, output = self.means
        if self.turns > 1:
            own = prompt - (self.turns - 1) / 2 * (prompt + output) / (1 + (self.turns - 1) / 2)
            return min(max(1.0 - own / prompt, 0.0), 0.99)
        return min(self.shared / max(prompt, 1.0), 0.99)


def requests(traffic: Traffic, count: int, seed: int, rate: float | None = None) -> Requests:
    """`count` requests drawn from the traffic, or those of its trace; `rate` requests a second in place of the traffic's own.

    The same seed gives the same lengths and the same gaps at every rate, scaled. Raises BadRequests.
    """
    wanted = traffic.rate if rate is None else rate
    if traffic.trace is not None:
        return _cached(traffic, traffic.trace.at_rate(wanted) if wanted else traffic.trace)
    lengths, gaps = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    prompt, output = _lengths(traffic, count, lengths)
    closed = traffic.concurrency if rate is None else 0
    if traffic.turns > 1:
        starts = _arrivals(traffic, -(-count // traffic.turns), wanted / traffic.turns, closed, gaps)
        return _sessions(traffic, prompt, output, starts, closed)
    arrival = _arrivals(traffic, count, wanted, closed, gaps)
    if not traffic.shared:
        return _cached(traffic, Requests(arrival=arrival, prompt=prompt, output=output, concurrency=closed))
    return Requests(
        arrival=arrival,
        prompt=np.maximum(prompt, traffic.shared + 1),
        output=output,
        prefix=np.arange(count) % traffic.groups,
        shared=np.full(count, traffic.shared),
        concurrency=closed,
    )


def _cached(traffic: Traffic, asked: Requests) -> Requests:
    """The requests, with the share of each prompt that is cached from before."""
    if not traffic.prefix_hit:
        return asked
    return replace(asked, known=np.floor(asked.prompt * traffic.prefix_hit).astype(np.int64))


def _lengths(traffic: Traffic, count: int, random: np.random.Generator) -> tuple[IntArray, IntArray]:
    if isinstance(traffic.lengths, Pairs):
        rows = random.integers(0, len(traffic.lengths.prompt), count)
        return traffic.lengths.prompt[rows], traffic.lengths.output[rows]
    prompt, output = traffic.lengths
    return prompt.draw(count, random), output.draw(count, random)


def _arrivals(traffic: Traffic, count: int, rate: float, closed: int, random: np.random.Generator) -> FloatArray:
    """Times of `count` arrivals, (count,), the last at `count / rate`; all 0 in a closed loop.

    A few hundred random gaps miss their mean by several per cent, and the load with them, so they are scaled to it; servers'
    own benchmarks do the same (get_request in vllm/benchmarks/serve.py).
    """
    if closed or rate <= 0:
        return np.zeros(count)
    cv2 = traffic.burstiness**2
    gaps = random.gamma(1 / cv2, cv2, count) if cv2 > 0 else np.ones(count)
    times = np.cumsum(gaps)
    return np.asarray(times * (count / (rate * times[-1])) if count else times, np.float64)


def _sessions(traffic: Traffic, prompt: IntArray, output: IntArray, arrival: FloatArray, closed: int) -> Requests:
    """Sessions of turns: a turn's prompt is the conversation so far, which the last turn left in the cache, and a message."""
    turns, sessions = traffic.turns, len(arrival)
    new = np.resize(prompt, sessions * turns).reshape(sessions, turns)
    answer = np.resize(output, sessions * turns).reshape(sessions, turns)
    before = np.cumsum(new + answer, axis=1) - (new + answer)
    place = np.arange(sessions * turns).reshape(sessions, turns)
    kept = np.maximum(before - 1, 0)  # the last token of an answer was never computed on
    follows = np.concatenate([np.full((sessions, 1), -1), place[:, :-1]], axis=1)
    times = np.where(follows < 0, arrival[:, None], 0.0)

    def flat(array: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray(array).reshape(-1)

    return Requests(
        arrival=flat(times),
        prompt=flat(before + new),
        output=flat(answer),
        prefix=np.repeat(np.arange(sessions), turns),
        shared=flat(kept),
        keeps=np.ones(sessions * turns, np.bool_),
        follows=flat(follows),
        think=np.where(flat(follows) < 0, 0.0, traffic.think),
        concurrency=closed,
    )


@cache
def length_names() -> tuple[str, ...]:
    """Every published distribution there is."""
    return tuple(sorted(path.stem for path in LENGTHS.glob("*.yaml")))


@cache
def published_lengths(name: str) -> Pairs:
    """The published distribution of that name. Raises KeyError for a name that is not in `length_names()`."""
    if name not in length_names():
        raise KeyError(f"no distribution of lengths is called {name!r}")
    facts: Mapping[str, Any] = facts_in((LENGTHS / f"{name}.yaml").read_text(encoding="utf-8"))
    pairs = np.array([[int(part) for part in pair.split("/")] for pair in facts["pairs"].split()], np.int64)
    return Pairs(name=name, prompt=pairs[:, 0], output=pairs[:, 1], source=facts["source"])
