"""`calibrate --replay`: send requests to a running server, write what each took, and say the means."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from costmodels.calibration.replay import replay, summary, write_served
from dse.measures import significant
from dse.tables import table
from spaces.traces import read_trace
from spaces.workload import Requests

PROMPT, OUTPUT, SLOTS, EACH = 1024, 128, 8, 10
"""What is sent unless told otherwise: tokens a prompt and an answer, requests at once, requests a slot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """Where the rows are, how many requests were served of how many, and the means in seconds (tokens/s for throughput)."""

    path: Path
    served: int
    sent: int
    means: dict[str, float]
    left_out: int

    def __str__(self) -> str:
        rows = [
            [name, significant(value if name == "throughput" else 1e3 * value, 4), "tokens/s" if name == "throughput" else "ms"]
            for name, value in self.means.items()
        ]
        long = f"; {self.left_out} of the trace are longer than the context" if self.left_out else ""
        shown = table(["mean", "seen", ""], rows, left=frozenset({0, 2}))
        return f"{self.served} of {self.sent} requests served{long}\n{shown}\n{self.path}"


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
) -> Replayed:
    """Replay a trace, or ten requests a slot in a closed loop, and write `served.csv` into the folder `out`.

    The key is read from OPENAI_API_KEY where the server wants one. Raises CannotReplay, BadTrace, FileExistsError, ValueError.
    """
    folder = Path(out)
    path = folder / "served.csv"
    if path.exists():
        raise FileExistsError(17, "is there already: give another folder with --out", str(path))
    left_out = 0
    if trace is not None:
        found = read_trace(trace, context=context)
        requests, left_out = found.requests, found.longer_than_context
    else:
        if concurrency < 1:
            raise ValueError(f"--concurrency is {concurrency}: at least 1 request is sent at once")
        n = EACH * concurrency
        requests = Requests(
            arrival=np.zeros(n), prompt=np.full(n, prompt), output=np.full(n, output), concurrency=concurrency
        )
    rows = replay(url, requests, model=model, key=os.environ.get("OPENAI_API_KEY", ""))
    folder.mkdir(parents=True, exist_ok=True)
    write_served(rows, path)
    served = sum(not row.error for row in rows)
    return Replayed(path=path, served=served, sent=len(rows), means=summary(rows), left_out=left_out)
