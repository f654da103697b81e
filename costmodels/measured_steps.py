"""Measured whole training steps as questions: the architecture, the stack and the plan that each row ran.

Rows come from `steps.csv` (one device) and `parallel.csv` (two) of `costmodels/data/measurements`, written by
`costmodels.calibration`. A row that ran in a way no stack describes (a loss in fp32, a norm in pieces, ...) is not `usual`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from costmodels.constants import HOST
from costmodels.measurements import ROOT
from costmodels.training import training_problem
from spaces.architecture import Architecture
from spaces.hardware import UnknownDevice, find_device
from spaces.plan import DEFAULTS, Recompute, Schedule
from spaces.problem import Problem

_STACK = {"eager": "torch-eager", "compile": "torch-compile", "graph": "torch-eager"}
_USUAL = {
    "optimizer": "adamw_fused", "loss_dtype": "bf16", "norm": "fused", "fused": "true", "precision": "bf16",
    "logits_held": "true", "variant": "none",
}  # fmt: skip
_OPTIMIZER = {"bf16": "adamw-bf16", "amp": "fsdp-mixed", "mixed": "fsdp-mixed", "fp32": "fsdp-mixed"}
# reads and writes of each parameter by torch.optim's _multi_tensor_adamw, one kernel a line: decay 2, lerp_ of the first moment
# 3, mul_ 2 and addcmul_ 3 of the second, sqrt 2, div_ 2, add_ 2, addcdiv_ 4
_FOREACH = 20.0
_COMPOSITE = 5.0  # eight calls (calibration/network.py), an elementwise one taking 0.6 of a mean one (measurements, host.csv)
# of a step: a host that needs longer to issue it is what the step waits for. Seconds to issue the same step differ by a third
# from one reading to the next on a shared host
_ENQUEUED = 0.7


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MeasuredStep:
    """One measured step. `kind` is one, ddp, fsdp, tensor or pipeline; `mode` eager, compile or graph; seconds and bytes.

    `unusual` are the choices no stack describes, `host` seconds the processor needs to issue the step, `peak` the allocator's
    peak on the fullest device and `watts` what a device drew (0: not recorded), `plan` binds plan symbols and the global batch.
    """

    device: str
    kind: str
    mode: str
    architecture: Architecture
    plan: Mapping[str, int]
    fixed: Mapping[str, float]
    optimizer: str
    unusual: tuple[str, ...]
    time: float
    host: float
    peak: float
    watts: float
    line: int

    @property
    def stack(self) -> str:
        """The stack that describes the way it ran."""
        return _STACK[self.mode]

    @property
    def usual(self) -> bool:
        """Whether a stack describes everything about it."""
        return not self.unusual

    @property
    def host_bound(self) -> bool:
        """Whether the device waited for the processor, as far as the row says."""
        return self.mode != "graph" and self.host > _ENQUEUED * self.time

    @property
    def shape(self) -> str:
        """What is left out together: rows of one architecture, whatever the sequence, batch and mode."""
        a = self.architecture
        return f"{a.name} {a.hidden}x{a.layers} {a.heads}/{a.kv_heads} {a.ffn} {a.vocab}"

    def problem(self) -> Problem:
        """The step as a problem with every plan symbol bound."""
        fixed = {**DEFAULTS, "shard_degree": 0, **self.plan, **self.fixed}
        return training_problem(self.architecture, self.stack, find_device(self.device), fixed, self.optimizer)


def measured_steps(root: Path = ROOT) -> tuple[MeasuredStep, ...]:
    """Every measured step below `root` on a device of the catalogue, in the order of the files."""
    paths = sorted([*root.glob("*/steps.csv"), *root.glob("*/parallel.csv")])
    return tuple(step for path in paths for step in _steps(path))


def _steps(path: Path) -> Iterator[MeasuredStep]:
    with path.open(encoding="utf-8", newline="") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                device = find_device(row["gpu"]).name
            except UnknownDevice:
                continue
            yield _step(device, row, line)


def _step(device: str, row: Mapping[str, str], line: int) -> MeasuredStep:
    kind = row.get("parallel", "one")
    count = int(row.get("ranks") or 1)
    plan = _plan(row, kind, count)
    return MeasuredStep(
        device=device,
        kind=kind,
        mode=row["mode"],
        architecture=_architecture(row),
        plan=plan,
        fixed=_fixed(row),
        optimizer=_OPTIMIZER[row["precision"]],
        unusual=tuple(f"{name} {row[name]}" for name, word in _USUAL.items() if not _same(name, row.get(name, word), word)),
        time=float(row["time_s"]),
        host=float(row["host_s"] or 0.0),
        peak=float(row["peak_allocated"] or 0.0),
        watts=float(row.get("power_w") or 0.0),
        line=line,
    )


def _same(name: str, value: str, usual: str) -> bool:
    """Sequence and vocabulary parallelism are the plan's, not a way of running."""
    return value == usual or (name == "variant" and value in ("sequence", "vocab"))


def _plan(row: Mapping[str, str], kind: str, count: int) -> dict[str, int]:
    replicas = count if kind in ("ddp", "fsdp") else 1
    micro = int(row["micro_batch"])
    return {
        "devices": count,
        "data": replicas,
        "zero_stage": 3 if kind == "fsdp" else 0,
        "tensor": count if kind == "tensor" else 1,
        "pipeline": count if kind == "pipeline" else 1,
        "sequence_parallel": int(row.get("variant", "").endswith("sequence")),
        "schedule": Schedule.ONE_F_ONE_B,
        "micro_batch": micro,
        "recompute": Recompute.FULL if row["recompute"] == "full" else Recompute.NONE,
        "sequence": int(row["seq"]),
        "global_batch": micro * int(row["microbatches"]) * replicas,
    }


def _fixed(row: Mapping[str, str]) -> dict[str, float]:
    """Symbols of the stack that a row's way of running sets."""
    fixed = {
        "stack.memory.logits_held": float(row["logits_held"] == "true"),
        "stack.memory.composite_norms": float(row["norm"] == "composite"),
        "stack.memory.views": float(row["fused"] == "true"),
    }
    if row["norm"] == "composite":
        fixed["stack.launches.norm"] = _COMPOSITE
    if row.get("variant") == "keep":
        fixed["stack.memory.reshard"] = 0.0
    if row["optimizer"] == "adamw_foreach":
        width = 2.0 if row["precision"] == "bf16" else 4.0
        fixed |= {"stack.memory.update": width, "optimizer.traffic": _FOREACH * width}
    if row["loss_dtype"] == "fp32":
        fixed["stack.loss_bytes"] = 4.0
    if row.get("variant") == "vocab":
        fixed["stack.vocab_parallel"] = 1.0
    if row["mode"] == "graph":  # the device's time alone
        fixed |= dict.fromkeys(HOST, 0.0)
    return fixed


def _architecture(row: Mapping[str, str]) -> Architecture:
    sizes: dict[str, Any] = {
        name: int(row[name]) for name in ("hidden", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab")
    }
    tied, length, rotary = row["tied"] == "true", int(row["seq"]), row["rotary"] == "true"
    if row["style"] == "gpt":  # rotated as well as learned positions: the table is a small thing, the rotation is not
        positions, table = ("rotary", 0) if rotary else ("learned", length)
        return Architecture(
            name="gpt", **sizes, max_sequence=length, gated=False, activation="gelu", norm="layernorm", positions=positions,
            max_positions=table, tied_embeddings=tied, biases=frozenset({"qkv", "attention_output", "mlp", "norm"}),
        )  # fmt: skip
    positions = "rotary" if rotary else "none"
    return Architecture(name="llama", **sizes, max_sequence=length, positions=positions, tied_embeddings=tied)
