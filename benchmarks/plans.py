"""Training plans per CPU-second: full step time and memory with their breakdown, nothing pruned, nothing cached.

`python -m benchmarks.plans --points 1000000 --json`. Counts distinct points of the GPT-3 175B space on 4,096 A100; process CPU
time (user and system, all threads) from the first generated plan to the last metric, tables included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time

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
    started = time.process_time()
    done = 0
    worst = 0.0
    sample: list[tuple[Columns, dict[str, float]]] = []
    generator = np.random.default_rng(0)
    checking = 0.0
    for batch in space.batches(BATCH):
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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.points)
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:42s} {value:,.6g}")


if __name__ == "__main__":
    main()
