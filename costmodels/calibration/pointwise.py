"""Kernels bound by memory: norms, activations, softmax, losses, rotary, copies, optimizer steps.

`bytes` counts what the operator must read and write once, in its own dtypes; passes beyond that show in the time.
`rows` × `cols` is the operand; for the optimizer `rows` is the number of tensors and `cols` the parameters of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from costmodels.calibration.suite import READINGS, Cell, Row, Suite, Task, interleave

# op: (reads and writes of a (rows, cols) operand forward, backward); None where there is no such direction
PASSES: dict[str, tuple[float, float | None]] = {
    "rms_norm": (2, 3),
    "rms_norm_composite": (2, 3),
    "layer_norm": (2, 3),
    "silu_mul": (3, 5),
    "silu": (2, 3),
    "mul": (3, 5),
    "gelu": (2, 3),
    "chunk_silu_mul": (3, 5),
    "add": (3, None),
    "accumulate": (3, None),
    "rotary": (2, 2),
    "softmax": (2, 3),
    "dropout": (2, 2),
    "cat": (2, None),
    "embedding": (2, None),
    "cross_entropy": (1, 2),
    "cross_entropy_fp32": (1, 2),
    "bf16_to_fp32": (3, None),
    "fp32_to_bf16": (3, None),
    "amax": (1, None),
    "quantise_fp8": (1.5, None),
}
COPIES = ("copy", "copy_to_device", "copy_to_host")
OPTIMIZERS = ("adamw_fused", "adamw_foreach", "clip_grad_norm", "sgd_fused")

ROWS = (1, 8, 64, 256, 1024, 4096, 8192, 16384, 32768)
COLS = (1024, 2048, 4096, 5120, 8192, 14336, 16384, 28672)
WIDTHS = (128, 512, 768, 1024, 1536, 2048, 3072, 3584, 4096, 5120, 6144, 7168, 8192, 12288, 16384, 28672, 32768, 65536, 131072)
"""Rows of these operators are as long as heads, hidden sizes, sequences or vocabularies; kernels change between them."""
WIDE = ("softmax", "rms_norm", "layer_norm", "rms_norm_composite")


def _task(
    op: str, rows: int, cols: int, *, backward: bool = False, dtype: str = "bf16", cache: str = "warm", launch: str = "graph"
) -> Task:
    key: dict[str, Cell] = {"op": op, "dtype": dtype, "direction": "backward" if backward else "forward"}
    key |= {"rows": rows, "cols": cols, "cache": cache, "launch": launch}
    return Task(key=key, seconds=0.04 + 20 * 2.0 * rows * cols * 8 / 2e12)


def tasks(small: bool) -> list[Task]:
    """All pointwise rows, most telling first."""
    if small:
        cpu = [_task(op, 16, 64, dtype="fp32", launch="eager") for op in PASSES if op not in ("quantise_fp8",)]
        cpu += [_task(op, 16, 64, dtype="fp32", backward=True, launch="eager") for op, (_, b) in PASSES.items() if b][:6]
        return [*cpu, _task("copy", 1, 4096, dtype="fp32"), _task("adamw_foreach", 2, 4096, dtype="fp32", launch="eager")]
    groups: list[list[Task]] = []
    for which, (op, (_, back)) in enumerate(PASSES.items()):
        loss = op.startswith("cross_entropy")
        shapes = [(ROWS[(turn + 2 * which) % 9], COLS[(3 * turn + which) % 8]) for turn in range(9)] + [
            (4096, 4096),
            (8192, 8192),
            (16384, 4096),
        ]
        if loss:
            shapes = [(t, v) for v in (32000, 128256, 151936, 50304) for t in (512, 2048, 4096, 8192, 16384)]
        group = []
        for rows, cols in dict.fromkeys(shapes):
            if rows * cols > 1.3e9:
                continue
            group.append(_task(op, rows, cols))
            if back is not None:
                group.append(_task(op, rows, cols, backward=True))
        groups.append(group)
    groups += [_wide(op) for op in WIDE]
    groups += [_more(op, which) for which, op in enumerate(PASSES) if op not in WIDE and not op.startswith("cross_entropy")]
    sizes = [2**p for p in range(10, 32)]
    groups.append(
        [_task("copy", 1, size // 2) for size in sizes] + [_task("copy", 1, 2**p // 2, cache="cold") for p in range(16, 28)]
    )
    groups.append([_task(op, 1, 2**p // 2) for op in COPIES[1:] for p in range(12, 29, 2)])
    groups.append(
        [
            _task(op, tensors, each, dtype=dtype, launch="eager")
            for op in OPTIMIZERS
            for dtype in ("bf16", "fp32")
            for tensors, each in ((16, 2**24), (4, 2**26), (64, 2**22), (16, 2**26))
        ]
    )
    return interleave(groups)


def _wide(op: str) -> list[Task]:
    """Every width with a few counts of rows, others at the next; a third of them backward too."""
    found = []
    for which, cols in enumerate(WIDTHS):
        for turn in range(4):
            rows = (1, 16, 64, 256, 1024, 4096, 8192, 16384, 65536)[(2 * turn + which + turn // 3) % 9]
            if rows * cols > 6e8:
                continue
            found.append(_task(op, rows, cols))
            if (turn + which) % 3 == 0:
                found.append(_task(op, rows, cols, backward=True))
    return found


def _more(op: str, which: int) -> list[Task]:
    """Sizes of real models' operands beside the round ones."""
    found = []
    for turn in range(6):
        rows = (16, 128, 512, 2048, 6144, 12288)[(turn + which) % 6]
        cols = (896, 1536, 3072, 3584, 6144, 7168, 11008, 12288, 18944)[(2 * turn + which) % 9]
        found.append(_task(op, rows, cols))
        if PASSES[op][1] is not None:
            found.append(_task(op, rows, cols, backward=True))
    return found


def _composite(torch: Any, x: Any, weight: Any) -> Any:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * weight


def _forward(bench: Any, op: str, rows: int, cols: int, dtype: str) -> tuple[Callable[..., Any], list[Any]]:
    """The operator as a function of its differentiable inputs, and makers of those inputs by buffer offset."""
    torch = bench.torch
    functional = torch.nn.functional
    one = rows * cols

    def noise(offset: int, count: int, *shape: int) -> Any:
        return bench.noise(count, dtype, offset).view(*shape)

    x = noise(0, one, rows, cols)
    weight = bench.noise(cols, dtype, 7 * 2**20)
    simple: dict[str, tuple[Callable[..., Any], list[Any]]] = {
        "rms_norm": (lambda a, w: functional.rms_norm(a, (cols,), w, 1e-5), [x, weight]),
        "rms_norm_composite": (lambda a, w: _composite(torch, a, w), [x, weight]),
        "silu": (functional.silu, [x]),
        "gelu": (functional.gelu, [x]),
        "softmax": (lambda a: torch.softmax(a, -1), [x]),
        "dropout": (lambda a: functional.dropout(a, 0.1, True), [x]),
        "bf16_to_fp32": (lambda a: a.float() if dtype != "fp32" else a.clone(), [x]),
        "amax": (lambda a: a.abs().amax() if dtype == "fp32" else a.amax(), [x]),
        "quantise_fp8": (lambda a: a.to(torch.float8_e4m3fn), [x]),
    }
    if op in simple:
        return simple[op]
    if op == "layer_norm":
        bias = bench.noise(cols, dtype, 9 * 2**20)
        return lambda a, w, b: functional.layer_norm(a, (cols,), w, b), [x, weight, bias]
    if op == "fp32_to_bf16":
        return lambda a: a.to(torch.bfloat16), [bench.noise(one, "fp32").view(rows, cols)]
    if op == "accumulate":
        return lambda a, b: a.add_(b), [x.clone(), noise(one, one, rows, cols)]
    if op in ("silu_mul", "mul", "add", "cat"):
        y = noise(one, one, rows, cols)
        return {
            "silu_mul": lambda a, b: functional.silu(a) * b,
            "mul": torch.mul,
            "add": torch.add,
            "cat": lambda a, b: torch.cat([a[:, : cols // 2], b[:, cols // 2 :]], -1),
        }[op], [x, y]
    if op == "chunk_silu_mul":

        def gated(a: Any) -> Any:
            gate, up = a.chunk(2, -1)
            return functional.silu(gate) * up

        return gated, [noise(0, 2 * one, rows, 2 * cols)]
    if op == "rotary":
        cosine, sine = (bench.noise(rows * 64, dtype, k * 2**20).view(rows, 1, 64) for k in (3, 5))

        def rotate(a: Any) -> Any:
            heads = a.view(rows, cols // 128, 128) if cols % 128 == 0 else a.view(rows, 1, cols)
            first, second = heads.chunk(2, -1)
            c, s = cosine[..., : first.shape[-1]], sine[..., : first.shape[-1]]
            return torch.cat([first * c - second * s, second * c + first * s], -1)

        return rotate, [x]
    indices = torch.randint(0, cols if op.startswith("cross") else 32000, (rows,), device=bench.device)
    if op == "embedding":
        return lambda w: functional.embedding(indices, w), [bench.noise(32000 * cols, dtype).view(32000, cols)]
    if op == "cross_entropy":
        return lambda a: functional.cross_entropy(a, indices), [x]
    if op == "cross_entropy_fp32":
        return lambda a: functional.cross_entropy(a.float(), indices), [x]
    raise KeyError(op)


def _copy(bench: Any, key: Mapping[str, Cell]) -> Row:
    torch, op, count, dtype = bench.torch, str(key["op"]), int(key["cols"]), str(key["dtype"])
    size = 4 if dtype == "fp32" else 2
    if op == "copy":
        sets = max(2, bench.sets(size * 2 * count)) if key["cache"] == "cold" else 1
        apart = max(count, 1024)
        pairs = [
            (bench.noise(count, dtype, 2 * i * apart), bench.noise(count, dtype, (2 * i + 1) * apart)) for i in range(sets)
        ]
        if sets == 1 and 2 * count > 2**31:
            pairs = [(pairs[0][0], torch.empty_like(pairs[0][0]))]
        timing = bench.time(lambda i: pairs[i][1].copy_(pairs[i][0]), sets=sets)
        return dict(timing.row() | {"bytes": 2.0 * size * count})
    host = torch.randn(count).to(bench.dtype(dtype)).pin_memory()
    there = bench.noise(count, dtype)
    source, target = (host, there) if op == "copy_to_device" else (there, host)
    timing = bench.time(lambda _: target.copy_(source, non_blocking=True))
    return dict(timing.row() | {"link_bytes": float(size * count)})


def _optimizer(bench: Any, key: Mapping[str, Cell]) -> Row:
    torch, op, dtype = bench.torch, str(key["op"]), str(key["dtype"])
    tensors, each = int(key["rows"]), int(key["cols"])
    size = 4 if dtype == "fp32" else 2
    parameters = [torch.nn.Parameter(bench.noise(each, dtype, i * each).clone()) for i in range(tensors)]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter) * 1e-3
    moved = {"adamw_fused": 7, "adamw_foreach": 7, "sgd_fused": 3, "clip_grad_norm": 3}[op] * size * tensors * each
    if op == "clip_grad_norm":
        call = lambda _: torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)  # noqa: E731
    else:
        kind = torch.optim.SGD if op.startswith("sgd") else torch.optim.AdamW
        optimizer = kind(parameters, lr=1e-4, **({"fused": True} if op.endswith("fused") else {"foreach": True}))
        call = lambda _: optimizer.step()  # noqa: E731
    timing = bench.time(call, launch="eager", least=10e-3)
    bench.tidy(above=30e9)
    return dict(timing.row() | {"bytes": float(moved)})


def measure(bench: Any, key: Mapping[str, Cell]) -> Row:
    """Time one operator, its backward, a copy or an optimizer step."""
    torch, op = bench.torch, str(key["op"])
    if op in COPIES:
        return _copy(bench, key)
    if op in OPTIMIZERS:
        return _optimizer(bench, key)
    rows, cols, dtype = int(key["rows"]), int(key["cols"]), str(key["dtype"])
    function, inputs = _forward(bench, op, rows, cols, dtype)
    size = 4 if dtype == "fp32" else 2
    forward, back = PASSES[op]
    if key["direction"] == "backward":
        leaves = [t.detach().requires_grad_() for t in inputs]
        out = function(*leaves)
        gradient = torch.ones_like(out) if out.dim() == 0 else torch.randn_like(out)
        timing = bench.time(lambda _: torch.autograd.grad(out, leaves, gradient, retain_graph=True), launch=str(key["launch"]))
        passes = back or 0.0
    else:
        with torch.no_grad():
            timing = bench.time(lambda _: function(*inputs), launch=str(key["launch"]))
        passes = forward
    bench.tidy(above=30e9)
    return dict(timing.row() | {"bytes": float(passes * size * rows * cols)})


SUITE = Suite(
    name="pointwise",
    key=("op", "dtype", "direction", "rows", "cols", "cache", "launch"),
    measured=(*READINGS, "bytes", "link_bytes"),
    share=0.09,
    tasks=tasks,
    measure=measure,
)
