"""Whole training steps on one device: seconds a step, by phase, and peak memory, over architectures and ways to run them.

`precision` bf16: parameters, gradients and moments in bf16; amp: fp32 parameters under autocast. `mode` eager, compile
(every block through torch.compile) or graph (the step as one CUDA graph: the device's time without the host).
`logits_held`: a name still holds the logits during backward, as in a loop that computes the loss itself.
`forward_s` runs to the end of the last microbatch's forward, so with several microbatches it holds the others' backward too.
`host_s` is what the processor needs to issue a step (it waits when the queue is full); peaks are the framework allocator's.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from costmodels.calibration.suite import READINGS, Cell, Row, Suite, Task, interleave
from costmodels.calibration.timing import summary

DIMENSIONS = ("style", "hidden", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab", "seq", "micro_batch")
CHOICES = (
    *("microbatches", "precision", "optimizer", "mode", "recompute", "loss_dtype"),
    *("logits_held", "fused", "rotary", "tied", "norm"),
)
DEFAULTS: dict[str, Cell] = {
    "microbatches": 1,
    "precision": "bf16",
    "optimizer": "adamw_fused",
    "mode": "eager",
    "recompute": "none",
    "loss_dtype": "bf16",
    "logits_held": True,
    "fused": True,
    "rotary": False,
    "tied": False,
    "norm": "fused",
}

# style, hidden, layers, heads, KV heads, head_dim, ffn, vocabulary, then (sequence, micro-batch) pairs
ARCHITECTURES: tuple[tuple[str, int, int, int, int, int, int, int, tuple[tuple[int, int], ...]], ...] = (
    ("llama", 4096, 4, 32, 8, 128, 14336, 32000, ((4096, 1), (2048, 4), (8192, 1))),
    ("llama", 2048, 16, 32, 8, 64, 8192, 128256, ((2048, 2), (4096, 1))),
    ("gpt", 2048, 8, 16, 16, 128, 8192, 50304, ((2048, 4), (1024, 4))),
    ("llama", 8192, 2, 64, 8, 128, 28672, 32000, ((4096, 1), (2048, 1), (8192, 1))),
    ("llama", 5120, 4, 40, 40, 128, 13824, 32000, ((4096, 1), (2048, 4))),
    ("gpt", 1024, 16, 16, 16, 64, 4096, 50304, ((1024, 8), (512, 8))),
    ("llama", 4096, 4, 32, 8, 128, 14336, 128256, ((4096, 1), (8192, 1))),
    ("llama", 3584, 4, 28, 4, 128, 18944, 152064, ((4096, 1), (2048, 2))),
    ("llama", 3072, 8, 24, 8, 128, 8192, 128256, ((4096, 2), (2048, 1))),
    ("gpt", 4096, 4, 32, 32, 128, 16384, 50304, ((2048, 4), (4096, 1))),
    ("llama", 2048, 8, 16, 8, 128, 6144, 32000, ((8192, 1), (1024, 8))),
    ("llama", 1536, 16, 12, 2, 128, 8960, 151936, ((2048, 2), (4096, 1))),
    ("llama", 2560, 8, 32, 8, 128, 9728, 32000, ((4096, 4), (1024, 2))),
    ("gpt", 1600, 12, 25, 25, 64, 6400, 50304, ((1024, 8),)),
    ("llama", 4096, 2, 32, 32, 128, 11008, 32000, ((16384, 1), (1024, 4))),
    ("gpt", 8192, 2, 64, 64, 128, 32768, 50304, ((2048, 2),)),
    ("llama", 6144, 3, 48, 8, 128, 16384, 92544, ((4096, 1),)),
    ("llama", 1024, 24, 16, 8, 64, 2816, 32000, ((512, 1), (4096, 4))),
    ("gpt", 768, 12, 12, 12, 64, 3072, 50304, ((512, 2), (1024, 16))),
    ("llama", 5120, 2, 64, 8, 128, 25600, 151936, ((4096, 1),)),
    ("llama", 4096, 12, 32, 8, 128, 14336, 128256, ((4096, 1), (2048, 2))),
    ("llama", 8192, 1, 64, 8, 128, 28672, 32000, ((4096, 2),)),
    ("llama", 4096, 1, 32, 8, 128, 14336, 32000, ((4096, 1), (4096, 4))),
    ("gpt", 2048, 1, 16, 16, 128, 8192, 50304, ((2048, 4),)),
    ("llama", 2304, 10, 18, 6, 128, 6144, 49152, ((2048, 2),)),
    ("gpt", 3072, 6, 24, 24, 128, 12288, 50304, ((2048, 2),)),
    ("llama", 7168, 2, 56, 8, 128, 20480, 64000, ((4096, 1),)),
    ("llama", 1024, 8, 16, 4, 64, 4096, 128256, ((4096, 4),)),
    ("llama", 4096, 8, 32, 4, 128, 11008, 64000, ((4096, 2), (1024, 1))),
    ("gpt", 5120, 3, 40, 40, 128, 20480, 51200, ((2048, 2),)),
    ("llama", 4096, 6, 32, 8, 128, 12288, 151936, ((4096, 1), (2048, 2))),
    ("gpt", 2560, 8, 32, 32, 80, 10240, 50304, ((2048, 2), (1024, 4))),
    ("llama", 2048, 20, 32, 4, 64, 5632, 32000, ((2048, 4), (4096, 1))),
    ("llama", 6656, 2, 52, 52, 128, 17920, 32000, ((2048, 2),)),
    ("llama", 3072, 6, 24, 24, 128, 24576, 256000, ((2048, 1),)),
    ("gpt", 1280, 20, 20, 20, 64, 5120, 50304, ((1024, 8),)),
    ("llama", 5120, 5, 40, 10, 128, 17920, 100352, ((4096, 1),)),
    ("llama", 8192, 2, 64, 8, 128, 22016, 32000, ((4096, 2),)),
)


def _task(which: int, shape: int, **choices: Cell) -> Task:
    style, hidden, layers, heads, kv_heads, head_dim, ffn, vocab, shapes = ARCHITECTURES[which]
    seq, batch = shapes[shape % len(shapes)]
    key: dict[str, Cell] = dict(
        zip(DIMENSIONS, (style, hidden, layers, heads, kv_heads, head_dim, ffn, vocab, seq, batch), strict=True)
    )
    key |= DEFAULTS | choices
    gates = 3 if style == "llama" else 2
    weights = layers * hidden * ((2 * heads + 2 * kv_heads) * head_dim + gates * ffn) + vocab * hidden
    work = 6.0 * weights * seq * batch * int(str(key["microbatches"])) / 4e14 + 12.0 * layers * seq**2 * batch * hidden / 3e14
    slow = {"compile": 7.0, "graph": 0.6}.get(str(key["mode"]), 1.9)
    return Task(key=key, seconds=slow + 6 * work)


def tasks(small: bool) -> list[Task]:
    """All whole-step configurations, most telling first."""
    if small:
        tiny: tuple[Cell, ...] = ("llama", 32, 2, 4, 2, 8, 64, 128, 16, 1)
        sizes = dict(zip(DIMENSIONS, tiny, strict=True))
        cpu: list[dict[str, Cell]] = [
            {},
            {"style": "gpt", "kv_heads": 4},
            {"recompute": "full", "rotary": True, "fused": False},
            {"microbatches": 2, "loss_dtype": "fp32", "logits_held": False, "norm": "composite", "tied": True},
        ]
        return [Task(key=sizes | DEFAULTS | {"precision": "fp32", "optimizer": "adamw_foreach"} | c, seconds=0.05) for c in cpu]
    every = range(len(ARCHITECTURES))
    eager = [_task(which, shape) for shape in range(3) for which in every if shape < len(ARCHITECTURES[which][-1])]
    recompute = [_task(which, which // 3, recompute="full") for which in every[::2]]
    amp = [_task(which, 0, precision="amp") for which in (0, 2, 3, 5, 10, 13, 1, 8)]
    wide = [_task(which, 0, loss_dtype="fp32") for which in (0, 6, 2, 7, 11)]
    variants = [
        _task(0, 0, rotary=True, fused=False),
        _task(1, 0, rotary=True, fused=False, tied=True),
        _task(6, 0, logits_held=False),
        _task(3, 0, rotary=True, fused=False),
        _task(0, 0, norm="composite"),
        _task(8, 0, logits_held=False, loss_dtype="fp32"),
        _task(0, 0, optimizer="adamw_foreach"),
        _task(0, 1, microbatches=4),
        _task(8, 1, rotary=True, fused=False),
        _task(2, 0, microbatches=2),
        _task(11, 0, rotary=True, fused=False, tied=True),
        _task(10, 0, rotary=True),
        _task(10, 0, fused=False),
        _task(2, 0, optimizer="adamw_foreach"),
        _task(3, 1, microbatches=4),
        _task(0, 0, recompute="full", precision="amp"),
    ]
    later = [
        _task(30, 0, precision="amp", rotary=True, fused=False),
        _task(32, 0, precision="amp"),
        _task(31, 0, precision="amp"),
        _task(30, 1, loss_dtype="fp32", logits_held=False, rotary=True, fused=False),
        _task(32, 0, precision="amp", recompute="full"),
        _task(37, 0, rotary=True, fused=False),
        _task(35, 0, precision="amp", microbatches=2),
        _task(31, 0, loss_dtype="fp32"),
        _task(36, 0, mode="compile"),
        _task(32, 1, precision="amp", mode="compile"),
        _task(33, 0, precision="amp", logits_held=False),
        _task(30, 0, loss_dtype="fp32", recompute="full"),
        _task(34, 0, precision="amp"),
        _task(35, 0, mode="compile"),
        _task(32, 1, norm="composite", rotary=True, fused=False),
        _task(30, 0, mode="compile", loss_dtype="fp32"),
    ]
    graph = [_task(which, 0, mode="graph") for which in (0, 5, 17, 18, 1, 11, 3)]
    compiled = [_task(which, 0, mode="compile") for which in (0, 2, 3, 10, 5, 12, 8)]
    compiled += [_task(0, 1, mode="compile"), _task(3, 0, mode="compile", recompute="full")]
    compiled += [_task(1, 0, mode="compile", rotary=True, fused=False)]
    return interleave([eager, recompute, amp, wide, variants, later, graph, compiled])


def training_step(
    bench: Any, key: Mapping[str, Cell], model: Any, optimizer: Any, marks: Callable[[], None]
) -> Callable[[], None]:
    """One step as a function; `marks` is called after forward and after backward of the last microbatch."""
    torch = bench.torch
    from costmodels.calibration.network import loss_of

    batch, seq, vocab = int(key["micro_batch"]), int(key["seq"]), int(key["vocab"])
    count = int(key["microbatches"])
    tokens = torch.randint(0, vocab, (count, batch, seq), device=bench.device)
    targets = torch.randint(0, vocab, (count, batch, seq), device=bench.device)
    wide = key["loss_dtype"] == "fp32"
    amp = key["precision"] == "amp"

    def forward(i: int) -> tuple[Any, Any]:
        with torch.autocast(bench.device.type, torch.bfloat16, enabled=amp):
            logits = model(tokens[i])
            loss = loss_of(logits, targets[i], wide=wide)
        return loss, logits if key["logits_held"] else None

    def step() -> None:
        for i in range(count):
            loss, logits = forward(i)
            if i == count - 1:
                marks()
            loss.backward()
            del loss, logits
        marks()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def make_optimizer(bench: Any, key: Mapping[str, Cell], parameters: Any, *, capturable: bool = False) -> Any:
    """AdamW, fused or for-each."""
    fused = {"fused": True} if key["optimizer"] == "adamw_fused" else {"foreach": True}
    return bench.torch.optim.AdamW(parameters, lr=1e-5, **fused, **({"capturable": True} if capturable else {}))


def timed_steps(bench: Any, make: Callable[[Callable[[], None]], Callable[[], None]], *, warm: int = 2) -> Row:
    """Step, phases, host and memory of a step function that calls its `marks` twice a step."""
    torch = bench.torch
    marks: list[Any] = []

    def mark() -> None:
        if bench.cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            marks.append(event)
        else:
            marks.append(time.perf_counter())

    def seconds(a: Any, b: Any) -> float:
        return float(a.elapsed_time(b)) * 1e-3 if bench.cuda else float(b - a)

    step = make(mark)
    for _ in range(warm):
        step()
    bench.wait()
    begin = time.perf_counter()
    step()
    bench.wait()
    about = bench.agree(time.perf_counter() - begin)
    for _ in range(int(0.4 / about) if bench.cuda else 0):  # until the clock has settled
        step()
    if bench.cuda:
        torch.cuda.reset_peak_memory_stats()
    marks.clear()
    count = max(5, min(20, int(1.0 / about))) if bench.cuda else 2
    for _ in range(count):
        mark()
        step()
    mark()
    clock, power = bench.clock_and_power()
    bench.wait()
    times = [seconds(marks[3 * i], marks[3 * i + 3]) for i in range(count)]
    forward = summary([seconds(marks[3 * i], marks[3 * i + 1]) for i in range(count)]).time_s
    backward = summary([seconds(marks[3 * i + 1], marks[3 * i + 2]) for i in range(count)]).time_s
    update = summary([seconds(marks[3 * i + 2], marks[3 * i + 3]) for i in range(count)]).time_s
    issue = []
    for _ in range(2):
        bench.wait()
        begin = time.perf_counter()
        step()
        issue.append(time.perf_counter() - begin)
    bench.wait()
    row = summary(times, clock, power).row()
    row |= {"forward_s": forward, "backward_s": backward, "optimizer_s": update, "host_s": min(issue)}
    if bench.cuda:
        row |= {"peak_allocated": torch.cuda.max_memory_allocated(), "peak_reserved": torch.cuda.max_memory_reserved()}
    return row


def measure(bench: Any, key: Mapping[str, Cell]) -> Row:
    """Build the model, run steps, time them; leave the memory as it was found."""
    bench.release()
    try:
        return _measure(bench, key)
    finally:
        bench.release()
        if key["mode"] == "compile":
            bench.torch.compiler.reset()


def _measure(bench: Any, key: Mapping[str, Cell]) -> Row:
    torch = bench.torch
    from costmodels.calibration.network import Architecture, build

    before = torch.cuda.memory_allocated() if bench.cuda else 0
    dtype = torch.bfloat16 if key["precision"] == "bf16" else torch.float32
    mode = str(key["mode"])
    model = build(Architecture.of(key), bench.device, dtype, recompute=key["recompute"] == "full")
    parameters = sum(p.numel() for p in model.parameters())
    optimizer = make_optimizer(bench, key, model.parameters(), capturable=mode == "graph")
    compiling = 0.0
    if mode == "compile":
        torch.compiler.reset()
        for block in model.blocks:
            block.compile(dynamic=False)
        begin = time.perf_counter()
        training_step(bench, key, model, optimizer, lambda: None)()
        bench.wait()
        compiling = time.perf_counter() - begin
    if mode == "graph":
        row = _graph_step(bench, key, model, optimizer)
    else:
        row = timed_steps(bench, lambda mark: training_step(bench, key, model, optimizer, mark))
    return row | {"parameters": parameters, "allocated_before": before, "compile_seconds": compiling}


def _graph_step(bench: Any, key: Mapping[str, Cell], model: Any, optimizer: Any) -> Row:
    step = training_step(bench, key, model, optimizer, lambda: None)
    for _ in range(3):
        step()
    graph = bench.capture(step)
    timing = bench.replays(graph, 6)
    graph.reset()
    return dict(timing.row())


SUITE = Suite(
    name="steps",
    key=(*DIMENSIONS, *CHOICES),
    measured=(
        *READINGS,
        *("forward_s", "backward_s", "optimizer_s", "host_s", "peak_allocated", "peak_reserved"),
        *("parameters", "allocated_before", "compile_seconds"),
    ),
    share=0.32,
    tasks=tasks,
    measure=measure,
)
