"""Bytes of weights, gradients, master weights and optimizer moments on one device.

Widths per role and the stage that divides each role are data (`data/optimizers.yaml`); the counting is here. Activations,
gathered units, buffers and fragmentation are other models' business.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from spaces.columns import FloatArray
from spaces.facts import facts_in

ROLES = ("weights", "gradients", "master", "moments")


@dataclass(frozen=True, slots=True, kw_only=True)
class StateWidths:
    """Bytes per parameter of each role, those one update moves (`traffic`), and the ZeRO stage from which a role is divided."""

    name: str
    bytes: Mapping[str, float]
    traffic: float
    sharded_from: Mapping[str, int]
    source: str


@cache
def state_widths() -> Mapping[str, StateWidths]:
    """Every optimizer of the data file by name. Raises `ValueError` on a role that is missing or unknown."""
    table = facts_in(files("costmodels").joinpath("data/optimizers.yaml").read_text(encoding="utf-8"))
    stages = {role: int(stage) for role, stage in table["sharded_from_stage"].items()}
    widths = {}
    for name, entry in table["optimizers"].items():
        per_role = {role: float(width) for role, width in entry["bytes"].items()}
        if set(per_role) != set(ROLES) or set(stages) != set(ROLES):
            raise ValueError(f"optimizer {name!r} must give bytes for exactly {', '.join(ROLES)}")
        widths[name] = StateWidths(
            name=name,
            bytes=MappingProxyType(per_role),
            traffic=float(entry["traffic"]),
            sharded_from=MappingProxyType(stages),
            source=str(entry["source"]),
        )
    return MappingProxyType(widths)


def optimizer_symbols(optimizer: str) -> dict[str, float]:
    """What cost models read of an optimizer: bytes per parameter of `optimizer.weights`, `.gradients`, `.states` (master and
    moments), and `.traffic`. Raises `ValueError` naming the nearest for one that does not exist."""
    widths = _widths(optimizer)
    return {
        "optimizer.weights": widths.bytes["weights"],
        "optimizer.gradients": widths.bytes["gradients"],
        "optimizer.states": widths.bytes["master"] + widths.bytes["moments"],
        "optimizer.traffic": widths.traffic,
    }


def _widths(optimizer: str) -> StateWidths:
    widths = state_widths().get(optimizer)
    if widths is None:
        near = get_close_matches(optimizer, state_widths(), n=1, cutoff=0.0)
        raise ValueError(f"unknown optimizer {optimizer!r}; nearest is {near[0]!r} of {', '.join(state_widths())}")
    return widths


def model_state_parts(
    parameters: ArrayLike, data: ArrayLike, zero_stage: ArrayLike, *, optimizer: str = "adam-fp16"
) -> dict[str, FloatArray]:
    """Bytes per device of each role, arrays of the broadcast shape of the arguments.

    `parameters`: those the device computes with, after tensor, pipeline and expert division. `data`: ranks that hold
    copies of them and divide the state (data · context for dense layers, expert_data for experts), at least 1.
    `zero_stage`: 0 to 3 of Rajbhandari et al. 2020, where 1 is Megatron's distributed optimizer and 3 is full sharding.
    Raises `ValueError` for stages, ranks or optimizers that do not exist.
    """
    widths = _widths(optimizer)
    count, ranks, stage = np.broadcast_arrays(
        np.asarray(parameters, dtype=np.float64), np.asarray(data, dtype=np.float64), np.asarray(zero_stage)
    )
    if not np.isin(stage, (0, 1, 2, 3)).all():
        raise ValueError("zero_stage must be 0, 1, 2 or 3")
    if not (ranks >= 1).all():
        raise ValueError("data must be at least 1 rank")
    return {role: widths.bytes[role] * count / np.where(stage >= widths.sharded_from[role], ranks, 1.0) for role in ROLES}


def model_state_bytes(
    parameters: ArrayLike, data: ArrayLike, zero_stage: ArrayLike, *, optimizer: str = "adam-fp16"
) -> FloatArray:
    """Bytes per device of weights, gradients, master weights and moments: the sum of `model_state_parts`.

    For adam-fp16 on ψ parameters and N ranks: 16ψ, 4ψ + 12ψ/N, 2ψ + 14ψ/N, 16ψ/N at stages 0 to 3
    (Rajbhandari et al. 2020, Figure 1); for megatron-bf16 18ψ and (6 + 12/N)ψ at stages 0 and 1.
    """
    parts = model_state_parts(parameters, data, zero_stage, optimizer=optimizer)
    return np.asarray(sum(parts.values()), dtype=np.float64)
