"""The symbols of a training plan and the codes of its categorical choices.

Counts are plain integers. A categorical choice is an `IntEnum` code in columns and its lower-case name in files and tables.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any


class Recompute(IntEnum):
    """What the backward pass computes again instead of keeping."""

    NONE = 0
    SELECTIVE = 1
    """Core attention under Megatron (Korthikanti 2022 §5), every second matrix product under torchtitan."""
    FULL = 2
    FIRST_K = 3
    """Full recomputation in the first `recompute_layers` layers of each stage, none in the others."""


class Schedule(IntEnum):
    """Order of microbatches through the pipeline."""

    GPIPE = 0
    ONE_F_ONE_B = 1
    INTERLEAVED = 2
    ZERO_BUBBLE = 3
    DUALPIPE = 4


class Precision(IntEnum):
    """Format of the matrix products of linear layers; the rest stays 16-bit (fp32: everything)."""

    FP32 = 0
    FP16 = 1
    BF16 = 2
    FP8 = 3
    MXFP8 = 4
    NVFP4 = 5


class StageLayout(IntEnum):
    """How layers are dealt to stages when the ends also carry embedding and head."""

    EVEN = 0
    LIGHT_ENDS = 1
    """The first and the last stage hold one layer less per chunk end (Llama 3 §3.3.2)."""


class RankOrder(IntEnum):
    """Placement of the mesh axes, innermost first."""

    TENSOR_CONTEXT_DATA_PIPELINE = 0
    TENSOR_CONTEXT_PIPELINE_DATA = 1


class Offload(IntEnum):
    """What lives in host memory."""

    NONE = 0
    OPTIMIZER = 1


class Trainable(IntEnum):
    """Which parameters are trained."""

    ALL = 0
    LORA = 1


NAMES: dict[str, tuple[str, ...]] = {
    "recompute": ("none", "selective", "full", "first_k"),
    "schedule": ("gpipe", "1f1b", "interleaved", "zero_bubble", "dualpipe"),
    "precision": ("fp32", "fp16", "bf16", "fp8", "mxfp8", "nvfp4"),
    "stage_layout": ("even", "light_ends"),
    "rank_order": ("tensor-context-data-pipeline", "tensor-context-pipeline-data"),
    "offload": ("none", "optimizer"),
    "trainable": ("all", "lora"),
}
"""Names behind the codes, by symbol; the position is the code."""

PLAN_SYMBOLS: tuple[str, ...] = (
    "devices",
    "tensor",
    "context",
    "pipeline",
    "data",
    "expert",
    "expert_tensor",
    "virtual",
    "stage_layout",
    "schedule",
    "micro_batch",
    "zero_stage",
    "shard_degree",
    "sequence_parallel",
    "recompute",
    "recompute_layers",
    "offload",
    "precision",
    "rank_order",
    "trainable",
)
"""Every symbol a training plan binds, in the order people read them.

`devices` = tensor · context · pipeline · data; `shard_degree` is the number of data·context ranks that ZeRO or FSDP shards
over (HSDP when fewer than all); `virtual` is the number of chunks per device.
"""

DEFAULTS: dict[str, int] = {
    "tensor": 1,
    "context": 1,
    "pipeline": 1,
    "expert": 1,
    "expert_tensor": 1,
    "virtual": 1,
    "stage_layout": StageLayout.EVEN,
    "schedule": Schedule.ONE_F_ONE_B,
    "micro_batch": 1,
    "zero_stage": 0,
    "sequence_parallel": 0,
    "recompute": Recompute.NONE,
    "recompute_layers": 0,
    "offload": Offload.NONE,
    "precision": Precision.BF16,
    "rank_order": RankOrder.TENSOR_CONTEXT_DATA_PIPELINE,
    "trainable": Trainable.ALL,
}
"""Values of the choices a person leaves out."""


def code(symbol: str, name: str) -> int:
    """Code of a categorical value; ValueError lists what there is."""
    names = NAMES[symbol]
    if name not in names:
        raise ValueError(f"{symbol} '{name}' does not exist; choose one of {', '.join(names)}")
    return names.index(name)


def spell(symbol: str, value: Any) -> Any:
    """The name behind a categorical code; any other value unchanged."""
    return NAMES[symbol][int(value)] if symbol in NAMES else value
