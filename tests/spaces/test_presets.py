"""Models by name: every preset has the parameters that were published, and is found however it is spelled."""

import re
from pathlib import Path

import pytest

from spaces import architecture as module
from spaces.architecture import Architecture, UnknownModel, find, names, read
from tests.model_sizes import parameter_count


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




def test_a_name_that_is_only_begun_is_answered_with_those_that_begin_so() -> None:
    with pytest.raises(UnknownModel, match=r"nearest are llama-3"):
        find("llama-3")
