"""Requests and traces: how a rate stretches them, and what is said of files that cannot be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from spaces.traces import BadTrace, read_trace
from spaces.workload import BadRequests, Requests


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
