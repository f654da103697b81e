"""Requests: what arrives at a serving system, when, and how long it is. A struct of arrays, one entry a request."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from spaces.columns import FloatArray, IntArray


class BadRequests(ValueError):
    """Requests that cannot be: the message says which and why."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Requests:
    """n requests in order of arrival; read-only arrays of shape (n,).

    `arrival` seconds; `prompt` and `output` tokens, at least 1 each; `priority`, smaller goes first. `concurrency` > 0 makes a
    closed loop: so many requests (or sessions) are there at time 0, and each that ends brings the next, `turnaround` seconds
    later; `arrival` is then 0.
    The first `shared` tokens of a prompt are common to all requests of the group `prefix` (−1: none) and may be found cached;
    one that `keeps` leaves its whole context, answer included, as the group's prefix. A request that `follows` another (−1:
    none) arrives `think` seconds after that one ends, and its `arrival` counts for nothing.
    `known` tokens of a prompt are cached from before the run.
    """

    arrival: FloatArray
    prompt: IntArray
    output: IntArray
    priority: IntArray | None = None
    prefix: IntArray | None = None
    shared: IntArray | None = None
    keeps: NDArray[np.bool_] | None = None
    follows: IntArray | None = None
    think: FloatArray | None = None
    known: IntArray | None = None
    concurrency: int = 0
    turnaround: float = 0.0

    def __post_init__(self) -> None:
        n = len(self.arrival)
        for name in ("arrival", "prompt", "output", "priority", "prefix", "shared", "keeps", "follows", "think", "known"):
            array = getattr(self, name)
            if array is None:
                continue
            if np.shape(array) != (n,):
                raise BadRequests(f"{name} has shape {np.shape(array)}: one entry for each of the {n} arrivals is needed")
            kind = np.float64 if name in ("arrival", "think") else np.bool_ if name == "keeps" else np.int64
            owned = np.array(array, kind) if not isinstance(array, np.ndarray) or array.flags.writeable else array
            owned.flags.writeable = False
            object.__setattr__(self, name, owned)
        if n == 0:
            return
        for name in ("prompt", "output"):
            _all(getattr(self, name) >= 1, f"{name} is {{}}: a request has at least 1 {name} token", getattr(self, name))
        _all(np.isfinite(self.arrival) & (self.arrival >= 0), "arrives at {} s: times are finite, not negative", self.arrival)
        later = np.concatenate([[True], np.diff(self.arrival) >= 0]) if self.follows is None else np.ones(n, bool)
        _all(later, "arrives at {} s, before the one ahead of it: sort requests by arrival", self.arrival)
        if self.concurrency < 0:
            raise BadRequests(f"concurrency is {self.concurrency}: it cannot be negative (0 is an open loop)")
        if not self.turnaround >= 0:
            raise BadRequests(f"turnaround is {self.turnaround} s: it cannot be negative")
        if self.concurrency and np.any(self.arrival > 0):
            raise BadRequests("a closed loop has no arrival times of its own: arrival must be 0 throughout")
        if self.follows is not None:
            _all(self.follows < np.arange(n), "follows request {}, which does not come before it", self.follows)
            led = self.follows[self.follows >= 0]
            if len(np.unique(led)) < len(led):
                raise BadRequests("two requests follow the same one: a session is a line of turns")

    def __len__(self) -> int:
        return len(self.arrival)

    def take(self, rows: NDArray[np.bool_] | slice) -> Requests:
        """Some of the requests, in order; not where one follows another. Raises BadRequests."""
        if self.follows is not None and np.any(self.follows >= 0):
            raise BadRequests("turns of a session follow one another: take whole workloads")
        names = ("arrival", "prompt", "output", "priority", "prefix", "shared", "keeps", "think", "known")
        arrays = {name: getattr(self, name)[rows] for name in names if getattr(self, name) is not None}
        return Requests(**arrays, concurrency=self.concurrency, turnaround=self.turnaround)

    @property
    def rate(self) -> float:
        """Requests a second on average, first to last; 0 where they arrive all at once."""
        span = float(self.arrival[-1] - self.arrival[0]) if len(self) > 1 else 0.0
        return (len(self) - 1) / span if span > 0 else 0.0

    def at_rate(self, rate: float) -> Requests:
        """The same requests with their arrival times scaled to `rate` requests a second on average."""
        if not self.rate:
            raise BadRequests("requests that arrive all at once have no rate to scale")
        return replace(self, arrival=self.arrival * (self.rate / rate))


def _all(good: NDArray[np.bool_], what: str, values: NDArray[np.float64] | NDArray[np.int64]) -> None:
    if not np.all(good):
        row = int(np.argmin(good))
        count = int(np.sum(~good))
        more = f" ({count} requests in all)" if count > 1 else ""
        raise BadRequests(f"request {row + 1} {what.format(values[row].item())}{more}")
