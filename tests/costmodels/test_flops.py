"""FLOPs by the published convention against the papers' closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from training_points import OLD, evaluate, one, problem

from costmodels.block_table import graphs
from costmodels.constants import find_stack
from costmodels.flops import convention_flops
from spaces.architecture import find
from spaces.columns import Columns
from spaces.plan import Recompute

GPTS = ["gpt-1.7b", "gpt-22b", "gpt-39.1b", "gpt-145.6b", "gpt-175b", "gpt-530b", "gpt-1t"]


def per_step(metrics: object, name: str) -> float:
    return one(metrics, name) * one(metrics, "step_time") * one(metrics, "devices")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", GPTS)
def test_hardware_flops_of_full_recomputation_are_narayanans_equation_3(name: str) -> None:
    """96·B·s·l·h²(1 + s/6h + V/16lh): forward, backward and the layers' forward again, full s², head included."""
    a = find(name)
    B, s, l, h, V = 8, a.max_sequence, a.layers, a.hidden, a.vocab  # noqa: E741
    asked = problem(a, stack="megatron-2022", sequence=s, global_batch=B)
    full = evaluate(asked, {"recompute": Recompute.FULL})
    layers = B * s * l * h**2
    assert per_step(full, "hardware_flops_per_device") == pytest.approx(96 * layers * (1 + s / (6 * h) + V / (16 * l * h)))
    assert per_step(full, "model_flops_per_device") == pytest.approx(72 * layers * (1 + s / (6 * h) + V / (12 * l * h)))


@pytest.mark.parametrize("name", ["gpt-22b", "gpt-175b"])
def test_selective_recomputation_adds_the_scores_once(name: str) -> None:
    """The product of queries and keys is redone, 2·B·s²·h·l FLOPs; the product with the values keeps its output
    (Korthikanti 2022 §5)."""
    a = find(name)
    B, s = 4, 2048
    asked = problem(a, stack="megatron-2022", sequence=s, global_batch=B)
    made = evaluate(asked, {"recompute": Recompute.SELECTIVE})
    extra = per_step(made, "hardware_flops_per_device") - per_step(made, "model_flops_per_device")
    assert extra == pytest.approx(2 * B * s**2 * a.hidden * a.layers)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "qwen2.5-7b", "mixtral-8x7b", "gpt-22b"])
def test_the_convention_is_six_per_active_parameter_and_twelve_per_score(name: str) -> None:
    """6·N tokens plus 12·l·s²·(heads·head_dim), N the parameters a token meets in products (Chowdhery 2022 app. B)."""
    a = find(name)
    mlp = 3 if a.gated else 2
    width = a.experts_per_token * a.moe_ffn if a.experts else a.ffn
    attention = a.hidden * a.head_dim * (2 * a.heads + 2 * a.kv_heads)
    active = a.layers * (attention + mlp * a.hidden * width + a.hidden * a.experts) + a.hidden * a.vocab
    s = 4096
    metrics = evaluate(problem(a, sequence=s, global_batch=2), {})
    expected = 2 * (6 * active * s + 12 * a.layers * s**2 * a.heads * a.head_dim)
    assert per_step(metrics, "model_flops_per_device") == pytest.approx(expected, rel=1e-9)


def test_causal_counting_halves_the_scores_alone() -> None:
    a = OLD
    stack = find_stack("megatron")
    s = np.array([1024.0, 2048.0, 1.0])
    at = problem(a).at(
        Columns.from_values({"sequence": s, "precision": np.full(3, 2)})
    )
    found = convention_flops(graphs(a, stack.traits), stack, at, 3)
    scores = 4 * a.layers * a.heads * a.head_dim
    np.testing.assert_allclose(found.full - found.causal, scores * (s**2 - s * (s + 1) / 2), rtol=1e-9)


def test_a_window_saves_executed_flops_and_none_of_the_convention() -> None:
    """Full s² or its causal half, whatever a window masks; only the time and what is executed see it."""
    a = find("mistral-7b")
    windowed, whole = (
        evaluate(problem(a.with_dimensions(sliding_window=w, full_attention_every=every), sequence=8192, global_batch=2), {})
        for w, every in ((256, 0), (0, 1))
    )
    assert per_step(windowed, "model_flops_per_device") == pytest.approx(per_step(whole, "model_flops_per_device"))
    assert one(windowed, "step_time") < one(whole, "step_time")
    assert windowed.parts["energy"]["compute"][0] < whole.parts["energy"]["compute"][0]
