"""Megatron-LM: the options of pretrain_gpt.py (megatron/training/arguments.py of Megatron-Core 0.12)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dse.experiment import Experiment
from dse.kinds.training.job import TrainingJob
from dse.launch.registry import CannotLaunch
from dse.launch.script import Flag, command, nodes, script
from spaces.architecture import Architecture

_PRECISION: Mapping[str, tuple[Flag, ...]] = {
    "fp32": (),
    "fp16": (("--fp16", True),),
    "bf16": (("--bf16", True),),
    "fp8": (("--bf16", True), ("--fp8-format", "hybrid")),
    "mxfp8": (("--bf16", True), ("--fp8-format", "e4m3"), ("--fp8-recipe", "mxfp8")),
}


def write(experiment: Experiment[TrainingJob], plan: Mapping[str, Any]) -> str:
    """A script for every node. Raises CannotLaunch for schedules and formats that Megatron does not have."""
    job = experiment.job
    if plan["schedule"] in ("zero_bubble", "dualpipe") and plan["pipeline"] > 1:
        raise CannotLaunch(f"Megatron-LM has no schedule {plan['schedule']}; it runs 1f1b and interleaved")
    if plan["precision"] not in _PRECISION:
        raise CannotLaunch(f"no options are known for {plan['precision']}; there are {', '.join(_PRECISION)}")
    device = next(one for one in job.devices if one.name == plan.get("device", one.name))
    count, each = nodes(plan["devices"], device.devices_per_node)
    torchrun = command(
        "torchrun",
        [
            ("--nnodes", count),
            ("--nproc-per-node", each),
            ("--rdzv-backend", "c10d" if count > 1 else None),
            *((("--standalone", True),) if count == 1 else ()),
        ],
    )
    if count > 1:
        torchrun += ' \\\n  --rdzv-endpoint "$MASTER_ADDR:29500"'
    flags = [*_model(job.architecture), *_workload(job, plan), *_parallel(plan), *_memory(plan), *_PRECISION[plan["precision"]]]
    train = command(f"{torchrun} \\\n  pretrain_gpt.py", flags, '"$@"')
    note = "# the same on every node; data, tokenizer, checkpoint and learning-rate options go behind it"
    block = f"{note}\nexport CUDA_DEVICE_MAX_CONNECTIONS=1\n{train}"
    return script("training", f"Megatron-LM: {experiment.name}", plan, [block])


def _model(model: Architecture) -> list[Flag]:
    grouped = model.kv_heads != model.heads and not model.kv_lora_rank
    flags: list[Flag] = [
        ("--use-mcore-models", True),
        ("--num-layers", model.layers),
        ("--hidden-size", model.hidden),
        ("--ffn-hidden-size", model.ffn),
        ("--num-attention-heads", model.heads),
        ("--group-query-attention", grouped),
        ("--num-query-groups", model.kv_heads if grouped else None),
        ("--kv-channels", model.head_dim),
        ("--swiglu", model.gated and model.activation == "silu"),
        ("--normalization", "RMSNorm" if model.norm == "rmsnorm" else "LayerNorm"),
        ("--position-embedding-type", {"rotary": "rope", "learned": "learned_absolute"}.get(model.positions, "none")),
        ("--untie-embeddings-and-output-weights", not model.tied_embeddings),
        ("--disable-bias-linear", not model.biases & {"mlp", "attention_output"}),
        ("--vocab-size", model.vocab),
        ("--make-vocab-size-divisible-by", 1),
    ]
    if model.experts:
        flags += [
            ("--num-experts", model.experts),
            ("--moe-router-topk", model.experts_per_token),
            ("--moe-ffn-hidden-size", model.moe_ffn),
            ("--moe-shared-expert-intermediate-size", model.shared_ffn or None),
            ("--moe-grouped-gemm", True),
            ("--moe-token-dispatcher-type", "alltoall"),
        ]
    if model.kv_lora_rank:
        flags += [
            ("--multi-latent-attention", True),
            ("--q-lora-rank", model.q_lora_rank or None),
            ("--kv-lora-rank", model.kv_lora_rank),
            ("--qk-head-dim", model.qk_nope_head_dim),
            ("--qk-pos-emb-head-dim", model.qk_rope_head_dim),
            ("--v-head-dim", model.v_head_dim),
        ]
    return flags


def _workload(job: TrainingJob, plan: Mapping[str, Any]) -> list[Flag]:
    return [
        ("--seq-length", job.sequence),
        ("--max-position-embeddings", max(job.sequence, job.architecture.max_positions)),
        ("--micro-batch-size", plan["micro_batch"]),
        ("--global-batch-size", job.global_batch),
    ]


def _parallel(plan: Mapping[str, Any]) -> list[Flag]:
    light = plan.get("stage_layout") == "light_ends"
    return [
        ("--tensor-model-parallel-size", plan["tensor"]),
        ("--sequence-parallel", bool(plan.get("sequence_parallel"))),
        ("--context-parallel-size", plan["context"]),
        ("--pipeline-model-parallel-size", plan["pipeline"]),
        ("--num-virtual-stages-per-pipeline-rank", plan["virtual"] if plan["virtual"] > 1 else None),
        ("--account-for-embedding-in-pipeline-split", light),
        ("--account-for-loss-in-pipeline-split", light),
        ("--expert-model-parallel-size", plan["expert"] if plan["expert"] > 1 else None),
        ("--expert-tensor-parallel-size", plan["expert_tensor"] if plan["expert"] > 1 else None),
        ("--use-tp-pp-dp-mapping", plan.get("rank_order") == "tensor-context-pipeline-data"),
        ("--use-distributed-optimizer", plan["zero_stage"] >= 1),
        ("--overlap-grad-reduce", True),
        ("--overlap-param-gather", plan["zero_stage"] >= 1),
    ]


def _memory(plan: Mapping[str, Any]) -> list[Flag]:
    how = plan["recompute"]
    layers = {"full": 1, "first_k": plan.get("recompute_layers")}.get(how)
    return [
        ("--recompute-granularity", {"none": None, "selective": "selective"}.get(how, "full")),
        ("--recompute-method", {"full": "uniform", "first_k": "block"}.get(how)),
        ("--recompute-num-layers", layers),
        ("--optimizer-cpu-offload", plan.get("offload") == "optimizer"),
    ]
