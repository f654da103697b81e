"""Blocks of a model tabulated once per distinct combination of the symbols they read.

A space of millions of plans holds a few thousand distinct block shapes; each is evaluated once and gathered.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from costmodels.block import BlockTime, Common, block_time
from costmodels.block_memory import BlockMemory, block_memory
from costmodels.constants import Stack
from costmodels.factors import gathered, joined
from costmodels.kernel_times import kernel_times
from spaces.architecture import Architecture
from spaces.blocks import GraphTraits, Model, build, placement
from spaces.columns import Columns, FloatArray, IntArray, distinct
from spaces.graph import Graph
from spaces.mesh import share_of_domain
from spaces.plan import Schedule
from spaces.problem import Problem

Cost = TypeVar("Cost", BlockTime, BlockMemory)
Record = TypeVar("Record")

PLAN_READS = frozenset(
    {"devices", "tensor", "context", "expert", "expert_tensor", "micro_batch", "sequence_parallel", "precision", "trainable"}
)
"""Symbols of the plan that a block's cost depends on."""
PLAN_ONLY = frozenset(
    {
        "pipeline",
        "data",
        "virtual",
        "stage_layout",
        "zero_stage",
        "shard_degree",
        "recompute",
        "recompute_layers",
        "offload",
        "rank_order",
        "global_batch",
    }
)
"""Symbols of the plan that no block's cost depends on; whatever else is a column (device, sequence, …) does matter."""
EXPERT_ONLY = frozenset({"expert", "expert_tensor", "schedule"})
"""Symbols that only operators of experts read; the schedule, which may hide exchanges between them, changes no memory."""


@dataclass(frozen=True, slots=True, eq=False)
class BlockTable:
    """Costs of every kind of block. Fields of the costs gain a leading axis of blocks: layer kinds, embedding, head.

    `index` (n,) is the row of every design point in `memory`, `by_time` (n,) that in `time`.
    """

    time: BlockTime | None
    memory: BlockMemory
    index: IntArray
    by_time: IntArray


class Known:
    """Tables that grow with what is asked about one problem: each combination of symbols is evaluated once.

    A model holds one, so that its bounds and its times, and one small batch and the next, share them. Asking about another
    problem starts anew, as does a table of more than `ROOM` combinations; copies in other processes start empty.
    """

    ROOM = 1 << 15

    def __init__(self) -> None:
        self._problem: Problem | None = None
        self._rows: dict[type[Any], _Rows[Any]] = {}
        self._bounded: Columns | None = None

    def __reduce__(self) -> tuple[type[Known], tuple[()]]:
        return Known, ()

    def found(
        self,
        problem: Problem,
        combinations: Columns,
        kind: type[Record],
        evaluate: Callable[[Columns], Record],
        beside: Columns | None = None,
    ) -> tuple[Record, IntArray]:
        """The table of a kind of record (arrays whose last axis is combinations), and each combination's row in it.

        evaluate: the records of combinations that are not known yet; where there are some, of those `beside` too if few.
        """
        if problem is not self._problem:
            self._problem, self._rows, self._bounded = problem, {}, None
        return self._rows.setdefault(kind, _Rows()).found(combinations, evaluate, beside)

    def blocks(self, problem: Problem, points: Columns, stack: Stack, *, with_time: bool) -> BlockTable:
        """Tabulate all blocks of the problem's model for the given points."""
        # sharded parameters have narrower gradients and need no autocast
        sharding = frozenset() if stack.numbers["stack.memory.persistent_gradients"] else {"zero_stage"}
        combinations, index = distinct(_alike(problem, points), frozenset(points.levels) - (PLAN_ONLY - sharding))
        graphs_ = blocks_of(graphs(problem.architecture, stack.traits))

        def evaluated(cost: Callable[..., Cost], kind: type[Cost]) -> Callable[[Columns], Cost]:
            return lambda few: _stack([_own(problem, few, graph, stack, cost, kind) for graph in graphs_], kind)

        memory, place = self.found(problem, combinations, BlockMemory, evaluated(block_memory, BlockMemory))
        if not with_time:
            self._bounded = combinations
            return BlockTable(None, memory, place[index], np.zeros(points.n, np.int64))
        cost = partial(block_time, times=kernel_times(problem))
        # one combination costs as much as hundreds: those that a bound was asked about will be asked for, unless ruled out
        time, later = self.found(problem, combinations, BlockTime, evaluated(cost, BlockTime), self._bounded)
        self._bounded = None
        return BlockTable(time, memory, place[index], later[index])


def _alike(problem: Problem, points: Columns) -> Columns:
    """The points with what a block cannot tell apart (`costmodels.block.links_of`, and who hides exchanges) made one.

    One count of devices stands for all that fit a scale-up domain, and one for all that take as much of each; one schedule for
    all but DualPipe.
    """
    codes = dict(points.codes)
    axis, counts = _own_axis(points, "devices")
    if axis:
        at, code = problem.at(points), points.codes[axis]
        sizes = ("device.domain", "device.per_node")
        domain, node = (np.broadcast_to(np.asarray(at[name], np.int64), (points.n,)) for name in sizes)
        radix = int(node.max(initial=0)) + 1
        machine = domain * radix + node
        few = np.array(code)
        for kind in np.unique(machine).tolist():
            taken = np.where(counts > kind // radix, share_of_domain(kind // radix, kind % radix, counts), 0)
            _, first, alike = np.unique(taken, return_index=True, return_inverse=True)
            here = machine == kind
            few[here] = first[alike][code[here]]
        codes[axis] = few
    axis, schedules = _own_axis(points, "schedule")
    if axis:
        apart = schedules == Schedule.DUALPIPE
        like = np.where(apart, np.arange(len(schedules)), np.argmin(apart))
        codes[axis] = like.astype(points.codes[axis].dtype)[points.codes[axis]]
    return replace(points, codes=codes)


def _own_axis(points: Columns, symbol: str) -> tuple[str, NDArray[Any]]:
    """The axis of a symbol that varies and has it to itself, and its values; '' for any other symbol."""
    axis, values = points.levels.get(symbol, ("", np.empty(0)))
    alone = len(values) > 1 and sum(other == axis for other, _ in points.levels.values()) == 1
    return (axis if alone else ""), values


_FEW = 1 << 11
"""Combinations that take no longer to evaluate than the call that evaluates them."""


class _Rows(Generic[Record]):
    """Records by the key of their combination."""

    def __init__(self) -> None:
        self._places: dict[bytes, int] = {}
        self._table: Record | None = None

    def found(
        self, combinations: Columns, evaluate: Callable[[Columns], Record], beside: Columns | None
    ) -> tuple[Record, IntArray]:
        """All rows known by now, and those of the given combinations among them; what is not yet known is evaluated."""
        keys = _keys(combinations)
        others = _keys(beside) if beside is not None and self._fresh(keys) else []
        if beside is not None and 0 < len(self._fresh(others)) <= _FEW:
            with suppress(Exception):  # whoever asks for the one at fault is told
                self._add(others, beside, evaluate)
        self._add(keys, combinations, evaluate)
        assert self._table is not None
        return self._table, np.array([self._places[key] for key in keys], np.int64)

    def _add(self, keys: list[bytes], combinations: Columns, evaluate: Callable[[Columns], Record]) -> None:
        """Evaluate what is not yet known, all of it where the table is full."""
        fresh = self._fresh(keys)
        if self._table is not None and len(self._places) + len(fresh) > Known.ROOM:
            self._places, self._table = {}, None
            fresh = self._fresh(keys)
        if fresh or self._table is None:
            more = evaluate(combinations.take(np.array(fresh, np.int64)))
            self._table = more if self._table is None or not self._places else joined([self._table, more])
            known = len(self._places)
            self._places |= {keys[row]: known + i for i, row in enumerate(fresh)}

    def _fresh(self, keys: list[bytes]) -> list[int]:
        """The first row of every key that is not yet known, ascending."""
        first = dict(zip(reversed(keys), range(len(keys) - 1, -1, -1), strict=True))  # points may say the same in other codes
        return sorted(row for key, row in first.items() if key not in self._places)


def _keys(combinations: Columns) -> list[bytes]:
    """What tells the combinations apart, whatever columns they are of: names and values of all their symbols."""
    names = sorted(combinations.levels)
    values = np.empty((combinations.n, len(names)))
    for i, name in enumerate(names):
        values[:, i] = combinations[name]
    prefix = " ".join(names).encode()
    return [prefix + row.tobytes() for row in values]


@lru_cache(maxsize=64)
def graphs(architecture: Architecture, traits: GraphTraits) -> Model:
    """The block graphs of an architecture under a stack; building them is a pure function of the two."""
    return build(architecture, traits)


def blocks_of(model: Model) -> tuple[Graph, ...]:
    """Layer kinds in order of first appearance, then embedding and head."""
    return (*model.layers.values(), model.embedding, model.head)


@lru_cache(maxsize=256)
def _without_experts(graph: Graph) -> frozenset[str]:
    """Names of the operators that read nothing of `EXPERT_ONLY`."""
    where = placement(sequence_parallel=False, vocab_parallel=False)
    return frozenset(op.name for op in graph.operators if not graph.reads(op, where) & EXPERT_ONLY)


def _own(problem: Problem, points: Columns, graph: Graph, stack: Stack, cost: Callable[..., Cost], kind: type[Cost]) -> Cost:
    """Evaluate once per distinct combination of what this block reads."""
    unread: frozenset[str] = frozenset() if kind is BlockTime else frozenset({"schedule"})
    if len(_without_experts(graph)) == len(graph.operators):
        unread = EXPERT_ONLY
    few, index = distinct(points, points.levels.keys() - unread)
    return gathered(_split(problem, few, graph, stack, cost, kind), index)


def _split(problem: Problem, points: Columns, graph: Graph, stack: Stack, cost: Callable[..., Cost], kind: type[Cost]) -> Cost:
    """Evaluate the two placements (with and without sequence parallelism) apart, and put the rows back in order."""
    at = problem.at(points)
    parallel = np.broadcast_to(np.asarray(at["sequence_parallel"]) > 0, (points.n,)) & (np.asarray(at["tensor"]) > 1)
    if not parallel.any() or parallel.all():
        return _placed(problem, points, graph, stack, cost, kind, bool(parallel.any()))
    whole: dict[str, FloatArray] = {}
    for value in (False, True):
        rows = np.flatnonzero(parallel == value)
        part = _placed(problem, points.take(rows), graph, stack, cost, kind, value)
        for field in fields(kind):
            array: FloatArray = getattr(part, field.name)
            whole.setdefault(field.name, np.empty((*array.shape[:-1], points.n)))[..., rows] = array
    return kind(**whole)


def _placed(
    problem: Problem, points: Columns, graph: Graph, stack: Stack, cost: Callable[..., Cost], kind: type[Cost], parallel: bool
) -> Cost:
    """Evaluate one placement; where a block has experts, the time of its other operators by what those read alone."""
    common: dict[str, Common] = {}
    alike = _without_experts(graph)
    if kind is BlockTime and points.n > 1 and len(alike) < len(graph.operators):
        few, index = distinct(points, points.levels.keys() - EXPERT_ONLY)
        common["common"] = Common(problem.at(few), few.n, index, alike)
    return cost(graph, stack, problem.at(points), points.n, sequence_parallel=parallel, **common)


def _stack(costs: list[Cost], kind: type[Cost]) -> Cost:
    return kind(**{field.name: np.stack([getattr(cost, field.name) for cost in costs]) for field in fields(kind)})
