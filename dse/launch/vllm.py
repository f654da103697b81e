"""vLLM: `vllm serve` with the options of its engine (vllm/engine/arg_utils.py, v0.10)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dse.experiment import Experiment
from dse.kinds.serving.job import ServingJob
from dse.launch.script import Flag, checkpoint, command, script
from dse.launch.server import Server, replicas, servers

_CACHE = {"bf16": None, "fp8": "fp8"}
_WEIGHTS = {"fp8": "fp8", "int4": "awq_marlin"}


def write(experiment: Experiment[ServingJob], plan: Mapping[str, Any]) -> str:
    """One command a server; replicas of a pool are the same command on other devices and ports. Raises CannotLaunch."""
    blocks = [replicas(server, _serve(experiment, server)) for server in servers(plan, "vllm", caches=_CACHE)]
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
    ]
    if server.role:
        role = {"prefill": "kv_producer", "decode": "kv_consumer"}[server.role]
        flags.append(("--kv-transfer-config", f'{{"kv_connector": "NixlConnector", "kv_role": "{role}"}}'))
    return command(f"vllm serve {checkpoint(experiment.job.architecture)}", flags, '--port "$PORT"')
