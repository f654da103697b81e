"""Hugging Face's `config.json` as an architecture: how each family of models spells its sizes and choices."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spaces.architecture import Architecture, BadConfig


@dataclass(frozen=True, slots=True)
class _Config:
    """A parsed config.json that knows its file, so that every complaint can name it."""

    path: Path
    fields: Mapping[str, Any]

    def given(self, *keys: str) -> Any:
        """The first of `keys` that is there and not null; None when none is."""
        return next((self.fields[key] for key in keys if self.fields.get(key) is not None), None)

    def count(self, *keys: str, default: int | None = None) -> int:
        """A size; what may be absent (experts, windows) may also be 0, and its default says so."""
        value = self.given(*keys)
        if value is None:
            if default is None:
                raise BadConfig(f"{self.path}: field {keys[0]!r} is missing (model_type {self.model_type!r})")
            return default
        # Expansion ratios and widths are written as 4 or 4.0; 4.5 would be another architecture.
        if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
            raise BadConfig(f"{self.path}: field {keys[0]!r} must be a whole number, not {value!r}")
        if value < (0 if default == 0 else 1):
            raise BadConfig(f"{self.path}: field {keys[0]!r} must be positive, not {value!r}")
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.given(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise BadConfig(f"{self.path}: field {key!r} must be true or false, not {value!r}")
        return value

    def activation(self, *keys: str, default: str) -> str:
        value = self.given(*keys)
        spelled = default if value is None else value
        if not isinstance(spelled, str) or spelled not in _ACTIVATION_SPELLINGS:
            raise BadConfig(f"{self.path}: field {keys[0]!r} is {spelled!r}; known are {', '.join(_ACTIVATION_SPELLINGS)}")
        return _ACTIVATION_SPELLINGS[spelled]

    def items(self, key: str) -> list[Any]:
        """The list under `key`; empty when it is absent."""
        value = self.given(key)
        if not isinstance(value, list | None):
            raise BadConfig(f"{self.path}: field {key!r} must be a list, not {value!r}")
        return value or []

    def refuse(self, unsupported: bool, key: str, reason: str) -> None:
        if unsupported:
            raise BadConfig(f"{self.path}: field {key!r} is {self.fields.get(key)!r}: {reason}")

    @property
    def model_type(self) -> str:
        return str(self.fields.get("model_type"))


_ACTIVATION_SPELLINGS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "relu2": "relu2",
}


def from_config(path: str | Path) -> Architecture:
    """The architecture in a Hugging Face `config.json`, or in the folder that holds one.

    Of a model with several towers the text tower (`text_config`) is read. Fields that the library leaves out when they
    have its default take that default; sizes are never guessed. Multi-token-prediction layers are left out.

    Raises `BadConfig`, naming the file and the field, for a model type that is not supported (the message lists those
    that are), a missing size, or a choice that `Architecture` cannot express.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfig(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise BadConfig(f"{path}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadConfig(f"{path}: must be a JSON object, not {type(fields).__name__}")
    tower = fields.get("text_config")
    config = _Config(path, fields)
    if isinstance(tower, dict):
        # Whether the embeddings are tied is said of the whole model.
        config = _Config(path, {"tie_word_embeddings": fields.get("tie_word_embeddings"), **tower})
    if config.model_type not in _READERS:
        raise BadConfig(
            f"{path}: field 'model_type' is {config.fields.get('model_type')!r}; supported are {', '.join(_READERS)}"
        )
    published = str(fields.get("_name_or_path") or "").rstrip("/").rsplit("/", maxsplit=1)[-1]
    name = published or path.resolve().parent.name
    try:
        return Architecture(name=name, source=str(path), **_READERS[config.model_type](config))
    except BadConfig:
        raise
    except ValueError as error:
        raise BadConfig(f"{path}: {error}") from error


def _llama(config: _Config) -> dict[str, Any]:
    """The fields that Llama and its many descendants spell alike."""
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    biases = set()
    if config.flag("attention_bias", default=False):
        biases |= {"qkv", "attention_output"}
    if config.flag("mlp_bias", default=False):
        biases |= {"mlp"}
    return {
        "layers": config.count("num_hidden_layers"),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": config.count("num_key_value_heads", default=heads),
        "head_dim": config.count("head_dim", default=hidden // heads),
        "ffn": config.count("intermediate_size"),
        "vocab": config.count("vocab_size"),
        "max_sequence": config.count("max_position_embeddings"),
        "activation": config.activation("hidden_act", "hidden_activation", default="silu"),
        "tied_embeddings": config.flag("tie_word_embeddings", default=False),
        "biases": frozenset(biases),
    }


def _windows(config: _Config, window: str, every: int) -> dict[str, Any]:
    """Sliding windows: full attention in every `every`-th layer (0 = none), unless a list of layer types says otherwise."""
    size = config.count(window, default=0)
    if size == 0 or every == 1:
        return {}
    kinds = config.items("layer_types")
    if not kinds:
        return {"sliding_window": size, "full_attention_every": every}
    full = [kind == "full_attention" for kind in kinds]
    if all(full):
        return {}
    # The first full layer ends the first period.
    every = full.index(True) + 1 if any(full) else 0
    if full != [every > 0 and (layer + 1) % every == 0 for layer in range(len(full))]:
        raise BadConfig(f"{config.path}: field 'layer_types' has no regular period of full and windowed layers")
    return {"sliding_window": size, "full_attention_every": every}


def _mistral(config: _Config) -> dict[str, Any]:
    return _llama(config) | _windows(config, "sliding_window", every=0)


def _mixtral(config: _Config) -> dict[str, Any]:
    return _mistral(config) | {
        "experts": config.count("num_local_experts"),
        "experts_per_token": config.count("num_experts_per_tok"),
        "moe_ffn": config.count("intermediate_size"),
    }


def _qwen_windows(config: _Config) -> dict[str, Any]:
    if not config.flag("use_sliding_window", default=False):
        return {}
    last_full = config.count("max_window_layers", default=0)
    if last_full >= config.count("num_hidden_layers"):
        return {}
    config.refuse(last_full > 0, "max_window_layers", "windows in the upper layers only cannot be expressed")
    return _windows(config, "sliding_window", every=0)


def _qwen2(config: _Config) -> dict[str, Any]:
    return _llama(config) | _qwen_windows(config) | {"biases": frozenset({"qkv"})}


def _qwen3(config: _Config) -> dict[str, Any]:
    head_dim = config.count("head_dim", default=128)
    return _llama(config) | _qwen_windows(config) | {"qk_norm": "head", "head_dim": head_dim}


def _qwen_experts(config: _Config) -> dict[str, Any]:
    dense = config.items("mlp_only_layers")
    config.refuse(
        any(layer not in dense for layer in range(len(dense))), "mlp_only_layers", "only the first layers can be dense"
    )
    every = config.count("decoder_sparse_step", default=1)
    config.refuse(bool(dense) and every > 1, "mlp_only_layers", "cannot be combined with decoder_sparse_step")
    return {
        "experts": config.count("num_experts"),
        "experts_per_token": config.count("num_experts_per_tok"),
        "moe_ffn": config.count("moe_intermediate_size"),
        "dense_layers": len(dense),
        "moe_every": every,
    }


def _qwen2_moe(config: _Config) -> dict[str, Any]:
    shared = {
        "shared_experts": 1,
        "shared_ffn": config.count("shared_expert_intermediate_size"),
        "shared_gate": True,
    }
    return _qwen2(config) | _qwen_experts(config) | shared


def _qwen3_moe(config: _Config) -> dict[str, Any]:
    return _qwen3(config) | _qwen_experts(config)


def _deepseek(config: _Config) -> dict[str, Any]:
    config.refuse(config.flag("attention_bias", default=False), "attention_bias", "biased latent projections are not supported")
    heads = config.count("num_attention_heads")
    nope, rope = config.count("qk_nope_head_dim"), config.count("qk_rope_head_dim")
    latent = {
        "kv_heads": heads,
        "head_dim": nope + rope,
        "q_lora_rank": config.count("q_lora_rank", default=0),
        "kv_lora_rank": config.count("kv_lora_rank"),
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": rope,
        "v_head_dim": config.count("v_head_dim"),
    }
    experts = config.count("n_routed_experts", default=0)
    if experts == 0:
        return _llama(config) | latent
    frequency = config.count("moe_layer_freq", default=1)
    config.refuse(frequency != 1, "moe_layer_freq", "only 1 is supported")
    width, shared = config.count("moe_intermediate_size"), config.count("n_shared_experts", default=0)
    routed = {
        "experts": experts,
        "experts_per_token": config.count("num_experts_per_tok"),
        "moe_ffn": width,
        "shared_experts": shared,
        "shared_ffn": shared * width,
        "dense_layers": config.count("first_k_dense_replace", default=0),
        "router_correction_bias": config.given("topk_method") == "noaux_tc" or config.model_type == "deepseek_v3",
        "routing_groups": config.count("topk_group", default=0) if config.count("n_group", default=1) > 1 else 0,
    }
    return _llama(config) | latent | routed


def _gemma(config: _Config) -> dict[str, Any]:
    return _llama(config) | {
        "head_dim": config.count("head_dim", default=256),
        # Gemma's first files say "gelu" and mean its tanh form, which the library then uses: the same to us.
        "activation": config.activation("hidden_activation", "hidden_act", default="gelu_pytorch_tanh"),
        "tied_embeddings": config.flag("tie_word_embeddings", default=True),
    }


def _gemma2(config: _Config) -> dict[str, Any]:
    return _gemma(config) | _windows(config, "sliding_window", every=2) | {"norms_per_layer": 4}


def _gemma3_text(config: _Config) -> dict[str, Any]:
    # The published files leave out what equals the library's defaults, the vocabulary and the heads of the 4B among it.
    filled = {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "sliding_window": 4096}
    filled["max_position_embeddings"] = 131072
    config = _Config(config.path, {**filled, **{k: v for k, v in config.fields.items() if v is not None}})
    every = config.count("sliding_window_pattern", "_sliding_window_pattern", default=6)
    return _gemma(config) | _windows(config, "sliding_window", every=every) | {"norms_per_layer": 4, "qk_norm": "head"}


def _nemotron(config: _Config) -> dict[str, Any]:
    fields = _llama(config)
    return fields | {
        "gated": False,
        "activation": config.activation("hidden_act", default="relu2"),
        "norm": "layernorm",
        "biases": fields["biases"] | {"norm"},
    }


def _gpt_oss(config: _Config) -> dict[str, Any]:
    return (
        _llama(config)
        | _windows(config, "sliding_window", every=2)
        | {
            "experts": config.count("num_local_experts"),
            "experts_per_token": config.count("num_experts_per_tok", "experts_per_token"),
            "moe_ffn": config.count("intermediate_size"),
            "biases": frozenset({"qkv", "attention_output", "router", "experts"})
            if config.flag("attention_bias", default=True)
            else frozenset({"router", "experts"}),
            "attention_sinks": True,
        }
    )


def _llama4_text(config: _Config) -> dict[str, Any]:
    # The plain name is the experts' width here, and the shared expert's; dense layers have one of their own.
    width, every = config.count("intermediate_size"), config.count("interleave_moe_layer_step", default=1)
    listed = config.items("moe_layers")
    regular = list(range(every - 1, config.count("num_hidden_layers"), every))
    config.refuse(bool(listed) and listed != regular, "moe_layers", "does not follow interleave_moe_layer_step")
    return (
        _llama(config)
        | _windows(config, "attention_chunk_size", every=config.count("no_rope_layer_interval", default=4))
        | {
            "ffn": config.count("intermediate_size_mlp"),
            "experts": config.count("num_local_experts"),
            "experts_per_token": config.count("num_experts_per_tok"),
            "moe_ffn": width,
            "shared_experts": 1,
            "shared_ffn": width,
            "moe_every": every,
        }
    )


def _gpt(config: _Config, hidden: int, heads: int, ffn: int, default_activation: str) -> dict[str, Any]:
    """What the models of GPT-2's line share: plain MLP, layer norm, biases, one key/value head per head."""
    return {
        "hidden": hidden,
        "heads": heads,
        "kv_heads": heads,
        "head_dim": hidden // heads,
        "ffn": ffn,
        "vocab": config.count("vocab_size"),
        "gated": False,
        "activation": config.activation("activation_function", "hidden_act", default=default_activation),
        "norm": "layernorm",
        "tied_embeddings": config.flag("tie_word_embeddings", default=True),
        "biases": frozenset({"qkv", "attention_output", "mlp", "norm"}),
    }


def _gpt2(config: _Config) -> dict[str, Any]:
    hidden, positions = config.count("n_embd"), config.count("n_positions", "n_ctx")
    ffn = config.count("n_inner", default=4 * hidden)
    return _gpt(config, hidden, config.count("n_head"), ffn, "gelu_new") | {
        "layers": config.count("n_layer"),
        "positions": "learned",
        "max_positions": positions,
        "max_sequence": positions,
    }


def _gpt_neox(config: _Config) -> dict[str, Any]:
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    fields = _gpt(config, hidden, heads, config.count("intermediate_size"), "gelu") | {
        "layers": config.count("num_hidden_layers"),
        "max_sequence": config.count("max_position_embeddings"),
        "tied_embeddings": config.flag("tie_word_embeddings", default=False),
    }
    if not config.flag("attention_bias", default=True):
        fields["biases"] -= {"qkv", "attention_output"}
    return fields


def _opt(config: _Config) -> dict[str, Any]:
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    narrow = config.count("word_embed_proj_dim", default=hidden) != hidden
    config.refuse(narrow, "word_embed_proj_dim", "embeddings narrower than hidden_size are not supported")
    after = not config.flag("do_layer_norm_before", default=True)
    config.refuse(after, "do_layer_norm_before", "layer norms after the block are not supported")
    fields = _gpt(config, hidden, heads, config.count("ffn_dim"), "relu")
    sequence = config.count("max_position_embeddings")
    if not config.flag("enable_bias", default=True):
        fields["biases"] -= {"qkv", "attention_output", "mlp"}
    return fields | {
        "layers": config.count("num_hidden_layers"),
        "positions": "learned",
        # The table keeps two rows for the padding offset of its origin, fairseq.
        "max_positions": sequence + 2,
        "max_sequence": sequence,
    }


def _bloom(config: _Config) -> dict[str, Any]:
    hidden = config.count("hidden_size", "n_embed")
    return _gpt(config, hidden, config.count("n_head", "num_attention_heads"), 4 * hidden, "gelu") | {
        "layers": config.count("n_layer", "num_hidden_layers"),
        "positions": "alibi",
        "embedding_norm": True,
        "max_sequence": config.count("seq_length", default=2048),
    }


def _mpt(config: _Config) -> dict[str, Any]:
    hidden, sequence = config.count("d_model"), config.count("max_seq_len")
    ffn = config.count("expansion_ratio", default=4) * hidden
    fields = _gpt(config, hidden, config.count("n_heads"), ffn, "gelu")
    fields |= {"layers": config.count("n_layers"), "max_sequence": sequence}
    attention_fields = config.given("attn_config") or {}
    config.refuse(not isinstance(attention_fields, dict), "attn_config", "must be an object")
    attention = _Config(config.path, attention_fields)
    if attention.flag("alibi", default=False):
        fields["positions"] = "alibi"
    elif config.flag("learned_pos_emb", default=True):
        fields |= {"positions": "learned", "max_positions": sequence}
    else:
        fields["positions"] = "rotary" if attention.flag("rope", default=False) else "none"
    if config.flag("no_bias", default=False):
        fields["biases"] = frozenset()
    return fields


_READERS: Mapping[str, Callable[[_Config], dict[str, Any]]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "bloom": _bloom,
    "mpt": _mpt,
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen2_moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "kimi_k2": _deepseek,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3_text,
    "phi3": _mistral,
    "nemotron": _nemotron,
    "gpt_oss": _gpt_oss,
    "llama4_text": _llama4_text,
}
