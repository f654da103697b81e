"""Area of silicon by part, from what an accelerator is made of and the process it is made in; square millimetres.

Logic is transistors over the node's density, memory bit cells times an overhead, interfaces published areas that hardly shrink.
"""

from __future__ import annotations

import numpy as np

from costmodels.machines.tables import constants, of_memory, of_process
from spaces.columns import FloatArray, Value
from spaces.expressions import SymbolTable

COMPUTE = ("matrix", "registers", "core_memory")
"""Parts on the compute dies, always."""
SHARED = ("shared_memory", "memory_interface", "scale_up", "host_link", "die_link")
"""Parts on the I/O dies where there are any, else on the compute dies."""
STACKED = ("near_memory",)
"""Parts under the memory stacks, on dies of their own."""
PARTS = (*COMPUTE, *SHARED, *STACKED)
GIGA = 1e9
UM2_PER_MM2 = 1e6


def silicon_area(at: SymbolTable) -> dict[str, FloatArray]:
    """mm² of silicon in the package by part (PARTS), each (n,) or a scalar array; they sum to the total."""
    cost = constants("area")
    made = at["chip.cores"] + at["chip.spare_cores"]
    own, shared = at["chip.process"], np.where(np.asarray(at["chip.io_dies"]) > 0, at["chip.io_process"], at["chip.process"])
    stacks = at["chip.memory_stacks"] + at["chip.spare_stacks"]
    kind = at["chip.memory_kind"]
    scale_up, host, between = (at[f"chip.{name}"] / GIGA for name in _LINKS)
    parts = {
        "matrix": made * at["chip.matrix_fma"] * cost["matrix_fma"] / of_process("logic_density", own),
        "registers": made * at["chip.register_bytes"] / 1024 * cost["register_kib"] / of_process("logic_density", own),
        "core_memory": memory_area(made * at["chip.l1_bytes"], own),
        "shared_memory": memory_area(at["chip.l2_bytes"], shared),
        "memory_interface": stacks
        * (of_memory("phy", kind) + of_memory("controller", kind) / of_process("logic_density", shared)),
        "scale_up": scale_up * (cost["scale_up_phy"] + cost["scale_up_controller"] / of_process("logic_density", shared)),
        "host_link": host * cost["host_link_phy"],
        "die_link": between * cost["die_link_phy"],
        "near_memory": near_memory_area(at),
    }
    return {name: np.asarray(area, np.float64) for name, area in parts.items()}


_LINKS = ("scale_up_bandwidth", "host_link_bandwidth", "die_link_bandwidth")


def near_memory_area(at: SymbolTable) -> FloatArray:
    """mm² of multiply-adders beside the memory, in the I/O process, at the clock of a memory's base die."""
    made = at["chip.near_memory_flops"] / (2.0 * constants("area")["near_memory_clock"])
    return np.asarray(made * constants("area")["matrix_fma"] / of_process("logic_density", at["chip.io_process"]), np.float64)


def memory_area(size: Value, process: Value) -> FloatArray:
    """mm² of `size` bytes of on-chip memory in a process: eight bit cells a byte, times the overhead of arrays and control."""
    cells = size * 8 * of_process("sram_cell", process) / UM2_PER_MM2
    return np.asarray(cells * constants("area")["sram_overhead"], np.float64)


def die_areas(at: SymbolTable) -> tuple[FloatArray, FloatArray]:
    """(mm² of one compute die, mm² of one I/O die): the silicon spread evenly; the latter 0 where there are none."""
    parts = silicon_area(at)
    compute = np.asarray(sum(parts[name] for name in COMPUTE))
    shared = np.asarray(sum(parts[name] for name in SHARED))
    apart = np.asarray(at["chip.io_dies"]) > 0
    whole = np.where(apart, compute, compute + shared) / at["chip.dies"]
    return np.asarray(whole, np.float64), np.asarray(np.where(apart, shared / np.maximum(at["chip.io_dies"], 1), 0.0))


def total_area(at: SymbolTable) -> FloatArray:
    """mm² of silicon in the package."""
    return np.asarray(sum(silicon_area(at).values()), np.float64)


def reticle_violation(at: SymbolTable) -> FloatArray:
    """How far the larger die exceeds what a reticle exposes: area / limit − 1, at most 0 where it can be made."""
    compute, shared = die_areas(at)
    return np.asarray(np.maximum(compute, shared) / constants("area")["largest_die"] - 1.0)
