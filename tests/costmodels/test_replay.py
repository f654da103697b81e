"""The replay client over real HTTP, against a small server on this machine that streams at a known pace."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from costmodels.calibration.replay import CannotReplay, compare, replay, summary, write_served
from dse.command_line import execute
from spaces.workload import Requests

FIRST, EACH = 0.05, 0.01
"""Seconds before the first token, and between tokens."""


class Stub(BaseHTTPRequestHandler):
    """Streams `max_tokens` pieces; refuses prompts of 13 words, and everything without the model's name."""

    protocol_version = "HTTP/1.1"
    at_once: ClassVar[list[int]] = [0, 0]
    lock: ClassVar[threading.Lock] = threading.Lock()

    def log_message(self, format: str, *args: Any) -> None:
        del format, args

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        words = asked["prompt"].count(" the")
        if self.path != "/v1/completions" or asked["model"] != "stub" or words == 13:
            self.send_error(400, "no")
            return
        with self.lock:
            self.at_once[0] += 1
            self.at_once[1] = max(self.at_once)
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        time.sleep(FIRST)
        for i in range(asked["max_tokens"]):
            time.sleep(EACH if i else 0)
            self._say({"choices": [{"text": " x", "index": 0}]})
        self._say({"choices": [], "usage": {"prompt_tokens": words + 1, "completion_tokens": asked["max_tokens"]}})
        with self.lock:
            self.at_once[0] -= 1
        self.wfile.write(b"data: [DONE]\n\n")

    def _say(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()


@pytest.fixture
def server() -> Iterator[str]:
    Stub.at_once[:] = [0, 0]
    http = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    thread.join()
    http.server_close()


def closed(n: int, concurrency: int, prompt: int = 20) -> Requests:
    return Requests(arrival=np.zeros(n), prompt=np.full(n, prompt), output=np.full(n, 4), concurrency=concurrency)


def test_times_are_those_of_the_stream(server: str, tmp_path: Path) -> None:
    rows = replay(server, closed(9, 3), model="stub")
    assert [row.number for row in rows] == list(range(9))
    assert not any(row.error for row in rows)
    assert all(row.prompt_tokens == 21 and row.tokens == 4 for row in rows)
    for row in rows:
        assert row.ttft >= FIRST
        assert row.latency == pytest.approx(row.ttft + 3 * row.tpot)
        assert row.latency >= FIRST + 3 * EACH
    assert Stub.at_once[1] <= 3
    write_served(rows, tmp_path / "served.csv")
    assert len((tmp_path / "served.csv").read_text().splitlines()) == 10
    with pytest.raises(FileExistsError):
        write_served(rows, tmp_path / "served.csv")


def test_an_open_loop_keeps_its_arrival_times(server: str) -> None:
    arrival = np.array([0.0, 0.1, 0.3])
    rows = replay(server + "/v1", Requests(arrival=arrival, prompt=np.full(3, 5), output=np.full(3, 1)), model="stub")
    assert all(row.sent >= at for row, at in zip(rows, arrival, strict=True))


def test_a_refused_request_is_a_row_and_the_rest_goes_on(server: str) -> None:
    requests = Requests(arrival=np.zeros(3), prompt=np.array([5, 13, 7]), output=np.full(3, 2))
    rows = replay(server, requests, model="stub")
    assert [bool(row.error) for row in rows] == [False, True, False]
    assert "400" in rows[1].error


def test_a_prediction_is_compared_with_the_means(server: str) -> None:
    rows = replay(server, closed(4, 2), model="stub")
    seen = summary(rows)
    found = {one.measure: one for one in compare(rows, {"ttft": 2 * seen["ttft"], "tpot": seen["tpot"]})}
    assert set(found) == {"ttft", "tpot"}
    assert found["ttft"].error == pytest.approx(100)
    assert found["tpot"].error == pytest.approx(0)


def test_servers_that_are_none_are_told(server: str) -> None:
    with pytest.raises(CannotReplay, match="no address"):
        replay("ftp://x", closed(1, 1), model="stub")
    with pytest.raises(CannotReplay, match="400"):
        replay(server, closed(2, 1), model="other")
    with pytest.raises(CannotReplay, match="no request was served"):
        replay("http://127.0.0.1:9", closed(1, 1), model="stub")


def test_the_command_writes_rows_and_says_the_means(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["calibrate", "--replay", server, "--concurrency", "2", "--isl", "5", "--osl", "2", "--out", str(tmp_path / "run")]
    assert execute([*asked, "--model", "stub"]) == 0
    assert "20 of 20 requests served" in capsys.readouterr().out
    assert len((tmp_path / "run" / "served.csv").read_text().splitlines()) == 21
    assert execute([*asked, "--model", "stub"]) == 1
    assert "is there already" in capsys.readouterr().err
    assert execute(asked) == 1
    assert "--model" in capsys.readouterr().err
