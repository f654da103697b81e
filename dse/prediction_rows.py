"""One row of a points file as a training question: model, machine, plan, and what had to be assumed; or what is wrong.

The contract's names (tp, pp, seq, n_gpus, …) become the engine's here and nowhere else.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from costmodels.constants import HOST, find_stack
from dse.measures import nearest
from spaces import architecture as architectures
from spaces.architecture import Architecture, UnknownModel, from_dimensions
from spaces.hardware import Device, find_device
from spaces.plan import DEFAULTS, NAMES, Offload, RankOrder, Schedule, StageLayout

Row = Mapping[str, str | None]


class BadRow(ValueError):
    """A row that cannot be predicted, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A row understood. `symbols` binds every plan symbol, `sequence` and `global_batch`; codes as in `spaces.plan`.

    `fixed` binds symbols of the stack that the row sets. `recompute_open` says that the row left recomputation blank: the
    lightest that fits is to be found.
    """

    architecture: Architecture
    stack: str
    device: Device
    fixed: Mapping[str, float]
    optimizer: str | None
    symbols: Mapping[str, int]
    recompute_open: bool
    assumptions: tuple[str, ...]

    @property
    def group(self) -> tuple[Any, ...]:
        """Rows of one group are evaluated as one batch."""
        return self.architecture, self.stack, self.device, tuple(sorted(self.fixed.items())), self.optimizer


def read(row: Row) -> Question:
    """The row as a question. Raises BadRow."""
    assumed: list[str] = []
    try:
        architecture = architecture_of(row, assumed)
        device = device_of(row)
    except ValueError as error:
        raise BadRow(str(error)) from None
    plan = _plan(row, architecture, assumed)
    return Question(
        architecture=architecture,
        stack=plan.stack,
        device=device,
        fixed=_fixed(row),
        optimizer=plan.optimizer,
        symbols=plan.symbols,
        recompute_open=plan.recompute_open,
        assumptions=tuple(assumed),
    )


# --- cells ------------------------------------------------------------------------------------------------------------


def cell(row: Row, name: str) -> str:
    """The text of a cell, blank where there is none."""
    return (row.get(name) or "").strip()


def number_in(row: Row, name: str) -> float | None:
    """A positive, finite number, None when blank. Raises BadRow."""
    text = cell(row, name)
    if not text:
        return None
    try:
        number = float(text.replace("_", ""))
    except ValueError:
        raise BadRow(f"{name}: {text!r} is not a number") from None
    if not math.isfinite(number) or number < 0:
        raise BadRow(f"{name}: expected a finite number that is not negative, got {text}")
    return number


def count_in(row: Row, name: str, default: int | None = None, least: int = 1) -> int:
    """A whole number from `least`. Raises BadRow, also when blank without a default."""
    number = number_in(row, name)
    if number is None:
        if default is None:
            raise BadRow(f"{name} is blank, and nothing stands for it")
        return default
    if number != int(number) or number < least:
        raise BadRow(f"{name}: expected a whole number from {least}, got {cell(row, name)}")
    return int(number)


def flag_in(row: Row, name: str) -> int | None:
    """0 or 1, None when blank."""
    text = cell(row, name).lower()
    if not text:
        return None
    if text not in ("0", "1", "true", "false", "yes", "no", "1.0", "0.0"):
        raise BadRow(f"{name}: expected true or false, got {text!r}")
    return int(text in ("1", "true", "yes", "1.0"))


def choice_in(row: Row, name: str, known: Mapping[str, int], default: int) -> int:
    """The code of the word in a cell of the row, `default` where it is blank. Raises BadRow with the nearest words."""
    text = cell(row, name).lower().replace("_", "-")
    if not text:
        return default
    if text not in known:
        raise BadRow(f"{name}: no such value {text!r}{nearest(text, known)}")
    return known[text]


# --- model and machine ------------------------------------------------------------------------------------------------

_SIZES = ("layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "head_dim", "experts", "experts_per_token", "moe_ffn")
_NO_EXPERTS = {
    "experts": 0,
    "experts_per_token": 0,
    "moe_ffn": 0,
    "shared_experts": 0,
    "shared_ffn": 0,
    "dense_layers": 0,
    "moe_every": 1,
    "shared_gate": False,
    "router_correction_bias": False,
}


def architecture_of(row: Row, assumed: list[str]) -> Architecture:
    """The preset with the row's dimensions in place of its own, or the dimensions alone."""
    given: dict[str, Any] = {name: count_in(row, name, least=0) for name in _SIZES if cell(row, name)}
    given |= {name: bool(flag_in(row, name)) for name in ("gated", "tied_embeddings") if cell(row, name)}
    name, sequence = cell(row, "model"), count_in(row, "seq")
    key = tuple(sorted(given.items()))
    try:
        preset = _preset(name) if name else None
    except UnknownModel as error:
        preset = None
        if not {"layers", "hidden", "heads", "ffn", "vocab"} <= given.keys():
            raise BadRow(f"{error}; or give layers, hidden, heads, ffn and vocab") from None
    if preset is not None:
        return _stretched(_variant(preset, key), sequence, assumed)
    missing = [size for size in ("layers", "hidden", "heads", "ffn", "vocab") if size not in given]
    if missing:
        raise BadRow(f"neither a model nor its dimensions: {', '.join(missing)} missing")
    architecture, conventions = _dimensions(name or "model", key, sequence)
    assumed += conventions
    return architecture


@lru_cache(maxsize=4096)
def _preset(name: str) -> Architecture:
    return architectures.find(name)


@lru_cache(maxsize=4096)
def _variant(preset: Architecture, given: tuple[tuple[str, Any], ...]) -> Architecture:
    """The preset with the given dimensions that differ from its own. Raises ValueError when they do not fit together."""
    changes = {name: value for name, value in given if getattr(preset, name) != value}
    if "ffn" in changes and preset.experts and "moe_ffn" not in dict(given):
        width = changes.pop("ffn")  # the cell of a mixture-of-experts row is the expert's or the dense width
        if width != preset.moe_ffn:
            changes["ffn" if preset.dense_layers or preset.moe_every > 1 else "moe_ffn"] = width
    if changes.get("experts") == 0:
        changes |= _NO_EXPERTS
    if {"hidden", "heads"} & changes.keys() and "head_dim" not in dict(given) and not preset.kv_lora_rank:
        changes["head_dim"] = changes.get("hidden", preset.hidden) // changes.get("heads", preset.heads)
    if "heads" in changes and "kv_heads" not in dict(given) and preset.kv_heads == preset.heads:
        changes["kv_heads"] = changes["heads"]
    return preset.with_dimensions(**changes) if changes else preset


@lru_cache(maxsize=4096)
def _dimensions(name: str, given: tuple[tuple[str, Any], ...], sequence: int) -> tuple[Architecture, tuple[str, ...]]:
    sizes: dict[str, Any] = {"kv_heads": None, **dict(given)}
    sizes = {size: value for size, value in sizes.items() if not (size in _NO_EXPERTS and value == 0)}
    return from_dimensions(name, max_sequence=sequence, **sizes)


def _stretched(architecture: Architecture, sequence: int, assumed: list[str]) -> Architecture:
    """A table of learned positions that is too short for the row grows to its sequence."""
    if not 0 < architecture.max_positions < sequence:
        return architecture
    assumed.append(f"learned positions grown from {architecture.max_positions} to {sequence}")
    return architecture.with_dimensions(max_positions=sequence, max_sequence=max(sequence, architecture.max_sequence))


def device_of(row: Row) -> Device:
    """The catalogue's device with the row's node size and NIC."""
    if not cell(row, "gpu"):
        raise BadRow("gpu is blank, and nothing stands for it")
    return _changed(cell(row, "gpu"), count_in(row, "gpus_per_node", 0, least=0), number_in(row, "nic_GBps") or 0.0)


@lru_cache(maxsize=4096)
def _changed(name: str, per_node: int, nic: float) -> Device:
    device = find_device(name)
    changes: dict[str, Any] = {}
    if per_node and per_node != device.devices_per_node:
        within = device.scale_up_domain == device.devices_per_node or per_node < device.scale_up_domain
        changes = {"devices_per_node": per_node} | ({"scale_up_domain": per_node} if within else {})
    if nic:
        changes["nic_bandwidth"] = nic * 1e9
    return dataclasses.replace(device, **changes) if changes else device


# --- plan -------------------------------------------------------------------------------------------------------------

_SCHEDULES = {
    **{name.replace("_", "-"): code for code, name in enumerate(NAMES["schedule"])},
    "zerobubble": Schedule.ZERO_BUBBLE,
    "zb": Schedule.ZERO_BUBBLE,
    "interleaved-1f1b": Schedule.INTERLEAVED,
    "interleaved1f1b": Schedule.INTERLEAVED,
    "1f1b-interleaved": Schedule.INTERLEAVED,
    "zb-h1": Schedule.ZERO_BUBBLE,
    "zbh1": Schedule.ZERO_BUBBLE,
}
_STACKS = {
    "megatron-lm": "megatron",
    "megatron-core": "megatron",
    "megatron-bridge": "megatron",
    "nemo": "megatron",
    "torchtitan": "torchtitan-compile",
    "torch-graph": "torch-eager",
}
"""Other names of stacks; torch-graph is torch-eager without the host."""
_PRECISIONS = {name: code for code, name in enumerate(NAMES["precision"])}
_RECOMPUTES = {name: code for code, name in enumerate(NAMES["recompute"][:3])}
_TRAINABLE = {name: code for code, name in enumerate(NAMES["trainable"])}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    stack: str
    optimizer: str | None
    symbols: Mapping[str, int]
    recompute_open: bool


def _fixed(row: Row) -> dict[str, float]:
    """Symbols of the stack that the row sets: vocabulary parallelism, and no host under CUDA graphs."""
    fixed: dict[str, float] = {}
    vocabulary = flag_in(row, "vocab_parallel")
    if vocabulary is not None:
        fixed["stack.vocab_parallel"] = float(vocabulary)
    if cell(row, "stack").lower().replace("_", "-") == "torch-graph" or flag_in(row, "cuda_graph"):
        fixed |= dict.fromkeys(HOST, 0.0)
    return fixed


def _plan(row: Row, model: Architecture, assumed: list[str]) -> _Plan:
    """Every symbol of the plan, each blank filled as the contract says."""
    devices = count_in(row, "n_gpus")
    tensor, pipeline, context = (count_in(row, name, 1) for name in ("tp", "pp", "cp"))
    expert, micro, batch = count_in(row, "ep", 1), count_in(row, "micro_batch", 1), count_in(row, "global_batch")
    data = _data(row, devices, tensor, pipeline, context, assumed)
    stack = _stack(row, tensor * pipeline, assumed)
    virtual, schedule = _chunks(row, model, pipeline, assumed)
    zero = count_in(row, "zero_stage", find_stack(stack).default_zero, least=0)
    _check(model, row, tensor=tensor, context=context, data=data, expert=expert, micro=micro, zero=zero)
    text = cell(row, "recompute").lower().replace(" ", "")
    base, plus, _ = text.partition("+sp")
    recompute = choice_in({"recompute": base}, "recompute", _RECOMPUTES, DEFAULTS["recompute"])
    precision = choice_in(row, "precision", _PRECISIONS, DEFAULTS["precision"])
    if not cell(row, "precision"):
        assumed.append("precision bf16")
    ranks = data * context
    symbols = {
        **DEFAULTS,
        "devices": devices,
        "tensor": tensor,
        "context": context,
        "pipeline": pipeline,
        "data": data,
        "expert": expert,
        "expert_tensor": count_in(row, "expert_tensor", 1),
        "virtual": virtual,
        "stage_layout": _layout(model.layers, pipeline * virtual),
        "schedule": schedule,
        "micro_batch": micro,
        "zero_stage": zero,
        "shard_degree": _shards(row, zero, ranks),
        "sequence_parallel": _sequence_parallel(row, bool(plus), tensor, stack, model, assumed),
        "recompute": recompute,
        "offload": Offload.NONE,
        "precision": precision,
        "rank_order": RankOrder.TENSOR_CONTEXT_DATA_PIPELINE,
        "trainable": choice_in(row, "trainable", _TRAINABLE, DEFAULTS["trainable"]),
        "sequence": count_in(row, "seq"),
        "global_batch": batch,
    }
    optimizer = _optimizer(row, stack, assumed)
    codes = {name: int(value) for name, value in symbols.items()}
    return _Plan(stack=stack, optimizer=optimizer, symbols=codes, recompute_open=not base)


def _data(row: Row, devices: int, tensor: int, pipeline: int, context: int, assumed: list[str]) -> int:
    """Replicas: given, or what is left of the devices; ep never enters."""
    ranks = tensor * pipeline * context
    if not cell(row, "dp"):
        if devices % ranks:
            raise BadRow(f"n_gpus = {devices} is not a multiple of tp·pp·cp = {ranks}")
        assumed.append(f"dp {devices // ranks}")
        return devices // ranks
    data = count_in(row, "dp")
    if ranks * data != devices:
        raise BadRow(f"n_gpus = {devices} is not tp·pp·dp·cp = {ranks * data}")
    return data


def _stack(row: Row, model_parallel: int, assumed: list[str]) -> str:
    name = cell(row, "stack")
    if not name:
        name = "megatron" if model_parallel > 1 else "torchtitan-compile"
        assumed.append(f"stack {name}")
    wanted = name.lower().replace("_", "-")
    if wanted in _STACKS:
        assumed.append(f"stack {_STACKS[wanted]}" + (" without the host" if wanted == "torch-graph" else ""))
        wanted = _STACKS[wanted]
    try:
        return find_stack(wanted).name
    except ValueError as error:
        raise BadRow(str(error)) from None


def _chunks(row: Row, model: Architecture, pipeline: int, assumed: list[str]) -> tuple[int, int]:
    """Chunks per device and the schedule they mean."""
    virtual = count_in(row, "vpp", 1)
    if pipeline == 1 and virtual > 1:
        assumed.append(f"vpp {virtual} means nothing without a pipeline")
        virtual = 1
    default = Schedule.INTERLEAVED if virtual > 1 else Schedule.ONE_F_ONE_B
    schedule = choice_in(row, "schedule", _SCHEDULES, default)
    if schedule == Schedule.INTERLEAVED and virtual == 1:
        schedule = Schedule.ONE_F_ONE_B
    chunks = pipeline * virtual
    if chunks > model.layers and (model.layers + 2) % chunks:  # the ends may hold the embedding and the head alone
        raise BadRow(f"pp·vpp = {chunks} chunks, but {model.name} has {model.layers} layers")
    return virtual, schedule


def _layout(layers: int, chunks: int) -> int:
    """Even where it divides, lighter ends where that does, else as even as it goes."""
    light = chunks > 2 and layers % chunks and (layers + 2) % chunks == 0
    return StageLayout.LIGHT_ENDS if light else StageLayout.EVEN


def _check(model: Architecture, row: Row, *, tensor: int, context: int, data: int, expert: int, micro: int, zero: int) -> None:
    """Raise BadRow for a plan that cannot exist."""
    batch, ranks = count_in(row, "global_batch"), tensor * context * data
    if batch % (data * micro):
        raise BadRow(f"global_batch = {batch} is not a multiple of dp·micro_batch = {data * micro}")
    if zero > 3:
        raise BadRow(f"zero_stage: 0, 1, 2 or 3, got {zero}")
    if expert > 1 and not model.experts:
        raise BadRow(f"ep = {expert}, but {model.name} has no experts")
    if expert > 1 and (ranks % expert or model.experts % expert):
        raise BadRow(f"ep = {expert} divides neither more than the {ranks} ranks of a stage nor the {model.experts} experts")
    if tensor > model.heads or model.heads % tensor:
        raise BadRow(f"tp = {tensor} does not divide the {model.heads} heads of {model.name}")


def _shards(row: Row, zero: int, ranks: int) -> int:
    """Ranks that states are sharded over; all data·context ranks unless given (HSDP)."""
    if zero == 0:
        return 1
    shards = count_in(row, "shard_degree", ranks)
    if ranks % shards:
        raise BadRow(f"shard_degree = {shards} does not divide the dp·cp = {ranks} ranks")
    return shards


def _sequence_parallel(row: Row, plus: bool, tensor: int, stack: str, model: Architecture, assumed: list[str]) -> int:
    given = flag_in(row, "sequence_parallel")
    if tensor == 1:
        return 0
    if given is not None or plus:
        return int(bool(given) or plus)
    if find_stack(stack).default_sequence_parallel or model.experts:
        assumed.append("sequence parallel with tensor parallel")
        return 1
    return 0


def _optimizer(row: Row, stack: str, assumed: list[str]) -> str | None:
    """The state layout that the optimizer named means; None: the stack's own."""
    wanted = cell(row, "optimizer").lower().replace("_", "-")
    if wanted not in ("", "adamw", "adam", "adamw-bf16"):
        raise BadRow(f"optimizer: no such value {wanted!r}; choose one of adamw, adamw-bf16")
    own = find_stack(stack).optimizer
    if wanted == "adamw-bf16":
        return wanted
    if wanted and own == "adamw-bf16":
        assumed.append("adamw as fp32 weights, gradients and moments")
        return "fsdp-mixed"
    return None
