"""An architecture: sizes that fit together, rows of a table, files of our own form."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.architecture import Architecture, BadConfig, find, from_dimensions, read
from spaces.configurations import from_config
from tests.model_sizes import sizes

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
