"""What autocast adds to a block: fp32 parameters and residual stream around products that run in 16 bits.

Counted operator by operator from torch.autocast's lists (PyTorch, `torch.amp`, "Autocast Op Reference"): products cast their
fp32 inputs and, once a forward pass, their weights; norms and the loss run in fp32; a sum with an fp32 term is fp32; a gradient
is cast back to the width of what it belongs to. Each draft here comes on top of what the same operator takes in 16 bits.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from costmodels.kernel_times import Call
from spaces.columns import Value
from spaces.expressions import SymbolTable, product
from spaces.graph import MATRIX_KINDS, Graph, Kind, Operator, Placement
from spaces.plan import Precision

WIDE = frozenset({Kind.ADD, Kind.NORM, Kind.EMBEDDING})
"""Kinds of operators whose outputs are fp32 under autocast."""
NARROWED, WIDENED = "fp32_to_bf16", "bf16_to_fp32"


def autocast(at: SymbolTable) -> Value:
    """1 where fp32 parameters compute in 16 bits under autocast, 0 elsewhere: sharded parameters are cast where gathered."""
    if not np.any(np.asarray(at["stack.memory.autocast"]) > 0) or not np.any(np.asarray(at["optimizer.weights"]) == 4):
        return 0.0
    half = np.isin(np.asarray(at["precision"]), (Precision.FP16, Precision.BF16))
    return np.where(half & (np.asarray(at["optimizer.weights"]) == 4) & (np.asarray(at["zero_stage"]) < 3), 1.0, 0.0)


def wide(graph: Graph, name: str) -> bool:
    """Whether a value is fp32 under autocast: the residual stream, and what norms and embeddings write."""
    writer = graph.writer.get(name)
    return graph.tensors[name].element == "activation_bytes" and (writer is None or writer.kind in WIDE)


def cast(kind: str, rows: Value, cols: Value) -> Call:
    """A copy of (rows, cols) between fp32 and 16 bits: 6 bytes an element."""
    traffic = 6.0 * rows * cols
    return Call(
        op=kind,
        dimensions={"rows": rows, "cols": cols},
        words={"direction": "forward"},
        formula=lambda at: _moving(at, traffic) + at["kernel.pointwise.overhead"],
        applies=np.asarray(traffic) > 0,
    )


def wider(traffic: Value, share: str = "bandwidth") -> Call:
    """Bytes that an operator moves in fp32 beyond those in 16 bits."""
    return Call(formula=lambda at: _moving(at, traffic, share))


def _moving(at: SymbolTable, traffic: Value, share: str = "bandwidth") -> Value:
    return traffic / (at["device.memory_bandwidth"] * at[f"kernel.pointwise.{share}"])


def added(
    graph: Graph, op: Operator, where: Placement, at: SymbolTable, *, eager: bool
) -> Iterator[tuple[str, tuple[Call, ...], Value]]:
    """(phase, calls, bytes) that autocast adds to an operator; compiled blocks cast inside the kernels around a product."""

    def count(dims: tuple[str, ...]) -> Value:
        return graph.elements(dims, where).evaluate(at)

    inputs = [dims for name, dims in op.reads if wide(graph, name)]
    match op.kind:
        case kind if kind in MATRIX_KINDS:
            weights: Value = 0.0
            for dims in op.weights:
                *outer, last = (graph.local(dim, where) for dim in dims)
                rows, cols = product(*outer).evaluate(at), last.evaluate(at)
                weights = weights + rows * cols
                yield "forward", (cast(NARROWED, rows, cols),), 6.0 * rows * cols
                yield "weight_gradient", (cast(WIDENED, rows, cols),), 6.0 * rows * cols
            for dims in inputs if eager else ():
                rows, cols = count(dims[:-1]), graph.local(dims[-1], where).evaluate(at)
                yield "forward", (cast(NARROWED, rows, cols),), 6.0 * rows * cols
                yield "input_gradient", (cast(WIDENED, rows, cols),), 6.0 * rows * cols
        case Kind.NORM:
            read, written = count(op.reads[0][1]), count(op.writes[0].dims)
            forward = 2.0 * (read + written if eager else read)
            yield "forward", (wider(forward, "norm"),), forward
            yield "input_gradient", (wider(2.0 * read + forward, "norm"),), 2.0 * read + forward
        case Kind.ADD:
            written = count(op.writes[0].dims)
            forward = 2.0 * (written + sum(count(dims) for dims in inputs))
            yield "forward", (wider(forward),), forward
            narrow = [dims for name, dims in op.reads if not wide(graph, name)]
            summed = 6.0 * written  # gradients of the stream and of the branch are added in fp32
            yield "input_gradient", (wider(summed),), summed
            for dims in narrow if eager else ():
                rows, cols = count(dims[:-1]), graph.local(dims[-1], where).evaluate(at)
                yield "input_gradient", (cast(NARROWED, rows, cols),), 6.0 * rows * cols
        case Kind.EMBEDDING:
            looked_up = 4.0 * count(op.writes[0].dims)
            table = 2.0 * sum(count(dims) for dims in op.weights)
            yield "forward", (wider(looked_up),), looked_up
            yield "input_gradient", (wider(looked_up + table),), looked_up + table
        case _:
            return
