"""What the processor pays: seconds to issue one operator from Python, to replay a graph, and a graph's gap per kernel.

`time_s` is per call of `op`; `nodes` is how many kernels one call holds. Device work is tiny, so the processor is the limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from costmodels.calibration.suite import READINGS, Cell, Row, Suite, Task

OPERATORS = (
    "empty",
    "view",
    "add",
    "mul",
    "to_fp32",
    "linear",
    "linear_forward_backward",
    "add_forward_backward",
    "rms_norm",
    "layer_norm",
    "silu",
    "softmax",
    "attention",
    "attention_forward_backward",
    "cat",
    "embedding",
    "cross_entropy",
    "cross_entropy_forward_backward",
    "optimizer_fused_100",
    "optimizer_foreach_100",
    "record_event",
    "synchronize",
    "item",
)
GRAPHS = (1, 10, 100, 1000)


def _task(op: str, nodes: int = 1) -> Task:
    return Task(key={"op": op, "nodes": nodes}, seconds=0.15)


def tasks(small: bool) -> list[Task]:
    """Each operator once; graphs of several sizes."""
    if small:
        return [_task(op) for op in ("empty", "add", "linear", "item")]
    graphs = [_task(op, nodes) for op in ("graph_replay", "graph_device") for nodes in GRAPHS]
    return [_task(op) for op in OPERATORS] + graphs


def measure(bench: Any, key: Mapping[str, Cell]) -> Row:
    """Time issuing one operator."""
    torch, op, nodes = bench.torch, str(key["op"]), int(key["nodes"])
    functional = torch.nn.functional
    kind = torch.bfloat16 if bench.cuda else torch.float32
    x = torch.randn(64, 128, device=bench.device, dtype=kind)
    w = torch.randn(128, 128, device=bench.device, dtype=kind)
    heads = torch.randn(1, 2, 64, 64, device=bench.device, dtype=kind)
    leaf, weight, head_leaf = (t.clone().requires_grad_() for t in (x, w, heads))
    index = torch.randint(0, 64, (64,), device=bench.device)
    scale = w[0].clone()
    if op.startswith("graph_"):

        def work() -> None:
            for _ in range(nodes):
                x.add_(1)

        work()
        graph = bench.capture(work)
        timing = bench.host_time(graph.replay, count=20) if op == "graph_replay" else bench.replays(graph, 20)
        graph.reset()
        return dict(timing.row())
    if op.startswith("optimizer"):
        parameters = [torch.nn.Parameter(scale.clone()) for _ in range(100)]
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        fused = op == "optimizer_fused_100"
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, **({"fused": True} if fused else {"foreach": True}))
        return dict(bench.host_time(optimizer.step, count=20).row())

    def attend(t: Any) -> Any:
        return functional.scaled_dot_product_attention(t, t, t, is_causal=True)

    calls = {
        "empty": lambda: torch.empty_like(x),
        "view": lambda: x.view(128, 64),
        "add": lambda: x + x,
        "mul": lambda: x * x,
        "to_fp32": lambda: x.to(torch.float64),
        "linear": lambda: functional.linear(x, w),
        "linear_forward_backward": lambda: torch.autograd.grad(functional.linear(leaf, weight), (leaf, weight), x),
        "add_forward_backward": lambda: torch.autograd.grad(leaf + leaf, leaf, x),
        "rms_norm": lambda: functional.rms_norm(x, (128,), scale),
        "layer_norm": lambda: functional.layer_norm(x, (128,), scale),
        "silu": lambda: functional.silu(x),
        "softmax": lambda: torch.softmax(x, -1),
        "attention": lambda: attend(heads),
        "attention_forward_backward": lambda: torch.autograd.grad(attend(head_leaf), head_leaf, heads),
        "cat": lambda: torch.cat([x, x]),
        "embedding": lambda: functional.embedding(index, w),
        "cross_entropy": lambda: functional.cross_entropy(x, index),
        "cross_entropy_forward_backward": lambda: torch.autograd.grad(functional.cross_entropy(leaf, index), leaf),
        "record_event": lambda: torch.cuda.Event().record(),
        "synchronize": bench.wait,
        "item": lambda: x[0, 0].item(),
    }
    with torch.enable_grad():
        return dict(bench.host_time(calls[op]).row())


SUITE = Suite(
    name="host",
    key=("op", "nodes"),
    measured=READINGS,
    share=0.02,
    tasks=tasks,
    measure=measure,
)
