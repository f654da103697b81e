"""Cost of one block (a layer, the embedding, the head) for one microbatch on one device, from its dataflow graph.

Every operator of the graph becomes kernels: forward, input gradient, weight gradient, each at its own shape. Every change of
placement becomes a collective. Nothing here knows which architecture it is looking at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from costmodels.autocast import autocast
from costmodels.block_kernels import FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, Kernel, kernels
from costmodels.collectives import Link, collective_bytes, collective_time, group_bandwidth
from costmodels.constants import Stack
from costmodels.context import exchanged
from costmodels.kernel_times import KernelTimes
from costmodels.kernels import streaming_time
from spaces.blocks import placement
from spaces.columns import FloatArray, IntArray, Value
from spaces.expressions import SymbolTable
from spaces.graph import MATRIX_KINDS, Collective, Graph, Kind, Operator, Placement
from spaces.mesh import share_of_domain, worst_group
from spaces.plan import Precision, Recompute, Schedule

FAMILIES = ("gemm", "attention", "pointwise", "tensor_communication", "context_communication", "expert_communication", "host")
"""Parts of a block's time, in report order."""
_COMPOSED = {Kind.NORM: "stack.launches.norm", Kind.ROTARY: "stack.launches.rotary"}
"""Kinds of operators that some frameworks put together from several."""
_FAMILY_OF_AXIS = {"tensor": 3, "context": 4, "expert": 5, "expert_tensor": 5}
_WITHIN = {"context": "tensor", "expert": "expert_tensor"}
"""The mesh axis whose ranks lie between those of another, within a stage."""


@dataclass(frozen=True, slots=True, eq=False)
class Exchange:
    """One collective of a block: seconds in all, seconds exposed, and bytes a rank sends inside and outside its domain."""

    kind: str
    axis: str
    phase: str
    operator: str
    time: Value
    exposed: Value
    inner_bytes: Value
    outer_bytes: Value


@dataclass(frozen=True, slots=True, eq=False)
class BlockTime:
    """Time of one block for one microbatch on one device; arrays of shape (n,), leading axis: recomputation policy.

    `forward` (n,) and `backward` (3, n) are seconds including exposed communication and host; `weight` (n,) the part of
    backward that is weight gradients. `families` (3, 7, n) split forward + backward without recomputation by FAMILIES;
    `recompute` (3, n) is the rest; `ahead` (3, n) what the device takes longer than the host, where it does. `flops` (3, n)
    executed, `traffic` (3, n) bytes through memory, `inner_bytes`, `outer_bytes` (3, n) bytes sent inside and outside the
    scale-up domain.
    """

    forward: FloatArray
    backward: FloatArray
    weight: FloatArray
    families: FloatArray
    recompute: FloatArray
    ahead: FloatArray
    flops: FloatArray
    traffic: FloatArray
    inner_bytes: FloatArray
    outer_bytes: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Common:
    """`count` combinations of the symbols that some operators of a block read, and the one of each row, `index` (n,)."""

    at: SymbolTable
    count: int
    index: IntArray
    operators: frozenset[str]


def block_time(
    graph: Graph,
    stack: Stack,
    at: SymbolTable,
    n: int,
    *,
    sequence_parallel: bool,
    times: KernelTimes | None = None,
    common: Common | None = None,
) -> BlockTime:
    """Time of a block for n combinations of symbols that share one placement; `times` know kernels better than formulas."""
    where, at = placed(at, sequence_parallel)
    rerun = [rerun_operators(graph, stack, policy) for policy in range(3)]
    if common is None:
        work = kernels(graph, where, at, n, stack, times)
    else:
        few = kernels(graph, where, placed(common.at, sequence_parallel)[1], common.count, stack, times, common.operators)
        others = frozenset(op.name for op in graph.operators) - common.operators
        work = [kernel.taken(common.index) for kernel in few] + kernels(graph, where, at, n, stack, times, others)
    moves = list(exchanges(graph, where, at, work, times))
    families = np.zeros((3, len(FAMILIES), n))
    forward, backward, weight, again = np.zeros(n), np.zeros((3, n)), np.zeros(n), np.zeros((3, n))
    flops, traffic, inner, outer = (np.zeros((3, n)) for _ in range(4))
    for kernel in work:
        family = 0 if kernel.kind in MATRIX_KINDS else 1 if kernel.kind is Kind.ATTENTION else 2
        families[:, family] += kernel.time
        flops += kernel.flops
        traffic += kernel.traffic
        if kernel.phase == FORWARD:
            forward += kernel.time
            for policy in range(3):
                if kernel.operator in rerun[policy]:
                    again[policy] += kernel.time
                    flops[policy] += kernel.flops
                    traffic[policy] += kernel.traffic
        else:
            backward += kernel.time
            if kernel.phase == WEIGHT_GRADIENT:
                weight += kernel.time
    for move in moves:
        families[:, _FAMILY_OF_AXIS[move.axis]] += move.exposed
        inner += move.inner_bytes
        outer += move.outer_bytes
        if move.phase == FORWARD:
            forward += move.exposed
            for policy in range(3):
                if move.operator in rerun[policy]:
                    again[policy] += move.exposed
                    inner[policy] += move.inner_bytes
                    outer[policy] += move.outer_bytes
        else:
            backward += move.exposed
    backward += again
    forward, backward, ahead = _host(graph, where, at, rerun, moves, forward, backward, families)
    return BlockTime(forward, backward, weight, families, again, ahead, flops, traffic, inner, outer)


def placed(at: SymbolTable, sequence_parallel: bool) -> tuple[Placement, SymbolTable]:
    """The placement of a stack's blocks, and the bound symbols with those that follow from it."""
    where = placement(
        sequence_parallel=sequence_parallel, vocab_parallel=bool(np.any(np.asarray(at["stack.vocab_parallel"]) > 0))
    )
    return where, _Local(at, sequence_parallel)


def policies(stack: Stack) -> tuple[str, str, str]:
    """The graph's keeping policies behind the codes of `Recompute`."""
    return ("none", stack.selective, "full")


@dataclass(frozen=True, slots=True)
class _Local:
    """Adds the symbols that follow from the placement to the bound ones."""

    at: SymbolTable
    sequence_parallel: bool
    _known: dict[str, Value] = field(default_factory=dict, repr=False)

    def __getitem__(self, symbol: str) -> Value:
        if symbol not in self._known:
            self._known[symbol] = self._found(symbol)
        return self._known[symbol]

    def _found(self, symbol: str) -> Value:
        if symbol == "stream_shards":
            return self.at["tensor"] if self.sequence_parallel else 1
        if symbol == "activation_bytes":
            return np.where(np.asarray(self.at["precision"]) == Precision.FP32, 4.0, 2.0)
        if symbol in ("dispatch_bytes", "logits_bytes"):
            return self.at[f"stack.{symbol}"]
        if symbol == "autocast":
            return autocast(self.at)
        if symbol == "whole_gradient_bytes":
            return _whole_gradient_bytes(self.at)
        return self.at[symbol]


def _whole_gradient_bytes(at: SymbolTable) -> Value:
    """Bytes a parameter of a gradient before it is reduced: gathered 16-bit parameters have 16-bit gradients."""
    width = at["optimizer.gradients"]
    if np.all(np.asarray(at["stack.memory.persistent_gradients"]) > 0):
        return width
    gathered = (np.asarray(at["zero_stage"]) >= 3) & (np.asarray(at["precision"]) != Precision.FP32)
    return np.where(gathered, np.minimum(width, at["stack.parameter_bytes"]), width)


def rerun_operators(graph: Graph, stack: Stack, policy: int) -> frozenset[str]:
    """Names of the operators run again in the backward pass under the recomputation policy of that code."""
    if policy == Recompute.NONE:
        return frozenset()
    again = graph.operators if policy == Recompute.FULL and stack.whole_block else graph.recomputed(policies(stack)[policy])
    return frozenset(op.name for op in again)


# ---- exchanges ---------------------------------------------------------------------------------------------------------


def exchanges(
    graph: Graph, where: Placement, at: SymbolTable, work: list[Kernel], times: KernelTimes | None = None
) -> Iterator[Exchange]:
    """Every collective the placement implies, with the part of it that nothing hides."""
    attention = {
        phase: sum((k.time for k in work if k.kind is Kind.ATTENTION and (k.phase == FORWARD) == (phase == FORWARD)), 0.0)
        for phase in (FORWARD, INPUT_GRADIENT)
    }
    for phase, found in ((FORWARD, graph.forward_collectives(where)), (INPUT_GRADIENT, graph.backward_collectives(where))):
        for collective in found:
            yield _exchange(graph, where, at, collective, phase, attention[phase], times)


def _exchange(
    graph: Graph,
    where: Placement,
    at: SymbolTable,
    c: Collective,
    phase: str,
    attention: Value,
    times: KernelTimes | None,
) -> Exchange:
    size = (graph.elements(c.dims, where, c.gathered) * 1).evaluate(at) * _element(c.element, at)
    ranks = at[c.axis]
    inside, inner, outer = group_links(at, c.axis)
    if c.axis == "context":

        def cost(kind: str, size: Value) -> tuple[Value, Value, Value]:
            time = group_time(at, kind, size, ranks, inside, inner, outer, times)
            return time, *collective_bytes(kind, size, ranks, inside)

        time, hidden, *sent = exchanged(at, size, attention, backward=phase != FORWARD, cost=cost)
        return Exchange(c.kind, c.axis, phase, c.cause, time, time - hidden * (1.0 - at["stack.contention"]), *sent)
    time = group_time(at, c.kind, size, ranks, inside, inner, outer, times)
    if c.axis == "tensor" and "stream" in c.dims:  # torch gathers the first dimension: a sequence that is not must be turned
        turned = np.where((np.asarray(at["micro_batch"]) > 1) & (ranks > 1), at["stack.turn_passes"] * size, 0.0)
        time = time + np.where(turned > 0, streaming_time(at, turned), 0.0)
    inner_bytes, outer_bytes = collective_bytes(c.kind, size, ranks, inside)
    direction = "forward" if phase == FORWARD else "backward"
    if c.axis == "tensor":
        exposed = time * (1.0 - at[f"stack.overlap.tensor_{direction}"])
        if c.tensor.startswith("saved_"):  # the second gather of an input hides behind the input gradient
            exposed = time * (1.0 - np.maximum(at["stack.overlap.tensor_backward"], 0.7))
    else:
        if c.kind == "all_to_all":
            unique = _crossings(at, ranks, inside)
            time, outer_bytes = time * np.where(inside < ranks, unique, 1.0) * at["stack.imbalance"], outer_bytes * unique
        # DualPipe runs one microbatch's exchanges beside another's computation (DeepSeek-V3 §3.2.1)
        hidden = np.where(np.asarray(at["schedule"]) == Schedule.DUALPIPE, 1.0, at["stack.overlap.expert"])
        exposed = time * (1.0 - hidden * (1.0 - at["stack.contention"]))
    return Exchange(c.kind, c.axis, phase, c.cause, time, exposed, inner_bytes, outer_bytes)


def _crossings(at: SymbolTable, ranks: Value, inside: Value) -> Value:
    """Share of a token's copies that cross to other nodes when each node is sent one copy.

    k experts drawn over N nodes touch (N−1)·(1 − (1−1/N)^k) other nodes, where k·(N−1)/N copies would cross. A model whose
    routing is limited to a few groups, one a node, touches no more than those, and is run with kernels that send one copy
    (DeepSeek-V3 §3.2.2).
    """
    k, groups = at["experts_per_token"], at["routing_groups"]
    nodes = np.maximum(np.asarray(ranks, np.float64) / np.maximum(inside, 1), 1.0)
    copies = np.maximum(k * (nodes - 1.0) / nodes, 1e-9)
    touched = (nodes - 1.0) * (1.0 - (1.0 - 1.0 / nodes) ** k)
    limited = np.where(groups > 0, np.minimum(touched, groups * (nodes - 1.0) / nodes), touched)
    once = (at["stack.deduplicate"] > 0) | (np.asarray(groups) > 0)
    return np.where(once & (nodes > 1), np.minimum(limited / copies, 1.0), 1.0)


def group_time(
    at: SymbolTable,
    kind: str,
    size: Value,
    ranks: Value,
    inside: Value,
    inner: Link,
    outer: Link,
    times: KernelTimes | None = None,
) -> Value:
    """Seconds of a collective on a group's links; between two devices of one domain as it was measured there."""
    time = collective_time(kind, size, ranks, inside, inner, outer)
    return time if times is None else time * times.pair_factor(at, kind, size, ranks, inside)


def group_links(at: SymbolTable, axis: str) -> tuple[Value, Link, Link]:
    """(ranks in one domain, link inside, link outside) of the worst-placed group along a mesh axis within a stage."""
    within = _WITHIN.get(axis)
    return links_of(at, at[axis], 1 if within is None else at[within])


def ranks_inside(at: SymbolTable, ranks: Value, stride: Value) -> Value:
    """Fewest ranks of a group of `ranks` devices, `stride` apart, that any of the job's domains holds; (n,) or a number."""
    taken = share_of_domain(at["device.domain"], at["device.per_node"], at["devices"])
    return worst_group(ranks, stride, taken, at["devices"])[0]


def links_of(at: SymbolTable, ranks: Value, stride: Value) -> tuple[Value, Link, Link]:
    """The same for any group of `ranks` devices, `stride` apart."""
    inside = ranks_inside(at, ranks, stride)
    inner = Link(
        latency=at["link.inner.latency"],
        setup=at["link.inner.setup"],
        half_size=at["link.inner.half_size"],
        bandwidth=group_bandwidth(at["device.scale_up_bandwidth"], at["device.peer_bandwidth"], inside)
        * at["link.inner.share"],
    )
    outer = Link(
        latency=at["link.outer.latency"],
        setup=at["link.outer.setup"],
        half_size=at["link.outer.half_size"],
        bandwidth=at["device.nic_bandwidth"] * at["link.outer.share"] * np.minimum(at["stack.rails"] / inside, 1.0),
    )
    return inside, inner, outer


def _element(element: object, at: SymbolTable) -> Value:
    return at[element] if isinstance(element, str) else element


# ---- host ------------------------------------------------------------------------------------------


def _experts_apart(graph: Graph, where: Placement, at: SymbolTable) -> Value:
    """Seconds of host time that a layer's experts cost where each of them is launched by itself; nothing without experts."""
    if not any(op.kind is Kind.GROUPED_GEMM for op in graph.operators):
        return 0.0
    return graph.elements(("experts",), where).evaluate(at) * at["stack.host_per_expert"]


def _host(
    graph: Graph,
    where: Placement,
    at: SymbolTable,
    rerun: list[frozenset[str]],
    moves: list[Exchange],
    forward: FloatArray,
    backward: FloatArray,
    totals: FloatArray,
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """A pass takes as long as the slower of device and host; what the host adds is a family of its own.

    Also how much longer than the host the device takes where it is the slower, shape (3, n).
    """
    each, per_move = at["stack.host_per_operator"], at["stack.host_per_collective"]
    calls = np.zeros_like(forward)
    for move in moves:
        if move.phase == FORWARD:
            calls = calls + (np.asarray(move.time) > 0)
    launches = {operator.name: _launches(operator, at) for operator in graph.operators}
    issued = sum(launches.values())
    apart = _experts_apart(graph, where, at)  # a third forward: as many calls as products, where backward has two of each
    late = issued * each + calls * per_move + apart / 3 - forward
    ahead = np.maximum(-late, 0.0) + np.zeros((3, 1))
    late = np.maximum(late, 0.0)
    totals[:, -1] += late
    forward = forward + late
    # a gradient for the input and one for the weights, and a sum over the tokens for every bias
    returned = 2.0 * issued + sum(len(dims) == 1 for o in graph.operators if o.kind in MATRIX_KINDS for dims in o.weights)
    for policy in range(3):
        launched = returned + sum(launches[name] for name in rerun[policy])
        again = at["stack.host_per_checkpoint"] if policy and rerun[policy] else 0.0
        late = launched * each + again + calls * per_move + 2 * apart / 3 - backward[policy]
        ahead[policy] += np.maximum(-late, 0.0)
        late = np.maximum(late, 0.0)
        totals[policy, -1] += late
        backward[policy] += late
    return forward, backward, ahead


def _launches(operator: Operator, at: SymbolTable) -> Value:
    """Calls of the framework that an operator of the graph is made of; most are one."""
    composed = _COMPOSED.get(operator.kind)
    return 1.0 if composed is None else at[composed]
