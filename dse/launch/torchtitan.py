"""torchtitan: a TOML file for torchtitan/train.py (torchtitan/config/job_config.py, v0.2)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from dse.experiment import Experiment
from dse.kinds.registry import find
from dse.kinds.training.job import TrainingJob
from dse.launch.registry import CannotLaunch

_SCHEDULES = {"gpipe": "GPipe", "1f1b": "1F1B", "interleaved": "Interleaved1F1B", "zero_bubble": "InterleavedZeroBubble"}
_FLAVOURS = {"llama": "llama3", "qwen3": "qwen3", "deepseek": "deepseek_v3"}


def write(experiment: Experiment[TrainingJob], plan: Mapping[str, Any]) -> str:
    """The configuration. Raises CannotLaunch for what torchtitan does not have."""
    job = experiment.job
    if plan["pipeline"] > 1 and plan["schedule"] not in _SCHEDULES:
        raise CannotLaunch(f"no torchtitan schedule is known for {plan['schedule']}; there are {', '.join(_SCHEDULES)}")
    name = job.architecture.name
    family = next((known for stem, known in _FLAVOURS.items() if name.startswith(stem)), name)
    ranks = plan["data"] * plan["context"]
    shard = plan.get("shard_degree") or ranks
    sharded = max(shard // plan["context"], 1) if plan["zero_stage"] else 1
    quantised = plan["precision"] in ("fp8", "mxfp8")
    converter = "quantize.linear.float8" if plan["precision"] == "fp8" else "quantize.linear.mx"
    sections: dict[str, dict[str, Any]] = {
        "job": {"description": f"{experiment.name}: {find('training').text(plan)}"},
        "model": {"name": family, "flavor": _flavour(name)} | ({"converters": [converter]} if quantised else {}),
        "training": {
            "local_batch_size": _local(job, plan),
            "global_batch_size": job.global_batch,
            "seq_len": job.sequence,
        },
        "parallelism": {
            "data_parallel_replicate_degree": plan["data"] // sharded,
            "data_parallel_shard_degree": sharded,
            "fsdp_reshard_after_forward": "always" if plan["zero_stage"] == 3 else "never",
            "tensor_parallel_degree": plan["tensor"],
            "context_parallel_degree": plan["context"],
            "pipeline_parallel_degree": plan["pipeline"],
            "expert_parallel_degree": plan["expert"],
        },
        "activation_checkpoint": {"mode": {"none": "none", "selective": "selective"}.get(plan["recompute"], "full")},
        "compile": {"enable": job.stack == "torchtitan-compile"},
    }
    if plan["pipeline"] > 1:
        sections["parallelism"]["pipeline_parallel_schedule"] = _SCHEDULES[plan["schedule"]]
        sections["parallelism"]["pipeline_parallel_microbatch_size"] = plan["micro_batch"]
    if plan["precision"] == "fp8":
        sections["quantize.linear.float8"] = {"enable_fsdp_float8_all_gather": plan["zero_stage"] > 0}
    start = "torchrun … -m torchtitan.train --job.config_file this.toml"
    head = f"# torchtitan: {experiment.name}; {plan['devices']} devices; {start}"
    return "\n\n".join([head, *(_section(name, entries) for name, entries in sections.items())]) + "\n"


def _local(job: TrainingJob, plan: Mapping[str, Any]) -> int:
    """Sequences of one data-parallel rank at a time: all of a step under a pipeline, which splits them itself."""
    return int(job.global_batch // plan["data"] if plan["pipeline"] > 1 else plan["micro_batch"])


def _flavour(name: str) -> str:
    """The size in a model's name: `8B` of llama-3.1-8b."""
    sizes = [part for part in name.split("-") if part[:-1].replace(".", "").isdigit() and part.endswith("b")]
    return sizes[-1].upper() if sizes else name


def _section(name: str, entries: Mapping[str, Any]) -> str:
    return "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items())])
