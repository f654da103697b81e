"""The model as a dataflow graph of operators joined by tensors, and what a placement on a mesh implies.

Operators name logical dimensions only. A placement maps dimensions to mesh axes; from the two follow local sizes,
collectives, parameters, FLOPs, what the backward pass keeps and what recomputation computes again. Backward work is derived
from the forward operators, never typed in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from typing import TYPE_CHECKING

from spaces.expressions import Expression, Size, ceil_divide, expression, maximum, product, symbol

if TYPE_CHECKING:
    import networkx as nx


class Kind(StrEnum):
    """Families of operators: each has one rule for its backward pass and for what it keeps."""

    GEMM = "gemm"
    GROUPED_GEMM = "grouped_gemm"
    ATTENTION = "attention"
    NORM = "norm"
    ACTIVATION = "activation"
    MULTIPLY = "multiply"
    ADD = "add"
    DROPOUT = "dropout"
    ROTARY = "rotary"
    BIAS = "bias"
    EMBEDDING = "embedding"
    LOSS = "loss"
    ROUTE = "route"
    PERMUTE = "permute"


MATRIX_KINDS = frozenset({Kind.GEMM, Kind.GROUPED_GEMM})


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value that flows: its logical dimensions and the bytes of one element (a number or a symbol such as `act_bytes`)."""

    name: str
    dims: tuple[str, ...]
    element: Size = "activation_bytes"


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator: what it reads (with the dimensions under which it reads it), writes, contracts and owns.

    `reads` are (tensor name, dimensions wanted): where they differ from the tensor's own, a collective is implied.
    `contracted` are the dimensions summed over. `weights` are dimension tuples of the parameters. `region` names a part that
    selective recomputation drops. `keeps` are the tensors the backward pass needs (names of inputs or outputs).
    """

    name: str
    kind: Kind
    reads: tuple[tuple[str, tuple[str, ...]], ...]
    writes: tuple[Tensor, ...]
    contracted: tuple[str, ...] = ()
    weights: tuple[tuple[str, ...], ...] = ()
    keeps: tuple[str, ...] = ()
    region: str = ""
    quantised: bool = False
    """Runs in the plan's precision (fp8, …) rather than in 16 bits."""


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Which mesh axes shard a logical dimension. A dimension that is absent is not sharded.

    What follows from a placement is remembered by its identity: ask for one once (`spaces.blocks.placement`).
    """

    axes: Mapping[str, tuple[str, ...]]

    def of(self, dims: Iterable[str]) -> dict[str, str]:
        """{mesh axis: the dimension it shards} over the given dimensions."""
        return {axis: dim for dim in dims for axis in self.axes.get(dim, ())}


@dataclass(frozen=True, slots=True)
class Collective:
    """A collective that a change of placement implies: its kind, mesh axis and the tensor dimensions it moves.

    `size_dims` name the larger side of the exchange (nccl-tests' size); `bytes` = local size of those dimensions · element,
    with `gathered` axes taken as not sharding. `cause` is the operator.
    """

    kind: str
    axis: str
    tensor: str
    dims: tuple[str, ...]
    element: Size
    cause: str
    gathered: tuple[str, ...] = ()


def exchange(held: Mapping[str, str], partial: frozenset[str], wanted: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(collective, mesh axis) for every axis on which a value held one way is wanted another way.

    held/wanted: {axis: dimension sharded}. A partial sum becomes a reduce-scatter where the value is wanted sharded, else an
    all-reduce; sharded to whole is an all-gather; sharded along another dimension an all-to-all; whole to sharded is free.
    """
    for axis in sorted(set(held) | partial):
        if axis in partial:
            yield ("reduce_scatter" if axis in wanted else "all_reduce"), axis
        elif axis not in wanted:
            yield "all_gather", axis
        elif _kind_of_dim(wanted[axis]) != _kind_of_dim(held[axis]):
            yield "all_to_all", axis


def _kind_of_dim(dim: str) -> str:
    """Token dimensions are one dimension under different placements."""
    return "tokens" if dim in TOKEN_DIMS else dim


TOKEN_DIMS = frozenset({"stream", "tokens", "keys"})
"""The tokens of a microbatch: `stream` in the residual stream (also sharded by sequence parallelism), `tokens` inside
attention and MLP, `keys` as attention reads them (the whole sequence)."""


@dataclass(frozen=True, eq=False)
class Graph:
    """Operators of one block in order, as a networkx graph, with the sizes of its logical dimensions.

    `outputs` are (tensor name, dimensions under which the next block reads it), where that is not how the block leaves it.
    """

    operators: tuple[Operator, ...]
    inputs: tuple[Tensor, ...]
    sizes: Mapping[str, Expression] = field(default_factory=dict)
    outputs: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def check(self) -> None:
        """Raises ValueError on a cycle, a tensor that nobody writes or one that two write."""
        _ = self.edges

    @cached_property
    def edges(self) -> tuple[tuple[str, str, str], ...]:
        """(writer, reader, tensor) for every tensor that passes between operators. Raises as `check`."""
        writer: dict[str, str] = {}
        for op in self.operators:
            for tensor in op.writes:
                if tensor.name in writer:
                    raise ValueError(f"tensor '{tensor.name}' is written by '{writer[tensor.name]}' and by '{op.name}'")
                writer[tensor.name] = op.name
        sources = {tensor.name for tensor in self.inputs}
        found: list[tuple[str, str, str]] = []
        order: TopologicalSorter[str] = TopologicalSorter()
        for op in self.operators:
            for name, _ in op.reads:
                if name in writer:
                    found.append((writer[name], op.name, name))
                    order.add(op.name, writer[name])
                elif name not in sources:
                    raise ValueError(f"operator '{op.name}' reads '{name}', which nothing writes")
        try:
            order.prepare()
        except CycleError:
            raise ValueError("the dataflow graph has a cycle") from None
        return tuple(found)

    @cached_property
    def network(self) -> nx.DiGraph[str]:
        """Nodes are operators, edges carry the tensor's name. Raises as `check`."""
        import networkx as nx  # slow to import; runs do without

        graph: nx.DiGraph[str] = nx.DiGraph()
        for op in self.operators:
            graph.add_node(op.name, operator=op)
        for writer, reader, tensor in self.edges:
            graph.add_edge(writer, reader, tensor=tensor)
        return graph

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by name."""
        return {t.name: t for t in (*self.inputs, *(t for op in self.operators for t in op.writes))}

    @cached_property
    def writer(self) -> dict[str, Operator]:
        """Operator that writes a tensor; block inputs have none."""
        return {tensor.name: op for op in self.operators for tensor in op.writes}

    def parameters(self) -> Expression:
        """Number of parameters of the block, unsharded."""
        total = expression(0)
        for op in self.operators:
            for dims in op.weights:
                total = total + product(*(self.size(dim) for dim in dims))
        return total

    def size(self, dim: str) -> Expression:
        """Global size of a logical dimension; a bare number such as '3' is itself."""
        return expression(int(dim)) if dim.isdigit() else self.sizes.get(dim, symbol(dim))

    def local(self, dim: str, placement: Placement, gathered: Iterable[str] = ()) -> Expression:
        """Largest share of a dimension on one device: ceil(size / degree); `gathered` axes do not shard."""
        degrees = [axis for axis in placement.axes.get(dim, ()) if axis not in gathered]
        return maximum(1, ceil_divide(self.size(dim), product(*degrees))) if degrees else self.size(dim)

    def reads(self, op: Operator, placement: Placement) -> frozenset[str]:
        """Every symbol that the local size of some dimension of an operator's tensors and weights depends on."""
        dims = {*op.contracted, *(dim for tensor in op.writes for dim in tensor.dims)}
        dims |= {dim for _, wanted in op.reads for dim in wanted} | {dim for weight in op.weights for dim in weight}
        dims |= {dim for name, _ in op.reads for dim in self.tensors[name].dims}
        return frozenset().union(*(self.local(dim, placement).symbols for dim in dims))

    def elements(self, dims: Iterable[str], placement: Placement, gathered: Iterable[str] = ()) -> Expression:
        """Elements of a tensor on one device."""
        key = (tuple(dims), placement, tuple(gathered))
        if key not in self._elements:
            self._elements[key] = product(*(self.local(dim, placement, gathered) for dim in key[0]))
        return self._elements[key]

    @cached_property
    def _elements(self) -> dict[tuple[tuple[str, ...], Placement, tuple[str, ...]], Expression]:
        """What `elements` said before."""
        return {}

    @cached_property
    def _collectives(self) -> dict[tuple[str, Placement], tuple[Collective, ...]]:
        """The exchanges found before, by pass and placement."""
        return {}

    def bytes(self, tensor: Tensor, placement: Placement, gathered: Iterable[str] = ()) -> Expression:
        """Bytes of a tensor on one device."""
        return self.elements(tensor.dims, placement, gathered) * expression(tensor.element)

    # ---- what a placement implies ---------------------------------------------------------------------------------

    def forward_collectives(self, placement: Placement) -> tuple[Collective, ...]:
        """Exchanges of the forward pass, in order."""
        if ("forward", placement) not in self._collectives:
            self._collectives["forward", placement] = tuple(_once(self._forward(placement)))
        return self._collectives["forward", placement]

    def _forward(self, placement: Placement) -> list[Collective]:
        found = []
        readings = [(op.name, name, wanted) for op in self.operators for name, wanted in op.reads]
        readings += [(self.writer[name].name, name, wanted) for name, wanted in self.outputs]
        for cause, name, wanted in readings:
            tensor = self.tensors[name]
            partial = self._partial(self.writer[name], placement) if name in self.writer else frozenset()
            for kind, axis in exchange(placement.of(tensor.dims), partial, placement.of(wanted)):
                gathered = (axis,) if kind != "all_to_all" else ()
                found.append(Collective(kind, axis, name, tensor.dims, tensor.element, cause, gathered))
        return found

    def backward_collectives(self, placement: Placement) -> tuple[Collective, ...]:
        """Exchanges of the backward pass: the gradient of every read, and what weight gradients need again.

        The gradient of a value read under some placement is wanted where the value was held. Its producer's contraction over
        sharded output dimensions leaves it a partial sum (Megatron's `f` and `g`, Shoeybi 2019 §3).
        """
        if ("backward", placement) not in self._collectives:
            self._collectives["backward", placement] = tuple(_once(self._backward(placement)))
        return self._collectives["backward", placement]

    def _backward(self, placement: Placement) -> list[Collective]:
        found = []
        for name, wanted in self.outputs:  # the next block hands the gradient back as it read the value
            tensor = self.tensors[name]
            for kind, axis in exchange(placement.of(wanted), frozenset(), placement.of(tensor.dims)):
                cause = self.writer[name].name
                found.append(Collective(kind, axis, "d_" + name, tensor.dims, tensor.element, cause, (axis,)))
        for op in reversed(self.operators):
            for name, wanted in op.reads:
                tensor = self.tensors[name]
                held = placement.of(wanted)
                partial = self._gradient_partial(op, wanted, placement)
                for kind, axis in exchange(held, partial, placement.of(tensor.dims)):
                    dims, gathered = (wanted, ()) if kind == "all_to_all" else (tensor.dims, (axis,))
                    found.append(Collective(kind, axis, "d_" + name, dims, tensor.element, op.name, gathered))
                if op.kind in MATRIX_KINDS and name in op.keeps:
                    for kind, axis in exchange(placement.of(tensor.dims), frozenset(), held):
                        if kind == "all_gather":
                            found.append(Collective(kind, axis, "saved_" + name, tensor.dims, tensor.element, op.name, (axis,)))
        return found

    def _partial(self, op: Operator, placement: Placement) -> frozenset[str]:
        """Mesh axes over which the operator's output is a partial sum."""
        return frozenset(placement.of(op.contracted))

    def _gradient_partial(self, op: Operator, wanted: tuple[str, ...], placement: Placement) -> frozenset[str]:
        """Mesh axes over which the gradient of an input is a partial sum: those of output dimensions the input lacks."""
        if op.kind not in (*MATRIX_KINDS, Kind.ATTENTION):
            return frozenset()
        missing = [dim for tensor in op.writes for dim in tensor.dims if dim not in wanted]
        have = placement.of(wanted)
        return frozenset(axis for axis in placement.of(missing) if axis not in have)

    # ---- what the backward pass keeps, and what it computes again -------------------------------------------------

    def kept(self, policy: str = "none") -> tuple[Tensor, ...]:
        """Tensors alive between forward and backward under a recomputation policy, each counted once.

        'none' keeps all that the backward pass reads; 'full' the block's inputs alone; 'core' drops what the operators of
        region `core` wrote (Korthikanti 2022 §5); 'alternate' keeps the inputs, what attention wrote and the outputs of the
        first, third, … matrix product (torchtitan's selective policy).
        """
        if policy == "full":
            return self.inputs
        if policy == "alternate":
            products = [op for op in self.operators if op.kind in MATRIX_KINDS][::2]
            attention = [op for op in self.operators if op.kind == Kind.ATTENTION]
            saved = [tensor for op in (*products, *attention) for tensor in op.writes]
            return (*self.inputs, *saved)
        names = dict.fromkeys(name for op in self.operators for name in op.keeps)
        dropped = {t.name for op in self.operators if policy == "core" and op.region == "core" for t in op.writes}
        return tuple(self.tensors[name] for name in names if name not in dropped)

    def recomputed(self, policy: str) -> tuple[Operator, ...]:
        """Operators to run again so that everything the backward pass reads exists, found by walking back from it."""
        kept = {tensor.name for tensor in (*self.kept(policy), *self.inputs)}
        needed = {name for op in self.operators for name in op.keeps} - kept
        rerun: set[str] = set()
        while needed:
            op = self.writer[needed.pop()]
            if op.name not in rerun:
                rerun.add(op.name)
                needed |= {name for name, _ in op.reads if name not in kept}
        return tuple(op for op in self.operators if op.name in rerun)


def _once(found: Iterable[Collective]) -> Iterator[Collective]:
    """One exchange per tensor, kind and axis: several readers share it."""
    seen = set()
    for collective in found:
        key = (collective.kind, collective.axis, collective.tensor)
        if key not in seen:
            seen.add(key)
            yield collective
