"""Training plans per CPU-second: full step time and memory with their breakdown, nothing pruned, nothing cached.

`python -m benchmarks.plans --points 1000000 --json`. Counts distinct points of the GPT-3 175B space on 4,096 A100; process CPU
time (user and system, all threads) from the first generated plan to the last metric, tables included.

`python -m benchmarks.plans --learned 5` sets the exact search over a million plans with learned kernel times beside the same
with the calibrated formulas, in fresh processes taken in turn.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from costmodels.constants import find_stack
from costmodels.training import TrainingModel, training_problem
from spaces.architecture import find
from spaces.columns import Columns
from spaces.hardware import find_device
from spaces.problem import Problem
from spaces.space import Space
from spaces.training import training_space

BATCH = 1 << 19
"""Plans evaluated together: large enough that tables are cheap, small enough for 1 GiB."""
STACK = "megatron"
SEARCHED = Path(__file__).parent.parent / "experiments" / "training" / "llama-3.1-405b-8192xh100.yaml"
CHECKED = 1000
"""Random rows compared with a batch of one."""


def setting() -> tuple[Problem, Space]:
    """GPT-3 175B on 4,096 A100: every axis legal for the stack open, ZeRO 2 and 3 and every HSDP shard group beside them."""
    architecture, device = find("gpt-175b"), find_device("A100-80GB")
    every: tuple[int, ...] = ()
    space = training_space(
        architecture=architecture,
        devices=(device,),
        count=4096,
        global_batch=4096,
        sequence=2048,
        options={**find_stack(STACK).legal, "zero_stage": every, "shard_degree": every},
    )
    return training_problem(architecture, STACK, device, {"sequence": 2048, "global_batch": 4096}), space


def measure(points: int) -> dict[str, float]:
    """Evaluate the first `points` plans of the space; CPU seconds, plans per CPU-second and peak bytes."""
    problem, space = setting()
    model = TrainingModel()
    generator = np.random.default_rng(0)
    started = time.process_time()
    done = 0
    worst = 0.0
    sample: list[tuple[Columns, dict[str, float]]] = []
    checking = 0.0
    for batch in space.batches(min(BATCH, points)):
        part = batch.take(slice(0, min(batch.n, points - done)))
        wanted = np.sort(generator.integers(0, part.n, max(1, CHECKED * part.n // points)))
        for rows, metrics in model.stream(problem, part):
            pause = time.process_time()
            for row in wanted[(wanted >= rows.start) & (wanted < rows.stop)]:
                values = {name: float(array[row - rows.start]) for name, array in metrics.value.items()}
                sample.append((part.take(slice(row, row + 1)), values))
            checking += time.process_time() - pause
        done += part.n
        if done >= points:
            break
    cpu = time.process_time() - started - checking
    for single, values in sample[:CHECKED]:
        alone = model.evaluate(problem, single).value
        worst = max(worst, max(abs(float(alone[name][0]) / value - 1.0) for name, value in values.items() if value))
    return {
        "points": done,
        "cpu_s": cpu,
        "plans_per_cpu_second": done / cpu,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "rows_checked": min(len(sample), CHECKED),
        "largest_difference_from_a_batch_of_one": worst,
    }


def search_seconds(kernels: str) -> float:
    """CPU seconds, start-up and tables included, of the exact search over the Llama-3.1-405B plans with these kernel times."""
    from dse.experiment import load
    from dse.kinds.registry import find as find_kind
    from search.exact import search
    from search.front import Objective

    job = load(SEARCHED).job
    kind = find_kind("training")
    problem, space = kind.problem(job), kind.space(job)
    asked = replace(problem, labels={**problem.labels, "kernel_model": (kernels,)})
    search(space, TrainingModel(), asked, [Objective(name=name, metric=name) for name in ("step_time", "memory")])
    return time.process_time()


def learned_share(rounds: int) -> dict[str, float]:
    """Mean CPU seconds of the search with learned and with calibrated kernel times, and their ratio."""
    found: dict[str, list[float]] = {"calibrated": [], "learned": []}
    for _ in range(rounds):
        for kernels, seconds in found.items():
            command = [sys.executable, "-m", "benchmarks.plans", "--search", kernels]
            seconds.append(float(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    mean = {f"{kernels}_cpu_s": statistics.mean(seconds) for kernels, seconds in found.items()}
    return {"rounds": rounds, **mean, "learned_over_calibrated": mean["learned_cpu_s"] / mean["calibrated_cpu_s"]}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--learned", type=int, metavar="ROUNDS", help="compare searches with learned and calibrated kernels")
    parser.add_argument("--search", metavar="KERNELS", help="only print the CPU seconds of one search")
    arguments = parser.parse_args()
    if arguments.search:
        print(search_seconds(arguments.search))
        return
    result = learned_share(arguments.learned) if arguments.learned else measure(arguments.points)
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:42s} {value:,.6g}")


if __name__ == "__main__":
    main()
