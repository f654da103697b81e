"""Traffic: the requests drawn have the means, the gaps and the sessions that were asked for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.traffic import Lengths, Traffic, length_names, published_lengths, requests

SHAPES = [
    Lengths(shape="fixed", mean=700),
    Lengths(shape="uniform", mean=700, spread=0.4),
    Lengths(shape="lognormal", mean=700, spread=0.8),
    Lengths(shape="exponential", mean=700, spread=1.0),
]


@pytest.mark.parametrize("lengths", SHAPES, ids=lambda lengths: lengths.shape)
def test_lengths_have_their_mean_and_spread(lengths: Lengths) -> None:
    drawn = lengths.draw(40_000, np.random.default_rng(0))
    assert drawn.min() >= 1
    assert drawn.mean() == pytest.approx(lengths.mean, rel=0.02)
    assert drawn.std() / drawn.mean() == pytest.approx(lengths.spread, rel=0.05, abs=1e-9)


@given(rate=st.floats(0.1, 100), burstiness=st.sampled_from([0.0, 0.5, 1.0, 2.0]), seed=st.integers(0, 5))
def test_arrivals_have_their_rate_and_only_scale_with_it(rate: float, burstiness: float, seed: int) -> None:
    traffic = Traffic(lengths=(SHAPES[0], SHAPES[2]), rate=rate, burstiness=burstiness)
    drawn = requests(traffic, 4000, seed)
    gaps = np.diff(drawn.arrival)
    assert gaps.mean() == pytest.approx(1 / rate, rel=0.15)
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness, rel=0.2, abs=1e-6)
    twice = requests(traffic, 4000, seed, rate * 2)
    assert np.allclose(twice.arrival * 2, drawn.arrival)
    assert np.array_equal(twice.output, drawn.output)


def test_a_session_brings_the_conversation_so_far() -> None:
    traffic = Traffic(lengths=(SHAPES[0], Lengths(shape="fixed", mean=100)), rate=1.0, turns=3, think=5.0)
    drawn = requests(traffic, 30, 0)
    assert drawn.prompt.reshape(-1, 3).tolist() == [[700, 1500, 2300]] * 10
    assert traffic.means[0] == pytest.approx(drawn.prompt.mean())
    assert 0 < traffic.hit < 1
    assert drawn.shared is not None
    assert drawn.shared.reshape(-1, 3).tolist() == [[0, 799, 1599]] * 10  # the last token of an answer was never computed on
    assert traffic.hit == pytest.approx(drawn.shared.sum() / drawn.prompt.sum(), rel=0.02)


def test_published_lengths_are_positive_and_say_their_source() -> None:
    for name in length_names():
        pairs = published_lengths(name)
        assert pairs.prompt.min() >= 1
        assert pairs.output.min() >= 1
        assert len(pairs.source) > 20
