"""A replica's steady state as a function of how many requests decode at once: one curve for every engine and workload.

Given B running requests, everything else follows without iteration. A step of decode alone takes Td(B). Each request lives
(O − 1)/a steps (a tokens accepted a step), so x = B·a/(O − 1) requests join in a mean step; each adds Δ to the steps that
carry its prompt. A mean step then takes T = Td + x·Δ, requests join at the rate x / T, and time per token is T / a.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

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
    `drafted`, `acceptance`, `draft_share` of speculation; `overhead` seconds between a client and the scheduler,
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
    draft_share: FloatArray
    overhead: FloatArray
    intake: FloatArray
    ahead: FloatArray
    groups: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """Steady states of k combinations at the batch sizes RUNNING; arrays (k, 25), seconds; rates of one attention group.

    `running` requests; `decode` a step without prompts, `loaded` share of steps that carry prompts on some group, `added`
    seconds a prompt adds to steps, `service` seconds from the start of a prompt to its first token, `shared` prompts that
    share a step, `step` the mean step, `token` seconds a token, `rate` requests a second.
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

    In an open loop (Poisson) a running request sees one more than the mean, and prompts meet at random. In a closed loop of
    equal requests, those that were prefilled together end together and come back together.
    """
    k = len(work.engine)
    running = np.broadcast_to(RUNNING, (k, len(RUNNING)))
    wide = {name: getattr(work, name)[:, None] for name in Work.__slots__}
    accepted = accepted_tokens(wide["drafted"], wide["acceptance"])
    lives = np.maximum((wide["output"] - 1.0) / accepted, LEAST)
    joins = running / lives
    groups = wide["groups"]
    seen = running if closed else running + 1.0
    engine = np.broadcast_to(wide["engine"], (k, 25))
    mixed = wide["mixed"] > 0
    verified = verified_tokens(wide["drafted"])
    room = np.maximum(wide["budget"] - np.where(mixed, seen * verified, 0.0), 1.0)
    chunks = np.maximum(wide["prompt"] / room, 1.0)
    several = (groups > 1) & (not closed)
    together = running if closed else joins / -np.expm1(-joins)
    together = np.where(several, 1.0, together)
    shared = np.clip(together, 1.0, np.maximum(room / wide["prompt"], 1.0))
    # tokens a prompt finds cached, over all steps that it is cut into
    before = chunks * wide["found"] + wide["prompt"] * (chunks - 1.0) / 2.0
    decode = step_time(tables, engine, _decode(seen, wide["cached"], verified))
    beside = np.maximum(running - shared, 0.0) if closed else seen
    beside = np.where(mixed, beside, 0.0)

    def carrying(prompts: FloatArray) -> FloatArray:
        """Seconds of a step with so many prompts."""
        batch = Batch(
            decode_requests=beside,
            decode_kv=beside * wide["cached"],
            decode_tokens=beside * verified,
            prefill_queries=prompts * wide["prompt"] / chunks,
            prefill_pairs=prompts * wide["pairs"] / chunks,
            prefill_cached=prompts * before / chunks,
            prompts_finished=prompts / chunks,
        )
        return step_time(tables, engine, batch)

    loaded = carrying(shared)
    extra = np.where(mixed, np.maximum(loaded - decode, 0.05 * loaded), loaded)
    added = extra * chunks / shared
    step = decode + joins * added
    token, share = step, np.minimum(joins * chunks / shared, 1.0)
    service, rate = loaded * chunks, joins / step
    if np.any(several):
        fits = np.maximum(room / wide["prompt"], 1.0)
        two = np.minimum(2.0, fits)
        adds = np.maximum(carrying(two) - loaded, 0.0) / np.maximum(two - 1.0, 1e-9)
        many = _in_lockstep(decode, np.maximum(loaded, decode), adds, joins, chunks, groups, fits, mixed)
        chosen = zip(many, (step, token, rate, share, service), strict=True)
        step, token, rate, share, service = (np.where(several, them, one) for them, one in chosen)
    return Curve(
        running=running,
        decode=decode,
        loaded=share,
        added=added,
        service=service,
        shared=shared,
        step=step,
        token=token / accepted,
        rate=np.maximum.accumulate(rate, axis=1),  # a batch that grows past its best rate carries no more
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
