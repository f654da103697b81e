"""Architectures: the presets against their published parameter counts, and every way to read one."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces import architecture as module
from spaces.architecture import Architecture, BadConfig, UnknownModel, find, from_dimensions, names, read
from spaces.configurations import _READERS, from_config

MINIMAL: dict[str, Any] = {
    "name": "small",
    "layers": 12,
    "hidden": 64,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "ffn": 128,
    "vocab": 1000,
    "max_sequence": 512,
}
MOE = {"experts": 8, "experts_per_token": 2, "moe_ffn": 32}
MLA = {"kv_heads": 4, "kv_lora_rank": 8, "qk_nope_head_dim": 12, "qk_rope_head_dim": 4, "v_head_dim": 12}


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


# --- presets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_a_preset_has_exactly_the_parameters_that_were_published(name: str) -> None:
    preset = find(name)
    assert preset.name == name
    assert preset.source
    if preset.parameters is not None:
        assert preset.parameters_source
        assert parameter_count(preset) == preset.parameters


# The last size in a name; where experts are counted too ("8x7b", "30b-a3b") it is not the size of the whole.
SIZED = {name: re.findall(r"(\d+(?:\.\d+)?)([bt])", name) for name in names() if not re.search(r"\dx\d|-a\d", name)}


@pytest.mark.parametrize("name", [name for name, said in SIZED.items() if said])
def test_a_preset_is_as_large_as_its_name_says(name: str) -> None:
    model = find(name)
    number, unit = SIZED[name][-1]
    parameters = float(number) * (1e12 if unit == "t" else 1e9)
    # Names round by up to a quarter, and some leave the embedding out.
    embedding = model.hidden * model.vocab * (1 if model.tied_embeddings else 2)
    assert 0.75 * (parameter_count(model) - embedding) <= parameters <= 1.25 * parameter_count(model)


@pytest.mark.parametrize(
    "name",
    [f"gpt-{billions}b" for billions in (1.7, 3.6, 7.5, 18.4, 39.1, 76.1, 145.6, 174.6, 310.1, 529.6, 1008)],
)
def test_the_megatron_models_follow_the_formula_of_their_paper(name: str) -> None:
    model = find(name)
    layers, hidden, vocab, sequence = model.layers, model.hidden, model.vocab, model.max_sequence
    # Narayanan et al. 2021, eq. 2: 12lh²(1 + 13/12h + (V+s)/12lh); it leaves out the final norm.
    formula = 12 * layers * hidden**2 + 13 * layers * hidden + (vocab + sequence) * hidden
    assert parameter_count(model) == formula + 2 * hidden
    assert round(formula / 1e9, 1) == float(name.removeprefix("gpt-").removesuffix("b"))


def test_a_learned_position_table_grows_with_the_sequence() -> None:
    # NumParams of llm-foundry's 7b configuration at 512, 2048 and 65536 tokens.
    model = find("mpt-7b")
    for sequence, published in ((512, 6652567552), (2048, 6658859008), (65536, 6918905856)):
        longer = model.with_dimensions(max_sequence=sequence, max_positions=sequence)
        assert parameter_count(longer) == published


@pytest.mark.parametrize(
    ("spelled", "preset"),
    [
        ("Qwen/Qwen3-32B", "qwen3-32b"),
        ("qwen3_0_6b", "qwen3-0.6b"),
        ("QWEN2.5 72B", "qwen2.5-72b"),
        ("meta-llama/Llama-3.1-70B-Instruct", "llama-3.1-70b"),
        ("meta-llama/Llama-2-70b-chat-hf", "llama-2-70b"),
        ("nvidia/Llama-3.1-405B-Instruct-FP8", "llama-3.1-405b"),
        ("llama3-8b", "llama-3.1-8b"),
        ("llama3-70b", "llama-3.1-70b"),
        ("llama3.1-405b", "llama-3.1-405b"),
        ("llama2-7b", "llama-2-7b"),
        ("llama2-34b", "llama-2-34b"),
        ("llama-65b", "llama-65b"),
        ("gpt3-175b", "gpt-175b"),
        ("gpt-175B", "gpt-175b"),
        ("gpt-174.6B", "gpt-175b"),
        ("gpt-529.6B", "gpt-530b"),
        ("gpt-530B", "gpt-530b"),
        ("gpt-1008B", "gpt-1t"),
        ("gpt-1T", "gpt-1t"),
        ("gpt-175B-megascale", "gpt-175b-megascale"),
        ("opt-1.3b", "opt-1.3b"),
        ("opt-13b", "opt-13b"),
        ("opt_1_3b", "opt-1.3b"),
        ("deepseek-ai/DeepSeek-R1", "deepseek-v3"),
        ("deepseek-ai/DeepSeek-V2-Lite-Chat", "deepseek-v2-lite"),
        ("google/gemma-3-27b-it", "gemma-3-27b"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("mistral small", "mistral-small-24b"),
        ("bigscience/bloom", "bloom-176b"),
        ("gpt3-5b", "gpt3-5b"),
        ("gpt3-20b", "gpt3-20b"),
        ("nemotron4-340b", "nemotron4-340b"),
    ],
)
def test_a_model_is_found_however_its_name_is_spelled(spelled: str, preset: str) -> None:
    assert find(spelled).name == preset


def test_every_name_and_alias_leads_to_its_own_preset() -> None:
    for name in names():
        for spelled in (name, *find(name).aliases):
            assert find(spelled) is find(name)
            assert find(f"Some-Org/{spelled.upper()}-Instruct-FP8") is find(name)


@pytest.mark.parametrize(("wanted", "near"), [("qwen3-33b", "qwen3-32b"), ("opt-17b", "opt-175b"), ("lama-2-7b", "llama-2-7b")])
def test_an_unknown_model_lists_the_nearest(wanted: str, near: str) -> None:
    with pytest.raises(UnknownModel, match=re.escape(near)):
        find(wanted)


@pytest.mark.parametrize("nothing", ["", "org/", "-instruct", "zzz"])
def test_a_name_of_nothing_is_unknown(nothing: str) -> None:
    with pytest.raises(UnknownModel):
        find(nothing)


def test_a_name_of_a_preset_parses_that_preset_only(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[Path] = []

    def counting(path: Path) -> Architecture:
        parsed.append(path)
        return read(path)

    monkeypatch.setattr(module, "read", counting)
    module._load.cache_clear()
    find("qwen3-32b")
    find("Qwen/Qwen3-32B")
    assert [path.stem for path in parsed] == ["qwen3-32b"]


# --- validation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"name": ""}, "name"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"hidden": 6.5}, "hidden must be a whole number"),
        ({"heads": True}, "heads must be a whole number"),
        ({"kv_heads": 3}, "multiple of kv_heads"),
        ({"vocab": "big"}, "vocab must be a whole number"),
        ({"sliding_window": -1, "full_attention_every": 2}, "sliding_window must be at least 0"),
        ({"gated": 1}, "gated must be true or false"),
        ({"source": None}, "source must be text"),
        ({"activation": "tanh"}, "silu, gelu"),
        ({"norm": "batchnorm"}, "rmsnorm"),
        ({"positions": "sinusoidal"}, "rotary"),
        ({"qk_norm": True}, "qk_norm"),
        ({"qk_norm": 0}, "qk_norm"),
        ({"biases": "qkv"}, "list of words"),
        ({"biases": {"output"}}, "not output"),
        ({"biases": {"norm"}}, "needs layernorm"),
        ({"biases": {"router"}}, "needs experts"),
        ({"aliases": [1]}, "list of words"),
        ({"parameters": 0}, "parameters must be at least 1"),
        ({"positions": "learned"}, "need max_positions"),
        ({"max_positions": 512}, "need max_positions"),
        ({"positions": "learned", "max_positions": 100}, "must cover max_sequence"),
        ({"full_attention_every": 2}, "needs a sliding_window"),
        ({"sliding_window": 64}, "no layer uses"),
        ({"experts": 8}, "moe_ffn"),
        ({**MOE, "experts_per_token": 9}, "between 1 and experts"),
        ({**MOE, "experts_per_token": 0}, "between 1 and experts"),
        ({"moe_ffn": 32}, "moe_ffn given without experts"),
        ({"moe_every": 2}, "need experts"),
        ({"shared_gate": True}, "need experts"),
        ({**MOE, "shared_gate": True}, "needs shared_experts"),
        ({**MOE, "shared_experts": 1}, "go together"),
        ({**MOE, "dense_layers": 12}, "leave no layer"),
        ({**MOE, "dense_layers": 11, "moe_every": 2}, "leave no layer"),
        ({"v_head_dim": 8}, "without kv_lora_rank"),
        ({**MLA, "v_head_dim": 0}, "needs qk_nope_head_dim"),
        ({**MLA, "head_dim": 32}, "must be qk_nope_head_dim"),
        ({**MLA, "kv_heads": 2}, "equal to heads"),
    ],
)
def test_sizes_that_do_not_fit_together_are_refused(change: dict[str, Any], complaint: str) -> None:
    Architecture(**MINIMAL)
    with pytest.raises(ValueError, match=complaint):
        Architecture(**{**MINIMAL, **change})


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"kv_heads.*activation|activation.*kv_heads"):
        Architecture(**{**MINIMAL, "kv_heads": 3, "activation": "tanh"})


@given(layers=st.integers(1, 60), every=st.integers(0, 9), dense=st.integers(0, 9), moe_every=st.integers(1, 4))
def test_layers_are_windowed_and_routed_by_their_periods(layers: int, every: int, dense: int, moe_every: int) -> None:
    window = {"sliding_window": 64, "full_attention_every": every} if every != 1 else {}
    model = Architecture(**{**MINIMAL, "layers": layers, **window})
    assert model.full_attention_layers == (layers // every if every else 0)
    assert model.expert_layers == 0
    if layers - dense >= moe_every:
        routed = model.with_dimensions(**MOE, dense_layers=dense, moe_every=moe_every)
        assert routed.expert_layers == (layers - dense) // moe_every
        assert not any(routed.has_experts(layer) for layer in range(dense))


def test_a_variant_is_validated_and_does_not_inherit_what_was_published() -> None:
    model = find("llama-3.1-8b")
    smaller = model.with_dimensions(layers=16)
    assert (smaller.layers, smaller.hidden) == (16, model.hidden)
    assert smaller.parameters is None
    assert smaller.aliases == ()
    assert model.with_dimensions() == model
    assert model.with_dimensions(layers=model.layers, name="renamed").parameters == model.parameters
    with pytest.raises(ValueError, match="multiple of kv_heads"):
        model.with_dimensions(heads=12)
    with pytest.raises(ValueError, match="no field 'layer'; the nearest are layers"):
        model.with_dimensions(layer=16)


# --- from a table -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpt-22b", "gpt-175b", "gpt-1t", "gpt3-5b", "mt-nlg-530b", "gpt-175b-megascale"])
def test_a_row_of_a_gpt_table_becomes_the_preset(name: str) -> None:
    model = find(name)
    row = (model.layers, model.hidden, model.heads, model.kv_heads, model.ffn, model.vocab)
    filled, assumptions = from_dimensions(name, *row)
    assert sizes(filled) == sizes(model)
    assert any("GPT convention" in assumption for assumption in assumptions)


@pytest.mark.parametrize("name", ["llama-2-7b", "llama-3.1-405b", "llama-65b", "mixtral-8x7b"])
def test_a_row_of_a_llama_table_becomes_the_preset(name: str) -> None:
    model = find(name)
    row = (model.layers, model.hidden, model.heads, model.kv_heads, model.ffn, model.vocab)
    filled, assumptions = from_dimensions(name, *row, experts=model.experts, max_sequence=model.max_sequence)
    assert sizes(filled) == sizes(model)
    assert any("Llama convention" in assumption for assumption in assumptions)


def test_what_is_given_is_not_assumed() -> None:
    _, silent = from_dimensions("m", 2, 64, 4, 4, 256, 100, head_dim=16, gated=True)
    assert len(silent) == 1
    model, assumed = from_dimensions("m", 2, 64, 4, None, 256, 100, positions="rotary", max_positions=0)
    assert (model.kv_heads, model.positions, model.norm) == (4, "rotary", "layernorm")
    assert any("kv_heads not given" in assumption for assumption in assumed)
    plain, _ = from_dimensions("m", 2, 64, 4, 2, 256, 100, gated=False)
    assert not plain.gated
    with pytest.raises(ValueError, match="give head_dim"):
        from_dimensions("m", 2, 65, 4, 4, 260, 100)


# --- files of our own -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[1, 2]", "must be a mapping"),
        ("name: [", "not YAML"),
        ("name: \x00", "not YAML"),
        ("name: small", "'layers' is missing"),
        ("{name: small, layer: 2}", "unknown field 'layer'; the nearest are layers"),
        (json.dumps({**MINIMAL, "kv_heads": 3}), "multiple of kv_heads"),
        (json.dumps({**MINIMAL, "vocab": "1e5"}), "whole number"),
    ],
)
def test_a_bad_preset_file_is_named_with_its_fault(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(BadConfig, match=rf"bad\.yaml.*{complaint}"):
        read(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for reader in (read, from_config):
        with pytest.raises(BadConfig, match=r"nowhere.*cannot be read"):
            reader(tmp_path / "nowhere")


# --- Hugging Face configurations --------------------------------------------------------------------------------------


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


def test_a_name_that_is_only_begun_is_answered_with_those_that_begin_so() -> None:
    with pytest.raises(UnknownModel, match=r"nearest are llama-3"):
        find("llama-3")
