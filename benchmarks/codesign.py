"""Machines a CPU-second: each with an exact search over a thousand plans, tables included, nothing kept from before.

`python -m benchmarks.codesign --json` → `designs`, `plans_each`, `designs_per_cpu_second`, `evaluated_share`, `exact`; with
`--serving` every design also serves the model on eight devices by its best plan: `served_per_cpu_second`, `serving_plans`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping

import numpy as np

from costmodels.constants import device_symbols, find_stack
from costmodels.kernel_models.dataflow import Dataflow
from costmodels.machines.designs import design_symbols
from costmodels.serving.problem import serving_problem, serving_symbols
from costmodels.serving.steady_state import ServingModel
from costmodels.training import TrainingModel, training_problem
from search.inner import best_plans
from spaces.architecture import Architecture, find
from spaces.columns import FloatArray
from spaces.hardware import Accelerator, Device, find_accelerator, find_device
from spaces.serving_space import serving_space
from spaces.training import training_space

PLANS = 1000


def main() -> None:
    """Time the search; check some designs against every plan evaluated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--designs", type=int, default=2048)
    parser.add_argument("--serving", action="store_true")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    base, model = find_accelerator("H100"), find("llama-3.1-70b")
    device = find_device(base.device)
    options = {**find_stack("megatron").legal, "zero_stage": (1,), "recompute": (0, 1), "micro_batch": (1, 2, 4)}
    space = training_space(architecture=model, devices=(device,), count=1024, global_batch=1024, sequence=8192, options=options)
    problem = training_problem(model, "megatron", device, {"sequence": 8192, "global_batch": 1024})
    problem = dataclasses.replace(problem, labels={**problem.labels, "reference": (device.name,)})
    batch = next(space.batches())
    rng = np.random.default_rng(0)
    plans = batch.take(np.sort(rng.choice(batch.n, PLANS, replace=False)))
    own = device_symbols(device, "megatron")
    n = asked.designs
    changes = {
        "memory_stacks": rng.integers(4, 12, n).astype(float),
        "clock": rng.uniform(1.2e9, 2.0e9, n),
        "scale_up_bandwidth": rng.uniform(3e11, 2e12, n),
        "nic_bandwidth": rng.choice([5e10, 1e11, 2e11], n),
    }
    start = time.process_time()
    designs = design_symbols(base, own, base.columns(changes), 1024.0)
    found = best_plans(TrainingModel(), problem, plans, designs, "step_time", {})
    spent = time.process_time() - start
    some = rng.choice(n, min(16, n), replace=False)
    few = {name: values[some] for name, values in designs.items()}
    nothing = {"step_time": 1e9}  # a limit that limits nothing switches the bounds off
    checked = best_plans(TrainingModel(), problem, plans, few, "step_time", nothing)
    answer = {
        "designs": n,
        "plans_each": PLANS,
        "designs_per_cpu_second": n / spent,
        "evaluated_share": found.evaluated / found.points,
        "exact": bool(np.array_equal(found.value[some], checked.value)),
    }
    if asked.serving:
        answer |= served(base, model, device, changes)
    print(json.dumps(answer) if asked.json else "\n".join(f"{name}: {value}" for name, value in answer.items()))


def served(base: Accelerator, model: Architecture, device: Device, changes: Mapping[str, FloatArray]) -> dict[str, float]:
    """Designs a CPU-second by their best server: every plan of eight devices for each, a thousand, none of them skipped."""
    limits = {"max_batch": 256.0, "token_budget": 2048.0, "kv_fraction": 0.9}
    fixed = {"devices": 8, "input_tokens": 2000, "output_tokens": 500, "concurrency": 128, **limits}
    problem = serving_problem(model, "vllm", device, fixed)
    options = {
        "max_batch": (8, 16, 32, 48, 64, 96, 128, 192, 256, 512),
        "token_budget": (1024, 2048, 4096, 8192, 16384),
        "kv_fraction": (0.85, 0.9),
    }
    plans = next(serving_space(architecture=model, count=8, options=options, defaults=limits).batches())
    start = time.process_time()
    designs = design_symbols(base, serving_symbols(device), base.columns(changes), 8.0)
    best_plans(ServingModel(Dataflow()), problem, plans, designs, "tokens_per_second_per_device", {})
    count = len(next(iter(changes.values())))
    return {"served_per_cpu_second": count / (time.process_time() - start), "serving_plans": plans.n}


if __name__ == "__main__":
    main()
