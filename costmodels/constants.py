"""Constants of devices and software stacks: read from data files, bound as symbols, none in code.

`costmodels/data/kernels/<generation>.yaml` holds what a generation's kernels reach; `costmodels/data/stacks/<stack>.yaml` how
a framework runs the model (structure, what it fuses, what it hides, host cost), with `generations:` entries where the two
meet. Every constant carries a source in its file.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from costmodels.collectives import links
from spaces.blocks import GraphTraits
from spaces.facts import facts_in
from spaces.hardware import Device
from spaces.plan import NAMES, code

DATA = Path(__file__).parent / "data"


HOST = tuple(f"stack.host_per_{what}" for what in ("operator", "checkpoint", "collective", "unit", "expert", "step"))
"""Seconds of the host in a stack's numbers: none of them is waited for where a step is one CUDA graph."""


class UnknownStack(ValueError):
    """A stack that is not in the data; the message lists the nearest."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stack:
    """A framework plus mode. Structure here; its numbers are symbols (`device_symbols`).

    `selective` names what selective recomputation drops: 'core' (core attention) or 'alternate' (every second product).
    `whole_block`: full recomputation redoes the whole block instead of stopping at the last tensor needed.
    `legal`: the values the stack can run, by axis, codes for categorical ones; an axis that is absent is open whole.
    `default_zero`: the stage a blank `zero_stage` means; `default_sequence_parallel`: whether tensor parallelism brings
    sequence parallelism with it. `optimizer`: its state layout (costmodels/data/optimizers.yaml).
    """

    name: str
    traits: GraphTraits
    selective: str
    whole_block: bool
    legal: Mapping[str, tuple[int, ...]]
    default_zero: int
    default_sequence_parallel: bool
    optimizer: str
    numbers: Mapping[str, float]
    generations: Mapping[str, Mapping[str, Any]]
    source: str


@cache
def stack_names() -> tuple[str, ...]:
    """Every training stack there is, sorted; those that serve are costmodels.serving.stack's."""
    paths = sorted((DATA / "stacks").glob("*.yaml"))
    return tuple(path.stem for path in paths if not path.read_text(encoding="utf-8").startswith("kind: serving"))


@cache
def find_stack(name: str) -> Stack:
    """The stack of that name; raises `UnknownStack` listing the nearest."""
    if name not in stack_names():
        near = difflib.get_close_matches(name, stack_names(), n=3, cutoff=0.4) or stack_names()
        raise UnknownStack(f"stack '{name}' does not exist; did you mean {', '.join(near)}?")
    facts = _read(DATA / "stacks" / f"{name}.yaml")
    return Stack(
        name=name,
        traits=GraphTraits(**facts["traits"]),
        selective=facts["selective"],
        whole_block=facts["whole_block"],
        legal={axis: tuple(_code(axis, value) for value in values) for axis, values in facts["legal"].items()},
        default_zero=facts["default_zero"],
        default_sequence_parallel=facts["default_sequence_parallel"],
        optimizer=facts["optimizer"],
        numbers=flat(facts["numbers"], "stack"),
        generations=facts.get("generations", {}),
        source=facts["source"],
    )


def device_symbols(device: Device, stack: str) -> dict[str, float]:
    """Every symbol a cost model reads about a device under a stack: `device.*`, `kernel.*`, `link.*`, `stack.*`; SI units."""
    chosen = find_stack(stack)
    kernels = generation_constants(device.generation)
    meeting = {**chosen.generations.get("default", {}), **chosen.generations.get(device.generation, {})}
    symbols = device.symbols() | flat(kernels["kernel"], "kernel") | link_symbols(device.generation) | dict(chosen.numbers)
    family = meeting.get("attention", kernels["attention_default"])
    for phase, share in kernels["attention"][family].items():
        symbols[f"kernel.attention.{phase}"] = float(share)
    speed = power_factor(device, kernels["reference"])
    for key in symbols:
        if key.startswith(("kernel.gemm.share", "kernel.attention")):
            symbols[key] = min(symbols[key] * speed, 0.95)
    symbols |= {key: float(value) for key, value in meeting.items() if isinstance(value, int | float)}
    return symbols


def power_factor(device: Device, reference: Mapping[str, Any]) -> float:
    """How much of the reference part's sustained share a part reaches under its own power cap.

    Matrix kernels run at the power limit: the clock they hold goes with (watts per datasheet FLOP/s) to the power
    `exponent`, between 1 (voltage fixed) and 1/3 (voltage in proportion to frequency).
    """
    peak = device.matrix_flops.get("bf16", device.matrix_flops.get("fp16", 0.0))
    if not device.power or not peak:
        return 1.0
    watts = (device.power / float(reference["power"])) / (peak / float(reference["matrix_flops"]))
    return float(min(max(watts ** float(reference["exponent"]), 0.5), 1.25))


def link_symbols(generation: str) -> dict[str, float]:
    """`link.inner.latency` … `link.outer.half_size` of a generation (costmodels/data/links.yaml), `link.host.*`; SI units."""
    tiers = zip(("inner", "outer"), links(generation), strict=True)
    fields = ("latency", "setup", "share", "half_size", "summed")
    between = {f"link.{tier}.{name}": float(getattr(constants, name)) for tier, constants in tiers for name in fields}
    return between | dict(host_link_shares())


@cache
def host_link_shares() -> Mapping[str, float]:
    """`link.host.copy` and `link.host.read`: what copies and kernels that read in place reach of a host link's rate."""
    facts = _read(DATA / "host_link.yaml")
    return {f"link.host.{name}": float(facts[name]["value"]) for name in ("copy", "read")}


@cache
def generation_constants(generation: str) -> Mapping[str, Any]:
    """Kernel and link constants of a device generation; a generation without a file inherits from the one it names nearest."""
    path = DATA / "kernels" / f"{generation}.yaml"
    facts = _read(path if path.exists() else DATA / "kernels" / "default.yaml")
    if "inherits" in facts:
        base = dict(generation_constants(facts["inherits"]))
        return _merge(base, facts)
    return facts


def _code(axis: str, value: str | int) -> int:
    return code(axis, str(value)) if axis in NAMES else int(value)


def _read(path: Path) -> dict[str, Any]:
    with path.open(encoding="utf-8") as file:
        return dict(facts_in(file.read()))


def flat(tree: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """{'gemm': {'bf16': 0.8}} as {'kernel.gemm.bf16': 0.8}."""
    found: dict[str, float] = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}"
        found |= flat(value, name) if isinstance(value, Mapping) else {name: float(value)}
    return found


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        merged[key] = (
            _merge(merged[key], value) if isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) else value
        )
    return merged
