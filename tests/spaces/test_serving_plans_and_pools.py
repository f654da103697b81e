"""The serving space against brute force: every legal plan once, no other, and pools that add up to the devices."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from spaces.architecture import find
from spaces.serving_space import PREFILL, Pools, engine_devices, serving_space
from spaces.space import Space

DEFAULTS = {"max_batch": 64, "token_budget": 2048, "kv_fraction": 0.9}
ONE = {"max_batch": (64,), "token_budget": (2048,)}
MESH = ("pipeline", "tensor", "attention_data", "expert", "expert_tensor", "data")


def plans(space: Space) -> list[dict[str, float]]:
    return [batch.row(i) for batch in space.batches() for i in range(batch.n)]


def legal(name: str, count: int) -> set[tuple[int, ...]]:
    """Meshes of one engine times replicas that fill `count` devices, by trying all."""
    model = find(name)
    found = set()
    degrees = range(1, count + 1)
    for p, t, a, e, x, d in itertools.product(degrees, repeat=6):
        wide = model.experts or model.kv_lora_rank
        if p * max(t * a, x * e) * d != count or model.layers % p or model.heads % t or (a & (a - 1)):
            continue
        if model.kv_heads % t and t % model.kv_heads:
            continue
        if not model.experts and ((e, x) != (1, 1) or model.ffn % (t * a) or (a > 1 and not wide)):
            continue
        if model.experts and (model.experts % e or model.moe_ffn % x or x * e != t * a):
            continue
        found.add((p, t, a, e, x, d))
    return found


@pytest.mark.parametrize(("name", "count"), [("llama-3.1-8b", 8), ("mixtral-8x7b", 4), ("llama-3.1-8b", 6)])
def test_aggregated_plans_are_those_that_brute_force_finds(name: str, count: int) -> None:
    space = serving_space(architecture=find(name), count=count, options=ONE, defaults=DEFAULTS)
    found = [tuple(int(plan[symbol]) for symbol in MESH) for plan in plans(space)]
    assert len(found) == len(set(found)) == space.size()
    assert set(found) == legal(name, count)


def test_pools_add_up_to_the_devices_and_each_pair_comes_once() -> None:
    model = find("llama-3.1-8b")
    space = serving_space(
        architecture=model, count=6, modes=(1,), options=ONE, prefill={"token_budget": (2048,)}, defaults=DEFAULTS
    )
    found = plans(space)
    keys = [tuple(int(plan[start + symbol]) for start in ("", PREFILL) for symbol in MESH) for plan in found]
    meshes = {some: legal("llama-3.1-8b", some) for some in range(1, 6)}
    pairs = {(*then, *first) for some in meshes for then in meshes[some] for first in meshes[6 - some]}
    assert len(keys) == len(set(keys))
    assert set(keys) == pairs
    for plan in found:
        whole = {symbol: np.asarray(value) for symbol, value in plan.items()}
        used = engine_devices(whole) * whole["data"] + engine_devices(whole, PREFILL) * whole[PREFILL + "data"]
        assert used == 6


def test_at_most_holds_every_smaller_count() -> None:
    model = find("llama-3.1-8b")
    sizes = [serving_space(architecture=model, count=n, options=ONE, defaults=DEFAULTS).size() for n in range(1, 7)]
    assert serving_space(architecture=model, count=6, at_most=True, options=ONE, defaults=DEFAULTS).size() == sum(sizes)


def test_pools_on_their_own_devices_fill_each() -> None:
    space = serving_space(
        architecture=find("llama-3.1-8b"),
        count=6,
        modes=(1,),
        options=ONE,
        prefill={"token_budget": (2048,)},
        pools=Pools(prefill=2, decode=4),
        defaults=DEFAULTS,
    )
    for plan in plans(space):
        whole = {symbol: np.asarray(value) for symbol, value in plan.items()}
        assert engine_devices(whole) * whole["data"] == 4
        assert engine_devices(whole, PREFILL) * whole[PREFILL + "data"] == 2
