"""SGLang: `python -m sglang.launch_server` (python/sglang/srt/server_args.py, v0.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dse.experiment import Experiment
from dse.kinds.serving.job import ServingJob
from dse.launch.script import Flag, checkpoint, command, script
from dse.launch.server import Server, replicas, servers

_CACHE = {"bf16": None, "fp8": "fp8_e4m3"}
_WEIGHTS = {"fp8": "fp8", "int4": "awq", "int8": "w8a8_int8"}


def write(experiment: Experiment[ServingJob], plan: Mapping[str, Any]) -> str:
    """One command a server; `tp-size` counts the devices of a stage, attention groups included. Raises CannotLaunch."""
    blocks = [replicas(server, _serve(experiment, server)) for server in servers(plan, "sglang", caches=_CACHE)]
    return script("serving", f"SGLang: {experiment.name}", plan, blocks)


def _serve(experiment: Experiment[ServingJob], server: Server) -> str:
    plan = server.plan
    groups = plan["attention_data"]
    flags: list[Flag] = [
        ("--model-path", checkpoint(experiment.job.architecture)),
        ("--tp-size", plan["tensor"] * groups),
        ("--pp-size", plan["pipeline"] if plan["pipeline"] > 1 else None),
        ("--dp-size", groups if groups > 1 else None),
        ("--enable-dp-attention", groups > 1),
        ("--ep-size", plan["expert"] if plan["expert"] > 1 else None),
        ("--max-running-requests", plan["max_batch"] * groups),
        ("--chunked-prefill-size", plan["token_budget"]),
        ("--mem-fraction-static", plan["kv_fraction"]),
        ("--quantization", _WEIGHTS.get(plan["precision"])),
        ("--kv-cache-dtype", _CACHE[plan["kv_precision"]]),
        ("--disable-cuda-graph", not plan.get("cuda_graphs", 1)),
        ("--context-length", experiment.job.context),
        ("--disaggregation-mode", server.role or None),
    ]
    return command("python -m sglang.launch_server", flags, '--port "$PORT"')
