"""A replica's steady state as a function of how many requests decode at once: one curve for every engine and workload.

Given B running requests, everything else follows without iteration. A step of decode alone takes Td(B). Each request lives
(O − 1)/a steps (a tokens accepted a step), so x = B·a/(O − 1) requests join in a mean step; each adds Δ to the steps that
carry its prompt. A mean step then takes T = Td + x·Δ, requests join at the rate x / T, and time per token is T / a.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from costmodels.serving.clusters import COUNTS, MOST_BUSY, in_turns, varied_decode, varied_prompts
from costmodels.serving.speculation import accepted_tokens, verified_tokens
from costmodels.step_tables import Batch, StepTables, step_time
from spaces.columns import FloatArray, IntArray

RUNNING = 2.0 ** np.arange(0.0, 12.01, 0.5)
"""Batch sizes that a curve is known at."""
LEAST = 1e-3
"""Steps that a request of one output token lives: it leaves with its prompt."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """What k combinations of engine and workload have; arrays (k,).

    `prompt` tokens to prefill, which see `pairs` keys (`found` tokens more are cached already); `cached` mean tokens of a
    decoding request's cache; `output` tokens; `budget` new tokens a step; `mixed` whether prompts share steps with decoding;
    `drafted`, `acceptance` of speculation; `overhead` seconds between a client and the scheduler,
    of which `intake` keep the server's front busy;
    `ahead` whether a step is planned while the one before it runs; `groups` attention groups that step together.
    """

    engine: IntArray
    prompt: FloatArray
    pairs: FloatArray
    found: FloatArray
    cached: FloatArray
    output: FloatArray
    budget: FloatArray
    mixed: FloatArray
    drafted: FloatArray
    acceptance: FloatArray
    overhead: FloatArray
    intake: FloatArray
    ahead: FloatArray
    groups: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """Steady states of k combinations at the batch sizes RUNNING; arrays (k, 25), seconds; rates of one attention group.

    `running` requests; `decode` a step without prompts, `loaded` share of steps that carry prompts on some group, `added`
    seconds a prompt adds to steps, `service` seconds from the start of a prompt to its first token, `shared` prompts that
    share a step (of groups, the slowest's), `step` the mean step, `token` seconds a token, `rate` requests a second.
    """

    running: FloatArray
    decode: FloatArray
    loaded: FloatArray
    added: FloatArray
    service: FloatArray
    shared: FloatArray
    step: FloatArray
    token: FloatArray
    rate: FloatArray


def curve(tables: StepTables, work: Work, *, closed: bool) -> Curve:
    """The curve of each combination.

    In an open loop (Poisson) prompts meet at random and in clusters (`varied_steps`). In a closed loop of equal requests, those
    that were prefilled together end together and come back together.
    """
    if closed:
        return _returning(tables, _columns(work))
    several = work.groups > 1
    kinds = [(np.flatnonzero(rows), of) for rows, of in ((~several, _alone), (several, _together)) if np.any(rows)]
    if len(kinds) == 1:
        return kinds[0][1](tables, _columns(work))
    whole = {name: np.empty((len(several), len(RUNNING))) for name in Curve.__slots__}
    for rows, of in kinds:
        some = of(tables, _columns(work, rows))
        for name, values in whole.items():
            values[rows] = getattr(some, name)
    return Curve(**whole)


def _columns(work: Work, rows: IntArray | slice = slice(None)) -> Work:
    """The work of some combinations as columns (k, 1), to spread over RUNNING."""
    return Work(**{name: getattr(work, name)[rows, None] for name in Work.__slots__})


@dataclass(frozen=True, slots=True, eq=False)
class _Steps:
    """Steps of k combinations at the batch sizes `running`, in which every decoding request sees `seen` (k, 25) of them.

    `joins` prompts of a mean step, each cut into `chunks`; `room` for their tokens.
    """

    tables: StepTables
    work: Work
    running: FloatArray
    seen: FloatArray
    joins: FloatArray
    room: FloatArray
    chunks: FloatArray

    def decode(self, running: FloatArray) -> FloatArray:
        """Seconds of a step of so many requests and no prompt."""
        return step_time(self.tables, self.work.engine, _decode(running, self.work.cached, verified_tokens(self.work.drafted)))

    def carrying(self, prompts: FloatArray, beside: FloatArray) -> FloatArray:
        """Seconds of a step with so many prompts `beside` requests that decode."""
        work = self.work
        # tokens a prompt finds cached, over all steps that it is cut into
        before = self.chunks * work.found + work.prompt * (self.chunks - 1.0) / 2.0
        batch = Batch(
            decode_requests=beside,
            decode_kv=beside * work.cached,
            decode_tokens=beside * verified_tokens(work.drafted),
            prefill_queries=prompts * work.prompt / self.chunks,
            prefill_pairs=prompts * work.pairs / self.chunks,
            prefill_cached=prompts * before / self.chunks,
            prompts_finished=prompts / self.chunks,
        )
        return step_time(self.tables, work.engine, batch)


def _steps(tables: StepTables, work: Work, more: float) -> _Steps:
    running = np.broadcast_to(RUNNING, (len(work.engine), len(RUNNING)))
    seen = running + more
    joins = running / np.maximum((work.output - 1.0) / accepted_tokens(work.drafted, work.acceptance), LEAST)
    room = np.maximum(work.budget - np.where(work.mixed > 0, seen * verified_tokens(work.drafted), 0.0), 1.0)
    return _Steps(tables, work, running, seen, joins, room, np.maximum(work.prompt / room, 1.0))


def _curve(of: _Steps, **found: FloatArray) -> Curve:
    accepted = accepted_tokens(of.work.drafted, of.work.acceptance)
    # a batch that grows past its best rate carries no more
    found |= {"token": found["token"] / accepted, "rate": np.maximum.accumulate(found["rate"], axis=1)}
    return Curve(running=of.running, **found)


def _own_steps(of: _Steps, *, step: FloatArray, **found: FloatArray) -> Curve:
    """The curve of batches that step for themselves: a token of everybody, and all that joins, in every step."""
    return _curve(of, step=step, token=step, rate=of.joins / step, **found)


def _added(of: _Steps, shared: FloatArray, beside: FloatArray, decode: FloatArray) -> tuple[FloatArray, FloatArray]:
    """(seconds of a step of `shared` prompts, seconds that one of them adds to steps)."""
    mixed = of.work.mixed > 0
    loaded = of.carrying(shared, np.where(mixed, beside, 0.0))
    extra = np.where(mixed, np.maximum(loaded - decode, 0.05 * loaded), loaded)
    return loaded, extra * of.chunks / shared


def clustered(groups: FloatArray, mixed: FloatArray, fits: FloatArray, shared: FloatArray) -> FloatArray:
    """How far prompts of a step are counted one by one as they come in clusters: wholly where a batch steps for itself.

    Of groups that step together, steps are long or short, whichever of them has a prompt, until several of one's share a step.
    """
    several = np.where(mixed > 0, np.clip(fits - 1.0, 0.0, 1.0) * np.clip(shared - 1.0, 0.0, 1.0), 0.0)
    return np.asarray(np.where(groups > 1, several, 1.0))


def _returning(tables: StepTables, work: Work) -> Curve:
    """The curve of closed loops."""
    of = _steps(tables, work, 0.0)
    shared = np.clip(of.running, 1.0, np.maximum(of.room / work.prompt, 1.0))
    decode = of.decode(of.running)
    loaded, added = _added(of, shared, np.maximum(of.running - shared, 0.0), decode)
    step = decode + of.joins * added
    share = np.minimum(of.joins * of.chunks / shared, 1.0)
    return _own_steps(of, decode=decode, loaded=share, added=added, service=loaded * of.chunks, shared=shared, step=step)


def _alone(tables: StepTables, work: Work) -> Curve:
    """The curve of open loops where every batch steps for itself."""
    of = _steps(tables, work, 1.0)
    fits, mixed = np.maximum(of.room / work.prompt, 1.0), work.mixed > 0
    shared = np.clip(of.joins / -np.expm1(-of.joins), 1.0, fits)
    seen = of.decode(of.seen)
    loaded, added = _added(of, shared, of.seen, seen)
    share = np.minimum(of.joins * of.chunks / shared, 1.0)
    busy = np.minimum(of.joins * added / (seen + of.joins * added), MOST_BUSY)
    decode = varied_decode(of.decode, of.running, seen, busy)
    step = decode + of.joins * added
    meet = np.where(work.output > 1, np.clip(fits - 1.0, 0.0, 1.0), 0.0)  # whether several prompts fit a step

    def longer(prompts: FloatArray) -> FloatArray:
        taken = np.clip(prompts, 1.0, fits)
        return np.maximum(of.carrying(taken, of.seen) - seen, 0.0) * prompts / taken

    if np.any(mixed):
        longer_by, slope = varied_prompts(longer, of.joins, busy)
        use = np.where(mixed, meet, 0.0)
        step, added = step + use * (decode + longer_by - step), added + use * (slope - added)
    if not np.all(mixed):
        taken = np.minimum(COUNTS, fits[:, :1])
        each = dataclasses.replace(of, chunks=of.chunks[:, :1]).carrying(taken, np.zeros_like(taken)) * COUNTS / taken
        idle, mean, slope = in_turns(decode, each, of.joins)
        use = np.where(mixed, 0.0, meet)
        step, added = step + use * (mean / idle - step), added + use * (slope - added)
        share = share + use * (1.0 - idle - share)
    return _own_steps(of, decode=decode, loaded=share, added=added, service=loaded * of.chunks, shared=shared, step=step)


def _together(tables: StepTables, work: Work) -> Curve:
    """The curve of open loops where attention groups step together."""
    of = _steps(tables, work, 1.0)
    fits, mixed = np.maximum(of.room / work.prompt, 1.0), work.mixed > 0
    decode, one = of.decode(of.seen), np.ones_like(of.seen)
    loaded, added = _added(of, one, of.seen, decode)
    two = np.minimum(2.0, fits)
    both = of.carrying(two, np.where(mixed, of.seen, 0.0))
    adds = np.maximum(both - loaded, 0.0) / np.maximum(two - 1.0, 1e-9)
    step, token, rate, share, service = _in_lockstep(
        decode, np.maximum(loaded, decode), adds, of.joins, of.chunks, work.groups, fits, work.mixed
    )
    shared = one
    if np.any(mixed):
        groups = work.groups

        def longer(prompts: FloatArray) -> FloatArray:
            most = np.maximum(prompts / groups + (groups - 1.0) / (2.0 * groups), 1.0)  # of a group, dealt out evenly
            taken = np.minimum(most, fits)
            return np.maximum(of.carrying(taken, of.seen) - decode, 0.0) * most / taken

        shared = busiest(np.minimum(rate * service / of.chunks, 64.0), groups)
        busy = np.clip(1.0 - decode / step, 0.0, MOST_BUSY)
        longer_by, slope = varied_prompts(longer, of.joins * groups, busy)
        use = np.where(work.output > 1, clustered(groups, work.mixed, fits, shared), 0.0)
        step = step + use * (decode + longer_by - step)
        token, rate, added = token + use * (step - token), rate + use * (of.joins / step - rate), slope
    return _curve(
        of, decode=decode, loaded=share, added=added, service=service, shared=shared, step=step, token=token, rate=rate
    )


def _in_lockstep(
    decode: FloatArray,
    loaded: FloatArray,
    adds: FloatArray,
    joins: FloatArray,
    chunks: FloatArray,
    groups: FloatArray,
    fits: FloatArray,
    mixed: FloatArray,
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """(mean step, time between a request's tokens, requests a second of one group, share of loaded steps, service) of groups.

    A step lasts as long as the slowest group's: where any of them has prompts, all wait. What came during a step shares the
    next, spread evenly by the router, so that long steps follow long ones (`loaded_share`), and long steps are the longer the
    more came: each prompt after a group's first `adds` seconds. Groups whose prompts have steps of their own make no token in
    them. The requests y that come to a group in a long step tell all else; the y that keeps `joins` is found by bisection.
    """

    def steady(y: FloatArray) -> tuple[FloatArray, ...]:
        again = -np.expm1(-groups * y)  # long steps that follow long ones take the prompts of those
        long = loaded + adds * again * (np.clip(busiest(y, groups), 1.0, fits) - 1.0)
        rate = y / long
        share = loaded_share(rate, decode, long, chunks, groups)
        step = decode + share * (long - decode)
        own = np.minimum(rate * step * chunks / np.maximum(share, 1e-12), 1.0) * share
        return step, np.where(mixed > 0, step, step / np.maximum(1.0 - own, 1e-3)), rate, share, long * chunks

    low, high = np.full_like(decode, -18.0), np.log(4.0 * fits / chunks)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        _, token, rate, _, _ = steady(np.exp(middle))
        enough = rate * token > joins
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    step, token, rate, share, service = steady(np.exp(low))
    return step, token, rate, share, service


_HALVINGS = 32


def loaded_share(rate: FloatArray, decode: FloatArray, long: FloatArray, chunks: FloatArray, groups: FloatArray) -> FloatArray:
    """Share of steps in which some of `groups` has prompts, of which `rate` a second come to each.

    A chain of two states. After a step of `decode` seconds the next is loaded where something came in it. A run of loaded
    steps of `long` seconds lasts chunks · exp(groups · rate · long · (chunks + 1) / 2) of them: exact for prompts of one step,
    to first order the busy period of M/D/∞ for those cut into `chunks`.
    """
    starts = -np.expm1(-groups * rate * decode)
    lasts = chunks * np.exp(np.minimum(groups * rate * long * (chunks + 1.0) / 2.0, 60.0))
    return np.asarray(starts / (1.0 / lasts + starts))


def busiest(joins: FloatArray, groups: FloatArray) -> FloatArray:
    """Mean prompts of the group that gets most, where any come: N, Poisson of mean joins · groups, are dealt out evenly."""
    most = np.ones(np.broadcast_shapes(joins.shape, groups.shape))
    logs = np.log(np.clip(joins, _JOINS[0], _JOINS[-1]))
    for many in np.unique(groups):
        known = np.interp(logs, np.log(_JOINS), _busiest_of(int(many))) + np.maximum(joins - _JOINS[-1], 0.0)
        most = np.where(groups == many, known, most)
    return most


@lru_cache(maxsize=64)
def _busiest_of(groups: int) -> FloatArray:
    """E[⌈N / groups⌉ | N ≥ 1] for N of mean groups · _JOINS, from Σ P(N > j · groups)."""
    means = _JOINS[:, None] * groups
    counts = np.arange(int(means[-1, 0] + 12.0 * np.sqrt(means[-1, 0])) + 1.0)
    logs = np.concatenate([[0.0], np.cumsum(np.log(counts[1:]))])
    below = np.cumsum(np.exp(counts * np.log(means) - means - logs), axis=1)
    beyond = np.maximum(1.0 - below[:, ::groups], 0.0)
    return np.asarray(np.sum(beyond, axis=1) / -np.expm1(-means[:, 0]))


_JOINS = np.geomspace(1e-5, 16.0, 96)
"""Means of prompts a group and step that `busiest` is tabulated at."""


def _decode(seen: FloatArray, cached: FloatArray, verified: FloatArray) -> Batch:
    return Batch(decode_requests=seen, decode_kv=seen * cached, decode_tokens=seen * verified)


def supplied(work: Work) -> FloatArray:
    """The most requests that a step's budget for prompts keeps supplied, (k,): B/lives prompts join every step of
    budget − B tokens (budget, where prompts have steps of their own and so no bound)."""
    lives = np.maximum((work.output - 1.0) / accepted_tokens(work.drafted, work.acceptance), LEAST)
    verified = verified_tokens(work.drafted)
    return np.asarray(np.where(work.mixed > 0, work.budget / (work.prompt / lives + verified), np.inf))


def at(curve_: Curve, row: IntArray, place: IntArray, share: FloatArray, name: str) -> FloatArray:
    """A curve's value between points `place` and `place + 1` of each row, (n,)."""
    values: FloatArray = getattr(curve_, name)
    return np.asarray(values[row, place] * (1.0 - share) + values[row, place + 1] * share)


def place_of(values: FloatArray, row: IntArray, wanted: FloatArray) -> tuple[IntArray, FloatArray]:
    """Where rising `values` (k, 25) reach `wanted` (n,): the point to the left, and the share of the way to the next.

    Clamped at both ends.
    """
    own = values[row]
    place = np.clip(np.sum(own < wanted[:, None], axis=1) - 1, 0, len(RUNNING) - 2)
    left, right = values[row, place], values[row, place + 1]
    share = np.divide(wanted - left, right - left, out=np.zeros_like(wanted), where=right > left)
    return place, np.clip(share, 0.0, 1.0)
