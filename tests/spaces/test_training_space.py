"""The training space against brute force: every combination of the levels, filtered by the rules as written here."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spaces.architecture import Architecture, find
from spaces.hardware import Device, find_device
from spaces.plan import PLAN_SYMBOLS, Recompute, Schedule, StageLayout
from spaces.space import Space
from spaces.training import training_space

DENSE = Architecture(
    name="dense", layers=6, hidden=96, heads=12, kv_heads=4, head_dim=8, ffn=96, vocab=128, max_sequence=64
)
EXPERTS = dataclasses.replace(
    DENSE, name="experts", layers=4, heads=4, head_dim=24, experts=4, experts_per_token=2, moe_ffn=24, dense_layers=1
)
H100 = find_device("H100-80GB-SXM")
NODES_OF_2 = dataclasses.replace(H100, name="pairs", aliases=(), devices_per_node=2, scale_up_domain=2)
NODES_OF_4 = dataclasses.replace(H100, name="fours", aliases=(), devices_per_node=4, scale_up_domain=4)

Plan = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Question:
    """Arguments of `training_space`."""

    architecture: Architecture = DENSE
    devices: tuple[Device, ...] = (NODES_OF_4,)
    count: int = 8
    at_most: bool = False
    global_batch: int = 8
    sequence: int = 32
    options: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    uneven: bool = True

    def space(self) -> Space:
        arguments = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return training_space(**arguments)


def legal(plan: Plan, ask: Question) -> bool:
    """The rules, one plan at a time and in plain arithmetic."""
    return _mesh_is_legal(plan, ask) and _pipeline_is_legal(plan, ask) and _memory_choices_are_legal(plan, ask)


def _wanted(plan: Plan, ask: Question, name: str, otherwise: tuple[int, ...] | None = None) -> bool:
    values = ask.options.get(name) or (otherwise if name not in ask.options else None)
    return values is None or plan[name] in values


def _mesh_is_legal(plan: Plan, ask: Question) -> bool:
    model = ask.architecture
    n, t, c, p, d = (plan[symbol] for symbol in ("devices", "tensor", "context", "pipeline", "data"))
    e, et = plan["expert"], plan["expert_tensor"]
    if t * c * p * d != n or model.heads % t or (model.kv_heads % t and t % model.kv_heads) or model.ffn % t:
        return False
    if c > 1 and ask.sequence % (2 * c):
        return False
    if ask.global_batch % (d * plan["micro_batch"]):
        return False
    if model.experts == 0:
        return bool(e == et == 1)
    if not _wanted(plan, ask, "expert_tensor", (1,)):
        return False
    return not (model.experts % e or model.moe_ffn % et or (t * c * d) % (e * et))


def _layouts(layers: int, p: int, v: int, uneven: bool) -> set[int]:
    """Layouts that deal the layers to p·v chunks."""
    chunks = p * v
    if p == 1:
        return {StageLayout.EVEN} if v == 1 else set()
    found = {StageLayout.EVEN} if layers % chunks == 0 else set()
    if chunks > 2 and (layers + 2) % chunks == 0 and (layers + 2) // chunks >= 1:
        found.add(StageLayout.LIGHT_ENDS)
    if not found and v == 1 and uneven and p <= layers:
        found = {StageLayout.EVEN}
    return set(found)


def _pipeline_is_legal(plan: Plan, ask: Question) -> bool:
    p, v, schedule = plan["pipeline"], plan["virtual"], plan["schedule"]
    microbatches = ask.global_batch // (plan["data"] * plan["micro_batch"])
    if plan["stage_layout"] not in _layouts(ask.architecture.layers, p, v, ask.uneven) or p > ask.architecture.layers:
        return False
    if p == 1:
        return bool(v == 1 and schedule == Schedule.ONE_F_ONE_B and plan["rank_order"] == 0)
    if plan["rank_order"] and plan["data"] == 1:
        return False
    if (schedule == Schedule.INTERLEAVED) != (v > 1) or (v > 1 and microbatches % p):
        return False
    if schedule == Schedule.GPIPE and microbatches == 1:
        return False
    if schedule == Schedule.DUALPIPE and (p % 2 or microbatches % 2 or microbatches < 2 * p):
        return False
    return _wanted(plan, ask, "schedule") and _wanted(plan, ask, "stage_layout")


def _memory_choices_are_legal(plan: Plan, ask: Question) -> bool:
    ranks, zero, shard = plan["data"] * plan["context"], plan["zero_stage"], plan["shard_degree"]
    node = ask.devices[int(plan.get("device", 0))].devices_per_node
    if zero == 0:
        if shard != 1 or (ranks > 1 and not _wanted(plan, ask, "zero_stage")):
            return False
    else:
        if ranks == 1 or not _wanted(plan, ask, "zero_stage"):
            return False
        if zero >= 2 and plan["pipeline"] > 1 and "zero_stage" not in ask.options:
            return False
        if "shard_degree" not in ask.options:
            if shard != ranks:
                return False
        else:
            whole = ask.options["shard_degree"] or shard == ranks or (shard * plan["tensor"]) % node == 0
            if shard == 1 or ranks % shard or not _wanted(plan, ask, "shard_degree") or not whole:
                return False
    t, sp = plan["tensor"], plan["sequence_parallel"]
    if t == 1 and sp:
        return False
    if t > 1 and sp and (ask.sequence // plan["context"]) % t:
        return False
    if t > 1 and not sp and ask.architecture.experts:
        return False
    slots = ask.architecture.layers + (2 if plan["stage_layout"] == StageLayout.LIGHT_ENDS else 0)
    layers = -(-slots // plan["pipeline"])
    k = plan["recompute_layers"]
    if plan["recompute"] != Recompute.FIRST_K:
        return bool(k == 0)
    asked = ask.options.get("recompute_layers") or tuple({layers // 4, layers // 2, 3 * layers // 4})
    return bool(0 < k < layers and k in asked)


def brute_force(ask: Question, space: Space) -> list[tuple[Any, ...]]:
    """Every combination of the space's levels that the rules above allow, in lexicographic order.

    Some axes at a time, so that the product stays small: a plan that is illegal with neutral values for the axes to come is
    not continued.
    """
    neutral = {"expert": 1, "expert_tensor": 1, "rank_order": 0}
    checks = {"micro_batch": _mesh_is_legal, "expert_tensor": _mesh_is_legal, "schedule": _pipeline_is_legal}
    checks |= {"recompute_layers": _memory_choices_are_legal, space.axes[-1].name: legal}
    plans: list[dict[str, Any]] = [{}]
    for axis in space.axes:
        values, check = axis.values.tolist(), checks.get(axis.name)
        plans = [{**plan, axis.name: value} for plan in plans for value in values]
        if check is not None:
            plans = [plan for plan in plans if check(neutral | plan, ask)]
    return [tuple(plan.values()) for plan in plans]


def listed(space: Space, rows: int = 1000) -> list[tuple[Any, ...]]:
    names = [axis.name for axis in space.axes]
    return [tuple(row) for batch in space.batches(rows) for row in zip(*(batch[name].tolist() for name in names), strict=True)]


FEW: dict[str, tuple[int, ...]] = {"offload": (0,), "recompute": (0, 3), "zero_stage": (0, 1)}
QUESTIONS = {
    "dense, every default": Question(count=4, global_batch=4, options={"offload": (0,)}),
    "pipelines of light and uneven stages": Question(count=8, global_batch=16, options={**FEW, "tensor": (1,)}),
    "a sequence that tensor ranks cannot split": Question(sequence=12, options=FEW),
    "no uneven stages": Question(count=4, options={**FEW, "stage_layout": (0,)}, uneven=False),
    "mixture of experts": Question(architecture=EXPERTS, count=8, options={**FEW, "micro_batch": (1, 2)}),
    "experts split too": Question(architecture=EXPERTS, count=4, options={**FEW, "expert_tensor": ()}),
    "at most": Question(count=6, at_most=True, global_batch=4, options=FEW),
    "two devices": Question(devices=(NODES_OF_2, NODES_OF_4), count=6, at_most=True, global_batch=4, options=FEW),
    "hybrid sharding": Question(options={"shard_degree": (), "zero_stage": (3,), "recompute": (0,), "tensor": (1, 2)}),
    "sharding over two": Question(options={"shard_degree": (2,), "zero_stage": (2,), "recompute": (0,)}),
    "one schedule": Question(options={**FEW, "schedule": (Schedule.ZERO_BUBBLE,)}),
    "three layers recomputed": Question(count=2, options={"recompute_layers": (3,)}),
}


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_space_holds_exactly_the_legal_plans(name: str) -> None:
    ask = QUESTIONS[name]
    space = ask.space()
    expected = brute_force(ask, space)
    assert listed(space) == expected
    assert space.size() == len(expected) > 0


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([DENSE, EXPERTS]),
    st.integers(1, 8),
    st.booleans(),
    st.sampled_from([1, 2, 6, 8]),
    st.sampled_from([8, 12, 32]),
    st.dictionaries(
        st.sampled_from(["tensor", "pipeline", "data", "micro_batch", "context"]), st.just((1, 2)), min_size=2
    ),
    st.integers(1, 500),
)
def test_any_small_question_gives_exactly_its_legal_plans(
    model: Architecture,
    count: int,
    at_most: bool,
    batch: int,
    sequence: int,
    restricted: dict[str, tuple[int, ...]],
    rows: int,
) -> None:
    ask = Question(
        architecture=model,
        count=count,
        at_most=at_most,
        global_batch=batch,
        sequence=sequence,
        options={"offload": (0,), "recompute": (0, 3), **restricted},
    )
    space = ask.space()
    points = listed(space, rows)
    assert points == brute_force(ask, space)
    assert len(set(points)) == len(points) == space.size()


def test_every_plan_binds_every_symbol() -> None:
    (batch, *_) = Question(count=2).space().batches()
    assert set(batch.levels) == set(PLAN_SYMBOLS)


def test_a_choice_of_devices_binds_every_symbol_of_the_device() -> None:
    ask = Question(devices=(NODES_OF_2, NODES_OF_4), count=4)
    space = ask.space()
    batch = next(space.batches())
    assert set(batch.levels) == {*PLAN_SYMBOLS, "device", *H100.symbols()}
    assert space.labels["device"] == ("pairs", "fours")
    assert np.array_equal(batch["device.per_node"], np.where(batch["device"] == 0, 2.0, 4.0))


def test_domains_replace_the_domain_of_the_devices() -> None:
    for devices in ((NODES_OF_4,), (NODES_OF_2, NODES_OF_4)):
        space = training_space(
            architecture=DENSE, devices=devices, count=2, global_batch=2, sequence=8, domains=(8, 72)
        )
        plain = training_space(architecture=DENSE, devices=devices, count=2, global_batch=2, sequence=8)
        assert set(next(space.batches())["device.domain"].tolist()) == {8.0, 72.0}
        assert space.size() == 2 * plain.size()


def test_a_count_means_all_of_the_devices() -> None:
    batch = next(training_space(architecture=DENSE, devices=(H100,), count=24, global_batch=24, sequence=32).batches())
    product = batch["tensor"] * batch["context"] * batch["pipeline"] * batch["data"]
    assert set(product.tolist()) == set(batch["devices"].tolist()) == {24}


def test_at_most_tries_every_number_of_devices_that_exactly_so_many_would() -> None:
    options = {"micro_batch": (1,), "recompute": (0,), "zero_stage": (0,)}

    def used(count: int, at_most: bool) -> set[int]:
        asked = Question(count=count, at_most=at_most, global_batch=24, options=options)
        return {n for batch in asked.space().batches() for n in batch["devices"].tolist()}

    assert used(13, at_most=True) == {n for n in range(1, 14) if used(n, at_most=False)}
    assert {8, 9, 12} < used(13, at_most=True)


def test_the_global_batch_is_never_changed() -> None:
    for batch in Question(count=4, global_batch=12).space().batches():
        microbatches = 12 // (batch["data"] * batch["micro_batch"])
        assert (microbatches * batch["data"] * batch["micro_batch"] == 12).all()


def test_llama_405b_is_dealt_with_lighter_ends_and_deepseek_unevenly() -> None:
    llama = training_space(
        architecture=find("llama-3.1-405b"), devices=(H100,), count=8192, global_batch=2048, sequence=8192,
        options={"tensor": (8,), "pipeline": (16,), "context": (1,)},
    )  # fmt: skip
    layouts = {value for batch in llama.batches() for value in batch["stage_layout"].tolist()}
    assert layouts == {StageLayout.LIGHT_ENDS}
    deepseek = training_space(
        architecture=find("deepseek-v3"), devices=(H100,), count=2048, global_batch=15360, sequence=4096,
        options={"tensor": (1,), "pipeline": (16,), "expert": (64,), "context": (1,)},
    )  # fmt: skip
    batch = next(deepseek.batches())
    assert batch.n > 0
    assert Schedule.DUALPIPE in batch["schedule"]


def test_what_structure_removed_is_told_in_words() -> None:
    removed = Question(count=8).space().removed()
    assert ("tensor", "key/value heads neither split nor replicated evenly by tensor") in removed
    assert ("pipeline", "devices not divisible by tensor·context·pipeline") in removed


def test_every_fault_of_a_question_is_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"no device.*count must be at least 1.*no training axis 'tp'.*data cannot be -1"):
        training_space(
            architecture=DENSE, devices=(), count=0, global_batch=1, sequence=8, options={"tp": (1,), "data": (-1,)}
        )
    with pytest.raises(ValueError, match="recompute cannot be 9"):
        training_space(
            architecture=DENSE, devices=(H100,), count=1, global_batch=1, sequence=8, options={"recompute": (9,)}
        )
