"""`calibrate --replay`: send requests to a running server, write what each took, and set it beside the engine's prediction."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from costmodels.calibration.replay import Comparison, as_counted, compare, replay, summary, write_compared, write_served
from dse.measures import significant
from dse.tables import table
from spaces.traces import read_trace
from spaces.workload import Requests

PROMPT, OUTPUT, SLOTS, EACH = 1024, 128, 8, 10
"""What is sent unless told otherwise: tokens a prompt and an answer, requests at once, requests a slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """Where the rows are, how many requests were served of how many, and what was `seen`, seconds (tokens/s for throughput).

    `compared` sets it beside the prediction for the plan `against`, where one was named.
    """

    path: Path
    served: int
    sent: int
    seen: dict[str, float]
    left_out: int
    against: str = ""
    compared: tuple[Comparison, ...] = ()

    def __str__(self) -> str:
        long = f"; {self.left_out} of the trace are longer than the context" if self.left_out else ""
        told = [f"{self.served} of {self.sent} requests served{long}"]
        if not self.against:
            rows = [[_named(name), _shown(name, value), _unit(name)] for name, value in self.seen.items()]
            return "\n".join([*told, table(["", "seen", ""], rows, left=frozenset({0, 2})), str(self.path)])
        rows = [
            [
                *(_named(one.measure), _shown(one.measure, one.seen)),
                f"{_shown(one.measure, one.predicted)} ({_shown(one.measure, one.low)}–{_shown(one.measure, one.high)})",
                *(_unit(one.measure), f"{one.error:+.1f}"),
            ]
            for one in self.compared
        ]
        told.append(f"predicted for {self.against}")
        shown = table(["", "seen", "predicted", "", "error, %"], rows, left=frozenset({0, 3}))
        return "\n".join([*told, shown, str(self.path), str(self.path.parent / COMPARED)])


def _named(name: str) -> str:
    """`ttft p99`; a mean says so."""
    return f"{name.replace('_', ' ')}{'' if '_' in name or name == 'throughput' else ' mean'}"


def _unit(name: str) -> str:
    return "tokens/s" if name == "throughput" else "ms"


def _shown(name: str, value: float) -> str:
    return significant(value if name == "throughput" else 1e3 * value, 4)


COMPARED = "compared.csv"
"""Beside `served.csv`: seen and predicted, a row a measure."""


def replay_server(
    url: str,
    out: str | os.PathLike[str],
    *,
    model: str,
    trace: str | os.PathLike[str] | None = None,
    concurrency: int = SLOTS,
    prompt: int = PROMPT,
    output: int = OUTPUT,
    context: int = 0,
    against: str | None = None,
    plan: str | None = None,
) -> Replayed:
    """Replay a trace, or ten requests a slot in a closed loop, and write `served.csv` into the folder `out`.

    `against` names what to set it beside: a serving run or experiment (its first front member, or `plan`), or cells of a row
    of `dse predict`; `compared.csv` is written then. The key is read from OPENAI_API_KEY where the server wants one. Raises
    CannotReplay, BadTrace, FileExistsError, ValueError.
    """
    folder = Path(out)
    path = folder / "served.csv"
    for written in (path, folder / COMPARED):
        if written.exists():
            raise FileExistsError(17, "is there already: give another folder with --out", str(written))
    beside = None
    if against is not None:  # what cannot be read is told before a server is kept busy
        from dse.replay_prediction import read_against

        beside = read_against(against, plan, model=model)
    elif plan is not None:
        raise ValueError("--plan names a plan of what --against names: give that too")
    left_out = 0
    if trace is not None:
        read = read_trace(trace, context=context)
        requests, left_out = read.requests, read.longer_than_context
    else:
        if concurrency < 1:
            raise ValueError(f"--concurrency is {concurrency}: at least 1 request is sent at once")
        n = EACH * concurrency
        requests = Requests(
            arrival=np.zeros(n), prompt=np.full(n, prompt), output=np.full(n, output), concurrency=concurrency
        )
    key, salt = os.environ.get("OPENAI_API_KEY", ""), f"{secrets.token_hex(2)} "
    rows = replay(url, requests, model=model, key=key, salt=salt)
    folder.mkdir(parents=True, exist_ok=True)
    write_served(rows, path)
    served = sum(not row.error for row in rows)
    found = Replayed(path=path, served=served, sent=len(rows), seen=summary(rows), left_out=left_out)
    if beside is None:
        return found
    from dse.replay_prediction import expected

    told = expected(beside, as_counted(rows, requests))
    compared = compare(rows, told.figures)
    write_compared(compared, folder / COMPARED)
    return replace(found, against=told.text, compared=compared)
