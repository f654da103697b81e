"""Carbon: what a machine's making emitted and what its energy emits; kilograms of CO2 equivalent."""

from __future__ import annotations

import difflib

import numpy as np

from costmodels.machines.area import die_areas
from costmodels.machines.price import die_yield, harvested_yield
from costmodels.machines.tables import constants, of_memory, of_process
from spaces.columns import FloatArray, Value
from spaces.expressions import SymbolTable

JOULES_PER_KWH = 3.6e6


def embodied_carbon(at: SymbolTable) -> dict[str, FloatArray]:
    """kg of making one accelerator by part: `dies` (wafer area over yield), `memory`, `packaging`, `board` (ACT, 2022)."""
    cost = constants("carbon")
    area, io_area = die_areas(at)
    compute = at["chip.dies"] * area / 100.0 * of_process("carbon", at["chip.process"]) / harvested_yield(at)
    shared = at["chip.io_dies"] * io_area / 100.0 * of_process("carbon", at["chip.io_process"])
    shared = shared / die_yield(io_area, at["chip.io_process"])
    parts = {
        "dies": compute + shared,
        "memory": of_memory("carbon", at["chip.memory_kind"]) * at["chip.memory_stacks"] * at["chip.stack_capacity"] / 1e9,
        "packaging": cost["packaging"],
        "board": cost["board"],
    }
    return {name: np.asarray(value, np.float64) for name, value in parts.items()}


def operational_carbon(joules: Value, grid: str = "world") -> FloatArray:
    """kg of so many joules at the meter's devices, PUE included, on a grid (systems.yaml). ValueError, naming the nearest."""
    known = constants("grid")["carbon"]
    if grid not in known:
        near = difflib.get_close_matches(grid, known, n=3, cutoff=0.3) or list(known)
        raise ValueError(f"no carbon intensity for the grid {grid!r}; there are {', '.join(near)}")
    return np.asarray(np.asarray(joules, np.float64) / JOULES_PER_KWH * constants("operating")["power_usage"] * known[grid])
