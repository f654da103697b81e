"""Hugging Face configurations: each becomes the preset of its model, or is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest

from spaces.architecture import BadConfig, find
from spaces.configurations import _READERS, from_config
from tests.model_sizes import parameter_count, sizes


def common(layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, vocab: int, sequence: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "max_position_embeddings": sequence,
    }


LATENT = {
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "moe_layer_freq": 1,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048,
    "n_shared_experts": 1,
    "topk_method": "noaux_tc",
}

CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2-xl": {
        "model_type": "gpt2",
        "n_layer": 48,
        "n_embd": 1600,
        "n_head": 25,
        "n_positions": 1024,
        "vocab_size": 50257,
        "n_inner": None,
        "activation_function": "gelu_new",
    },
    "gpt-neox-20b": {
        "model_type": "gpt_neox",
        **common(44, 6144, 64, 64, 24576, 50432, 2048),
        "hidden_act": "gelu_fast",
        "tie_word_embeddings": False,
    },
    "opt-13b": {
        "model_type": "opt",
        "num_hidden_layers": 40,
        "hidden_size": 5120,
        "num_attention_heads": 40,
        "ffn_dim": 20480,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "word_embed_proj_dim": 5120,
        "activation_function": "relu",
        "do_layer_norm_before": True,
    },
    "bloom-176b": {
        "model_type": "bloom",
        "n_layer": 70,
        "n_embed": 14336,
        "num_attention_heads": 112,
        "vocab_size": 250880,
        "seq_length": 2048,
    },
    "mpt-7b": {
        "model_type": "mpt",
        "d_model": 4096,
        "n_layers": 32,
        "n_heads": 32,
        "expansion_ratio": 4,
        "max_seq_len": 2048,
        "vocab_size": 50368,
        "attn_config": {"alibi": False},
        "learned_pos_emb": True,
        "no_bias": False,
    },
    "llama-2-7b": {"model_type": "llama", **common(32, 4096, 32, 32, 11008, 32000, 4096)},
    "llama-3.2-3b": {
        "model_type": "llama",
        **common(28, 3072, 24, 8, 8192, 128256, 131072),
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "mistral-7b": {"model_type": "mistral", **common(32, 4096, 32, 8, 14336, 32000, 32768), "sliding_window": 4096},
    "mistral-7b-v0.3": {"model_type": "mistral", **common(32, 4096, 32, 8, 14336, 32768, 32768), "sliding_window": None},
    "mixtral-8x7b": {
        "model_type": "mixtral",
        **common(32, 4096, 32, 8, 14336, 32000, 32768),
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
    "qwen2.5-7b": {
        "model_type": "qwen2",
        **common(28, 3584, 28, 4, 18944, 152064, 131072),
        "use_sliding_window": False,
        "sliding_window": 131072,
        "max_window_layers": 28,
    },
    "qwen1.5-moe-a2.7b": {
        "model_type": "qwen2_moe",
        **common(24, 2048, 16, 16, 5632, 151936, 8192),
        "num_experts": 60,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
        "decoder_sparse_step": 1,
    },
    "qwen3-32b": {"model_type": "qwen3", **common(64, 5120, 64, 8, 25600, 151936, 40960), "head_dim": 128},
    "qwen3-30b-a3b": {
        "model_type": "qwen3_moe",
        **common(48, 2048, 32, 4, 6144, 151936, 40960),
        "head_dim": 128,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
        "mlp_only_layers": [],
    },
    "deepseek-v3": {
        "model_type": "deepseek_v3",
        **common(61, 7168, 128, 128, 18432, 129280, 163840),
        **LATENT,
        "n_routed_experts": 256,
        "n_group": 8,
        "topk_group": 4,
        "first_k_dense_replace": 3,
        "num_nextn_predict_layers": 1,
    },
    "deepseek-v2-lite": {
        "model_type": "deepseek_v2",
        **common(27, 2048, 16, 16, 10944, 102400, 163840),
        **LATENT,
        "q_lora_rank": None,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 1408,
        "first_k_dense_replace": 1,
        "topk_method": "greedy",
    },
    "kimi-k2": {
        "model_type": "kimi_k2",
        **common(61, 7168, 64, 64, 18432, 163840, 131072),
        **LATENT,
        "n_routed_experts": 384,
        "first_k_dense_replace": 1,
    },
    "gemma-7b": {
        "model_type": "gemma",
        **common(28, 3072, 16, 16, 24576, 256000, 8192),
        "head_dim": 256,
        "hidden_act": "gelu",
    },
    "gemma-2-9b": {
        "model_type": "gemma2",
        **common(42, 3584, 16, 8, 14336, 256000, 8192),
        "head_dim": 256,
        "sliding_window": 4096,
        "hidden_activation": "gelu_pytorch_tanh",
    },
    # As published: the text tower leaves out the vocabulary, the context and what else equals the library's defaults.
    "gemma-3-27b": {
        "model_type": "gemma3",
        "text_config": {
            "model_type": "gemma3_text",
            "head_dim": 128,
            "hidden_size": 5376,
            "intermediate_size": 21504,
            "num_attention_heads": 32,
            "num_hidden_layers": 62,
            "num_key_value_heads": 16,
            "sliding_window": 1024,
        },
        "vision_config": {"hidden_size": 1152},
    },
    "phi-3-mini": {"model_type": "phi3", **common(32, 3072, 32, 32, 8192, 32064, 4096), "sliding_window": 2047},
    "nemotron4-340b": {
        "model_type": "nemotron",
        **common(96, 18432, 96, 8, 73728, 256000, 4096),
        "hidden_act": "relu2",
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        **common(24, 2880, 64, 8, 2880, 201088, 131072),
        "head_dim": 64,
        "attention_bias": True,
        "num_local_experts": 32,
        "num_experts_per_tok": 4,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
    },
    "llama-4-maverick": {
        "model_type": "llama4",
        "text_config": {
            "model_type": "llama4_text",
            **common(48, 5120, 40, 8, 8192, 202048, 1048576),
            "head_dim": 128,
            "intermediate_size_mlp": 16384,
            "num_local_experts": 128,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "moe_layers": list(range(1, 48, 2)),
            "attention_chunk_size": 8192,
        },
        "tie_word_embeddings": False,
    },
}


def written(folder: Path, config: object) -> Path:
    path = folder / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_a_published_configuration_is_the_preset_of_that_name(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, CONFIGS[name])
    model = from_config(path)
    assert sizes(model) == sizes(find(name))
    assert from_config(tmp_path) == model
    assert model.name == tmp_path.name


def test_every_supported_model_type_is_tried() -> None:
    tried = {config.get("text_config", config)["model_type"] for config in CONFIGS.values()}
    assert tried == set(_READERS)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_without_a_size_names_that_size(tmp_path: Path, name: str) -> None:
    tower = CONFIGS[name].get("text_config", CONFIGS[name])
    # Not every number is necessary, but the width of the model is, under each of its names.
    width = next(key for key in ("hidden_size", "n_embd", "n_embed", "d_model") if key in tower)
    path = written(tmp_path, {key: value for key, value in tower.items() if key != width})
    with pytest.raises(BadConfig, match=r"config\.json: field '(hidden_size|n_embd|d_model)' is missing"):
        from_config(path)


@pytest.mark.parametrize(
    ("name", "change", "complaint"),
    [
        ("llama-2-7b", {"model_type": "mamba"}, "'model_type' is 'mamba'; supported are gpt2"),
        ("llama-2-7b", {"model_type": None}, "'model_type' is None"),
        ("llama-2-7b", {"num_attention_heads": 0}, "'num_attention_heads' must be positive"),
        ("llama-2-7b", {"hidden_size": 4096.5}, "'hidden_size' must be a whole number"),
        ("llama-2-7b", {"hidden_size": "wide"}, "'hidden_size' must be a whole number"),
        ("llama-2-7b", {"attention_bias": "yes"}, "'attention_bias' must be true or false"),
        ("llama-2-7b", {"hidden_act": "tanh"}, "'hidden_act' is 'tanh'; known are silu"),
        ("llama-2-7b", {"hidden_act": ["silu"]}, "'hidden_act' is"),
        ("mpt-7b", {"attn_config": "alibi"}, "'attn_config' is 'alibi'"),
        ("gpt-oss-20b", {"layer_types": "full"}, "'layer_types' must be a list"),
        ("llama-2-7b", {"num_key_value_heads": 7}, "multiple of kv_heads"),
        ("opt-13b", {"word_embed_proj_dim": 512}, "'word_embed_proj_dim' is 512"),
        ("opt-13b", {"do_layer_norm_before": False}, "'do_layer_norm_before' is False"),
        ("qwen2.5-7b", {"use_sliding_window": True, "max_window_layers": 20}, "'max_window_layers' is 20"),
        ("qwen3-30b-a3b", {"mlp_only_layers": [3]}, "'mlp_only_layers' is"),
        ("deepseek-v3", {"moe_layer_freq": 2}, "'moe_layer_freq' is 2"),
        ("deepseek-v3", {"attention_bias": True}, "'attention_bias' is True"),
        (
            "gpt-oss-20b",
            {"layer_types": ["full_attention", *["sliding_attention"] * 23]},
            "'layer_types' has no regular period",
        ),
    ],
)
def test_what_cannot_be_expressed_is_refused(tmp_path: Path, name: str, change: dict[str, Any], complaint: str) -> None:
    path = written(tmp_path, {**CONFIGS[name], **change})
    with pytest.raises(BadConfig, match=rf"config\.json: .*{complaint}"):
        from_config(path)


@pytest.mark.parametrize(("text", "complaint"), [("{", "not JSON"), ("[]", "must be a JSON object")])
def test_what_is_no_configuration_is_refused(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(BadConfig, match=complaint):
        from_config(written(tmp_path, text))


def test_options_of_a_configuration_are_read(tmp_path: Path) -> None:
    llama = CONFIGS["llama-2-7b"]
    biased = from_config(written(tmp_path, {**llama, "attention_bias": True, "mlp_bias": True, "_name_or_path": "org/x"}))
    assert (biased.name, biased.biases) == ("x", {"qkv", "attention_output", "mlp"})
    windowed = from_config(written(tmp_path, {**CONFIGS["qwen2.5-7b"], "use_sliding_window": True, "max_window_layers": 0}))
    assert windowed.full_attention_layers == 0
    released = {**CONFIGS["mpt-7b"], "vocab_size": 50432, "attn_config": {"alibi": True}, "no_bias": True}
    mpt = from_config(written(tmp_path, {**released, "learned_pos_emb": False}))
    # The released MPT-7B has 6,649,286,656 parameters.
    assert (mpt.positions, parameter_count(mpt)) == ("alibi", 6649286656)
    sparse = {**CONFIGS["qwen3-30b-a3b"], "mlp_only_layers": [0, 1]}
    assert from_config(written(tmp_path, sparse)).expert_layers == 46
    full = {**CONFIGS["gpt-oss-20b"], "layer_types": ["full_attention"] * 24}
    assert from_config(written(tmp_path, full)).full_attention_layers == 24
