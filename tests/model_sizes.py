"""Sizes of a model by an account of its own, to hold the package's against."""

import dataclasses
from typing import Any

from spaces.architecture import Architecture


def parameter_count(model: Architecture) -> int:
    """Weights of a model in closed form: an account kept apart from the package's own, which comes from its graph."""
    hidden, biases = model.hidden, model.biases
    norm = hidden * (2 if "norm" in biases else 1)

    def mlp(width: int, bias: bool) -> int:
        up = 2 if model.gated else 1
        return (up + 1) * hidden * width + (up * width + hidden if bias else 0)

    queries = model.heads * model.head_dim
    if model.kv_lora_rank:
        rank = model.q_lora_rank
        attention = rank * (hidden + 1 + queries) if rank else hidden * queries
        attention += hidden * (model.kv_lora_rank + model.qk_rope_head_dim) + model.kv_lora_rank
        attention += model.kv_lora_rank * model.heads * (model.qk_nope_head_dim + model.v_head_dim)
        attention += model.heads * model.v_head_dim * hidden
    else:
        keys = model.kv_heads * model.head_dim
        attention = hidden * (queries + 2 * keys) + queries * hidden
        attention += (queries + 2 * keys if "qkv" in biases else 0) + (hidden if "attention_output" in biases else 0)
        attention += {False: 0, "head": 2 * model.head_dim, "full": queries + keys}[model.qk_norm]
    attention += model.heads if model.attention_sinks else 0

    router = hidden * model.experts
    router += model.experts * (("router" in biases) + model.router_correction_bias)
    moe = router + model.experts * mlp(model.moe_ffn, "experts" in biases)
    moe += (mlp(model.shared_ffn, "mlp" in biases) if model.shared_ffn else 0) + (hidden if model.shared_gate else 0)

    total = model.layers * (attention + model.norms_per_layer * norm)
    total += sum(moe if model.has_experts(layer) else mlp(model.ffn, "mlp" in biases) for layer in range(model.layers))
    total += norm * (model.final_norm + model.embedding_norm)
    total += hidden * (model.vocab + model.max_positions)
    if not model.tied_embeddings:
        total += hidden * model.vocab
    return total + (model.vocab if "lm_head" in biases else 0)


def sizes(model: Architecture) -> dict[str, Any]:
    """What the model is made of, without what is said about it."""
    about = {"name", "aliases", "parameters", "parameters_source", "source", "note"}
    return {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in about}
