"""Arrivals, lengths, sessions and traces: their moments, and what is said of files that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spaces.arrivals import gamma_arrivals, poisson_arrivals
from spaces.lengths import Empirical, Fixed, LogNormal, Uniform, published_lengths
from spaces.sessions import Conversation, sessions, shared_prefix
from spaces.traces import BadTrace, read_trace
from spaces.workload import BadRequests, Requests


def generator() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 3.0])
def test_gaps_have_the_mean_and_variation_asked_for(burstiness: float) -> None:
    gaps = np.diff(gamma_arrivals(generator(), 200_000, 4.0, burstiness=burstiness))
    assert np.mean(gaps) == pytest.approx(0.25, rel=0.03)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(burstiness, rel=0.03)
    assert np.all(gaps >= 0)


def test_even_gaps_and_impossible_rates() -> None:
    assert np.allclose(np.diff(gamma_arrivals(generator(), 10, 4.0, burstiness=0)), 0.25)
    with pytest.raises(ValueError, match="positive"):
        poisson_arrivals(generator(), 3, 0.0)


def test_a_lognormal_has_its_median_and_mean() -> None:
    drawn = LogNormal.of_mean(median=129, mean=211).draw(generator(), 400_000)
    assert np.median(drawn) == pytest.approx(129, rel=0.02)
    assert np.mean(drawn) == pytest.approx(211, rel=0.02)
    assert np.min(drawn) >= 1
    assert np.max(LogNormal(median=100, sigma=2, most=500).draw(generator(), 1000)) == 500


def test_lengths_stay_within_what_was_asked() -> None:
    assert set(Fixed(tokens=7).draw(generator(), 5).tolist()) == {7}
    assert set(Uniform(low=2, high=4).draw(generator(), 500).tolist()) == {2, 3, 4}
    assert set(Empirical(seen=(5, 9)).draw(generator(), 100).tolist()) == {5, 9}
    with pytest.raises(ValueError, match="at least 1"):
        Fixed(tokens=0)
    with pytest.raises(ValueError, match="swap"):
        Uniform(low=5, high=4)


def test_published_lengths_are_found_by_name() -> None:
    prompt, output = published_lengths("azure-conversation")
    assert prompt.median > output.median
    with pytest.raises(LookupError, match="azure-conversation"):
        published_lengths("azure-conversations")


def test_every_turn_holds_the_conversation_so_far() -> None:
    talk = Conversation(turns=Uniform(low=1, high=5), message=Uniform(low=5, high=50), answer=Fixed(tokens=9), system=100)
    requests = sessions(generator(), np.arange(20.0), talk)
    assert requests.follows is not None
    assert requests.shared is not None
    later = np.flatnonzero(requests.follows >= 0)
    before = requests.follows[later]
    assert np.all(requests.prompt[later] > requests.prompt[before] + requests.output[before])
    assert np.all(requests.shared[later] == requests.prompt[before] + requests.output[before] - 1)
    first = np.flatnonzero(requests.follows < 0)
    assert len(first) == 20
    assert np.all(requests.prompt[first] > 100)


def test_a_hit_rate_is_the_share_of_prompt_tokens_in_common() -> None:
    plain = Requests(arrival=np.zeros(50), prompt=np.full(50, 1000), output=np.full(50, 10))
    shared = shared_prefix(generator(), plain, 0.3).shared
    assert shared is not None
    assert np.sum(shared) / np.sum(plain.prompt) == pytest.approx(0.3, abs=0.001)


def test_a_rate_stretches_arrivals_and_nothing_else() -> None:
    plain = Requests(arrival=np.cumsum(np.ones(11)), prompt=np.full(11, 5), output=np.full(11, 5))
    faster = plain.at_rate(4.0)
    assert np.allclose(np.diff(faster.arrival), 0.25)
    assert np.array_equal(faster.prompt, plain.prompt)
    with pytest.raises(BadRequests, match="no rate"):
        Requests(arrival=np.zeros(3), prompt=np.full(3, 5), output=np.full(3, 5)).at_rate(1.0)


AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:16:51.2224670,9000,55
"""


def test_azures_columns_are_read_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "conv.csv"
    file.write_text(AZURE)
    trace = read_trace(file, context=8192)
    assert trace.longer_than_context == 1
    assert trace.requests.arrival.tolist() == pytest.approx([0.0, 4.314579], abs=1e-6)
    assert trace.requests.prompt.tolist() == [374, 396]
    assert trace.requests.output.tolist() == [44, 109]


def test_lines_of_json_are_read(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    lines = ['{"arrival": 1.5, "input_tokens": 10, "output_tokens": 2}', ""]
    lines.append('{"arrival": 2, "input_tokens": 4, "output_tokens": 3}')
    file.write_text("\n".join(lines))
    assert read_trace(file).requests.arrival.tolist() == [0.0, 0.5]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arrival,prompt\n0,5\n", "no column output"),
        ("arrival,prompt,output\n1,5,5\n0,5,5\n", "trace.csv:3: arrives before"),
        ("arrival,prompt,output\n-1,5,5\n", "not negative"),
        ("arrival,prompt,output\n0,5,0\n", "at least 1"),
        ("arrival,prompt,output\n0,five,1\n", "not a number of tokens"),
        ("arrival,prompt,output\nsoon,5,1\n", "trace.csv:2"),
        ("arrival,prompt,output\n", "holds no requests"),
        ("arrival,prompt,output\n0,500,100\n", "longer than the context"),
    ],
)
def test_a_bad_trace_is_told_where_and_why(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "trace.csv"
    file.write_text(text)
    with pytest.raises(BadTrace, match=said):
        read_trace(file, context=512)


def test_empty_requests_can_be_left_out_and_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    file.write_text("arrival,prompt,output\n0,5,0\n1,5,5\n")
    assert read_trace(file, drop_empty=True).empty == 1
