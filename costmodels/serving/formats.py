"""Number formats of weights and caches: bytes a value, and the format products run in (costmodels/data/formats.yaml)."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.constants import DATA
from spaces.columns import FloatArray, Value
from spaces.expressions import SymbolTable
from spaces.facts import facts_in
from spaces.serving_plan import SERVING_NAMES


@cache
def _facts() -> dict[str, Any]:
    with (DATA / "formats.yaml").open(encoding="utf-8") as file:
        return dict(facts_in(file.read()))


def weight_bytes(precision: Value) -> FloatArray:
    """Bytes a weight of a linear layer takes, scales included; shape of `precision` (codes of WeightFormat)."""
    each = np.array([_facts()["weights"][name]["bytes"] for name in SERVING_NAMES["precision"]])
    return np.asarray(each[np.asarray(precision, np.int64)])


def cache_bytes(kv_precision: Value) -> FloatArray:
    """Bytes of a cached value, scales included; shape of `kv_precision` (codes of CacheFormat)."""
    each = np.array([_facts()["cache"][name]["bytes"] for name in SERVING_NAMES["kv_precision"]])
    return np.asarray(each[np.asarray(kv_precision, np.int64)])


def native_precision(model: str) -> str:
    """Format a model's weights are published in."""
    return str(_facts()["native"].get(model, "bf16"))


def block_scaled(model: str) -> bool:
    """Whether a model's fp8 checkpoint has a scale for every block of weights."""
    return model in _facts()["block_scaled"]["models"]


def block_scaled_time() -> float:
    """Time of compute-bound fp8 products with a scale a block, over those with one a tensor or row."""
    return float(_facts()["block_scaled"]["slower"]["value"])


def dequantised_share() -> float:
    """Share of the 16-bit rate that products with narrow weights and 16-bit activations reach."""
    return float(_facts()["dequantise"]["value"])


def compute_format(precision: Value, at: SymbolTable) -> tuple[NDArray[np.str_], NDArray[np.bool_]]:
    """(format the linear layers' products run in, whether weights are narrower than that), shapes of `precision`.

    A format that the device's matrix units lack is stored narrow and computed in 16 bits, or in what stands in for it.
    """
    code = np.asarray(precision, np.int64)
    names = SERVING_NAMES["precision"]
    wanted = np.array([_facts()["weights"][name]["compute"] for name in names])[code]
    words = np.array([_facts()["weights"][name]["compute"] for name in names])
    sixteen = np.where(np.asarray(at["device.matrix_flops.bf16"]) > 0, "bf16", "fp16")
    found = np.broadcast_to(wanted, np.broadcast_shapes(wanted.shape, sixteen.shape)).astype("<U8")
    second = np.array([_facts()["weights"][name].get("instead", "bf16") for name in names])[code]
    for word in sorted(set(words.tolist()), key=lambda word: word in second):  # what stands in for another is asked for last
        if word not in ("fp32", "fp16", "bf16"):
            lacking = (found == word) & (np.asarray(at[f"device.matrix_flops.{word}"]) <= 0)
            found = np.where(lacking, np.where(second != word, second, "bf16"), found)
    found = np.where(found == "bf16", sixteen, found)
    found = np.where(found == "fp4", "nvfp4", found)
    computed = np.where(np.isin(found, ("fp8", "int8")), 1.0, np.where(found == "nvfp4", 0.0, 2.0))
    narrow = weight_bytes(code) < 0.9 * computed  # scales aside
    return found.astype(np.str_), np.asarray(narrow)
