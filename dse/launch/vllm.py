"""vLLM: `vllm serve` with the options of its engine (vllm/engine/arg_utils.py, v0.10)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from costmodels.serving.capacity import capacity
from costmodels.serving.problem import serving_problem
from costmodels.serving.stack import find_serving_stack
from dse.experiment import Experiment
from dse.kinds.serving.job import ServingJob
from dse.launch.script import Flag, checkpoint, command, script
from dse.launch.server import Server, replicas, servers
from spaces.columns import Columns
from spaces.serving_plan import SERVING_NAMES, SERVING_PLAN, serving_code

_CACHE = {"bf16": None, "fp8": "fp8"}
_WEIGHTS = {"fp8": "fp8", "int4": "awq_marlin"}


def write(experiment: Experiment[ServingJob], plan: Mapping[str, Any]) -> str:
    """One command a server; replicas of a pool are the same command on other devices and ports. Raises CannotLaunch."""
    found = servers(plan, "vllm", caches=_CACHE, offloads=True, drafts=True)
    blocks = [replicas(server, _serve(experiment, server)) for server in found]
    return script("serving", f"vLLM: {experiment.name}", plan, blocks)


def _serve(experiment: Experiment[ServingJob], server: Server) -> str:
    plan = server.plan
    flags: list[Flag] = [
        ("--tensor-parallel-size", plan["tensor"]),
        ("--pipeline-parallel-size", plan["pipeline"] if plan["pipeline"] > 1 else None),
        ("--data-parallel-size", plan["attention_data"] if plan["attention_data"] > 1 else None),
        ("--enable-expert-parallel", plan["expert"] > 1),
        ("--max-num-seqs", plan["max_batch"]),
        ("--max-num-batched-tokens", plan["token_budget"]),
        ("--gpu-memory-utilization", plan["kv_fraction"]),
        ("--quantization", _WEIGHTS.get(plan["precision"])),
        ("--kv-cache-dtype", _CACHE[plan["kv_precision"]]),
        ("--enforce-eager", not plan.get("cuda_graphs", 1)),
        ("--max-model-len", experiment.job.context),
        *_more(experiment, plan),
    ]
    if server.role:
        role = {"prefill": "kv_producer", "decode": "kv_consumer"}[server.role]
        flags.append(("--kv-transfer-config", f'{{"kv_connector": "NixlConnector", "kv_role": "{role}"}}'))
    return command(f"vllm serve {checkpoint(experiment.job.architecture)}", flags, '--port "$PORT"')


def _more(experiment: Experiment[ServingJob], plan: Mapping[str, Any]) -> list[Flag]:
    """What few plans have: weights on the host, drafts and adapters."""
    job = experiment.job
    flags: list[Flag] = []
    if plan.get("weight_offload"):
        flags.append(("--cpu-offload-gb", math.ceil(_on_host(job, plan) / 2**30)))
    if plan.get("speculation"):
        model = "path/to/the/draft" if job.draft is None else checkpoint(job.draft)
        flags.append(("--speculative-config", json.dumps({"model": model, "num_speculative_tokens": plan["speculation"]})))
    if job.bound.get("lora_rank"):
        flags += [("--enable-lora", True), ("--max-lora-rank", int(job.bound["lora_rank"]))]
        flags.append(("--max-loras", int(job.bound["adapters"])))
    return flags


def _on_host(job: ServingJob, plan: Mapping[str, Any]) -> float:
    """Bytes of each device's weights in host memory."""
    own = {name: plan[name] for name in SERVING_PLAN if name in plan}
    own |= {name: serving_code(name, own[name]) for name in SERVING_NAMES if name in own}
    problem = serving_problem(job.architecture, "vllm", job.devices[0], own)
    one = problem.at(Columns(n=1, codes={}, levels={}))
    return float(capacity(job.architecture, find_serving_stack("vllm"), one).on_host[0])
