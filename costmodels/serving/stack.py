"""Serving stacks: how a server runs a model's step, from `costmodels/data/stacks/<stack>.yaml` of `kind: serving`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from costmodels.constants import DATA, UnknownStack, flat
from spaces.blocks import GraphTraits
from spaces.columns import Value
from spaces.expressions import SymbolTable
from spaces.facts import facts_in


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Streams:
    """How a class of pointwise operators runs: a measured operator's name, or a plain copy of so many passes; none: fused."""

    op: str
    passes: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServingStack:
    """A server plus mode. Structure here; its numbers are the symbols `stack.*` (SI units).

    `streams` maps a class of pointwise operators (norm, activation, multiply, add, rotary, cache, route, permute, embedding,
    sample) to the kernel that runs it. `attention` names the kernels of prefill and decode. `default` holds the choices a
    person leaves out; `lesser` those of them that differ on devices of less than `lesser_below` bytes or of the generations
    `lesser_on`. `families` are the numbers that differ for models whose names begin so.
    """

    name: str
    traits: GraphTraits
    streams: Mapping[str, Streams]
    attention: Mapping[str, str]
    numbers: Mapping[str, float]
    default: Mapping[str, float]
    lesser: Mapping[str, float]
    lesser_below: float
    lesser_on: frozenset[str]
    families: Mapping[str, Mapping[str, float]]
    source: str

    def numbers_for(self, model: str) -> Mapping[str, float]:
        """The symbols `stack.*` for a model of that name."""
        own = next((numbers for begins, numbers in self.families.items() if model.startswith(begins)), {})
        return {**self.numbers, **own}

    def default_on(self, generation: str, memory: float) -> Mapping[str, float]:
        """The choices a person leaves out, on a device of that generation and so many bytes."""
        less = memory < self.lesser_below or generation in self.lesser_on
        return {**self.default, **self.lesser} if less else self.default


def plans_ahead(at: SymbolTable) -> Value:
    """Whether a step is planned while the one before it runs; servers leave that out where several stages hold batches of
    their own (disable_overlap_schedule in SGLang's server_args.py, vllm/config, _executor_loop_pp of TensorRT-LLM)."""
    return np.where(np.asarray(at["pipeline"]) > 1, 0.0, at["stack.schedules_ahead"])


@cache
def serving_stack_names() -> tuple[str, ...]:
    """Every serving stack there is, sorted."""
    return tuple(sorted(path.stem for path in (DATA / "stacks").glob("*.yaml") if _read(path.stem).get("kind") == "serving"))


_TENSORRT = ("trt", "trtllm", "trt-llm", "tensorrtllm")
_ALIASES = {**dict.fromkeys(_TENSORRT, "tensorrt-llm"), "torch": "torch-graph"}


@cache
def find_serving_stack(name: str) -> ServingStack:
    """The stack of that name or alias; raises `UnknownStack` listing the nearest."""
    word = name.strip().lower().replace("_", "-")
    word = _ALIASES.get(word, word)
    known = serving_stack_names()
    if word not in known:
        near = difflib.get_close_matches(word, known, n=3, cutoff=0.4) or known
        raise UnknownStack(f"serving stack '{name}' does not exist; did you mean {', '.join(near)}?")
    facts = _read(word)
    lesser = dict(facts.get("lesser", {}))
    below, on = float(lesser.pop("below", 0.0)), frozenset(lesser.pop("generations", ()))
    return ServingStack(
        name=word,
        traits=GraphTraits(**facts["traits"]),
        streams={kind: _streams(entry) for kind, entry in facts["streams"].items()},
        attention=facts["attention"],
        numbers=flat(facts["numbers"], "stack"),
        default={symbol: float(value) for symbol, value in facts["default"].items()},
        lesser={symbol: float(value) for symbol, value in lesser.items()},
        lesser_below=below,
        lesser_on=on,
        families={begins: flat(numbers, "stack") for begins, numbers in facts.get("families", {}).items()},
        source=facts["source"],
    )


def _streams(entry: str | Mapping[str, Any]) -> Streams:
    return Streams(op=entry) if isinstance(entry, str) else Streams(op="copy", passes=float(entry["passes"]))


@cache
def _read(name: str) -> dict[str, Any]:
    with (DATA / "stacks" / f"{name}.yaml").open(encoding="utf-8") as file:
        return dict(facts_in(file.read()))
