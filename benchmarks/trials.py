"""What one more point costs as the history grows: memo, run store and `auto`, and Optuna's samplers by name.

`python -m benchmarks.trials --points 100000 --json` gives, for each method, CPU-microseconds a point in windows that end at
about 100, 300, 1,000, 3,000, … points, on a cost model that costs next to nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from costmodels.metrics import Metrics
from dse.run_store import RunStore
from search.archive import Archive
from search.budget import Budget
from search.front import Objective
from search.methods import method
from search.sampled import sampled_search
from spaces.columns import Columns
from spaces.problem import Problem
from spaces.space import Axis, Space


class _Formula:
    """Two objectives from seven numbers."""

    reads = frozenset("abcdefg")

    def bound(self, problem: Problem, points: Columns) -> Metrics:  # noqa: ARG002
        return Metrics(n=points.n, value={})

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:  # noqa: ARG002
        x = [np.asarray(points[name], np.float64) for name in "abcdefg"]
        step = 1.0 + np.sum([(value - 6.0 - i) ** 2 for i, value in enumerate(x)], axis=0) / 100.0
        return Metrics(n=points.n, value={"step_time": step, "memory": 1.0 + x[0] + 20.0 / (1.0 + x[1]) + x[2] * x[3] / 40.0})


def curve(name: str, points: int) -> list[dict[str, Any]]:
    """CPU-microseconds a point by number of points, run store included."""
    from spaces.architecture import find

    space = Space(tuple(Axis(name=axis, symbols={axis: np.arange(20)}) for axis in "abcdefg"))
    objectives = (Objective(name="step_time", metric="step_time"), Objective(name="memory", metric="memory"))
    problem = Problem(architecture=find("llama-3.1-8b"), stack="megatron")
    marks: list[tuple[int, float]] = [(0, time.process_time())]

    def watch(archive: Archive) -> None:
        marks.append((len(archive), time.process_time()))

    with tempfile.TemporaryDirectory() as folder:
        store = RunStore(Path(folder), [objective.name for objective in objectives])
        budget = Budget(points=points)
        sampled_search(
            space, _Formula(), problem, objectives, method=method(name), budget=budget, store=store, watch=watch, sample=10
        )
        store.close()
    windows = [*(end for k in range(12) if (end := int(10 ** (2 + k / 2))) < points), points]
    rows, last = [], marks[0]
    for end in windows:
        mark = next((mark for mark in marks if mark[0] >= end), marks[-1])
        if mark[0] > last[0]:
            rows.append({"method": name, "points": mark[0], "us_a_point": (mark[1] - last[1]) / (mark[0] - last[0]) * 1e6})
            last = mark
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--methods", nargs="*", default=["auto"])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = [row for name in arguments.methods for row in curve(name, arguments.points)]
    if arguments.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['method']:14s} {row['points']:>9,} points {row['us_a_point']:>10,.0f} CPU-µs a point")


if __name__ == "__main__":
    main()
