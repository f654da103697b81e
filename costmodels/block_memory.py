"""What one block (a layer, the embedding, the head) holds on one device: its parameters, what it keeps for its backward pass,
and the worst moment of its backward pass, found by walking its operators in reverse as the framework runs them.

Memory is counted, not fitted: a value lives from the operator that writes it to the last that needs it, a gradient from its
last reader to its writer, and outputs that are views of one product share its storage.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from math import prod

import numpy as np

from costmodels.autocast import wide
from costmodels.block import placed, policies
from costmodels.constants import Stack
from spaces.columns import FloatArray, Value
from spaces.expressions import SymbolTable, expression, product
from spaces.graph import MATRIX_KINDS, Graph, Kind, Operator, Placement, Tensor
from spaces.plan import Precision

FRESH, HELD = 0, 1
"""First axis of `BlockMemory.backward`: gradients appear in this backward pass, or exist already (later microbatches)."""


MIB = 2.0**20


@dataclass(frozen=True, slots=True, eq=False)
class BlockMemory:
    """Memory of one block on one device: parameters, and bytes for one microbatch; arrays of shape (n,).

    `kept` (3, n): bytes alive between forward and backward, by recomputation policy. `backward` (2, 3, n): bytes at the worst
    moment of its backward pass, above what other blocks hold: what it kept or computed again, gradients of its values, and its
    weight gradients (all of them when fresh, the one being added when held). `cached` (n,): 16-bit copies of its weights that
    autocast holds until the forward pass ends. `dense`, `expert` (n,): parameters, reduced over data · context and over
    expert-data ranks. `rounding` (3, n): bytes that the allocator adds to unsharded weights, gradients and moments.
    """

    kept: FloatArray
    backward: FloatArray
    cached: FloatArray
    dense: FloatArray
    expert: FloatArray
    rounding: FloatArray


def block_memory(graph: Graph, stack: Stack, at: SymbolTable, n: int, *, sequence_parallel: bool) -> BlockMemory:
    """Memory of a block for n combinations of symbols that share one placement; no time is computed."""
    where, at = placed(at, sequence_parallel)
    cast = np.broadcast_to(np.asarray(at["autocast"]), (n,)) > 0
    ways = [(way, cast == way) for way in (False, True) if (cast == way).any()] or [(False, cast)]
    found = [_block_memory(Ledger(graph, where, at, stack.traits.eager_activation, way), stack, n) for way, _ in ways]
    if len(found) == 1:
        return found[0]
    chosen = {f.name: np.where(cast, getattr(found[1], f.name), getattr(found[0], f.name)) for f in fields(BlockMemory)}
    return BlockMemory(**chosen)


def _block_memory(ledger: Ledger, stack: Stack, n: int) -> BlockMemory:
    def rows(value: Value) -> FloatArray:
        return np.broadcast_to(value, (n,)).astype(np.float64)

    dense, expert = parameters(ledger.graph, ledger.where, ledger.at)
    kept = [ledger.kept(policy) for policy in policies(stack)]
    above = [ledger.backward(held) for held in (FRESH, HELD)]
    products = [op for op in ledger.graph.operators if op.kind in MATRIX_KINDS]
    return BlockMemory(
        kept=np.stack([rows(value) for value in kept]),
        backward=np.stack(
            [np.stack([rows(np.maximum(np.maximum(kept[0], value) + most, 0.0)) for value in kept]) for most in above]
        ),
        cached=rows(2.0 * sum(ledger.weights(op) for op in products) if ledger.autocast else 0.0),
        dense=rows(dense),
        expert=rows(expert),
        rounding=np.stack([rows(value) for value in ledger.rounding()]),
    )


@dataclass(frozen=True, slots=True)
class Ledger:
    """Bytes of the values of a block under a placement.

    `views`: outputs of a fused product are views of one storage, and their gradients are joined in a copy (eager `chunk` and
    `split`).
    """

    graph: Graph
    where: Placement
    at: SymbolTable
    views: bool
    autocast: bool
    _locals: dict[str, Value] = field(default_factory=dict, repr=False)
    _sizes: dict[str, Value] = field(default_factory=dict, repr=False)
    _saved: dict[str, tuple[tuple[str, Value], ...]] = field(default_factory=dict, repr=False)
    _weights: dict[str, Value] = field(default_factory=dict, repr=False)

    def local(self, dim: str) -> Value:
        """A dimension on one device."""
        if dim not in self._locals:
            self._locals[dim] = self.graph.local(dim, self.where).evaluate(self.at)
        return self._locals[dim]

    def elements(self, dims: Iterable[str]) -> Value:
        """Elements of a tensor on one device."""
        return prod(self.local(dim) for dim in dims)

    def wide(self, name: str) -> bool:
        """Whether a value is fp32 under autocast: the residual stream, and what norms and embeddings write."""
        return wide(self.graph, name)

    def size(self, name: str) -> Value:
        """Bytes of a value's own storage on one device."""
        if name not in self._sizes:
            tensor = self.graph.tensors[name]
            size = self.elements(tensor.dims) * expression(tensor.element).evaluate(self.at)
            self._sizes[name] = size * 2.0 if self.autocast and self.wide(name) else size
        return self._sizes[name]

    def gathers(self, op: Operator, name: str) -> bool:
        """Whether a product gathers its input over the tensor ranks (sequence parallelism)."""
        split = self.where.axes.get("stream") != self.where.axes.get("tokens")
        wanted = dict(op.reads).get(name, ())
        return split and op.kind in MATRIX_KINDS and "stream" in self.graph.tensors[name].dims and "tokens" in wanted

    def gathers_back(self, name: str, op: Operator) -> bool:
        """Whether the gradient of a value read split by tokens is wanted whole, where the value was a partial sum."""
        split = self.where.axes.get("stream") != self.where.axes.get("tokens")
        return split and "tokens" in self.graph.tensors[name].dims and "stream" in dict(op.reads)[name]

    def gathered_size(self, op: Operator, name: str) -> Value:
        """Bytes of a product's input once gathered."""
        element = self.size(name) / self.elements(self.graph.tensors[name].dims)
        return element * self.elements(dict(op.reads)[name])

    def storage(self, tensor: Tensor) -> tuple[str, Value]:
        """The storage that keeping a tensor keeps alive, and its bytes: the whole product where it is a view of it."""
        writer = self.graph.writer.get(tensor.name)
        if self.views and writer is not None and writer.kind is Kind.GEMM and len(writer.writes) > 1:
            needed = {name for op in self.graph.operators for name in op.keeps}
            whole = [written.name for written in writer.writes]
            kept = sum(self.size(name) for name in whole if name in needed)
            rest = sum(self.size(name) for name in whole if name not in needed)
            return writer.name, kept + rest * self.at["stack.memory.views"]
        return tensor.name, self.size(tensor.name)

    def saved(self, op: Operator) -> tuple[tuple[str, Value], ...]:
        """Storages that an operator keeps for its backward pass, with their bytes."""
        if op.name not in self._saved:
            self._saved[op.name] = tuple(self._found(op))
        return self._saved[op.name]

    def _found(self, op: Operator) -> Iterator[tuple[str, Value]]:
        """What `saved` says.

        Inputs of fp8 products are kept in fp8. Under autocast a product keeps 16-bit copies of its input and of its weights.
        """
        low = np.asarray(self.at["precision"]) >= Precision.FP8
        for name in op.keeps:
            if name == "logits":
                continue  # counted where the loss is
            composite = self.at["stack.memory.composite_norms"] if op.kind is Kind.NORM and name == op.reads[0][0] else 0.0
            if np.any(composite):  # the input in fp32 and normalised in 16 bits, in place of itself
                yield f"{op.name} terms", self.size(name) * (1.0 if self.autocast else 3.0) * composite
                yield name, self.size(name) * (1.0 if self.autocast else 1.0 - composite)
                continue
            tensor = self.graph.tensors[name]
            readers = [reader for reader in self.graph.operators if name in reader.keeps]
            quantised = all(reader.quantised for reader in readers)
            if op.kind in MATRIX_KINDS and self.autocast and self.wide(name):
                yield f"{op.name} input", self.size(name) / 2.0
                continue
            key, size = self.storage(tensor)
            if self.gathers(op, name):
                whole = np.asarray(self.at["stack.memory.gathered_inputs"])
                yield f"{name} gathered", self.gathered_size(op, name) * whole
                size = size * (1.0 - whole)
            if self.autocast and not self.views and op.kind is Kind.NORM and name in self.graph.writer and self.wide(name):
                size = size / 2.0  # compiled blocks keep the narrow term of the sum and add again
            yield key, size * np.where(low & quantised, 0.5, 1.0)
        if op.kind in MATRIX_KINDS and self.autocast:
            yield f"{op.name} weights", 2.0 * self.weights(op)

    def weights(self, op: Operator) -> Value:
        """Parameters of an operator on one device."""
        if op.name not in self._weights:
            self._weights[op.name] = sum(self.elements(dims) for dims in op.weights)
        return self._weights[op.name]

    def kept(self, policy: str) -> Value:
        """Bytes alive between forward and backward under a recomputation policy."""
        if policy == "none":
            kept = dict(pair for op in self.graph.operators for pair in self.saved(op))
        else:
            kept = dict(self.storage(tensor) for tensor in self.graph.kept(policy) if tensor.name != "logits")
        whole = sum(kept.values())
        if np.any(np.asarray(self.at["stack.memory.persistent_gradients"]) == 0):
            whole = whole + sum(reuse_rounding(size) for size in kept.values())
        return whole

    def rounding(self) -> tuple[Value, Value, Value]:
        """Bytes that the allocator adds to the block's matrices as weights, as gradients and as two moments."""
        if not np.any(np.asarray(self.at["stack.memory.persistent_gradients"]) == 0):
            return 0.0, 0.0, 0.0
        found: list[Value] = [0.0, 0.0, 0.0]
        for op in self.graph.operators:
            matrices = [dims for dims in op.weights if len(dims) > 1]
            count = sum(self.elements(dims) for dims in matrices)
            moments = self.at["optimizer.states"] / 2.0
            for i, (width, copies) in enumerate((("weights", 1.0), ("gradients", 1.0), ("", 2.0))):
                size = count * (self.at[f"optimizer.{width}"] if width else moments)
                found[i] = found[i] + copies * allocation_rounding(size)
        return found[0], found[1], found[2]

    def backward(self, held: int) -> Value:
        """Bytes at the worst moment of the backward pass, above those of the kept values that it begins with."""
        return _Walk(ledger=self, held=held).worst()


@dataclass(slots=True, kw_only=True)
class _Walk:
    """The state of a walk backwards: bytes of kept values above those of the start, gradients by value, weight gradients, and
    the most so far.

    `gradients` maps a value to the storage that holds its gradient; both inputs of an addition share one.
    """

    ledger: Ledger
    held: int
    alive: Value = 0.0
    gradients: dict[str, str] = field(default_factory=dict)
    storages: dict[str, Value] = field(default_factory=dict)
    weights: Value = 0.0
    last: Value = 0.0
    most: Value = -np.inf

    def worst(self) -> Value:
        graph = self.ledger.graph
        saved = {op.name: dict(self.ledger.saved(op)) for op in graph.operators}
        users = Counter(key for keys in saved.values() for key in keys)
        self._put(graph.operators[-1].writes[0].name, self.ledger.size(graph.operators[-1].writes[0].name))
        for op in reversed(graph.operators):
            if op.kind is Kind.LOSS:
                self._loss(op)
            elif op.kind is Kind.ADD:
                self._add(op)
            else:
                self._any(op)
            for key, size in saved[op.name].items():
                users[key] -= 1
                if not users[key]:
                    self.alive = self.alive - size
        return self.most

    def _put(self, name: str, size: Value) -> None:
        """A new gradient of a value; one that exists already takes it in."""
        if name not in self.gradients:
            self.gradients[name] = name
            self.storages[name] = size

    def _drop(self, name: str) -> None:
        storage = self.gradients.pop(name, None)
        if storage is not None and storage not in self.gradients.values():
            del self.storages[storage]

    def _moment(self, extra: Value = 0.0) -> None:
        self.most = np.maximum(self.most, self.alive + sum(self.storages.values()) + self.weights + extra)

    def _add(self, op: Operator) -> None:
        """The gradient of a sum is that of each of its terms: no copy, but where a term is narrower than the sum."""
        ledger, written = self.ledger, op.writes[0].name
        storage = self.gradients[written]
        for name, _ in op.reads:
            if name in self.gradients:
                self._moment(ledger.size(name))
            elif (ledger.autocast and not ledger.wide(name)) or ledger.gathers_back(name, op):
                self._put(name, ledger.size(name))
                self._moment()
            else:
                self.gradients[name] = storage
        self._drop(written)
        self._own(op)

    def _any(self, op: Operator) -> None:
        ledger = self.ledger
        written = [tensor.name for tensor in op.writes if tensor.name in self.gradients]
        if ledger.views and op.kind is Kind.GEMM and len(op.writes) > 1:
            joined = sum(ledger.size(tensor.name) for tensor in op.writes)
            self._moment(joined)
            for name in written:
                self._drop(name)
            written = [op.name]
            self.gradients[op.name] = op.name
            self.storages[op.name] = joined
        made = {name: ledger.size(name) for name, _ in op.reads if name != "token_ids"}
        if op.kind in MATRIX_KINDS and ledger.autocast:
            self._cast(op, made)
        else:
            own = self._own(op)
            # the gradient of a gathered input is whole, and copied once, before each rank has its part
            whole = [ledger.gathered_size(op, name) for name in made if ledger.gathers(op, name)]
            self._moment(2.0 * sum(whole) + own)
            self._moment(sum(made.values()) + own + (self._segments(op) if op.kind is Kind.EMBEDDING else 0.0))
        for name in written:
            self._drop(name)
        for name, size in made.items():
            self._put(name, size)

    def _cast(self, op: Operator, made: Mapping[str, Value]) -> None:
        """A product under autocast: 16-bit gradients of input and weights, each then copied to its fp32 original's width."""
        ledger = self.ledger
        narrow = sum(size / (2.0 if ledger.wide(name) else 1.0) for name, size in made.items())
        weights = 2.0 * ledger.weights(op)
        done = sum(ledger.size(tensor.name) for tensor in op.writes) + sum(size for _, size in ledger.saved(op))
        own = self._own(op)
        fresh = own if self.held else self.last
        self._moment(narrow + weights + own - fresh)
        self._moment(narrow + weights + own - done)
        self._moment(narrow + own + sum(size for name, size in made.items() if ledger.wide(name)) - done)

    def _own(self, op: Operator) -> Value:
        """Bytes of the operator's weight gradients while it runs; they stay where nothing held them before."""
        ledger = self.ledger
        new = ledger.weights(op) * ledger.at["whole_gradient_bytes"] * (1.0 - ledger.at["stack.memory.persistent_gradients"])
        if self.held == FRESH:
            self.weights = self.weights + new
            self.last = new
            return 0.0
        return new

    def _segments(self, op: Operator) -> Value:
        """Partial sums of an embedding's gradient: fp32 rows for every segment of tokens (PyTorch's embedding backward).

        Up to 3,072 tokens one kernel needs none; beyond, min(tokens, vocabulary) segments and one more for every ten tokens.
        """
        ledger = self.ledger
        (table,) = op.weights
        rows, width = (ledger.local(dim) for dim in table)
        tokens = ledger.elements(op.reads[0][1])
        return np.where(tokens > 3072, (tokens / 10.0 + np.minimum(tokens, rows)) * width * 4.0, 0.0)

    def _loss(self, op: Operator) -> None:
        """Log-probabilities and two gradients of their size while the loss runs back, beside the logits' own (`memory`)."""
        ledger = self.ledger
        logits = ledger.size(op.reads[0][0])
        self.gradients.clear()
        self.storages.clear()
        # under autocast the loss is fp32, but one kernel takes in 16-bit logits and gives back their gradient
        element = 4.0 if ledger.autocast else ledger.at["stack.loss_bytes"]
        wide = logits / ledger.at["stack.logits_bytes"] * loss_bytes(ledger.at, element)
        self._moment(wide - (logits if ledger.autocast else 0.0))
        self._put(op.reads[0][0], logits)


def loss_bytes(at: SymbolTable, element: Value) -> Value:
    """Bytes a logit of log-probabilities and gradients while the loss runs; two fp32 copies at least where it is spread over
    the ranks of a vocabulary-parallel head."""
    spread = (np.asarray(at["stack.vocab_parallel"]) > 0) & (np.asarray(at["tensor"]) > 1)
    return np.maximum(at["stack.memory.logits_copies"] * element, np.where(spread, 8.0, 0.0))


def allocation_rounding(size: Value) -> Value:
    """Bytes that PyTorch's caching allocator adds to a tensor of `size` bytes (c10/cuda/CUDACachingAllocator).

    From 10 MiB a segment is a multiple of 2 MiB and is split only when more than 1 MiB is left over; from 1 MiB tensors share
    segments of 20 MiB by the same rule; smaller ones are rounded to 512 bytes, which is nothing here.
    """
    size = np.asarray(size, np.float64)
    over = -size % (2 * MIB)
    large = np.where(over <= MIB, over, 0.0)
    fit = np.maximum(np.floor(20 * MIB / np.maximum(size, 1.0)), 1.0)
    left = 20 * MIB - fit * size
    shared = np.where(left <= MIB, left / fit, 0.0)
    return np.where(size >= 10 * MIB, large, np.where(size > MIB, shared, 0.0))


def reuse_rounding(size: Value) -> Value:
    """Bytes that a tensor made anew in every step holds beyond its own, on average.

    From 1 to 10 MiB it takes a freed block, which is split only when more than 1 MiB is left over: half a MiB is lost where it
    is not, and about every second block is not, unless all sizes are whole MiB. Settled with the measured peaks in view.
    """
    size = np.asarray(size, np.float64)
    return np.where((size > MIB) & (size < 10 * MIB) & (size % MIB > 0), MIB / 4.0, 0.0)


def parameters(graph: Graph, where: Placement, at: SymbolTable) -> tuple[Value, Value]:
    """(dense, expert) parameters on one device: reduced over data · context and over expert-data ranks."""
    dense: Value = 0.0
    expert: Value = 0.0
    for op in graph.operators:
        for dims in op.weights:
            count = product(*(graph.local(dim, where) for dim in dims)).evaluate(at)
            if "experts" in dims:
                expert = expert + count
            else:
                dense = dense + count
    return dense, expert
