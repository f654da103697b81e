"""Whole training steps over the ranks `torchrun` started: data, sharded, tensor and pipeline parallel.

`micro_batch` is each rank's for `ddp` and `fsdp`, the whole group's for `tensor` and `pipeline`. Memory is that of the
fullest rank, and of each. Variants: `bucket_view` (gradients live in the buckets), `keep` (parameters stay gathered after
forward), `sequence` (sequence parallel), `vocab` (embedding, head and loss sharded too; else replicated), `dtensor`
(PyTorch's own tensor-parallel interface instead of bare collectives). Precision `mixed`: fp32 shards, bf16 compute,
fp32 reduction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from costmodels.calibration.steps import DEFAULTS, DIMENSIONS, make_optimizer, timed_steps, training_step
from costmodels.calibration.steps import SUITE as STEPS
from costmodels.calibration.steps import _task as step_task
from costmodels.calibration.suite import Cell, Row, Suite, Task, interleave


def _task(parallel: str, which: int, shape: int = 0, variant: str = "none", **choices: Cell) -> Task:
    task = step_task(which, shape, **choices)
    slow = 2.5 if "dtensor" in variant or parallel == "fsdp" else 1.2
    return Task(key={"parallel": parallel, "variant": variant, **task.key}, seconds=slow + task.seconds)


def tasks(small: bool) -> list[Task]:
    """All configurations, the kinds taking turns."""
    if small:
        sizes: tuple[Cell, ...] = ("llama", 32, 2, 4, 2, 8, 64, 128, 16, 1)
        key = dict(zip(DIMENSIONS, sizes, strict=True)) | DEFAULTS | {"precision": "fp32", "optimizer": "adamw_foreach"}
        kinds = [("ddp", "none", 1), ("fsdp", "none", 1), ("pipeline", "none", 4)]
        kinds += [("tensor", v, 1) for v in ("none", "sequence", "vocab", "dtensor", "dtensor_sequence")]
        return [Task(key={"parallel": p, "variant": v, **key, "microbatches": m}, seconds=0.3) for p, v, m in kinds]
    ddp = [_task("ddp", which) for which in (0, 2, 3, 1, 5, 8, 20, 12, 10, 17)]
    ddp += [
        _task("ddp", 0, variant="bucket_view"),
        _task("ddp", 3, 1),
        _task("ddp", 0, 1, recompute="full"),
        _task("ddp", 2, 1),
    ]
    fsdp = [_task("fsdp", which) for which in (0, 3, 2, 20, 1, 8, 12)]
    fsdp += [_task("fsdp", 0, precision="mixed"), _task("fsdp", 0, variant="keep"), _task("fsdp", 20, recompute="full")]
    fsdp += [_task("fsdp", 3, precision="mixed"), _task("fsdp", 8, 1), _task("fsdp", 0, 1, microbatches=2), _task("fsdp", 10)]
    tensor = [
        _task("tensor", which, shape, variant)
        for which, shape, variant in (
            *(
                (0, 0, "none"),
                (3, 0, "sequence"),
                (20, 0, "dtensor"),
                (0, 1, "sequence"),
                (8, 0, "none"),
                (3, 0, "dtensor_sequence"),
            ),
            *(
                (20, 0, "sequence"),
                (0, 0, "vocab"),
                (10, 0, "none"),
                (20, 0, "none"),
                (0, 0, "dtensor_sequence"),
                (3, 0, "none"),
            ),
            *(
                (0, 0, "sequence"),
                (0, 0, "dtensor"),
                (8, 0, "vocab"),
                (10, 0, "sequence"),
                (3, 1, "dtensor"),
                (20, 1, "sequence"),
            ),
            *((12, 0, "none"), (12, 0, "sequence"), (20, 0, "dtensor_sequence"), (17, 0, "none"), (17, 1, "sequence")),
        )
    ]
    pipeline = [
        _task("pipeline", which, shape, microbatches=m)
        for which, shape, m in (
            *(
                (0, 0, 4),
                (20, 0, 8),
                (2, 0, 4),
                (3, 1, 4),
                (8, 1, 8),
                (0, 0, 8),
                (10, 0, 4),
                (12, 1, 8),
                (17, 1, 4),
                (20, 0, 4),
            ),
            *((0, 0, 2), (5, 0, 8)),
        )
    ]
    later = [
        _task("fsdp", 30, rotary=True, fused=False),
        _task("ddp", 30, mode="compile"),
        _task("fsdp", 20, precision="mixed"),
        _task("tensor", 30, 0, "sequence"),
        _task("pipeline", 30, 1, microbatches=8),
        _task("fsdp", 30, mode="compile", precision="mixed"),
        _task("tensor", 37, 0, "none"),
        _task("fsdp", 8, precision="mixed", recompute="full"),
        _task("ddp", 32, precision="amp"),
        _task("fsdp", 32),
        _task("tensor", 0, 0, "sequence", recompute="full"),
        _task("ddp", 31),
        _task("pipeline", 32, 1, microbatches=8, recompute="full"),
        _task("fsdp", 32, mode="compile"),
        _task("tensor", 33, 0, "none", rotary=True, fused=True),
        _task("fsdp", 12, precision="mixed", microbatches=2),
        _task("fsdp", 35),
        _task("ddp", 36),
        _task("tensor", 36, 0, "vocab"),
        _task("fsdp", 3, precision="mixed", loss_dtype="fp32"),
    ]
    return interleave([ddp, fsdp, tensor, pipeline, later])


def measure(bench: Any, key: Mapping[str, Cell]) -> Row:
    """Build this rank's part, run steps, time them."""
    torch = bench.torch
    bench.release()
    torch.distributed.barrier()
    before = torch.cuda.memory_allocated() if bench.cuda else 0
    make = {"ddp": _ddp, "fsdp": _fsdp, "tensor": _tensor, "pipeline": _pipeline}[str(key["parallel"])]
    step, parameters = make(bench, key)
    try:
        row = timed_steps(bench, step)
    finally:
        del step
        bench.release()
        if key["mode"] == "compile":
            torch.compiler.reset()
    own = [row.get("peak_allocated", 0), row.get("peak_reserved", 0), parameters, row["time_s"]]
    table = torch.zeros(bench.world, len(own), dtype=torch.float64, device=bench.device)
    mine = torch.tensor([own], dtype=torch.float64, device=bench.device)
    torch.distributed.all_gather(list(table.split(1)), mine)
    every = table.tolist()
    if key["parallel"] == "pipeline":
        row |= {"forward_s": "", "backward_s": ""}
    if bench.cuda:
        row |= {"peak_allocated": int(max(r[0] for r in every)), "peak_reserved": int(max(r[1] for r in every))}
    return row | {
        "parameters": int(parameters),
        "allocated_before": before,
        "compile_seconds": 0.0,
        "ranks": bench.world,
        "peak_by_rank": "|".join(str(int(r[0])) for r in every),
        "parameters_by_rank": "|".join(str(int(r[2])) for r in every),
    }


Made = tuple[Callable[[Callable[[], None]], Callable[[], None]], int]


def _model(bench: Any, key: Mapping[str, Cell], degree: int = 1) -> Any:
    from costmodels.calibration.network import Architecture, build

    dtype = bench.torch.bfloat16 if key["precision"] == "bf16" else bench.torch.float32
    model = build(Architecture.of(key, degree), bench.device, dtype, recompute=key["recompute"] == "full")
    if key["mode"] == "compile":
        bench.torch.compiler.reset()
        for block in model.blocks:
            block.compile(dynamic=False)
    return model


def _size(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _steps(bench: Any, key: Mapping[str, Cell], model: Any, size: int, optimizer: Any = None) -> Made:
    chosen = optimizer or make_optimizer(bench, key, model.parameters())
    return lambda mark: training_step(bench, key, model, chosen, mark), size


def _ddp(bench: Any, key: Mapping[str, Cell]) -> Made:
    model = _model(bench, key)
    where = {"device_ids": [bench.rank]} if bench.cuda else {}
    view = key["variant"] == "bucket_view"
    wrapped = bench.torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=view, **where)
    return _steps(bench, key, wrapped, _size(model))


def _fsdp(bench: Any, key: Mapping[str, Cell]) -> Made:
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    torch, model = bench.torch, _model(bench, key)
    size = _size(model)
    policy = MixedPrecisionPolicy()
    if key["precision"] == "mixed":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    options: dict[str, Any] = {"mp_policy": policy, "reshard_after_forward": key["variant"] != "keep"}
    for block in model.blocks:
        fully_shard(block, **options)
    fully_shard(model, **options)
    return _steps(bench, key, model, size)


class _Both:
    """Two optimizers as one: one kernel cannot update distributed and plain tensors together."""

    def __init__(self, parts: list[Any]) -> None:
        self.parts = parts

    def step(self) -> None:
        for part in self.parts:
            part.step()

    def zero_grad(self, *, set_to_none: bool) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none=set_to_none)


def _tensor(bench: Any, key: Mapping[str, Cell]) -> Made:
    variant = str(key["variant"])
    from costmodels.calibration import tensor_parallel

    if variant.startswith("dtensor"):
        model = _model(bench, key)
        tensor_parallel.shard_with_dtensor(model, bench, sequence="sequence" in variant)
        from torch.distributed.tensor import DTensor

        groups: list[list[Any]] = [[], []]
        for parameter in model.parameters():
            groups[isinstance(parameter, DTensor)].append(parameter)
        size = sum(p.to_local().numel() for p in groups[1]) + sum(p.numel() for p in groups[0])
        optimizer = _Both([make_optimizer(bench, key, group) for group in groups if group])
        return _steps(bench, key, model, size, optimizer)
    model = _model(bench, key, bench.world)
    tensor_parallel.wrap(model, sequence=variant == "sequence")
    if variant != "vocab":
        return _steps(bench, key, model, _size(model))
    tensor_parallel.shard_vocabulary(model, bench)
    optimizer = make_optimizer(bench, key, model.parameters())
    return lambda mark: tensor_parallel.vocabulary_step(bench, key, model, optimizer, mark), _size(model)


def _pipeline(bench: Any, key: Mapping[str, Cell]) -> Made:
    """1F1B over two stages; half the layers each, embedding on the first, norm, head and loss on the last."""
    if bench.world != 2:
        raise ValueError("the pipeline step is written for two ranks")
    torch, distributed = bench.torch, bench.torch.distributed
    from costmodels.calibration.network import loss_of

    model = _model(bench, dict(key) | {"layers": int(key["layers"]) // 2})
    first = bench.rank == 0
    if first:
        del model.head, model.norm
    else:
        del model.embedding
        model.positions = None
    batch, seq, count = int(key["micro_batch"]), int(key["seq"]), int(key["microbatches"])
    dtype = next(model.parameters()).dtype
    tokens, targets = torch.randint(0, int(key["vocab"]), (2, count, batch, seq), device=bench.device)
    shape = (batch, seq, int(key["hidden"]))
    optimizer = make_optimizer(bench, key, model.parameters())
    # a communicator for each direction: on one, a send and a receive would wait for each other
    if not _LINES:
        _LINES.extend(distributed.new_group(list(range(bench.world))) for _ in range(2))
    down, up = _LINES

    def empty() -> Any:
        return torch.empty(shape, device=bench.device, dtype=dtype)

    def first_stage(mark: Callable[[], None]) -> None:
        alive: list[Any] = []
        sends = []

        def backward() -> None:
            gradient = empty()
            distributed.irecv(gradient, 1, group=up).wait()
            alive.pop(0).backward(gradient)

        for i in range(count):
            out = model.run_blocks(model.embed(tokens[i]))
            alive.append(out)
            sends.append(distributed.isend(out.detach(), 1, group=down))
            if i > 0:
                backward()
        mark()
        backward()
        mark()
        for send in sends:
            send.wait()

    def last_stage(mark: Callable[[], None]) -> None:
        sends = []
        for i in range(count):
            x = empty()
            distributed.irecv(x, 0, group=down).wait()
            x.requires_grad_()
            logits = model.head(model.norm(model.run_blocks(x)))
            loss = loss_of(logits, targets[i], wide=key["loss_dtype"] == "fp32")
            if i == count - 1:
                mark()
            loss.backward()
            sends.append(distributed.isend(x.grad, 0, group=up))
            del logits, loss
        mark()
        for send in sends:
            send.wait()

    def make(mark: Callable[[], None]) -> Callable[[], None]:
        def step() -> None:
            (first_stage if first else last_stage)(mark)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step

    return make, _size(model)


_LINES: list[Any] = []

SUITE = Suite(
    name="parallel",
    key=("parallel", "variant", *STEPS.key),
    measured=(*STEPS.measured, "ranks", "peak_by_rank", "parameters_by_rank"),
    share=0.65,
    tasks=tasks,
    measure=measure,
    needs_ranks=2,
)
