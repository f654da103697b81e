"""The serving space: every plan of a served model on a number of devices, as ordered axes with structural rules.

The axes carry the symbols of `spaces.serving_plan`. Experts re-mesh exactly the devices that attention runs on, so that
n = pipeline · data · tensor · attention_data; a dense model has neither experts to place nor attention groups of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spaces.architecture import Architecture
from spaces.columns import Value
from spaces.serving_plan import SERVING_DEFAULTS, SERVING_NAMES, SERVING_PLAN
from spaces.space import Axis, Rule, Space

Chosen = Mapping[str, Value]
Options = Mapping[str, Sequence[float]]

_BATCHES = (8, 16, 32, 64, 128, 256, 512)
_BUDGETS = (2048, 8192)
_CLOSED: Mapping[str, tuple[float, ...]] = {
    "kv_fraction": (0.9,),
    "precision": (SERVING_DEFAULTS["precision"],),
    "kv_precision": (SERVING_DEFAULTS["kv_precision"],),
    "cuda_graphs": (1,),
    "speculation": (0,),
    "max_batch": _BATCHES,
    "token_budget": _BUDGETS,
}
"""Values of the axes without structure when nobody names them."""


def serving_space(
    *,
    architecture: Architecture,
    count: int,
    at_most: bool = False,
    options: Options | None = None,
    device_axis: Axis | None = None,
    counts: Sequence[int] | None = None,
) -> Space:
    """All legal serving plans of a model on `count` devices exactly, or on any of `counts` (default: 2^a·{1, 3} up to it).

    `options[name]` restricts an axis to some values (codes for categorical ones). Absent means every degree that divides, and
    for axes without structure: max_batch 8 to 512 by doubling, token_budget 2,048 and 8,192, kv_fraction 0.9, 16-bit weights
    and cache, CUDA graphs, no speculation. `device_axis` binds the symbols of several devices. Raises ValueError, with every
    fault in one message, for unknown options and values that are not positive.
    """
    asked = dict(options or {})
    _check(count, asked)
    several = tuple(sorted(counts)) if counts else _counts(count)
    scope = _Scope(architecture=architecture, counts=several if at_most else (count,), options=asked)
    makers = (_devices, _pipeline, _tensor, _attention_data, _expert, _expert_tensor, _data)
    axes = [make(scope) for make in makers]
    axes += [_axis(name, scope.plain(name)) for name in _CLOSED]
    labels = dict(SERVING_NAMES)
    return Space(axes=((device_axis,) if device_axis is not None else ()) + tuple(axes), labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scope:
    architecture: Architecture
    counts: tuple[int, ...]
    options: Options

    def degrees(self, name: str) -> list[float]:
        """Values of a degree: those asked for, else every divisor of a number of devices."""
        every = {part for count in self.counts for part in _divisors(count)}
        return sorted({*(self.options.get(name) or every)})

    def plain(self, name: str) -> list[float]:
        """Values of an axis without structure."""
        return sorted({*(self.options.get(name) or _CLOSED[name])})


def _check(count: int, options: Options) -> None:
    """Raise ValueError for what no space can be built from, every fault in one message."""
    faults = [] if count >= 1 else [f"count must be at least 1, got {count}"]
    known = [symbol for symbol in SERVING_PLAN if symbol != "devices"]
    for name, values in options.items():
        if name not in known:
            faults.append(f"there is no serving axis '{name}'; the axes are {', '.join(known)}")
            continue
        if name in SERVING_NAMES:
            lowest, highest = 0.0, float(len(SERVING_NAMES[name]) - 1)
        else:
            lowest = 0.0 if name in ("cuda_graphs", "speculation") else 1e-9 if name == "kv_fraction" else 1.0
            highest = 1.0 if name in ("cuda_graphs", "kv_fraction") else np.inf
        outside = [value for value in values if not lowest <= value <= highest]
        if outside:
            faults.append(f"{name} cannot be {', '.join(f'{value:g}' for value in outside)}")
    if faults:
        raise ValueError("; ".join(faults))


def _counts(limit: int) -> tuple[int, ...]:
    """Numbers of devices worth trying up to `limit`, which is always among them."""
    found = {limit} | {odd << power for odd in (1, 3) for power in range(limit.bit_length()) if odd << power <= limit}
    return tuple(sorted(found))


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]


def _axis(name: str, levels: Sequence[float], *rules: tuple[str, Rule]) -> Axis:
    values = np.array(levels, np.float64)
    whole = values.astype(np.int64)
    return Axis(name=name, symbols={name: whole if np.array_equal(whole, values) else values}, rules=rules)


def _left(chosen: Chosen, *names: str) -> Value:
    """Devices over the degrees chosen so far."""
    used: Value = 1
    for name in names:
        used = used * chosen[name]
    return chosen["devices"] // used


def _divides(*names: str) -> Rule:
    def rule(chosen: Chosen, values: Value) -> Value:
        return _left(chosen, *names) % values == 0

    return rule


def _devices(scope: _Scope) -> Axis:
    return _axis("devices", scope.counts)


def _pipeline(scope: _Scope) -> Axis:
    """Stages: no more than there are layers."""
    layers = scope.architecture.layers
    return _axis(
        "pipeline",
        scope.degrees("pipeline"),
        ("more stages than layers", lambda _, values: values <= layers),
        ("does not divide the devices", _divides()),
    )


def _tensor(scope: _Scope) -> Axis:
    """Tensor degrees divide the heads; key and value heads are divided too, or held by several ranks each."""
    a = scope.architecture

    def heads(_: Chosen, values: Value) -> Value:
        return a.heads % values == 0

    def shared(_: Chosen, values: Value) -> Value:
        kv = a.kv_heads
        return np.full(np.shape(values), True) if a.kv_lora_rank else (kv % values == 0) | (values % kv == 0)

    def width(_: Chosen, values: Value) -> Value:
        return a.ffn % values == 0

    return _axis(
        "tensor",
        scope.degrees("tensor"),
        ("does not divide the heads", heads),
        ("key-value heads neither divide nor are divided", shared),
        ("does not divide the feed-forward width", width),
        ("does not divide the devices of a stage", _divides("pipeline")),
    )


def _attention_data(scope: _Scope) -> Axis:
    """Attention groups of one replica: only where experts bring them together again."""
    dense = scope.architecture.experts == 0
    return _axis(
        "attention_data",
        scope.degrees("attention_data"),
        ("attention groups of a dense model are replicas", lambda _, values: (values == 1) | np.full(values.shape, not dense)),
        ("does not divide the devices of a stage", _divides("pipeline", "tensor")),
    )


def _expert(scope: _Scope) -> Axis:
    """Expert degrees divide the experts and the devices that hold one stage of a replica."""
    experts = scope.architecture.experts

    def divides(chosen: Chosen, values: Value) -> Value:
        return (chosen["tensor"] * chosen["attention_data"]) % values == 0

    def splits(_: Chosen, values: Value) -> Value:
        return (experts or 1) % values == 0

    return _axis(
        "expert",
        scope.degrees("expert"),
        ("does not divide the experts", splits),
        ("does not divide a stage's devices", divides),
    )


def _expert_tensor(scope: _Scope) -> Axis:
    """What is left of a stage's devices shards each expert."""
    a = scope.architecture

    def rest(chosen: Chosen, values: Value) -> Value:
        stage = chosen["tensor"] * chosen["attention_data"]
        return (values * chosen["expert"] == stage) if a.experts else (values == 1) & (stage > 0) & (chosen["expert"] > 0)

    def width(_: Chosen, values: Value) -> Value:
        return (a.moe_ffn or 1) % values == 0

    return _axis(
        "expert_tensor",
        scope.degrees("expert_tensor"),
        ("does not divide an expert's width", width),
        ("experts do not fill the stage's devices", rest),
    )


def _data(scope: _Scope) -> Axis:
    """Replicas take the devices that are left."""

    def rest(chosen: Chosen, values: Value) -> Value:
        return values * chosen["pipeline"] * chosen["tensor"] * chosen["attention_data"] == chosen["devices"]

    return _axis("data", scope.degrees("data"), ("replicas do not fill the devices", rest))
