"""How long a request waits for its first token: queues before the prefill and before a place in the batch.

Open loops are Poisson; closed loops start all at once with equal requests, so the first burst is part of the mean.
"""

from __future__ import annotations

import numpy as np

from spaces.columns import FloatArray

HOUR = 3600.0


def open_loop(
    rate: FloatArray,
    decode: FloatArray,
    step: FloatArray,
    second: FloatArray,
    added: FloatArray,
    own: FloatArray,
    service: FloatArray,
    fits: FloatArray,
    mixed: FloatArray,
    stages: FloatArray,
    slower: FloatArray,
) -> FloatArray:
    """Seconds from arrival to first token before admission limits, (n,).

    `fits` prompts fit a step. Where several do, a step takes all that came during the one before (a gated queue): a request has
    to wait for what is left of the step it comes in, `second` = E[T²] / E[T] of steps of mean `step`, and its own takes `added`
    longer for each of the `own` of it and those that came with it, and `slower` for who runs beside them. Where they do not,
    prompts are served one by one between steps of decode (M/D/1 with vacations, Takagi 1991: λS² / 2(1 − λS) + V/2), and where
    more come than fit, in between. A pipeline starts a batch `stages` times as often as one batch steps; the next batch takes
    a request unless it holds its share already, which spreads those that come together over batches and costs `_PASSED` of a
    step besides (of two mean steps at most: long ones are rare, and other batches go on meanwhile).
    """
    shared = np.maximum(rate * step + own, 1.0)  # prompts of a step that a request is in, were there room for all
    # a geometric number of them: how much of those behind the first is within what fits
    within = 1.0 - (1.0 - 1.0 / shared) ** np.maximum(fits - 1.0, 0.0)
    late = np.where(mixed > 0, (shared - 1.0) * (1.0 - within) / 2.0, 0.0)  # who does not fit holds up nobody before
    gated = second / 2.0 / stages + step + added * (1.0 + (own - 1.0) / stages - late) + slower
    busy = np.clip(rate * service, 0.0, _FULL)
    serial = (rate * service**2 / (2.0 * (1.0 - busy)) + decode / 2.0) / stages + service
    alone = np.clip(rate * added, 0.0, _FULL)
    first = (rate * added**2 / (2.0 * (1.0 - alone)) + decode / 2.0) / stages + added
    together = np.where(mixed > 0, np.clip(fits - 1.0, 0.0, 1.0), within)
    turn = np.minimum(second, 2.0 * step)
    passed = np.where(stages > 1, _PASSED * (together * turn + (1.0 - together) * decode), 0.0)
    return np.asarray(together * gated + (1.0 - together) * np.where(mixed > 0, serial, first) + passed)


def lockstep(
    rate: FloatArray, decode: FloatArray, loaded: FloatArray, extra: FloatArray, service: FloatArray, fits: FloatArray
) -> FloatArray:
    """Seconds from arrival to first token where several groups step together, (n,): the rest of a step, then the prompt's own.

    A share `loaded` of steps carries some group's prompts and takes `extra` seconds more. Where not several of a group's
    prompts fit a step they wait for each other besides (M/D/1 at `rate` a second of one group).
    """
    longer = decode + extra
    mean = (1.0 - loaded) * decode + loaded * longer
    rest = ((1.0 - loaded) * decode**2 + loaded * longer**2) / (2.0 * mean)
    busy = np.clip(rate * service, 0.0, _FULL)
    alone = 1.0 - np.clip(fits - 1.0, 0.0, 1.0)
    return np.asarray(rest + alone * rate * service**2 / (2.0 * (1.0 - busy)) + service)


def admission(running: FloatArray, most: FloatArray, stay: FloatArray, varied: FloatArray) -> FloatArray:
    """Seconds until one of `most` places is free when `running` are taken on average and each is held `stay` seconds, (n,).

    Sakasegawa 1977 for G/G/c: ρ^(√(2(c+1)) − 1) / (c (1 − ρ)) · stay · (ca² + cv²) / 2, stays all alike, and requests that come
    `varied` times as unevenly as Poisson ones.
    """
    places = np.maximum(most, 1.0)
    load = np.clip(running / places, 0.0, 0.995)
    return np.asarray(load ** (np.sqrt(2.0 * (places + 1.0)) - 1.0) / (places * (1.0 - load)) * stay * varied / 2.0)


def front(rate: FloatArray, seconds: FloatArray) -> FloatArray:
    """Mean seconds that a request waits for others to be taken in, `rate` a second at `seconds` each (M/D/1), (n,)."""
    busy = np.clip(rate * seconds, 0.0, _FULL)
    return np.asarray(seconds * busy / (2.0 * (1.0 - busy)))


def returning(
    cohorts: FloatArray, decode: FloatArray, service: FloatArray, chunks: FloatArray, away: FloatArray, ahead: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Seconds in a closed loop of equal requests (from the end of the first cohort to the step that takes it in again, and from
    an answer's end to the next first token, mean over cohorts), (n,) each.

    Those that were prefilled together end together, a step (`chunks` steps where a prompt is cut) after the cohort before. What
    ended comes back `away` later and is taken in at the end of that step, or of the next where steps are planned `ahead`. By
    then m cohorts have ended; the j-th of them waits for the j − 1 before it, `service` seconds each. While prompts are taken
    in, a cohort ends with every one, so that all others wait for m. Where all end before the first comes back, it finds the
    engine idle.
    """
    steps = np.ceil(away / decode) + ahead
    all_ended = cohorts * chunks <= steps
    lag = np.where(all_ended, np.maximum(away, (cohorts - 1.0) * chunks * decode), steps * decode)
    ended = np.minimum(1.0 + np.floor(steps / chunks), cohorts)
    waits = ended * lag + ended * (ended + 1.0) / 2.0 * service - ended * (ended - 1.0) / 2.0 * chunks * decode
    return lag, np.asarray((waits + (cohorts - ended) * ended * service) / cohorts)


def overload(rate: FloatArray, highest: FloatArray) -> FloatArray:
    """Mean seconds waited over an hour in which more requests come than can be served, (n,)."""
    return np.asarray(HOUR / 2.0 * np.maximum(1.0 - highest / np.maximum(rate, 1e-300), 0.0))


def burst(together: FloatArray, shared: FloatArray, service: FloatArray, added: FloatArray, mixed: FloatArray) -> FloatArray:
    """Mean seconds to first token when `together` requests come at once, `shared` of them to a step, (n,).

    Steps of prompts follow one another: the mean over them is half of one more than their number.
    """
    steps = np.maximum(together / shared, 1.0)
    each = np.where(mixed > 0, service, added * shared)
    return np.asarray((steps + 1.0) / 2.0 * each)


_FULL = 0.999
_PASSED = 0.25
"""Of a step, what a request waits for a batch of a pipeline that has room: 0.21 to 0.26 in simulations of 2 to 8 stages."""
