"""TensorRT-LLM: `trtllm-serve` with a file of engine options (tensorrt_llm/llmapi/llm_args.py, v1.0)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from dse.experiment import Experiment
from dse.kinds.serving.job import ServingJob
from dse.launch.script import checkpoint, command, script
from dse.launch.server import Server, replicas, servers

_CACHE = {"bf16": "auto", "fp8": "fp8", "fp4": "nvfp4"}


def write(experiment: Experiment[ServingJob], plan: Mapping[str, Any]) -> str:
    """One command a server and the options it reads. Raises CannotLaunch."""
    blocks = [replicas(server, _serve(experiment, server)) for server in servers(plan, "trtllm", caches=_CACHE)]
    return script("serving", f"TensorRT-LLM: {experiment.name}", plan, blocks)


def _serve(experiment: Experiment[ServingJob], server: Server) -> str:
    plan = server.plan
    options = {
        "tensor_parallel_size": plan["tensor"] * plan["attention_data"],
        "pipeline_parallel_size": plan["pipeline"],
        "enable_attention_dp": plan["attention_data"] > 1,
        "max_batch_size": plan["max_batch"],
        "max_num_tokens": plan["token_budget"],
        "max_seq_len": experiment.job.context,
        "enable_chunked_prefill": True,
        "kv_cache_config": {"free_gpu_memory_fraction": plan["kv_fraction"], "dtype": _CACHE[plan["kv_precision"]]},
    }
    if experiment.job.architecture.experts:
        options |= {"moe_expert_parallel_size": plan["expert"], "moe_tensor_parallel_size": plan["expert_tensor"]}
    if plan.get("cuda_graphs", 1):
        options["cuda_graph_config"] = {"enable_padding": True, "max_batch_size": plan["max_batch"]}
    if server.role:
        options["cache_transceiver_config"] = {"backend": "DEFAULT"}
    name = f"engine{'-' + server.role if server.role else ''}.yaml"
    text = yaml.safe_dump(options, sort_keys=False).rstrip()
    flags = [("--backend", "pytorch"), ("--extra_llm_api_options", name)]
    serve = command(f"trtllm-serve {checkpoint(experiment.job.architecture)}", flags, '--port "$PORT"')
    return f"cat > {name} <<'END'\n{text}\nEND\n{serve}"
