"""Blocks of a model tabulated once per distinct combination of the symbols they read.

A space of millions of plans holds a few thousand distinct block shapes; each is evaluated once and gathered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import TypeVar

import numpy as np

from costmodels.block import BlockTime, block_time
from costmodels.block_memory import BlockMemory, block_memory
from costmodels.constants import Stack
from costmodels.kernel_times import kernel_times
from spaces.architecture import Architecture
from spaces.blocks import GraphTraits, Model, build
from spaces.columns import Columns, FloatArray, IntArray, distinct
from spaces.graph import Graph
from spaces.problem import Problem

Cost = TypeVar("Cost", BlockTime, BlockMemory)

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


@dataclass(frozen=True, slots=True, eq=False)
class BlockTable:
    """Costs of every kind of block. Fields of the costs gain a leading axis of blocks: layer kinds, embedding, head.

    `index` (n,) is the combination of every design point.
    """

    time: BlockTime | None
    memory: BlockMemory
    index: IntArray


@lru_cache(maxsize=64)
def graphs(architecture: Architecture, traits: GraphTraits) -> Model:
    """The block graphs of an architecture under a stack; building them is a pure function of the two."""
    return build(architecture, traits)


def blocks_of(model: Model) -> tuple[Graph, ...]:
    """Layer kinds in order of first appearance, then embedding and head."""
    return (*model.layers.values(), model.embedding, model.head)


def block_table(problem: Problem, points: Columns, stack: Stack, *, with_time: bool) -> BlockTable:
    """Tabulate all blocks of the problem's model for the given points."""
    # sharded parameters have narrower gradients and need no autocast
    sharding = frozenset() if stack.numbers["stack.memory.persistent_gradients"] else {"zero_stage"}
    reads = frozenset(points.levels) - (PLAN_ONLY - sharding)
    combinations, index = distinct(points, reads)
    model = graphs(problem.architecture, stack.traits)
    blocks = blocks_of(model)
    memory = _stack([_split(problem, combinations, graph, stack, block_memory, BlockMemory) for graph in blocks], BlockMemory)
    time = None
    if with_time:
        cost = partial(block_time, times=kernel_times(problem))
        time = _stack([_split(problem, combinations, graph, stack, cost, BlockTime) for graph in blocks], BlockTime)
    return BlockTable(time, memory, index)


def _split(problem: Problem, points: Columns, graph: Graph, stack: Stack, cost: Callable[..., Cost], kind: type[Cost]) -> Cost:
    """Evaluate the two placements (with and without sequence parallelism) apart, and put the rows back in order."""
    at = problem.at(points)
    parallel = np.broadcast_to(np.asarray(at["sequence_parallel"]) > 0, (points.n,)) & (np.asarray(at["tensor"]) > 1)
    if not parallel.any() or parallel.all():
        return cost(graph, stack, at, points.n, sequence_parallel=bool(parallel.any()))
    whole: dict[str, FloatArray] = {}
    for value in (False, True):
        rows = np.flatnonzero(parallel == value)
        part = cost(graph, stack, problem.at(points.take(rows)), len(rows), sequence_parallel=value)
        for field in fields(kind):
            array: FloatArray = getattr(part, field.name)
            whole.setdefault(field.name, np.empty((*array.shape[:-1], points.n)))[..., rows] = array
    return kind(**whole)


def _stack(costs: list[Cost], kind: type[Cost]) -> Cost:
    return kind(**{field.name: np.stack([getattr(cost, field.name) for cost in costs]) for field in fields(kind)})
