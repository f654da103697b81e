"""Clusters of prompts: against chains of steps that are played through."""

from __future__ import annotations

import numpy as np
import pytest

from costmodels.serving.clusters import COUNTS, clusters, in_turns, spread, varied_decode, varied_prompts
from spaces.columns import FloatArray


def one(value: float) -> FloatArray:
    return np.array([[value]])


def test_nothing_ties_prompts_together_that_take_no_time() -> None:
    free = clusters(one(0.0), one(0.0), one(50.0), one(1.0), one(1.0))
    assert (free.own, free.behind, free.beside) == (one(1.0), one(0.0), one(1.0))


@pytest.mark.parametrize(("rate", "added", "slower", "lives", "delay"), [(1.0, 0.6, 0.0, 40, 1), (1.0, 0.4, 0.008, 40, 2)])
def test_a_linear_step_s_clusters_are_those_of_a_chain(
    rate: float, added: float, slower: float, lives: int, delay: int
) -> None:
    """T = c + αA + βB, prompts Poisson of mean λT: what is beside a prompt and behind it, by their covariances."""
    random, chains, n = np.random.default_rng(5), 2000, 600
    prompts, running = np.zeros((n, chains)), np.zeros((n, chains))
    seconds = np.full((n, chains), 0.2)
    for i in range(delay, n):
        running[i] = running[i - 1] + prompts[i - 1] - (prompts[i - lives - 1] if i > lives else 0)
        prompts[i] = random.poisson(rate * seconds[i - delay])
        seconds[i] = 0.2 + added * prompts[i] + slower * running[i]
    prompts, running = prompts[n // 2 :].ravel(), running[n // 2 :].ravel()
    mean = float(prompts.mean())
    expected = clusters(one(rate * added), one(rate * slower * lives), one(lives), one(delay), one(1.0 / (1.0 - rate * added)))
    assert float(expected.own[0, 0]) == pytest.approx(prompts.var() / mean, rel=0.05)
    # B of the step it is in is of the prompts before it
    assert float(expected.behind[0, 0]) == pytest.approx(np.cov(prompts, running)[0, 1] / mean, rel=0.1)
    assert float(expected.beside[0, 0]) == pytest.approx(running.var() / mean / lives, rel=0.1)


@pytest.mark.parametrize(("mean", "ratio"), [(0.05, 1.0), (0.6, 1.7), (3.0, 1.2), (20.0, 4.0)])
def test_two_counts_have_the_moments_of_all(mean: float, ratio: float) -> None:
    few, many, one_few, one_many = (float(a[0, 0]) for a in spread(one(mean), one(ratio * mean)))
    assert 1.0 <= few < many
    assert one_few * few + one_many * many == pytest.approx(mean, rel=1e-6)
    assert one_few * few**2 + one_many * many**2 - mean**2 == pytest.approx(ratio * mean, rel=0.02)


def test_a_first_prompt_that_hides_makes_the_next_dearer_than_the_mean() -> None:
    """α is the covariance with the prompts over their variance, between what the first and what a later one takes."""
    longer, slope = varied_prompts(lambda prompts: 0.5 + (prompts - 1.0), one(0.6), one(0.6))
    first = float(longer[0, 0]) / 0.6  # seconds that a prompt takes on average
    assert 0.5 < first < float(slope[0, 0]) < 1.0
    assert float(varied_prompts(lambda prompts: 2.0 * prompts, one(0.6), one(0.6))[1][0, 0]) == pytest.approx(2.0)


def test_steps_of_requests_that_vary_take_less_where_more_of_them_add_less() -> None:
    running = np.array([[2.0, 4.0, 8.0, 16.0]])
    bent = varied_decode(np.sqrt, running, np.sqrt(running + 1.0), np.full((1, 4), 0.5))
    straight = varied_decode(lambda b: b, running, running + 1.0, np.full((1, 4), 0.5))
    assert np.all(bent < np.sqrt(straight))
    assert straight == pytest.approx(running / -np.expm1(-running), rel=0.02)


@pytest.mark.parametrize("joins", [0.3, 2.0, 8.0])
def test_prompts_that_go_first_take_the_turns_that_a_chain_shows(joins: float) -> None:
    """Steps of 0.3 + 0.2 A seconds with prompts and 0.5 without: `joins` come from one without to the next."""
    each = 0.3 + 0.2 * COUNTS[None, :]
    idle, step, _ = (float(a[0, 0]) for a in in_turns(one(0.5), each, one(joins)))
    rate = joins * idle / step  # a second
    random, n = np.random.default_rng(3), 200
    prompts, seconds = np.zeros(2000), np.zeros((n, 2000))
    came = np.zeros((n, 2000))
    for i in range(n):
        came[i], seconds[i] = prompts, np.where(prompts > 0, 0.3 + 0.2 * prompts, 0.5)
        prompts = random.poisson(rate * seconds[i])
    assert np.mean(came[n // 2 :] == 0) == pytest.approx(idle, rel=0.06)
    assert np.mean(seconds[n // 2 :]) == pytest.approx(step, rel=0.06)


def test_what_is_carried_in_turns_rises_to_what_prompts_leave_of_the_time() -> None:
    """Requests a second grow with those that join, and prompts never take more than all of it."""
    joins = 2.0 ** np.arange(-8.0, 5.01, 0.5)[None, :]
    idle, step, _ = in_turns(np.full(joins.shape, 0.02), 0.01 + 0.02 * COUNTS[None, :], joins)
    rate = joins * idle / step
    assert np.all(np.diff(rate) > 0)
    assert rate[0, -1] < 1.0 / 0.02
