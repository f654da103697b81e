"""A replica's steady state as a function of how many requests decode at once: one curve for every engine and workload.

Given B running requests, everything else follows without iteration. A step of decode alone takes Td(B). Each request lives
(O − 1)/a steps (a tokens accepted a step), so x = B·a/(O − 1) requests join in a mean step; each adds Δ to the steps that
carry its prompt. A mean step then takes T = Td + x·Δ, requests join at the rate x / T, and time per token is T / a.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from costmodels.serving.speculation import accepted_tokens, draft_time, verified_tokens
from costmodels.step_tables import Batch, StepTables, step_time
from spaces.columns import FloatArray, IntArray

RUNNING = 2.0 ** np.arange(0.0, 12.01, 0.5)
"""Batch sizes that a curve is known at."""
LEAST = 1e-3
"""Steps that a request of one output token lives: it leaves with its prompt."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """What k combinations of engine and workload have; arrays (k,).

    `prompt` tokens to prefill (those found in the cache are left out), which see `pairs` keys; `cached` mean tokens of a
    decoding request's cache; `output` tokens; `budget` new tokens a step; `mixed` whether prompts share steps with decoding;
    `drafted`, `acceptance`, `draft_share` of speculation; `overhead` seconds between a client and the scheduler;
    `groups` attention groups that step together.
    """

    engine: IntArray
    prompt: FloatArray
    pairs: FloatArray
    cached: FloatArray
    output: FloatArray
    budget: FloatArray
    mixed: FloatArray
    drafted: FloatArray
    acceptance: FloatArray
    draft_share: FloatArray
    overhead: FloatArray
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
    verified = verified_tokens(wide["drafted"])
    room = np.maximum(wide["budget"] - np.where(wide["mixed"] > 0, seen * verified, 0.0), 1.0)
    together = running if closed else joins / -np.expm1(-joins)
    shared = np.clip(together, 1.0, np.maximum(room / wide["prompt"], 1.0))
    chunks = np.maximum(wide["prompt"] / room, 1.0)
    decode = step_time(tables, engine, _decode(seen, wide["cached"], verified))
    decode = decode + draft_time(decode, wide["drafted"], wide["draft_share"])
    carried = {
        "prefill_queries": shared * wide["prompt"] / chunks,
        "prefill_pairs": shared * wide["pairs"] / chunks,
        "prompts_finished": shared / chunks,
    }
    beside = np.maximum(running - shared, 0.0) if closed else seen
    beside = np.where(wide["mixed"] > 0, beside, 0.0)
    loaded = step_time(
        tables,
        engine,
        Batch(decode_requests=beside, decode_kv=beside * wide["cached"], decode_tokens=beside * verified, **carried),
    )
    extra = np.where(wide["mixed"] > 0, np.maximum(loaded - decode, 0.05 * loaded), loaded)
    added = extra * chunks / shared
    step = decode + joins * added
    token, rate, share = step, joins / step, joins * chunks / shared
    if not closed and np.any(groups > 1):
        many = _in_lockstep(decode, np.maximum(loaded, decode), joins, chunks, groups, wide["mixed"])
        step, token, rate, share = (
            np.where(groups > 1, several, one) for several, one in zip(many, (step, token, rate, share), strict=True)
        )
    return Curve(
        running=running,
        decode=decode,
        loaded=np.minimum(share, 1.0),
        added=added,
        service=loaded * chunks,
        shared=shared,
        step=step,
        token=token / accepted,
        rate=rate,
    )


def _in_lockstep(
    decode: FloatArray, loaded: FloatArray, joins: FloatArray, chunks: FloatArray, groups: FloatArray, mixed: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """(mean step, time between a request's tokens, requests a second of one group, share of loaded steps) of several groups.

    A step lasts as long as the slowest group's: where any of them has prompts, all wait. A step is loaded when something came
    during the one before, so that long steps follow long ones: a chain of two states. A group whose prompts have steps of
    their own makes no token in them. The rate that keeps `joins` requests a step running is found by bisection.
    """

    def chain(rate: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        long = loaded * np.maximum(rate * loaded, 1.0)  # the prompts that one group gets in a long step share the next
        after_short, after_long = (-np.expm1(-groups * rate * chunks * time) for time in (decode, long))
        share = after_short / np.maximum(1.0 - after_long + after_short, 1e-12)
        step = decode + share * (long - decode)
        own = -np.expm1(-rate * step * chunks)
        return step, np.where(mixed > 0, step, step / (1.0 - own)), share

    low, high = np.zeros_like(decode), 4.0 / (loaded * chunks)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        enough = middle * chain(middle)[1] > joins
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    step, token, share = chain(low)
    return step, token, np.maximum(low, 1e-12), share


_HALVINGS = 40


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
