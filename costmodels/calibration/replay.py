"""Replay requests against an OpenAI-compatible server and time every token: streaming completions over plain HTTP.

Standard library alone. Prompts are made of one repeated word behind an opening of their own, so that no server finds one in its
prefix cache; their token counts are what the server's usage field says, and rows keep both what was asked and what was counted.
"""

from __future__ import annotations

import csv
import http.client
import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from spaces.workload import Requests

WORD = " the"
"""Repeated to fill a prompt: one token in common vocabularies."""


class CannotReplay(ValueError):
    """The server does not answer as an OpenAI-compatible one would; the message says what it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One request as the client saw it: seconds from the start of the replay, NaN where it did not happen.

    `tokens` is the server's count of the answer, or that of the pieces streamed where it sends none; `error` is empty when all
    went well.
    """

    number: int
    asked_prompt: int
    asked_output: int
    prompt_tokens: int
    tokens: int
    sent: float
    ttft: float
    tpot: float
    latency: float
    error: str = ""


def replay(
    url: str,
    requests: Requests,
    *,
    model: str,
    key: str = "",
    salt: str = "",
    timeout: float = 600.0,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Served, ...]:
    """Send `requests` to `url` (its /v1/completions) at their arrival times, or so many at once as their concurrency says.

    `salt` begins every prompt, for a replay whose prompts an earlier one has not left in the server's cache. One thread a
    request in flight. A request that fails is a row with its error, and the rest goes on. Raises CannotReplay
    for an address that is none, or when every request fails.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise CannotReplay(f"{url!r} is no address of a server: give it as http://host:port")
    if requests.follows is not None:
        raise CannotReplay("sessions cannot be replayed: their prompts are not kept; give single requests")
    base = parts.path.rstrip("/").removesuffix("/completions").removesuffix("/v1")
    start = clock()
    rows: list[Served | None] = [None] * len(requests)

    def send(number: int) -> None:
        ask = {
            "model": model,
            "prompt": f"{salt}{number}" + WORD * (int(requests.prompt[number]) - 1),
            "max_tokens": int(requests.output[number]),
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(str(parts.hostname), parts.port, timeout=timeout)
        sent = clock()
        try:
            rows[number] = _stream(connection, f"{base}/v1/completions", ask, key, number, requests, sent - start, clock)
        except (OSError, http.client.HTTPException, ValueError) as error:
            rows[number] = _failed(number, requests, sent - start, str(error) or type(error).__name__)
        finally:
            connection.close()

    if requests.concurrency:
        _closed(send, len(requests), requests.concurrency)
    else:
        _open(send, [float(arrival) for arrival in requests.arrival], start, clock)
    served = tuple(row for row in rows if row is not None)
    if served and all(row.error for row in served):
        raise CannotReplay(f"{url}: no request was served; the first said: {served[0].error}")
    return served


def _closed(send: Callable[[int], None], n: int, concurrency: int) -> None:
    """So many threads, each sending the next request when its last one has ended."""
    numbers = iter(range(n))
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            send(number)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(concurrency, n))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _open(send: Callable[[int], None], arrivals: Sequence[float], start: float, clock: Callable[[], float]) -> None:
    """One thread a request, started at its time."""
    threads: list[threading.Thread] = []
    for number, arrival in enumerate(arrivals):
        time.sleep(max(0.0, start + arrival - clock()))
        threads.append(threading.Thread(target=send, args=(number,), daemon=True))
        threads[-1].start()
    for thread in threads:
        thread.join()


def _stream(
    connection: http.client.HTTPConnection,
    path: str,
    ask: dict[str, object],
    key: str,
    number: int,
    requests: Requests,
    sent: float,
    clock: Callable[[], float],
) -> Served:
    headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    began = clock()
    connection.request("POST", path, json.dumps(ask), headers)
    answer = connection.getresponse()
    if answer.status != 200:
        told = answer.read(300).decode("utf-8", "replace").strip()
        raise CannotReplay(f"{answer.status} {answer.reason}: {told}")
    first = last = math.nan
    pieces = 0
    usage: dict[str, int] = {}
    for line in answer:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            break
        event = json.loads(data)
        if event.get("choices"):
            last = clock()
            first = last if pieces == 0 else first
            pieces += 1
        usage = event.get("usage") or usage
    if not pieces:
        raise CannotReplay("the server streamed no token")
    tokens = int(usage.get("completion_tokens", pieces))
    return Served(
        number=number,
        asked_prompt=int(requests.prompt[number]),
        asked_output=int(requests.output[number]),
        prompt_tokens=int(usage.get("prompt_tokens", requests.prompt[number])),
        tokens=tokens,
        sent=sent,
        ttft=first - began,
        tpot=(last - first) / (tokens - 1) if tokens > 1 else math.nan,
        latency=last - began,
    )


def _failed(number: int, requests: Requests, sent: float, error: str) -> Served:
    return Served(
        number=number,
        asked_prompt=int(requests.prompt[number]),
        asked_output=int(requests.output[number]),
        prompt_tokens=0,
        tokens=0,
        sent=sent,
        ttft=math.nan,
        tpot=math.nan,
        latency=math.nan,
        error=error,
    )


def write_served(rows: Sequence[Served], path: Path) -> None:
    """One row a request; an existing file is not overwritten. Raises FileExistsError, OSError."""
    names = [field.name for field in fields(Served)]
    with path.open("x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([getattr(row, name) for name in names] for row in rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A measure seen and predicted with its interval, seconds (tokens/s for `throughput`)."""

    measure: str
    seen: float
    predicted: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Percent by which the prediction is too high."""
        return 100.0 * (self.predicted / self.seen - 1.0)


def compare(rows: Sequence[Served], predicted: Mapping[str, tuple[float, float, float]]) -> tuple[Comparison, ...]:
    """What was seen (`summary`) beside what was predicted with its interval, for the measures that both have."""
    seen = summary(rows)
    return tuple(
        Comparison(measure=name, seen=seen[name], predicted=value, low=low, high=high)
        for name, (value, low, high) in predicted.items()
        if name in seen and math.isfinite(seen[name])
    )


def write_compared(compared: Sequence[Comparison], path: Path) -> None:
    """One row a measure, its error last; an existing file is not overwritten. Raises FileExistsError, OSError."""
    names = [field.name for field in fields(Comparison)]
    with path.open("x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*names, "error_percent"])
        writer.writerows([*(getattr(one, name) for name in names), f"{one.error:.2f}"] for one in compared)


MEASURES = ("ttft", "tpot", "latency")
"""Times of a request."""
PERCENTILES = (50, 90, 99)


def summary(rows: Sequence[Served]) -> dict[str, float]:
    """Means and percentiles (`ttft`, `ttft_p50`, …) over the requests that were served, seconds, and `throughput`: output
    tokens a second from the first sent to the last ended."""
    good = [row for row in rows if not row.error]
    if not good:
        return {}
    found: dict[str, float] = {}
    for name in MEASURES:
        times = sorted(time for row in good if math.isfinite(time := getattr(row, name)))
        found[name] = sum(times) / len(times) if times else math.nan
        for q in PERCENTILES:  # the smallest that so many percent do not exceed
            found[f"{name}_p{q}"] = times[math.ceil(q / 100 * len(times)) - 1] if times else math.nan
    span = max(row.sent + row.latency for row in good) - min(row.sent for row in good)
    return found | {"throughput": sum(row.tokens for row in good) / span if span > 0 else math.inf}


def as_counted(rows: Sequence[Served], requests: Requests) -> Requests:
    """The requests that were served, as long as the server counted them, at the times they were asked for."""
    good = [row for row in rows if not row.error]
    return Requests(
        arrival=requests.arrival[[row.number for row in good]],
        prompt=np.array([max(row.prompt_tokens, 1) for row in good], np.int64),
        output=np.array([max(row.tokens, 1) for row in good], np.int64),
        concurrency=requests.concurrency,
    )
