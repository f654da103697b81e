"""Kernels of one block, from its dataflow graph: forward, input gradient, weight gradient, each at the shapes one device sees.

Every kernel has a formula on sustained rates, and is named as kernel models know it (costmodels.kernel_times). Eager frameworks
run the pointwise kernels that are measured one by one; what others fuse is counted in passes over memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from costmodels import autocast
from costmodels.constants import Stack
from costmodels.context import merging
from costmodels.kernel_times import ATTENTION_OF_STACK, Call, Formula, KernelTimes
from costmodels.kernels import attention_time, gemm_time, streaming_time
from spaces.columns import IntArray, Value
from spaces.expressions import SymbolTable
from spaces.graph import Graph, Kind, Operator, Placement
from spaces.plan import Precision

FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT = "forward", "input_gradient", "weight_gradient"
_LAYOUT = {FORWARD: "forward", INPUT_GRADIENT: "dgrad", WEIGHT_GRADIENT: "wgrad"}


@dataclass(frozen=True, slots=True, eq=False)
class Kernel:
    """One kernel of a block: seconds, executed FLOPs and bytes of memory traffic, each (n,)."""

    operator: str
    kind: Kind
    phase: str
    time: Value
    flops: Value
    traffic: Value
    shape: tuple[Value, ...] = ()

    def taken(self, index: IntArray) -> Kernel:
        """The same for other rows: those of its combinations at `index`."""
        values = [np.asarray(value) for value in (self.time, self.flops, self.traffic, *self.shape)]
        time, flops, traffic, *shape = (value.take(index) if value.ndim else value for value in values)
        return Kernel(self.operator, self.kind, self.phase, time, flops, traffic, tuple(shape))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Draft:
    """A kernel before its time is known: the sum of its calls' shares, times `factor`."""

    operator: str
    kind: Kind
    phase: str
    calls: tuple[Call, ...]
    flops: Value = 0.0
    traffic: Value = 0.0
    shape: tuple[Value, ...] = ()
    factor: Value = 1.0


def kernels(
    graph: Graph,
    where: Placement,
    at: SymbolTable,
    n: int = 1,
    stack: Stack | None = None,
    times: KernelTimes | None = None,
    operators: frozenset[str] | None = None,
) -> list[Kernel]:
    """Every kernel of the block, or of some of its operators, for n combinations of symbols.

    Seconds are the formulas', or what `times` know of a shape.
    """
    drafts = list(drafted(graph, where, at, stack, operators))
    calls = [call for draft in drafts for call in draft.calls]
    seconds = iter([call.formula(at) for call in calls] if times is None else times.seconds(at, calls, n))
    made = []
    for draft in drafts:
        time = np.maximum(sum(call.share * next(seconds) for call in draft.calls), 0.0) * draft.factor
        made.append(Kernel(draft.operator, draft.kind, draft.phase, time, draft.flops, draft.traffic, draft.shape))
    return made


def drafted(
    graph: Graph, where: Placement, at: SymbolTable, stack: Stack | None, operators: frozenset[str] | None = None
) -> Iterator[Draft]:
    """Every kernel of the block, or of some operators, in order. Without a stack none is known to run operator by operator."""
    ends = any(op.kind in (Kind.LOSS, Kind.EMBEDDING) for op in graph.operators)
    eager = stack is not None and (stack.traits.eager_activation or (ends and stack.numbers["stack.eager_ends"] > 0))
    plain = stack is not None and (eager or stack.numbers["stack.eager_ends"] > 0)
    cast = at["autocast"] if stack is not None else 0.0
    for op in graph.operators:
        if operators is not None and op.name not in operators:
            continue
        if np.any(np.asarray(cast) > 0):
            for phase, calls, moved in autocast.added(graph, op, where, at, eager=eager):
                yield Draft(operator=op.name, kind=Kind.ACTIVATION, phase=phase, calls=calls, traffic=cast * moved, factor=cast)
        match op.kind:
            case Kind.GEMM | Kind.GROUPED_GEMM:
                yield from _products(graph, op, where, at, eager=eager, biases=plain)
            case Kind.ATTENTION:
                yield from _attention(graph, op, where, at)
            case Kind.LOSS:
                yield from _loss(graph, op, where, at, eager)
            case _:
                yield from _streams(graph, op, where, at, stack if eager else None)


# ---- products ----------------------------------------------------------------------------------------------------------


def product_shape(graph: Graph, op: Operator, where: Placement, at: SymbolTable) -> tuple[Value, Value, Value, Value]:
    """(groups, m, n, k) of a matrix product forward, as one device sees it."""
    reads = op.reads[0][1]
    batch = ("experts",) if op.kind is Kind.GROUPED_GEMM else ()
    groups = graph.elements(batch, where).evaluate(at)
    m = graph.elements([d for d in reads if d not in op.contracted and d not in batch], where).evaluate(at)
    n = sum(graph.elements([d for d in t.dims if d not in reads], where).evaluate(at) for t in op.writes)
    return groups, m, n, graph.elements(op.contracted, where).evaluate(at)


def _products(graph: Graph, op: Operator, where: Placement, at: SymbolTable, *, eager: bool, biases: bool) -> Iterator[Draft]:
    """(m,n,k) forward, (m,k,n) input gradient, (n,k,m) weight gradient (Megatron's three products of a linear layer)."""
    groups, m, n, k = product_shape(graph, op, where, at)
    flops = 2.0 * groups * m * n * k
    precision = np.asarray(at["precision"])
    low = (precision >= Precision.FP8) & op.quantised
    element = np.where(low, 1.0, 2.0)
    for phase, shape in ((FORWARD, (m, n, k)), (INPUT_GRADIENT, (m, k, n)), (WEIGHT_GRADIENT, (k, n, m))):
        written = at["stack.weight_gradient_bytes"] if phase == WEIGHT_GRADIENT else 2.0
        x, y, z = shape
        traffic = groups * (element * (x * z + z * y) + written * x * y)
        # LoRA leaves the weights as they are
        trained = np.where(np.asarray(at["trainable"]) == 0, 1.0, 0.0) if phase == WEIGHT_GRADIENT else 1.0
        yield Draft(
            operator=op.name,
            kind=op.kind,
            phase=phase,
            calls=_product(at, shape, groups, quantised=op.quantised, phase=phase),
            flops=flops * trained,
            traffic=traffic * trained,
            shape=(groups, *shape),
            factor=trained,
        )
    if len(op.writes) > 1:  # the gradients of a fused product's outputs are concatenated before its own gradients
        joined = at["stack.split_passes"] * 2.0 * groups * m * n
        call = _stream("cat" if eager else "", joined, groups * m, n, "forward")
        yield Draft(operator=op.name, kind=Kind.MULTIPLY, phase=INPUT_GRADIENT, calls=(call,), traffic=joined)
    if biases and any(
        not set(op.contracted) <= set(dims) for dims in op.weights
    ):  # a bias' gradient is the sum of the output's over all tokens
        read = 2.0 * groups * m * n
        elements = groups * m * n
        call = Call(formula=lambda at: at["kernel.pointwise.overhead"] + elements * at["kernel.pointwise.column_sum"])
        yield Draft(operator=op.name, kind=Kind.ADD, phase=INPUT_GRADIENT, calls=(call,), traffic=read)
    if op.quantised:  # quantising and transposing the operands: input forward, output gradient backward
        cast_in = np.where(low, at["stack.cast_bytes"] * groups * m * k, 0.0)
        cast_out = np.where(low, at["stack.cast_bytes"] * groups * m * n, 0.0)
        weights = np.where(low, at["stack.cast_bytes"] * groups * n * k, 0.0)
        for phase, moved in ((FORWARD, cast_in + weights), (INPUT_GRADIENT, cast_out)):
            call = _stream("", moved, 1.0, 1.0, "forward")
            yield Draft(operator=op.name, kind=Kind.ACTIVATION, phase=phase, calls=(call,), traffic=moved)


def _product(
    at: SymbolTable, shape: tuple[Value, Value, Value], groups: Value, *, quantised: bool, phase: str
) -> tuple[Call, ...]:
    """A product as models know it: weights' gradients are (outputs, inputs, tokens), all results in 16 bits."""
    x, y, z = shape
    first, second = (y, x) if phase == WEIGHT_GRADIENT else (x, y)
    written = at["stack.weight_gradient_bytes"] if phase == WEIGHT_GRADIENT else 2.0

    def formula(at: SymbolTable, output: Value = written) -> Value:
        return gemm_time(at, *shape, groups, quantised=quantised, output=output)

    def plain(at: SymbolTable) -> Value:
        return formula(at, 2.0)

    low = np.asarray(at["precision"]) >= Precision.FP8
    call = Call(
        op="gemm",
        dimensions={"m": first, "n": second, "k": z},
        words={"layout": _LAYOUT[phase]},
        dtype=np.where(low & (not quantised), Precision.BF16, at["precision"]),
        applies=(np.asarray(groups) == 1) & (~low | (not quantised) | (np.asarray(at["device.matrix_flops.fp8"]) > 0)),
        formula=formula,
        reference=None if np.all(np.asarray(written) == 2.0) else plain,
    )
    return (call,)


# ---- attention ---------------------------------------------------------------------------------------------------------


def attention_pairs(at: SymbolTable, key_length: Value) -> Value:
    """Query-key pairs under a causal mask with a window of `key_length`: s·w − w(w−1)/2 (w = s: s(s+1)/2)."""
    s = at["sequence"]
    w = np.minimum(s, key_length)
    return s * w - w * (w - 1.0) / 2.0


def _attention(graph: Graph, op: Operator, where: Placement, at: SymbolTable) -> Iterator[Draft]:
    heads = graph.local("heads", where).evaluate(at)
    widths = {d: graph.size(d).evaluate(at) for d in ("qk_dim", "value_dim", "key_length")}
    share = at["micro_batch"] / np.asarray(at["context"], np.float64)
    if op.name in ("scores", "attend"):
        yield from _unfused_attention(op, at, heads * share, widths)
        return
    pairs = attention_pairs(at, widths["key_length"]) * heads * share
    flops = 2.0 * pairs * (widths["qk_dim"] + widths["value_dim"])
    tokens = at["sequence"] * share
    query = tokens * heads * (widths["qk_dim"] + widths["value_dim"])
    keys = at["sequence"] * at["micro_batch"] * sum(graph.elements(dims[1:], where).evaluate(at) for name, dims in op.reads[1:])
    traffic = 2.0 * (query + keys)
    # a window or a share of the context runs at the efficiency of the whole
    all_pairs = attention_pairs(at, at["sequence"]) * heads * at["micro_batch"]
    whole_flops = 2.0 * all_pairs * (widths["qk_dim"] + widths["value_dim"])
    whole_traffic = 2.0 * (query * at["context"] + keys)
    whole = bool(np.all(whole_flops == flops))
    dimensions = {
        "batch": at["micro_batch"],
        "heads": heads,
        "kv_heads": graph.local(op.reads[1][1][1], where).evaluate(at),
        "q_len": at["sequence"],
        "kv_len": at["sequence"],
        "head_dim": widths["qk_dim"],
    }
    same_width = np.asarray(widths["qk_dim"]) == np.asarray(widths["value_dim"])
    # backward: five products instead of two, and dQ, dK, dV, O, dO beside Q, K, V
    for phase, direction, named, more in (
        (FORWARD, "forward", "attention_prefill", 1.0),
        (INPUT_GRADIENT, "backward", "attention_backward", 2.5),
    ):
        call = Call(
            op=named,
            dimensions=dimensions,
            words={"causal": "true", "implementation": ATTENTION_OF_STACK},
            dtype=np.where(np.asarray(at["precision"]) >= Precision.FP8, Precision.BF16, at["precision"]),
            applies=same_width,
            formula=_attention_formula(more * flops, more * traffic, direction),
            reference=None if whole else _attention_formula(more * whole_flops, more * whole_traffic, direction),
        )
        yield Draft(operator=op.name, kind=op.kind, phase=phase, calls=(call,), flops=more * flops, traffic=more * traffic)
        merged = merging(at, tokens * heads * widths["value_dim"], backward=phase != FORWARD)
        if np.any(np.asarray(merged) > 0):  # context parallelism adds up what each chunk of keys gives
            factor = np.where(np.asarray(merged) > 0, 1.0, 0.0)
            call = _stream("", merged, 1.0, 1.0, "forward")
            yield Draft(operator=op.name, kind=Kind.ADD, phase=phase, calls=(call,), traffic=merged, factor=factor)


def _attention_formula(flops: Value, traffic: Value, direction: str) -> Formula:
    return lambda at: attention_time(at, flops, traffic, direction)


def _unfused_attention(op: Operator, at: SymbolTable, heads: Value, widths: dict[str, Value]) -> Iterator[Draft]:
    """Two products over all s² scores, masked or not, and the softmax, mask and dropout passes over them."""
    pairs = heads * at["sequence"] * widths["key_length"]
    width = widths["qk_dim"] if op.name == "scores" else widths["value_dim"]
    flops = 2.0 * pairs * width
    for phase, factor in ((FORWARD, 1.0), (INPUT_GRADIENT, 2.0)):
        direction = "forward" if phase == FORWARD else "backward"
        score_bytes = at[f"stack.score_traffic.{direction}"] * pairs if op.name == "scores" else 0.0
        yield Draft(
            operator=op.name,
            kind=op.kind,
            phase=phase,
            calls=(Call(formula=_unfused_formula(factor * flops, score_bytes, direction, scores=op.name == "scores")),),
            flops=factor * flops,
            traffic=score_bytes + factor * 2.0 * pairs,
        )


def _unfused_formula(flops: Value, score_bytes: Value, direction: str, *, scores: bool) -> Formula:
    def formula(at: SymbolTable) -> Value:
        compute = flops / (at["device.matrix_flops.fp16"] * at[f"kernel.attention.{direction}"])
        time = compute + 2 * at["kernel.gemm.overhead"]
        return time + streaming_time(at, score_bytes) if scores else time

    return formula


# ---- pointwise ---------------------------------------------------------------------------------------------------------


def _stream(
    op: str, traffic: Value, rows: Value, cols: Value, direction: str, *, kind: str = "bandwidth", share: float = 1.0
) -> Call:
    """A kernel that moves `traffic` bytes by the formula; nothing takes no time."""

    def formula(at: SymbolTable) -> Value:
        return np.where(np.asarray(traffic) > 0, streaming_time(at, traffic, kind), 0.0)

    return Call(
        op=op,
        dimensions={"rows": rows, "cols": cols},
        words={"direction": direction},
        formula=formula,
        applies=np.asarray(traffic) > 0,
        share=share,
    )


def _streams(graph: Graph, op: Operator, where: Placement, at: SymbolTable, eager: Stack | None) -> Iterator[Draft]:
    """Pointwise operators: one read of each input and one write of each output, times the stack's passes."""
    read = sum(graph.elements(dims, where).evaluate(at) * _element(graph.tensors[name].element, at) for name, dims in op.reads)
    written = sum(graph.bytes(t, where).evaluate(at) for t in op.writes)
    kind = op.kind.value
    share = "norm" if op.kind is Kind.NORM else "bandwidth"
    forward = (read + written) * at[f"stack.traffic.forward.{kind}"]
    # backward reads the output's gradient and what was kept, and writes the inputs' gradients
    kept = sum(graph.bytes(graph.tensors[name], where).evaluate(at) for name in op.keeps)
    backward = (read + written + (kept if op.kind in (Kind.MULTIPLY, Kind.NORM, Kind.ACTIVATION) else 0.0)) * at[
        f"stack.traffic.backward.{kind}"
    ]
    if op.kind is Kind.EMBEDDING and eager is not None:  # its gradient is made whole, zeros where no token was
        backward = backward + sum(graph.elements(dims, where).evaluate(at) for dims in op.weights) * 2.0
    *outer, last = op.writes[0].dims
    cols = graph.local(last, where).evaluate(at)
    rows = graph.elements(outer, where).evaluate(at)
    for phase, direction, traffic in ((FORWARD, "forward", forward), (INPUT_GRADIENT, "backward", backward)):
        first = _stream("", traffic, rows, cols, direction, kind=share)
        calls: tuple[Call, ...] = (first,)
        if eager is not None:
            calls = _eager_calls(graph, op, where, at, first, rows, cols, direction, eager)
        yield Draft(operator=op.name, kind=op.kind, phase=phase, calls=calls, traffic=traffic)


def _eager_calls(
    graph: Graph,
    op: Operator,
    where: Placement,
    at: SymbolTable,
    whole: Call,
    rows: Value,
    cols: Value,
    direction: str,
    stack: Stack,
) -> tuple[Call, ...]:
    """The operator as a framework runs it by itself. Gate and up of one product are strided halves, and slower for it."""
    gated = any(other.kind is Kind.MULTIPLY for other in graph.operators)
    sizes = {"rows": rows, "cols": cols}
    match op.kind:
        case Kind.NORM:
            named = "layer_norm" if len(op.writes) > 2 else "rms_norm"
        case Kind.ADD if len(op.reads) == 2:
            named, direction = "add", "forward"  # backward adds the gradients of the stream and of the branch
        case Kind.ACTIVATION:
            named = "silu" if gated else "gelu"
        case Kind.MULTIPLY if stack.traits.fused_gate_up:
            return _strided_gate(whole, rows, cols, direction)
        case Kind.MULTIPLY:
            named = "mul"
        case Kind.ROTARY if len(op.writes) == 2:
            named = "rotary"
            sizes = {"rows": graph.local(op.writes[0].dims[0], where).evaluate(at)}
            sizes["cols"] = sum(graph.elements(t.dims[1:], where).evaluate(at) for t in op.writes)
        case Kind.EMBEDDING if direction == "forward":
            named = "embedding"
        case _:
            return (whole,)
    return (replace(whole, op=named, dimensions=sizes, words={"direction": direction}),)


def _strided_gate(whole: Call, rows: Value, cols: Value, direction: str) -> tuple[Call, ...]:
    """Silu, product and, backward, the joined gradient were measured as one; the others have kernels of their own here."""
    both = 2.0 * rows * cols * 2.0
    silu = _stream("silu", both, rows, cols, direction, share=-1.0)
    joined = _stream("cat", 2.0 * both, rows, 2.0 * cols, "forward", share=-1.0)
    others = (silu, joined) if direction == "backward" else (silu,)

    def formula(at: SymbolTable) -> Value:
        return whole.formula(at) + sum(other.formula(at) for other in others)

    return (replace(whole, op="chunk_silu_mul", formula=formula), *others)


def _loss(graph: Graph, op: Operator, where: Placement, at: SymbolTable, eager: bool) -> Iterator[Draft]:
    """Cross-entropy: `loss_passes` reads and writes of the logits, a third of them forward; in fp32 a cast each way as well.

    Under autocast one kernel reads 16-bit logits into fp32 and another writes their gradient back: fp32 without the casts.
    """
    logits = graph.bytes(graph.tensors["logits"], where).evaluate(at)
    rows, cols = (graph.local(dim, where).evaluate(at) for dim in graph.tensors["logits"].dims)
    passes = at["stack.loss_passes"]
    known = eager and not where.of(("vocab",)) and bool(np.all(np.asarray(at["logits_bytes"]) == 2))
    whole = known and bool(np.all(np.asarray(at["stack.loss_bytes"]) == 4))
    cast = at["autocast"] if known and not whole else 0.0
    for phase, direction, share, copy in (
        (FORWARD, "forward", 1 / 3, autocast.WIDENED),
        (INPUT_GRADIENT, "backward", 2 / 3, autocast.NARROWED),
    ):
        traffic = share * passes * logits
        narrow = _stream("cross_entropy" if known else "", traffic, rows, cols, direction)
        wide = _stream("cross_entropy_fp32", 2.0 * traffic + 6.0 * rows * cols, rows, cols, direction)
        call = wide if whole else narrow
        yield Draft(operator=op.name, kind=op.kind, phase=phase, calls=(call,), traffic=traffic)
        if np.any(np.asarray(cast) > 0):
            more = (wide, replace(autocast.cast(copy, rows, cols), share=-1.0), replace(narrow, share=-1.0))
            yield Draft(operator=op.name, kind=op.kind, phase=phase, calls=more, traffic=cast * traffic, factor=cast)


def _element(element: object, at: SymbolTable) -> Value:
    return at[element] if isinstance(element, str) else element
