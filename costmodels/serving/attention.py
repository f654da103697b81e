"""Attention of a served step over its cache: one query a request, prompts, and latents.

Multi-head latent attention is expanded in prefill and absorbed in decode (DeepSeek-V2 §2.1.2): the projections around it are
the same work either way, attention itself is not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import numpy as np

from costmodels.constants import DATA
from costmodels.kernels import smooth_max
from costmodels.serving.calls import Call, repeated
from costmodels.serving.formats import cache_bytes
from costmodels.serving.local import Local, Wide, layer_graphs
from costmodels.serving.paged_attention import (
    blocks_time,
    counted_share,
    narrow,
    prompts_beside,
    prompts_slower,
    start_time,
    windowed,
)
from costmodels.serving.stack import ServingStack
from spaces.architecture import Architecture
from spaces.columns import Bindings, Value
from spaces.facts import facts_in


def decode_calls(
    architecture: Architecture, stack: ServingStack, at: Bindings, requests: Value, cached: Value
) -> Iterator[Call]:
    """Attention of one new token of each request over its cache, all layers; grid (R, K), `cached` tokens in all."""
    wide = Wide(at)
    length = np.maximum(cached / requests, 1.0)
    for kind, _, count in layer_graphs(architecture, stack):
        seen = np.minimum(length, wide["sliding_window"]) if kind.endswith("-window") else length
        if architecture.kv_lora_rank:
            yield repeated(_latent(wide, requests, seen), count)
            continue
        heads, kv_heads = (-(-np.asarray(wide[name]) // wide["tensor"]) for name in ("heads", "kv_heads"))
        rate = np.maximum(wide["device.matrix_flops.bf16"], wide["device.matrix_flops.fp16"])
        work = 4.0 * requests * heads * seen * wide["head_dim"]
        floor = np.where(narrow(wide), work / (rate * wide["kernel.attention.forward"]), 0.0)
        floor = smooth_max(floor, blocks_time(wide, requests, length, heads, kv_heads))
        shape = {
            "batch": requests,
            "heads": heads,
            "kv_heads": kv_heads,
            "q_len": 1.0,
            "kv_len": np.maximum(np.round(seen * counted_share(wide)), 1.0),
            "head_dim": wide["head_dim"],
            "implementation": stack.attention["decode"],
            "cache": "cold",
        }
        times = count * windowed(wide, length, seen)
        yield Call(op="attention_decode", shape=shape, times=times, floor=floor)
        yield Call(op="", floor=start_time(wide), times=times)


def _latent(wide: Wide, requests: Value, seen: Value) -> Call:
    """Absorbed latent attention: every head reads the one latent, so work grows with heads and traffic does not."""
    facts = _latent_facts()
    latent, rope = wide["kv_lora_rank"], wide["qk_rope_head_dim"]
    heads = -(-np.asarray(wide["heads"]) // wide["tensor"])
    cached = requests * seen
    traffic = cached * (latent + rope) * cache_bytes(wide["kv_precision"])
    work = 2.0 * cached * heads * (2.0 * latent + rope)
    rate = np.maximum(wide["device.matrix_flops.bf16"], wide["device.matrix_flops.fp16"]) * facts["compute"]
    memory = traffic / (wide["device.memory_bandwidth"] * facts["bandwidth"])
    begun = requests * np.ceil(heads / facts["heads"]) * facts["request"]
    return Call(op="", floor=facts["overhead"] + np.cbrt((work / rate) ** 3 + memory**3 + begun**3))


def prefill_calls(
    architecture: Architecture, stack: ServingStack, at: Bindings, queries: Value, pairs: Value
) -> Iterator[Call]:
    """Attention of prompt chunks, all layers; grid (Q, P): `queries` new tokens that see `pairs` keys together.

    As many whole prompts as have that many pairs (each causal, half its square); a chunk that sees more than its own
    triangle is one product over the mean number of keys a query sees.
    """
    wide = Wide(at)
    mean = np.maximum(pairs / queries, 1.0)
    for kind, _, count in layer_graphs(architecture, stack):
        seen = np.minimum(mean, wide["sliding_window"]) if kind.endswith("-window") else mean
        whole = seen <= queries / 2.0
        length = np.where(whole, 2.0 * seen, queries)
        heads, kv_heads = (-(-np.asarray(wide[name]) // wide["tensor"]) for name in ("heads", "kv_heads"))
        width, factor = wide["head_dim"], 1.0
        if architecture.kv_lora_rank:
            factor = (wide["head_dim"] + wide["v_head_dim"]) / (2.0 * 128.0)
            width = 128.0
        shape = {
            "batch": np.maximum(queries / length, 1.0),
            "heads": heads,
            "kv_heads": heads if architecture.kv_lora_rank else kv_heads,
            "q_len": np.maximum(np.round(length), 1.0),
            "kv_len": np.maximum(np.round(np.where(whole, 2.0 * seen, seen)), 1.0),
            "head_dim": width,
            "causal": np.where(whole, "true", "false"),
            "implementation": stack.attention["prefill"],
            "cache": "cold",
        }
        if architecture.kv_lora_rank:
            yield Call(op="attention_prefill", shape=shape, times=count * factor)
            continue
        yield Call(op="attention_prefill", shape=shape, times=count * prompts_slower(wide, seen < mean))
        yield Call(op="", floor=prompts_beside(wide, queries, heads), times=count)


def values_per_token(architecture: Architecture, local: Local) -> Value:
    """Values that one layer caches for a token on one device.

    Key and value heads are divided among tensor ranks and replicated when there are fewer; the latent of multi-head latent
    attention is held whole by each.
    """
    if architecture.kv_lora_rank:
        return np.asarray(local["kv_lora_rank"] + local["qk_rope_head_dim"], np.float64)
    return 2.0 * -(-np.asarray(local["kv_heads"]) // local["tensor"]) * local["head_dim"]


@cache
def _latent_facts() -> Mapping[str, float]:
    with (DATA / "latent_attention.yaml").open(encoding="utf-8") as file:
        facts: dict[str, Any] = facts_in(file.read())
    return {name: float(entry["value"]) for name, entry in facts.items()}
