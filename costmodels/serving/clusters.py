"""Prompts come in clusters: steps that carry some are longer, so that more come in them.

With A prompts and B running requests a step takes T = c + α·A + β·B; λT prompts come meanwhile and go into the next (or, where
steps are planned ahead, the one after), and each then runs for L steps. So A is a Hawkes process (1971) in steps, whose kernel
is a = λα once and λβ in each of L steps: its autocovariance is P·a^j of clusters that die out and a constant K while a request
runs, and what a request finds beside it and behind it follows. α is what T changes by with the prompts that there are: its
covariance with A over the variance of A, for the first of them often hides behind weights that are read anyhow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from spaces.columns import FloatArray

MOST_BUSY = 0.95
"""Share of the time that prompts are taken to need where their spread is only guessed."""
COUNTS = 2.0 ** np.arange(0.0, 10.01, 0.5)
"""Prompts of a step that `in_turns` is given the seconds of."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clusters:
    """Covariances with a step's prompts A in n batches, over their mean, (n,); 1, 0 and 1 where nothing ties prompts together.

    `own`: of A itself; `behind`: of all prompts in the steps that a request runs (and so of B); `beside`: of B in those steps,
    a step.
    """

    own: FloatArray
    behind: FloatArray
    beside: FloatArray


def clusters(busy: FloatArray, fed: FloatArray, lives: FloatArray, delay: FloatArray, gain: FloatArray) -> Clusters:
    """Of prompts that bring `busy` = λα others `delay` steps later, and `fed` = λβL in the `lives` = L steps they run, (n,).

    A prompt that comes because others run brings some at once as well, and is `gain` with them: 1 / (1 − busy), if not more.
    """
    a = np.clip(busy, 0.0, _FULL)
    own = 1.0 / (1.0 - a**2)
    after = own * a / (1.0 - a) * (1.0 - a ** (lives / delay))
    beside = np.maximum(1.0 / (1.0 - a) ** 2 - 2.0 * delay * after / (1.0 - a) / lives, 1.0)
    slow = fed * gain * beside / np.maximum(1.0 - fed * gain, _LEFT)  # L · K
    return Clusters(own=own + slow / lives, behind=after + slow, beside=beside + slow)


_FULL = 0.999
_LEFT = 1e-3


def spread(mean: FloatArray, variance: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """(lower count, higher count, their chances) that stand for a negative binomial distribution; none has what is left.

    None is as likely as it is there. The two counts have the mean and variance of the counts from one on, and the skewness of a
    negative binomial distribution that begins there. Poisson where `variance` is `mean` or less.
    """
    ratio = np.maximum(variance / mean, 1.0 + 1e-6)
    some = -np.expm1(-mean * np.log(ratio) / (ratio - 1.0))
    above = np.maximum(mean / some - 1.0, 1e-9)
    left = np.maximum((ratio + mean) * mean / some - (above + 1.0) ** 2, 1e-9)
    skew = np.maximum(left / above - 0.5, 0.5)
    root = np.sqrt(left + skew**2)
    lower, higher = np.maximum(above + skew - root, 0.0), above + skew + root
    chance = np.clip((above - lower) / (higher - lower), 0.0, 1.0)
    return lower + 1.0, higher + 1.0, some * (1.0 - chance), some * chance


def varied_decode(
    decode: Callable[[FloatArray], FloatArray], running: FloatArray, seen: FloatArray, busy: FloatArray
) -> FloatArray:
    """Mean seconds of a step without prompts, (k, P), where `running` vary as clusters make them; `seen` is that of one more.

    A request sees others beside it, as many as there are on average without it; in a mean step, given that anybody runs, there
    are so many less.
    """
    few, many, one_few, one_many = spread(running, running / (1.0 - busy) ** 2)
    lone = decode(np.ones_like(running[:, :1]))
    low, high = decode(few + 1.0), decode(many + 1.0)
    rises = np.gradient(seen, axis=1) / np.gradient(running, axis=1)
    less = 1.0 + running - running / -np.expm1(-running)
    return np.asarray(lone + one_few * (low - lone) + one_many * (high - lone) - less * np.maximum(rises, 0.0))


def varied_prompts(
    longer: Callable[[FloatArray], FloatArray], joins: FloatArray, busy: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """(mean seconds that prompts add to a step, their covariance with the prompts over the variance of these), (k, P) each.

    `joins` is the mean of prompts, of which so many make a step `longer`; `busy` about what they take of the time.
    """
    few, many, one_few, one_many = spread(joins, joins / (1.0 - busy**2))
    low, high = longer(few), longer(many)
    few_apart, many_apart = one_few * (few - joins), one_many * (many - joins)
    return one_few * low + one_many * high, (few_apart * low + many_apart * high) / (few_apart * few + many_apart * many)


def in_turns(decode: FloatArray, each: FloatArray, joins: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """(share of steps that decode, mean step, its covariance with prompts over their variance), (k, P), where prompts go first.

    Prompts have steps of their own, of all that came: COUNTS of them take `each` (k, C) seconds. A step decodes where nothing
    came, and `joins` come from one such step to the next, so that everything hangs on the share of them, found by iteration.
    """
    none, a = 1.0 / (1.0 + joins) ** 0.8, np.zeros_like(joins)
    for _ in range(_ROUNDS):
        mean = np.maximum(joins * none, 1e-12)
        few, many, one_few, one_many = spread(mean, mean / (1.0 - a**2))
        low, high = _along(each, few), _along(each, many)
        idle = np.maximum(1.0 - one_few - one_many, 1e-9)
        step = idle * decode + one_few * low + one_many * high
        few_apart, many_apart = one_few * (few - mean), one_many * (many - mean)
        rises = few_apart * low + many_apart * high - idle * mean * decode
        slope = np.maximum(rises / (few_apart * few + many_apart * many), 0.0)
        a = (a + np.minimum(mean / step * slope, MOST_BUSY)) / 2.0
        none = none * np.exp(np.log(idle / none) / (1.0 - np.log(idle)))  # Newton: none is the less likely the more come
    return mean / joins, step, slope


_ROUNDS = 8


def _along(each: FloatArray, counts: FloatArray) -> FloatArray:
    """Seconds (k, P) of so many prompts, from those of COUNTS."""
    place = np.clip(np.floor(2.0 * np.log2(counts)), 0, len(COUNTS) - 2).astype(np.int64)
    share = (counts - COUNTS[place]) / (COUNTS[place + 1] - COUNTS[place])
    row = np.arange(len(each))[:, None]
    return np.asarray(each[row, place] * (1.0 - share) + each[row, place + 1] * share)
