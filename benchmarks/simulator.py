"""Scheduler steps simulated per CPU-second, each with its own time stamp, and the memory that a million requests take.

`python -m benchmarks.simulator --json`. A Poisson trace at 70 % of what one engine can carry, paged KV memory, chunked
prefill in mixed steps; the tables are those of a steady 8-billion-parameter engine. Process CPU time (user and system, all
threads) of the simulation alone, its set-up included; compilation happens before, on ten requests.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from costmodels.simulation import Limits, Outcome, simulate
from costmodels.step_tables import StepTables
from spaces.traffic import Traffic, published_lengths, requests
from spaces.workload import Requests

LOAD = 0.7
WORKLOAD = "azure-conversation"
LIMITS = Limits(max_batch=1024, max_tokens=8192, kv_blocks=100_000, block_size=16, watermark=0.01)


def tables() -> StepTables:
    """Step times linear in tokens, context and query-key pairs, of the size of an 8 B model on one H100."""
    tokens = np.geomspace(1, 16384, 40)
    sequences, requests = np.geomspace(1, 1024, 12), np.geomspace(1, 1024, 12)
    decode_kv = np.concatenate([[0.0], np.geomspace(64, 4e6, 30)])
    queries, pairs = np.geomspace(1, 16384, 16), np.concatenate([[0.0], np.geomspace(64, 1e9, 30)])
    one = np.ones(1)
    return StepTables(
        tokens=tokens,
        token_time=(5.0e-3 + 2.6e-5 * tokens)[None],
        sequences=sequences,
        sequence_time=(4.0e-4 + 1.0e-6 * sequences)[None],
        requests=requests,
        decode_kv=decode_kv,
        decode_time=(1.0e-6 * requests[:, None] + 4.5e-8 * decode_kv[None])[None],
        draft_time=np.zeros((1, len(requests), len(decode_kv))),
        queries=queries,
        pairs=pairs,
        prefill_time=(1.0e-8 * queries[:, None] + 4.0e-11 * pairs[None])[None],
        host=2.0e-3 * one,
        host_per_sequence=5.0e-6 * one,
        host_overlap=0.5 * one,
        launch=6.0e-3 * one,
        graph_sequences=256 * one,
        fetch=0 * one,
        fetch_overlap=one,
        stages=one,
        slowest_share=one,
    )


def workload(n: int, rate: float, seed: int) -> Requests:
    """n requests of the Azure conversation lengths at `rate` a second."""
    return requests(Traffic(lengths=published_lengths(WORKLOAD), rate=rate), n, seed)


def capacity(step: StepTables) -> float:
    """Requests a second that the engine ends when there are always more waiting."""
    outcome = simulate(step, 0, workload(4000, 1e6, 1), LIMITS)
    return outcome.request_throughput(steady=True)


def measure(n: int) -> dict[str, float]:
    """Simulate n requests at 70 % load."""
    step = tables()
    simulate(step, 0, workload(10, 1.0, 0), LIMITS)
    most = capacity(step)
    asked = workload(n, LOAD * most, 2)
    started = time.process_time()
    outcome: Outcome = simulate(step, 0, asked, LIMITS)
    cpu = time.process_time() - started
    return {
        "requests": n,
        "completed": outcome.counts["completed"],
        "iterations": outcome.steps,
        "cpu_s": cpu,
        "iterations_per_cpu_second": outcome.steps / cpu,
        "mean_batch": outcome.mean_batch,
        "load": outcome.request_throughput(steady=True) / most,
        "preemptions": int(np.sum(outcome.preemptions)),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    result = measure(arguments.requests)
    if arguments.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:28s} {value:,.6g}")


if __name__ == "__main__":
    main()
