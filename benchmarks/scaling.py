"""Exact search with one and two workers, on local processes and on Ray; and what a trial costs the run store.

`python -m benchmarks.scaling [--rounds N] [--set KEY=VALUE] --json`. Every figure comes from a fresh process that makes the
whole run, its folder included; Ray itself is up before the clock starts, local workers are started within it. Python's and
the recurrence's code is compiled before, as it is wherever the package was used once. In a round every executor runs with one
worker and with two right after each other, the order turned from round to round, so that other work on the machine meets both
alike. A ratio is taken within a round; the median of the rounds' ratios is reported, and all of them beside it: where they
differ by more than what is claimed, nothing is shown.

What the machine itself allows is measured in every round too (`machine_ratio`): two searches of one process each, of the same
space with fewer devices, side by side and knowing nothing of each other, against one alone. Two cores that share a cache, a
clock or a physical core do not do twice the work of one.

CPU seconds hang less on who else is there. `cpu_ratio` is what they allow on two cores that do nothing else: before the first
result and after the last one the driver works alone (`serial_cpu_s`), between them one worker has a core to itself beside the
driver, while two share theirs with it. What a worker takes to start is not in it.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

EXPERIMENT = Path("experiments/training/any-of-six-gpus-at-most-2048.yaml")
SMALLER = "hardware.devices={at_most: 256}"
EXECUTORS = ("local", "ray")
BATCH = 100
"""Trials told together."""


def once(executor: str, workers: int, settings: Sequence[str]) -> dict[str, float]:
    """One run in this process: wall seconds, CPU seconds of the driver, alone too, and of the search in workers, plans."""
    from dse.runner import run
    from search.result import Progress

    overrides = [*settings, f"search.executor={executor}", f"search.workers={workers}"]
    if executor == "ray":
        _start_ray(workers)
    results: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()

        def progress(_: Progress) -> None:
            results.append(time.process_time() - cpu)

        answer = run(EXPERIMENT, out=Path(folder) / "run", overrides=overrides, progress=progress)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    if answer.trouble:
        raise RuntimeError(answer.trouble)
    return {
        "plans": answer.certificate["space"],
        "front": len(answer.front),
        "wall_s": wall,
        "driver_cpu_s": cpu,
        "serial_cpu_s": cpu - results[-1] + results[0],
        "workers_cpu_s": answer.cpu_s - cpu,
    }


def _start_ray(workers: int) -> None:
    """Ray's own start is not the search's: it is up before the clock starts."""
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


def scaling(rounds: int, settings: Sequence[str]) -> dict[str, Any]:
    """Runs by executor and workers, and their ratios."""
    _apart("local", 1, [*settings, "hardware.devices=8"])  # what one process compiles and keeps for the next
    runs: dict[str, list[dict[str, float]]] = {f"{e} {w}": [] for e in EXECUTORS for w in (1, 2)}
    machine: list[float] = []
    for turn in range(rounds):
        for executor in EXECUTORS[:: 1 - 2 * (turn % 2)]:
            for workers in (1, 2)[:: 1 - 2 * (turn % 2)]:
                runs[f"{executor} {workers}"].append(_apart(executor, workers, settings))
        machine.append(_side_by_side([*settings, SMALLER]))
    answer: dict[str, Any] = {"plans": runs["local 1"][0]["plans"], "load": os.getloadavg()[0], "runs": runs}
    answer |= {"machine_ratio": median(machine), "machine_ratios": machine}
    for executor in EXECUTORS:
        one, two = runs[f"{executor} 1"], runs[f"{executor} 2"]
        walls = [a["wall_s"] / b["wall_s"] for a, b in zip(one, two, strict=True)]
        answer[executor] = {
            "wall_ratio": median(walls),
            "wall_ratios": walls,
            "cpu_ratio": median(_allowed(a, b) for a, b in zip(one, two, strict=True)),
        }
        for figure in ("wall_s", "driver_cpu_s", "serial_cpu_s", "workers_cpu_s"):
            answer[executor][figure] = [median(r[figure] for r in one), median(r[figure] for r in two)]
    both = list(zip(runs["local 2"], runs["ray 2"], strict=True))
    overheads = [b["wall_s"] / a["wall_s"] - 1 for a, b in both]
    answer["ray_wall_overhead"], answer["ray_wall_overheads"] = median(overheads), overheads
    answer["ray_cpu_overhead"] = median(_total(b) / _total(a) for a, b in both) - 1
    return answer


def _apart(executor: str, workers: int, settings: Sequence[str]) -> dict[str, float]:
    """One run in a fresh process."""
    return _told(_begun(executor, workers, settings))


def _side_by_side(settings: Sequence[str]) -> float:
    """How many times the work of one process two of them do that have nothing to do with each other."""
    alone = _apart("serial", 1, settings)
    both = [_told(process) for process in [_begun("serial", 1, settings) for _ in range(2)]]
    return 2.0 * alone["wall_s"] / max(run["wall_s"] for run in both)


def _begun(executor: str, workers: int, settings: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.scaling", "--once", executor, str(workers)]
    command += [part for setting in settings for part in ("--set", setting)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)


def _told(process: subprocess.Popen[str]) -> dict[str, float]:
    out, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a run ended with exit code {process.returncode}")
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def _allowed(one: dict[str, float], two: dict[str, float]) -> float:
    """One worker's time over that of two, on two cores of their own."""
    alone = one["serial_cpu_s"] + one["workers_cpu_s"]
    return alone / (two["serial_cpu_s"] + (_total(two) - two["serial_cpu_s"]) / 2)


def _total(run: dict[str, float]) -> float:
    return run["driver_cpu_s"] + run["workers_cpu_s"]


def store(counts: Sequence[int] = (1_000, 10_000, 100_000), rounds: int = 200) -> list[dict[str, float]]:
    """CPU microseconds to tell a trial and to look one up, in run stores and memories that hold so many.

    All of them are there at once and are asked in turn, so that what else the machine does meets them alike; medians of
    batches. `fill_us` is what a trial cost on the way there, growing included (and making the database).
    """
    from dse.run_store import RunStore
    from search.numbering import Numbering
    from search.store import Trials

    random = np.random.default_rng(0)

    def trials() -> Trials:
        costs, violation = random.random((BATCH, 2)), random.random(BATCH)
        return Trials(ordinals=random.integers(0, 1 << 40, BATCH), costs=costs, violation=violation)

    with tempfile.TemporaryDirectory() as folder:
        stores: list[RunStore] = []
        found: list[dict[str, float]] = []
        memories = [Numbering(np.unique(random.integers(0, 1 << 40, count))) for count in counts]
        for count in counts:
            started = time.process_time()
            path = Path(folder) / str(count)
            path.mkdir()
            stores.append(RunStore(path, ["step_time", "memory"]))
            for _ in range(0, count, BATCH):
                stores[-1].tell(trials())
            found.append({"trials": count, "fill_us": (time.process_time() - started) / count * 1e6})
        spent: dict[str, list[list[float]]] = {name: [[] for _ in counts] for name in ("tell_us", "known_us", "memo_us")}
        for turn in range(rounds):
            for i, held in enumerate(stores):
                asked, told = random.integers(0, 1 << 40, BATCH), trials()
                held.known(random.integers(0, 1 << 40, BATCH))
                marks = [time.process_time_ns()]
                held.known(asked)
                marks.append(time.process_time_ns())
                memories[i].find(asked)
                marks.append(time.process_time_ns())
                spent["known_us"][i].append(marks[1] - marks[0])
                spent["memo_us"][i].append(marks[2] - marks[1])
                if turn % (rounds // 10) == 0:  # few, or the smallest would not be small any more
                    held.tell(told)
                    spent["tell_us"][i].append(time.process_time_ns() - marks[2])
        for held in stores:
            held.close()
    return [
        row | {name: median(times[i]) / BATCH / 1e3 for name, times in spent.items()} for i, row in enumerate(found)
    ]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--once", nargs=2, metavar=("EXECUTOR", "WORKERS"))
    parser.add_argument("--store", action="store_true", help="the run store alone")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    given = parser.parse_args()
    if given.once:
        print(json.dumps(once(given.once[0], int(given.once[1]), given.settings)))
        return
    answer = {"store": store()} if given.store else scaling(given.rounds, given.settings) | {"store": store()}
    print(json.dumps(answer, indent=None if given.json else 1))


if __name__ == "__main__":
    main()
