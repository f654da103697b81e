"""The serving space against brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces.architecture import find
from spaces.serving_plan import SERVING_PLAN, serving_code
from spaces.serving_space import serving_space

DEGREES = ("pipeline", "tensor", "attention_data", "expert", "expert_tensor", "data")
PLAIN = {"max_batch": [64], "token_budget": [8192]}
OWN = {"max_batch": 64.0, "token_budget": 8192.0, "kv_fraction": 0.9}


def legal(model: str, n: int) -> set[tuple[int, ...]]:
    """Every legal set of degrees, by trying all."""
    a = find(model)
    parts = [d for d in range(1, n + 1) if n % d == 0]
    found = set()
    for pp, tp, groups, ep, etp, dp in product(parts, repeat=6):
        stage = tp * groups
        kv = a.kv_lora_rank or a.kv_heads % tp == 0 or tp % a.kv_heads == 0
        sound = pp * stage * dp == n and a.heads % tp == 0 and a.ffn % tp == 0 and kv and pp <= a.layers
        if a.experts:
            sound = sound and ep * etp == stage and a.experts % ep == 0 and a.moe_ffn % etp == 0
        else:
            sound = sound and groups == ep == etp == 1
        if sound:
            found.add((pp, tp, groups, ep, etp, dp))
    return found


@pytest.mark.parametrize("model", ["llama-3.1-8b", "deepseek-v3", "qwen3-30b-a3b", "gemma-2-2b"])
@pytest.mark.parametrize("n", [1, 6, 8])
def test_every_point_is_one_that_trying_everything_finds_and_no_two_are_alike(model: str, n: int) -> None:
    space = serving_space(architecture=find(model), count=n, options=PLAIN, defaults=OWN)
    found = [tuple(int(batch[name][i]) for name in DEGREES) for batch in space.batches() for i in range(batch.n)]
    assert len(found) == len(set(found)) == space.size()
    assert set(found) <= legal(model, n)
    assert (1, 1, 1, 1, 1, n) in found


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 48), model=st.sampled_from(["llama-3.1-70b", "mixtral-8x7b", "deepseek-v3"]))
def test_every_point_fills_its_devices(n: int, model: str) -> None:
    space = serving_space(architecture=find(model), count=n, at_most=True, options=PLAIN, defaults=OWN)
    for batch in space.batches():
        replica = np.maximum(batch["tensor"] * batch["attention_data"], batch["expert_tensor"] * batch["expert"])
        assert np.array_equal(batch["pipeline"] * batch["data"] * replica, batch["devices"])
        assert np.all(batch["devices"] <= n)
        assert all(name in batch for name in SERVING_PLAN)


def test_an_unknown_axis_is_told_with_the_axes_there_are() -> None:
    with pytest.raises(ValueError, match=r"no serving axis contxt.*tensor"):
        serving_space(architecture=find("llama-3.1-8b"), count=8, options={"contxt": [1]}, defaults=OWN)


def test_formats_go_by_the_names_people_use() -> None:
    assert serving_code("precision", "AWQ") == serving_code("precision", "int4")
    assert serving_code("kv_precision", "fp8_e4m3") == serving_code("kv_precision", "fp8")
    with pytest.raises(ValueError, match="fp8"):
        serving_code("precision", "fp9")
