"""Published training results: reading them, converting their metrics, and what of them is to be predicted.

The facts lie in `data/published/training.csv`, one row per (configuration, metric): the configuration in the columns of the
batch prediction contract, the result once as printed and once in canonical units (seconds, TFLOP/s, tokens/s/GPU, percent,
GiB), with its citation. Nothing here predicts; everything here is a pure function of facts and of prediction rows.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import MappingProxyType
from typing import Literal, TypeAlias

SECONDS_PER_HOUR = 3600.0
SECONDS_PER_DAY = 86400.0
GIB = float(2**30)
"""Bytes."""

DIMENSIONS = ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab")
"""Model dimensions of the contract; blank in mixture-of-experts rows, whose preset has them."""

PLAN = (
    "tp", "pp", "dp", "cp", "ep", "vpp", "zero_stage", "micro_batch", "recompute", "sequence_parallel", "schedule", "stack",
    "cuda_graph",
)  # fmt: skip
"""What may differ between two ways of running one job; `precision` belongs to the plan as well."""

CONTRACT = (
    "model", *DIMENSIONS, "gated", "tied_embeddings", "seq", "gpu", "n_gpus", "nic_GBps", *PLAN,
    "global_batch", "precision", "trainable",
)  # fmt: skip
"""Columns a prediction may see: the configuration, never the result."""

GENERATIONS = MappingProxyType(
    {
        "A100": "Ampere",
        "H100": "Hopper",
        "H200": "Hopper",
        "H800": "Hopper",
        "GH200": "Hopper",
        "B200": "Blackwell",
        "B300": "Blackwell",
        "GB200": "Blackwell",
        "GB300": "Blackwell",
        "V100": "Volta",
        "P100": "Pascal",
        "RTX4090": "Ada",
        "MI250X": "CDNA2",
        "TPU": "TPU",
    }
)
JUDGED_GENERATIONS = frozenset({"Ampere", "Hopper"})
"""Device generations that accuracy is judged on; the others are reported."""

Inputs: TypeAlias = Mapping[str, str]
Prediction: TypeAlias = Mapping[str, float | str]


class MissingQuantity(ValueError):
    """A conversion needs a column that the row leaves blank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One published figure: a configuration (`id`, `inputs`), a metric and its value in canonical units.

    `value` is NaN where the figure is no number. `usable` is False where the contract cannot express the row; `why` says so.
    `parameters` is the nominal parameter count (NaN if unknown); `peak_tflops` the peak a percentage refers to, TFLOP/s.
    """

    split: str
    source: str
    id: str
    citation: str
    inputs: Inputs
    parameters: float
    metric: str
    value: float
    unit: str
    peak_tflops: float
    trained_tokens: float
    printed_metric: str
    printed_value: str
    printed_unit: str
    confidence: str
    usable: bool
    why: str
    notes: str

    @property
    def generation(self) -> str:
        """Device generation, by the device's name; `other` when unknown."""
        return device_generation(self.inputs["gpu"])

    @property
    def job(self) -> tuple[str, ...]:
        """What two configurations must share to be two ways of doing the same work on the same machine."""
        shape = tuple(self.inputs[name] for name in DIMENSIONS)
        model = shape if all(shape) else (self.inputs["model"],)
        return (*model, *(self.inputs[name] for name in ("seq", "gpu", "n_gpus", "global_batch", "trainable")))

    @property
    def plan(self) -> tuple[str, ...]:
        """How the job is run."""
        return tuple(self.inputs[name] for name in (*PLAN, "precision"))


def device_generation(gpu: str) -> str:
    """Generation of a device name of the catalogue (`A100-80GB-SXM` is Ampere), `other` when unknown."""
    return next((generation for prefix, generation in GENERATIONS.items() if gpu.startswith(prefix)), "other")


def read_facts(path: Path | None = None) -> list[Fact]:
    """Every row of the published results, in file order; `path` defaults to the packaged file."""
    source = files("costmodels").joinpath("data/published/training.csv") if path is None else path
    return [_fact(row) for row in csv.DictReader(source.read_text(encoding="utf-8").splitlines())]


def _fact(row: dict[str, str]) -> Fact:
    return Fact(
        split=row["split"],
        source=row["source"],
        id=row["id"],
        citation=row["citation"],
        inputs=MappingProxyType({name: row[name] for name in CONTRACT}),
        parameters=read_number(row["parameters"]),
        metric=row["metric"],
        value=read_number(row["value"]),
        unit=row["unit"],
        peak_tflops=read_number(row["peak_tflops"]),
        trained_tokens=read_number(row["trained_tokens"]),
        printed_metric=row["printed_metric"],
        printed_value=row["printed_value"],
        printed_unit=row["printed_unit"],
        confidence=row["confidence"],
        usable=row["usable"] == "yes",
        why=row["why"],
        notes=row["notes"],
    )


def read_number(text: float | str | None) -> float:
    """A finite or infinite number, NaN for blanks and words."""
    try:
        return float(text) if text is not None else math.nan
    except ValueError:
        return math.nan


def quantity(inputs: Inputs, name: str) -> float:
    """The number in a column of the configuration. Raises MissingQuantity for a blank."""
    value = read_number(inputs.get(name, ""))
    if not math.isfinite(value):
        raise MissingQuantity(f"needs `{name}`, which this row leaves blank")
    return value


def tokens_per_step(inputs: Inputs) -> float:
    """Tokens of one optimizer step: global batch (sequences) × sequence length."""
    return quantity(inputs, "global_batch") * quantity(inputs, "seq")


# --- printed metrics and canonical ones ------------------------------------------------------------------------------


def _one(inputs: Inputs) -> float:  # noqa: ARG001
    return 1.0


def _per_device(inputs: Inputs) -> float:
    return 1.0 / quantity(inputs, "n_gpus")


def _trained_tokens(inputs: Inputs) -> float:
    return quantity(inputs, "trained_tokens")


def _share_of_training(inputs: Inputs) -> float:
    return tokens_per_step(inputs) / quantity(inputs, "trained_tokens")


@dataclass(frozen=True, slots=True)
class Conversion:
    """canonical = factor(row) · (printed · unit factor)^exponent.

    `rank` orders the metrics of a configuration by how well defined a step time they give (0 best): measured times, then
    token rates, then FLOP rates, then what was derived from another printed figure; None says nothing about time.
    """

    metric: str
    unit: str
    rank: int | None = None
    factor: Callable[[Inputs], float] = _one
    exponent: Literal[1, -1] = 1


CONVERSIONS: Mapping[str, Conversion] = MappingProxyType(
    {
        "iteration_time": Conversion("step_time", "seconds", 0),
        "time_per_step": Conversion("step_time", "seconds", 0),
        "tokens_per_s_per_gpu": Conversion("tokens_per_s_per_gpu", "tokens/s/GPU", 1),
        "tokens_per_s": Conversion("tokens_per_s_per_gpu", "tokens/s/GPU", 1, _per_device),
        "tokens_per_day_B": Conversion("tokens_per_s_per_gpu", "tokens/s/GPU", 1, _per_device),
        "gpu_hours_per_trillion_tokens": Conversion("tokens_per_s_per_gpu", "tokens/s/GPU", 1, _trained_tokens, -1),
        "total_gpu_hours": Conversion("tokens_per_s_per_gpu", "tokens/s/GPU", 3, _trained_tokens, -1),
        "hw_tflops_per_gpu": Conversion("hw_tflops_per_gpu", "TFLOP/s", 2),
        "model_tflops_per_gpu": Conversion("model_tflops_per_gpu", "TFLOP/s", 2),
        "tflops_noncausal": Conversion("model_tflops_per_gpu", "TFLOP/s", 2),
        "tflops_causal": Conversion("causal_tflops_per_gpu", "TFLOP/s", 3),
        "aggregate_petaflops": Conversion("hw_tflops_per_gpu", "TFLOP/s", 3, _per_device),
        "days_for_300B_tokens": Conversion("step_time", "seconds", 3, _share_of_training),
        "iteration_time_derived": Conversion("step_time", "seconds", 4),
        "tokens_per_s_per_gpu_derived": Conversion("tokens_per_s_per_gpu", "tokens/s/GPU", 4),
        "pct_of_peak": Conversion("hfu", "percent", 5),
        "hfu": Conversion("hfu", "percent", 5),
        "mfu": Conversion("mfu", "percent", 5),
        "mfu_noncausal": Conversion("mfu", "percent", 5),
        "mfu_causal": Conversion("mfu_causal", "percent", 6),
        "peak_memory": Conversion("reserved_memory", "GiB"),
        "peak_gpu_memory": Conversion("reserved_memory", "GiB"),
        "activation_mem": Conversion("activation_memory", "GiB"),
        "param_optimizer_mem": Conversion("parameter_memory", "GiB"),
        "model_state_memory": Conversion("model_state_memory", "GiB"),
        "layer_forward_ms": Conversion("layer_forward_time", "seconds"),
        "layer_backward_ms": Conversion("layer_backward_time", "seconds"),
        "layer_total_ms": Conversion("layer_time", "seconds"),
        "t_1F": Conversion("forward_phase_time", "seconds"),
        "t_1B": Conversion("backward_phase_time", "seconds"),
        "t_1W": Conversion("weight_gradient_phase_time", "seconds"),
        "t_1F1B": Conversion("steady_phase_time", "seconds"),
        "t_bubble": Conversion("bubble_time", "seconds"),
        "t_opt": Conversion("optimizer_time", "seconds"),
        "throughput_increase_vs_full": Conversion("throughput_increase", "percent"),
        "activation_mem_pct_of_tp_baseline": Conversion("activation_memory_share", "percent"),
        "weak_scaling_efficiency": Conversion("weak_scaling_efficiency", "percent"),
        "strong_scaling_efficiency": Conversion("strong_scaling_efficiency", "percent"),
        "normalized_throughput": Conversion("throughput_ratio", "1"),
        "max_model_params": Conversion("largest_model", "parameters"),
        "config_tp_pp": Conversion("plan", ""),
    }
)
"""Printed metric -> canonical metric. `hw_tflops_per_gpu`, `hfu` and percent-of-peak include recomputation."""

UNIT_FACTORS: Mapping[str, float] = MappingProxyType(
    {
        "ms": 1e-3,
        "days": SECONDS_PER_DAY,
        "A100-80GB h": SECONDS_PER_HOUR,
        "H800 h / 1T tok": SECONDS_PER_HOUR,
        "M H100-80GB h": 1e6 * SECONDS_PER_HOUR,
        "B tok/day": 1e9 / SECONDS_PER_DAY,
        "PFLOP/s": 1e3,
        "GB": 1e9 / GIB,
        "GB/GPU": 1e9 / GIB,
        "B params": 1e9,
    }
)
"""Printed unit -> canonical unit, for units that are not canonical already; GB is decimal."""


def to_canonical(printed: float, metric: str, unit: str, inputs: Inputs) -> float:
    """A printed figure in the canonical metric and unit of `CONVERSIONS[metric]`.

    `inputs` holds contract columns (and `trained_tokens` where a whole training run is meant). Raises `MissingQuantity`.
    """
    rule = CONVERSIONS[metric]
    return float(rule.factor(inputs) * (printed * UNIT_FACTORS.get(unit, 1.0)) ** rule.exponent)


def to_printed(canonical: float, metric: str, unit: str, inputs: Inputs) -> float:
    """The inverse of `to_canonical`."""
    rule = CONVERSIONS[metric]
    return float((canonical / rule.factor(inputs)) ** rule.exponent / UNIT_FACTORS.get(unit, 1.0))


# --- what a figure says about step time ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFlops:
    """FLOP of one optimizer step over all devices, by the published conventions.

    `model`: three times the forward matrix FLOPs, attention over the full s², head included; `hardware` adds
    recomputation by the same count; `causal` counts half of the attention scores.
    """

    model: float = math.nan
    hardware: float = math.nan
    causal: float = math.nan


def predicted_flops(prediction: Prediction, n_gpus: float) -> StepFlops:
    """FLOP per step that a prediction row implies: its rates × its step time × devices."""
    device_seconds = read_number(prediction.get("step_time_s")) * n_gpus * 1e12
    model = read_number(prediction.get("model_tflops_per_gpu")) * device_seconds
    hardware = read_number(prediction.get("hw_tflops_per_gpu")) * device_seconds
    mfu = read_number(prediction.get("mfu"))
    return StepFlops(
        model=model, hardware=hardware, causal=model * read_number(prediction.get("mfu_causal")) / mfu if mfu else math.nan
    )


def implied_step_time(fact: Fact, flops: StepFlops | None = None) -> float:
    """Seconds per step that a published figure means; NaN when it says nothing about time or `flops` lacks the count.

    Token rates need only the batch; FLOP rates and utilisations divide `flops` (per step, all devices) by the rate.
    """
    if CONVERSIONS[fact.printed_metric].rank is None:
        return math.nan
    if fact.metric == "step_time":
        return fact.value
    devices = quantity(fact.inputs, "n_gpus")
    if fact.metric == "tokens_per_s_per_gpu":
        return tokens_per_step(fact.inputs) / (fact.value * devices)
    counts = flops or StepFlops()
    share = fact.value / 100.0 * fact.peak_tflops
    count, rate = {
        "model_tflops_per_gpu": (counts.model, fact.value),
        "hw_tflops_per_gpu": (counts.hardware, fact.value),
        "causal_tflops_per_gpu": (counts.causal, fact.value),
        "mfu": (counts.model, share),
        "hfu": (counts.hardware, share),
        "mfu_causal": (counts.causal, share),
    }[fact.metric]
    return count / (rate * 1e12 * devices)


def best_rows(facts: Iterable[Fact]) -> list[Fact]:
    """One usable row per configuration, under its best-defined time metric, in file order."""
    best: dict[str, Fact] = {}
    for fact in facts:
        rank = CONVERSIONS[fact.printed_metric].rank
        if not fact.usable or rank is None:
            continue
        held = CONVERSIONS[best[fact.id].printed_metric].rank if fact.id in best else None
        if held is None or rank < held:
            best[fact.id] = fact
    return list(best.values())


# --- memory ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryFact:
    """Published bytes on the fullest device of a configuration, and the prediction column to set beside them."""

    fact: Fact
    bytes: float
    kind: Literal["reserved", "analytical"]
    column: Literal["device_memory_bytes", "peak_memory_bytes"]


def memory_rows(facts: Iterable[Fact]) -> list[MemoryFact]:
    """One memory figure per usable configuration, in file order.

    What an allocator reserved is set beside `device_memory_bytes`. Published activations get the parameter and optimizer
    memory of the same model on the same plan added (printed once per model) and are set beside `peak_memory_bytes`.
    """
    usable = [fact for fact in facts if fact.usable]
    states = {_memory_key(fact): fact.value for fact in usable if fact.metric == "parameter_memory"}
    rows = []
    for fact in usable:
        if fact.metric == "reserved_memory":
            rows.append(MemoryFact(fact=fact, bytes=fact.value * GIB, kind="reserved", column="device_memory_bytes"))
        elif fact.metric == "activation_memory":
            total = (fact.value + states[_memory_key(fact)]) * GIB
            rows.append(MemoryFact(fact=fact, bytes=total, kind="analytical", column="peak_memory_bytes"))
    return rows


def _memory_key(fact: Fact) -> tuple[str, ...]:
    """What the parameter and optimizer memory of a configuration depends on."""
    return (fact.source, *(fact.inputs[name] for name in ("model", "tp", "pp", "dp", "cp", "ep", "zero_stage")))


def memory_errors(rows: Sequence[MemoryFact], predictions: Sequence[Prediction]) -> list[float]:
    """Relative errors in bytes, predicted / published − 1; NaN where the prediction is refused or lacks the column."""
    return [
        math.nan if prediction.get("error") else read_number(prediction.get(row.column)) / row.bytes - 1.0
        for row, prediction in zip(rows, predictions, strict=True)
    ]
