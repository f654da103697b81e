"""The serving space: every plan of a model on a number of devices, aggregated or with prefill and decode in pools of their own.

A plan's engines are described by the symbols of `spaces.serving`. Where prefill stands apart (`mode` disaggregated), those
symbols describe the decode pool, and the same symbols under `prefill.` the prefill pool; else `prefill.data` is 0 and the rest
of them rests. No two points mean the same plan.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spaces.architecture import Architecture
from spaces.columns import Value
from spaces.serving_plan import SERVING_NAMES, SERVING_PLAN
from spaces.space import Axis, Rule, Space

Chosen = Mapping[str, Value]
Options = Mapping[str, Sequence[float]]

MODES = ("aggregated", "disaggregated")
PREFILL = "prefill."
"""What the symbols of a prefill pool begin with."""

_BATCHES = (8, 16, 32, 64, 128, 256, 512)
_BUDGETS = (512, 2048, 8192)
_PREFILL_BUDGETS = (8192, 16384)
_CLOSED = {
    "precision": 2.0,
    "kv_precision": 0.0,
    "cuda_graphs": 1.0,
    "speculation": 0.0,
    "expert_offload": 0.0,
    "weight_offload": 0.0,
    "kv_offload": 0.0,
    "preemption": 0.0,
}
"""Choices that rest unless opened by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pools:
    """Devices of the prefill and the decode pool where each has its own: exactly so many, or at most."""

    prefill: int
    decode: int
    prefill_at_most: bool = False
    decode_at_most: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scope:
    architecture: Architecture
    count: int
    at_most: bool
    pools: Pools | None
    modes: tuple[int, ...]
    options: Options
    prefill: Options
    defaults: Mapping[str, float]

    def levels(self, start: str, name: str, every: Iterable[float]) -> list[float]:
        """Values of an axis: those asked for, else every one there is, ascending."""
        asked = (self.prefill if start else self.options).get(name)
        if not asked and name in _CLOSED:
            asked = (_CLOSED[name],)
        return sorted(set(asked or every))

    @property
    def apart(self) -> bool:
        """Whether any plan has a prefill pool."""
        return 1 in self.modes


def serving_space(
    *,
    architecture: Architecture,
    count: int,
    at_most: bool = False,
    modes: Sequence[int] = (0,),
    options: Options | None = None,
    prefill: Options | None = None,
    pools: Pools | None = None,
    defaults: Mapping[str, float],
    hardware: tuple[Axis, ...] = (),
    labels: Mapping[str, tuple[str, ...]] | None = None,
) -> Space:
    """All legal serving plans on `count` devices, or with `at_most` on any number up to it.

    `modes` are codes of `MODES`. `options[name]` restricts an axis of the (decode) engines to some values, `prefill[name]`
    one of the prefill pool; absent means all, except that formats, graphs, speculation, offload and preemption rest.
    `defaults` are the stack's own `max_batch`, `token_budget` and `kv_fraction`. `hardware` are axes that come first.
    With `pools`, each mode's pool runs on devices of its own and `count` is their sum. Raises ValueError, every fault in
    one message, for unknown options.
    """
    asked, asked_prefill = dict(options or {}), dict(prefill or {})
    unknown = [name for name in (*asked, *asked_prefill) if name not in SERVING_PLAN or name == "devices"]
    if unknown:
        raise ValueError(f"there is no serving axis {', '.join(unknown)}; the axes are {', '.join(SERVING_PLAN[1:])}")
    scope = _Scope(
        architecture=architecture,
        count=count,
        at_most=at_most,
        pools=pools,
        modes=tuple(modes),
        options=asked,
        prefill=asked_prefill,
        defaults=defaults,
    )
    axes = [*hardware, _axis("mode", scope.modes), _devices(scope), *_engine(scope, ""), _replicas(scope), *_limits(scope)]
    if scope.apart:
        axes += [*_engine(scope, PREFILL), _prefill_replicas(scope), _prefill_budget(scope)]
    named = {"mode": MODES, **SERVING_NAMES, **(labels or {})}
    return Space(axes=tuple(axes), labels=named)


def engine_devices(chosen: Mapping[str, Value], start: str = "") -> Value:
    """Devices of one engine: pipeline · max(tensor · attention_data, expert_tensor · expert)."""
    attention = chosen[start + "tensor"] * chosen[start + "attention_data"]
    experts = chosen[start + "expert_tensor"] * chosen[start + "expert"]
    return chosen[start + "pipeline"] * np.maximum(attention, experts)


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]


def _axis(name: str, levels: Sequence[float], *rules: tuple[str, Rule]) -> Axis:
    values: NDArray[np.float64] = np.array(levels, np.float64)
    whole = bool((values == np.round(values)).all())
    return Axis(name=name, symbols={name: values.astype(np.int64) if whole else values}, rules=rules)


def _devices(scope: _Scope) -> Axis:
    """How many devices in all."""
    if scope.pools is None:
        return _axis("devices", range(1, scope.count + 1) if scope.at_most else [scope.count])
    some = scope.pools.prefill_at_most or scope.pools.decode_at_most
    return _axis("devices", range(2, scope.count + 1) if some else [scope.count])


def _resting(start: str, name: str, wanted: Sequence[float], neutral: float, *rules: tuple[str, Rule]) -> Axis:
    """An axis of the prefill pool that rests at `neutral` where there is no such pool; an axis of its own elsewhere."""
    if not start:
        return _axis(name, wanted, *rules)

    def apart(chosen: Chosen, values: Value) -> Value:
        return (chosen["mode"] == 1) | (values == neutral)

    def asked(chosen: Chosen, values: Value) -> Value:
        return (chosen["mode"] == 0) | np.isin(values, np.array(wanted, np.float64))

    unless = tuple((reason, _unless_together(rule)) for reason, rule in rules)
    own = () if neutral in wanted else (("not asked for", asked),)
    return _axis(start + name, sorted({neutral, *wanted}), ("no prefill pool", apart), *unless, *own)


def _unless_together(rule: Rule) -> Rule:
    """The rule where there is a prefill pool."""
    return lambda chosen, values: (chosen["mode"] == 0) | rule(chosen, values)


def _engine(scope: _Scope, start: str) -> list[Axis]:
    """The axes of an engine's mesh, each no larger than what is left of the devices."""
    model = scope.architecture

    def left(chosen: Chosen) -> Value:
        """Devices that the pool may have."""
        if not start:
            return chosen["devices"] - (chosen["mode"] == 1)
        return chosen["devices"] - engine_devices(chosen) * chosen["data"]

    every = range(1, scope.count + 1)
    degrees = [part for part in _divisors(model.heads) if part <= scope.count]
    stages = [part for part in _divisors(model.layers) if part <= min(scope.count, 16)]
    wide = model.experts > 0 or model.kv_lora_rank > 0
    groups = [part for part in every if part & (part - 1) == 0] if wide else [1]
    ranks = [part for part in _divisors(model.experts) if part <= scope.count] if model.experts else [1]
    width = _divisors(model.moe_ffn)[:12] if model.experts else [1]
    dense = not model.experts or model.dense_layers > 0 or model.moe_every > 1

    def name(symbol: str) -> str:
        return start + symbol

    return [
        _resting(
            start,
            "pipeline",
            scope.levels(start, "pipeline", stages),
            1,
            ("more stages than devices or layers", lambda x, p: (p <= left(x)) & (p <= model.layers)),
        ),
        _resting(
            start,
            "tensor",
            scope.levels(start, "tensor", degrees),
            1,
            ("heads not divisible by tensor", lambda _, t: model.heads % t == 0),
            (
                "key/value heads neither split nor replicated evenly by tensor",
                lambda _, t: (model.kv_heads % t == 0) | (t % model.kv_heads == 0),
            ),
            ("MLP width not divisible by tensor", lambda _, t: np.full(t.shape, not dense) | (model.ffn % t == 0)),
            ("more tensor ranks than devices", lambda x, t: t * x[name("pipeline")] <= left(x)),
        ),
        _resting(
            start,
            "attention_data",
            scope.levels(start, "attention_data", groups),
            1,
            (
                "MLP width not divisible by tensor·attention_data",
                lambda x, a: np.full(a.shape, not dense) | (model.ffn % (a * x[name("tensor")]) == 0),
            ),
            ("more attention ranks than devices", lambda x, a: a * x[name("tensor")] * x[name("pipeline")] <= left(x)),
        ),
        _resting(
            start,
            "expert",
            scope.levels(start, "expert", ranks),
            1,
            ("experts not divisible by expert", lambda _, e: np.full(e.shape, not model.experts) | (model.experts % e == 0)),
            (
                "ranks of a stage not divisible by expert",
                lambda x, e: (x[name("tensor")] * x[name("attention_data")]) % e == 0,
            ),
        ),
        _resting(
            start,
            "expert_tensor",
            scope.levels(start, "expert_tensor", width),
            1,
            (
                "experts fill the ranks of a stage",
                lambda x, t: (t * x[name("expert")] == x[name("tensor")] * x[name("attention_data")])
                if model.experts
                else (t == 1),
            ),
        ),
    ]


def _replicas(scope: _Scope) -> Axis:
    """Replicas of the engine: together they are all devices, or with a prefill pool fewer."""

    def fill(chosen: Chosen, values: Value) -> Value:
        used = engine_devices(chosen) * values
        if scope.pools is None:
            return np.where(chosen["mode"] == 0, used == chosen["devices"], used < chosen["devices"])
        return used <= scope.pools.decode if scope.pools.decode_at_most else used == scope.pools.decode

    return _axis("data", scope.levels("", "data", range(1, scope.count + 1)), ("replicas do not fill the devices", fill))


def _prefill_replicas(scope: _Scope) -> Axis:
    """Engines of the prefill pool, on what the decode pool leaves; 0 where there is no such pool."""

    def fill(chosen: Chosen, values: Value) -> Value:
        rest = chosen["devices"] - engine_devices(chosen) * chosen["data"]
        used = engine_devices(chosen, PREFILL) * values
        whole = (used == rest) & (values > 0)
        if scope.pools is not None:
            whole &= used <= scope.pools.prefill if scope.pools.prefill_at_most else used == scope.pools.prefill
        return np.where(chosen["mode"] == 0, values == 0, whole)

    wanted = scope.levels(PREFILL, "data", range(1, scope.count + 1))
    return _axis(PREFILL + "data", sorted({0, *wanted}), ("prefill engines do not fill what is left", fill))


def _limits(scope: _Scope) -> list[Axis]:
    """Limits of the scheduler, formats and the rest: choices without structure, but for a budget that holds the batch."""

    def holds(chosen: Chosen, values: Value) -> Value:
        return values >= chosen["max_batch"] * (1 + chosen["speculation"])

    def alone(chosen: Chosen, values: Value) -> Value:
        return (chosen["mode"] == 0) | (values == max(budgets))

    budgets = scope.levels("", "token_budget", {*_BUDGETS, scope.defaults["token_budget"]})
    def experts(_: Chosen, values: Value) -> Value:
        return (values == 0) | np.full(values.shape, scope.architecture.experts > 0)

    def plain(name: str, every: Iterable[float]) -> Axis:
        return _axis(name, scope.levels("", name, every))

    return [
        plain("max_batch", _BATCHES),
        plain("speculation", (0,)),
        _axis(
            "token_budget",
            budgets,
            ("the budget of a step does not hold the batch", holds),
            ("a decode pool has no prompts to budget for", alone),
        ),
        plain("kv_fraction", (scope.defaults["kv_fraction"],)),
        plain("cuda_graphs", (1,)),
        _axis("expert_offload", scope.levels("", "expert_offload", (0,)), ("the model has no experts", experts)),
        plain("weight_offload", (0,)),
        plain("kv_offload", (0,)),
        plain("preemption", (0,)),
        plain("precision", (2,)),
        plain("kv_precision", (0,)),
    ]


def _prefill_budget(scope: _Scope) -> Axis:
    """New tokens of a step of the prefill pool."""
    wanted = scope.levels(PREFILL, "token_budget", _PREFILL_BUDGETS)
    return _resting(PREFILL, "token_budget", wanted, scope.defaults["token_budget"])
