"""Prefill and decode steps of a model split by tensor parallelism: what `serving` measures, with its collectives.

Heads, widths and the head's vocabulary are divided over the ranks; every rank holds the whole embedding. Two all-reduces a
layer, and one all-gather of the last tokens' logits, run inside the CUDA graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from costmodels.calibration.serving import NARROW_MODELS, SIZES, Server, narrow_steps
from costmodels.calibration.suite import READINGS, Cell, Row, Suite, Task, interleave

# Whole models, or fewer layers of larger ones
MODELS: tuple[tuple[str, int, int, int, int, int, int, int], ...] = (
    ("llama", 4096, 16, 32, 8, 128, 14336, 128256),
    ("llama", 8192, 10, 64, 8, 128, 28672, 128256),
    ("llama", 5120, 12, 40, 40, 128, 13824, 32000),
    ("llama", 3584, 14, 28, 4, 128, 18944, 152064),
    ("llama", 2048, 16, 32, 8, 64, 8192, 128256),
    ("gpt", 4096, 8, 32, 32, 128, 16384, 50304),
)
DECODE = ((1, 512), (1, 8192), (4, 2048), (8, 512), (16, 4096), (32, 1024), (64, 2048), (128, 512), (128, 2048), (256, 1024))
PREFILL = ((1, 128), (1, 512), (1, 2048), (1, 8192), (4, 1024), (8, 512), (2, 4096))


def _task(op: str, model: tuple[Cell, ...], batch: int, seq: int, launch: str = "graph") -> Task:
    key: dict[str, Cell] = {"op": op, **dict(zip(SIZES, model, strict=True))}
    key |= {"batch": batch, "seq": seq, "dtype": "bf16", "launch": launch}
    return Task(key=key, seconds=0.35 + (batch * seq / 3e4 if op == "prefill" else 0.05))


def tasks(small: bool) -> list[Task]:
    """All steps; those of one model follow each other, so that it is built once."""
    if small:
        tiny: tuple[Cell, ...] = ("llama", 32, 2, 4, 2, 8, 64, 128)
        sizes = dict(zip(SIZES, tiny, strict=True))
        common: dict[str, Cell] = {"batch": 2, "seq": 16, "dtype": "fp32", "launch": "eager"}
        return [Task(key={"op": op, **sizes, **common}, seconds=0.05) for op in ("prefill", "decode")]
    groups = []
    for model in MODELS:
        room = 20e9 / (2.0 * model[2] * model[4] * model[5])
        decode = [_task("decode", model, b, s) for b, s in DECODE if b * s <= room]
        decode += [_task("decode", model, b, s, "eager") for b, s in DECODE[:5:4]]
        groups.append(interleave([decode, [_task("prefill", model, b, s) for b, s in PREFILL]]))
    groups += [narrow_steps(model) for model in NARROW_MODELS[:-1]]
    return [task for group in groups for task in group]


def measure(bench: Any, key: Mapping[str, Cell]) -> Row:
    """Time one step; every rank must call this with the same key."""
    server = Server.of(bench, key, bench.world)
    call = server.call(key)
    bench.torch.distributed.barrier()
    # every rank must take the same number of timings: what a step lasts follows from the bytes it moves
    timing = bench.time_together(call, str(key["launch"]), int(server.bytes_read(key)))
    bench.tidy(above=30e9)
    return dict(timing.row() | {"bytes": server.bytes_read(key), "ranks": bench.world, "ranks_per_node": bench.world})


SUITE = Suite(
    name="serving_parallel",
    key=("op", *SIZES, "batch", "seq", "dtype", "launch"),
    measured=(*READINGS, "bytes", "ranks", "ranks_per_node"),
    share=0.20,
    tasks=tasks,
    measure=measure,
    needs_ranks=2,
)
