"""Constants of process nodes, memories, chips and systems: data files as arrays that a code picks from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from spaces.columns import FloatArray, Value
from spaces.facts import facts_in
from spaces.hardware.accelerators import PROCESSES, memory_kinds
from spaces.units import quantity

DATA = Path(__file__).parent.parent / "data" / "machines"


@cache
def processes() -> Mapping[str, FloatArray]:
    """Each constant of the process nodes as an array in the order of PROCESSES."""
    return _columns(_read("processes"), PROCESSES)


@cache
def memories() -> Mapping[str, FloatArray]:
    """Each constant of the memory kinds as an array in the order of `memory_kinds()`; phy in mm2, energy in J/B."""
    return _columns(_read("memories"), tuple(memory_kinds()))


@cache
def constants(section: str) -> Mapping[str, Any]:
    """The values of one section of chips.yaml or systems.yaml."""
    facts = _read("chips") | _read("systems")
    return MappingProxyType({name: entry["value"] for name, entry in facts[section].items()})


def of_process(name: str, code: Value) -> Any:
    """A constant of the process node of that code (a number or an array of them)."""
    return processes()[name][np.asarray(code, np.int64)]


def of_memory(name: str, code: Value) -> Any:
    """A constant of the memory kind of that code."""
    return memories()[name][np.asarray(code, np.int64)]


def _columns(facts: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, FloatArray]:
    keys = facts[names[0]]
    return MappingProxyType({key: np.array([_number(facts[name][key]) for name in names]) for key in keys})


def _number(value: object) -> float:
    text = str(value)
    if text.endswith(" pJ/B"):
        return float(text.removesuffix(" pJ/B")) * 1e-12
    return float(text.removesuffix(" mm2")) if text.endswith(" mm2") else quantity(value, "")


@cache
def _read(name: str) -> dict[str, Any]:
    return dict(facts_in((DATA / f"{name}.yaml").read_text(encoding="utf-8")))
