"""The symbols of a serving plan and workload, and the codes of its categorical choices.

n_devices = pipeline · data · max(tensor · attention_data, expert_tensor · expert). A replica's attention runs on
tensor · attention_data devices: each of `attention_data` groups serves requests of its own, sharded over `tensor`. The
feed-forward layers of a replica re-mesh the same devices: dense ones over all of them, experts as expert_tensor · expert.
"""

from __future__ import annotations

import difflib
from enum import IntEnum


class WeightFormat(IntEnum):
    """Format of the linear layers' weights; the first six are the codes of training's `Precision`."""

    FP32 = 0
    FP16 = 1
    BF16 = 2
    FP8 = 3
    MXFP8 = 4
    NVFP4 = 5
    INT8 = 6
    INT4 = 7
    """Weights alone (w4a16): products run in 16 bits."""
    W4A8 = 8


class CacheFormat(IntEnum):
    """Format of cached keys and values."""

    SIXTEEN = 0
    FP8 = 1
    INT8 = 2
    INT4 = 3
    FP4 = 4
    INT2 = 5


SERVING_NAMES: dict[str, tuple[str, ...]] = {
    "precision": ("fp32", "fp16", "bf16", "fp8", "mxfp8", "nvfp4", "int8", "int4", "w4a8"),
    "kv_precision": ("bf16", "fp8", "int8", "int4", "fp4", "int2"),
    "preemption": ("recompute", "swap"),
}
"""Names behind the codes, by symbol; the position is the code."""

_ALIASES: dict[str, dict[str, str]] = {
    "precision": {
        "fp4": "nvfp4",
        "w4a16": "int4",
        "awq": "int4",
        "gptq": "int4",
        "int4_wo": "int4",
        "w8a8": "int8",
        "int8_sq": "int8",
        "fp8_block": "fp8",
        "fp8_static": "fp8",
        "bfloat16": "bf16",
        "float16": "fp16",
        "half": "fp16",
        "mxfp4": "nvfp4",
        "float32": "fp32",
    },
    "kv_precision": {
        "fp16": "bf16",
        "float16": "bf16",
        "bfloat16": "bf16",
        "half": "bf16",
        "auto": "bf16",
        "fp8_e4m3": "fp8",
        "fp8_e5m2": "fp8",
        "nvfp4": "fp4",
    },
    "preemption": {},
}

SERVING_PLAN: tuple[str, ...] = (
    "devices",
    "tensor",
    "pipeline",
    "data",
    "expert",
    "expert_tensor",
    "attention_data",
    "max_batch",
    "token_budget",
    "kv_fraction",
    "precision",
    "kv_precision",
    "cuda_graphs",
    "speculation",
    "expert_offload",
    "weight_offload",
    "kv_offload",
    "preemption",
)
"""Every symbol a serving plan binds, in the order people read them.

`data` counts replicas; `max_batch` bounds the requests that run at once on one attention group, `token_budget` its new tokens
of one step (the chunk of chunked prefill); `kv_fraction` is the share of the device's memory that weights, activations and
cache may use together; `speculation` is the number of tokens drafted a step (0: none); with
`expert_offload` the routed experts' weights stay in host memory and cross the host link when they are needed, and of all
other weights of layers the share `weight_offload`, in every step; `kv_offload` is the share of every request's cache that
stays there and crosses the link in each step that attends to it. `preemption` is what becomes of a request that gives way
when the cache is full: computed again, or swapped to host memory and back over the link.
"""

SERVING_WORKLOAD: tuple[str, ...] = (
    "input_tokens",
    "output_tokens",
    "request_rate",
    "concurrency",
    "prefix_hit",
    "acceptance",
    "draft_share",
    "draft_held",
    "lora_rank",
    "adapters",
)
"""What is served: mean tokens in and out of a request; requests per second, or requests in flight (0: not given); the share
of input tokens found in the cache; the chance that a drafted token is accepted, what drafting one costs of a step, and what
drafts hold over what the model holds; the rank of adapters (0: none), and how many there are."""

SERVING_DEFAULTS: dict[str, float] = {
    "tensor": 1,
    "pipeline": 1,
    "data": 1,
    "expert": 1,
    "expert_tensor": 1,
    "attention_data": 1,
    "precision": WeightFormat.BF16,
    "kv_precision": CacheFormat.SIXTEEN,
    "cuda_graphs": 1,
    "speculation": 0,
    "expert_offload": 0,
    "weight_offload": 0,
    "kv_offload": 0,
    "preemption": 0,
    "input_tokens": 1024,
    "output_tokens": 256,
    "request_rate": 0.0,
    "concurrency": 0.0,
    "prefix_hit": 0.0,
    "acceptance": 0.7,
    "draft_share": 0.05,
    "draft_held": 0.05,
    "lora_rank": 0,
    "adapters": 1,
}
"""Values of the choices a person leaves out; `max_batch`, `token_budget` and `kv_fraction` are the stack's own."""


def serving_code(symbol: str, name: str) -> int:
    """Code of a categorical value, by name or alias; ValueError names the nearest."""
    names = SERVING_NAMES[symbol]
    word = name.strip().lower().replace("-", "_")
    word = _ALIASES[symbol].get(word, word)
    if word not in names:
        known = [*names, *_ALIASES[symbol]]
        near = difflib.get_close_matches(word, known, n=2, cutoff=0.5)
        raise ValueError(f"{symbol} '{name}' does not exist; choose one of {', '.join(near or names)}")
    return names.index(word)
