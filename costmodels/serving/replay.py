"""A measured run replayed: equal requests in a closed or an open loop on one plan, step by step, and its means."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from costmodels.simulation import Limits, Outcome, simulate
from costmodels.step_tables import StepTables
from spaces.workload import Requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What is run on `replicas` engines alike.

    `requests` of `prompt` and `output` tokens: `concurrency` in flight, all started at time 0, or Poisson arrivals at `rate` a
    second. `max_batch`, `token_budget` and `kv_tokens` bound one of the `attention_data` groups of a replica. `mixed`: prompts
    share steps with decoding; `whole_answer`: a request is admitted only where all of its answer fits; `overhead` seconds
    between client and scheduler, part of the time to first token; `steady` drops the first and last tenth.
    """

    prompt: int
    output: int
    rate: float = 0.0
    concurrency: int = 0
    requests: int
    replicas: int = 1
    attention_data: int = 1
    max_batch: int = 256
    token_budget: int = 8192
    kv_tokens: float = math.inf
    block_tokens: int = 16
    mixed: bool = True
    chunked: bool = True
    whole_answer: bool = False
    overhead: float = 0.0
    prefix_hit: float = 0.0
    steady: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """Means over requests: seconds, and output tokens a second of all replicas."""

    ttft: float
    tpot: float
    latency: float
    tokens_per_second: float


_BOUNDLESS = 1 << 29  # blocks


def limits_of(run: Replay) -> Limits:
    """The scheduler's limits; a plan without room for one request is given a boundless cache."""
    roomy = run.kv_tokens >= run.prompt + run.output
    blocks = int(run.kv_tokens // run.block_tokens) if roomy and math.isfinite(run.kv_tokens) else _BOUNDLESS
    budget = max(run.token_budget, 1)
    # a prompt that may not be cut needs a step that holds it
    batch = max(min(run.max_batch, budget), 1)
    return Limits(
        max_batch=batch,
        max_tokens=budget,
        chunked=run.chunked,
        policy="mixed" if run.mixed else "prefill-first",
        kv_blocks=blocks,
        block_size=run.block_tokens,
        reserve="whole" if run.whole_answer else "prompt",
        attention_dp=run.attention_data,
    )


def replay(tables: StepTables, engine: int, run: Replay) -> Replayed:
    """Simulate the run. A client waits `overhead` before its next request too, which slows a closed loop a little."""
    count = max(run.requests, 1)
    prompt = np.full(count, max(round(run.prompt * (1.0 - run.prefix_hit)), 1))
    output = np.full(count, run.output)
    if run.concurrency:
        requests = Requests(arrival=np.zeros(count), prompt=prompt, output=output, concurrency=run.concurrency)
    else:
        gaps = np.random.default_rng(run.seed).exponential(1.0 / run.rate, count)
        requests = Requests(arrival=np.cumsum(gaps), prompt=prompt, output=output)
    outcome: Outcome = simulate(tables, engine, requests, limits_of(run), replicas=run.replicas)
    # requests that all end at once leave no middle to look at: then all of them count
    steady = run.steady and math.isfinite(outcome.token_throughput(steady=True))
    ttft = outcome.mean("ttft", steady=steady) + run.overhead
    tpot = outcome.mean("tpot", steady=steady) if run.output > 1 else 0.0
    latency = outcome.mean("latency", steady=steady) + run.overhead
    rate = outcome.token_throughput(steady=steady)
    if run.concurrency:
        rate *= latency / (latency + run.overhead) if latency > 0 else 1.0
    return Replayed(ttft=ttft, tpot=tpot, latency=latency, tokens_per_second=rate)
