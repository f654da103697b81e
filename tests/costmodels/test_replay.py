"""The replay client over real HTTP, against a small server on this machine that streams at a known pace."""

from __future__ import annotations

import csv
import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from costmodels.calibration import replay as client
from costmodels.calibration.replay import CannotReplay, compare, replay, summary, write_served
from dse.command_line import execute
from dse.prediction import predict_rows
from dse.replay_prediction import expected, read_against
from dse.replaying import replay_server
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
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
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
    assert all(row.prompt_tokens == 20 and row.tokens == 4 for row in rows)
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
    requests = Requests(arrival=np.zeros(3), prompt=np.array([5, 14, 7]), output=np.full(3, 2))
    rows = replay(server, requests, model="stub")
    assert [bool(row.error) for row in rows] == [False, True, False]
    assert "400" in rows[1].error


def test_a_prediction_is_compared_with_the_means(server: str) -> None:
    rows = replay(server, closed(4, 2), model="stub")
    seen = summary(rows)
    assert seen["ttft_p50"] <= seen["ttft_p90"] <= seen["ttft_p99"] == max(row.ttft for row in rows)
    one, two = ((factor * seen[name], 0.0, 1.0) for name, factor in (("ttft_p90", 2), ("tpot", 1)))
    found = {one.measure: one for one in compare(rows, {"ttft_p90": one, "tpot": two, "unknown": two})}
    assert set(found) == {"ttft_p90", "tpot"}
    assert found["ttft_p90"].error == pytest.approx(100)
    assert found["tpot"].error == pytest.approx(0)


def test_no_two_prompts_begin_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []

    def stream(_connection: object, _path: str, ask: dict[str, Any], *_: object) -> None:
        sent.append(ask["prompt"])
        raise OSError("not today")

    monkeypatch.setattr(client, "_stream", stream)
    with pytest.raises(CannotReplay, match="not today"):
        replay("http://127.0.0.1:9", closed(12, 3), model="stub", salt="a")
    assert len({prompt.split()[0] for prompt in sent}) == 12


def test_a_replay_is_set_beside_the_prediction_for_the_very_requests(
    server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "FIRST", 0.005)
    asked = ["calibrate", "--replay", server, "--model", "stub", "--concurrency", "1", "--isl", "9", "--osl", "3"]
    cells = ["--against", "model=llama-3.1-8b,gpu=H100,tp=1,precision=bf16", "--out", str(tmp_path / "run")]
    assert execute([*asked, *cells]) == 0
    printed = capsys.readouterr().out
    assert "predicted for llama-3.1-8b; model=llama-3.1-8b,gpu=H100" in printed
    rows = {row["measure"]: row for row in csv.DictReader((tmp_path / "run" / "compared.csv").read_text().splitlines())}
    assert {"ttft", "ttft_p50", "ttft_p90", "ttft_p99", "tpot", "tpot_p99", "latency", "throughput"} <= set(rows)
    row = {"model": "llama-3.1-8b", "gpu": "H100", "tp": "1", "precision": "bf16", "isl": "9", "osl": "3", "concurrency": "1"}
    row |= {"length_ratio": "1"}  # the replay asks for exactly so many tokens
    alone = predict_rows([row], "serving")[0]
    for measure, cell in (("ttft", "ttft_s"), ("tpot", "tpot_s"), ("throughput", "tokens_per_s_per_gpu")):
        found = rows[measure]
        assert float(found["predicted"]) == pytest.approx(float(alone[cell]), rel=1e-6)
        assert float(found["error_percent"]) == pytest.approx(
            100 * (float(found["predicted"]) / float(found["seen"]) - 1), abs=0.01
        )
        assert float(found["low"]) < float(found["predicted"]) < float(found["high"])


def test_what_a_server_cannot_be_set_beside_is_told_before_it_is_asked(tmp_path: Path) -> None:
    asked = {"model": "stub", "concurrency": 1}
    for against, told in (("gpu=H10,model=llama-3.1-8b", "nearest"), ("gpu=H100", "stub"), ("model=gpt2,tp", "cells like")):
        with pytest.raises(ValueError, match=told):
            replay_server("http://127.0.0.1:9", tmp_path, against=against, **asked)
    with pytest.raises(ValueError, match="--against"):
        replay_server("http://127.0.0.1:9", tmp_path, plan="tensor=1", **asked)


def test_a_plan_of_an_experiment_serves_what_was_sent(tmp_path: Path) -> None:
    file = tmp_path / "chat.yaml"
    file.write_text(
        "kind: serving\nmodel: llama-3.1-8b\nhardware: {device: H100, devices: 2}\nstack: vllm\n"
        "workload: {input_tokens: 99, output_tokens: 99, request_rate: 1 /s}\n"
    )
    one, two = (expected(read_against(file, plan), closed(20, 4, prompt=200)) for plan in ("tensor=1,data=2", "tensor=2"))
    assert one.text != two.text
    assert two.figures["tpot"][0] < one.figures["tpot"][0]
    with pytest.raises(ValueError, match="does not fit"):
        expected(read_against("model=llama-3.1-70b,gpu=H100"), closed(1, 1))


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
