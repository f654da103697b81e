"""One plan taken apart: time per operator beside its roofline bound, and memory per stage."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np

from costmodels.block import exchanges, placed, rerun_operators
from costmodels.block_kernels import FORWARD, Kernel, kernels
from costmodels.block_table import Known, blocks_of, graphs
from costmodels.constants import find_stack
from costmodels.factors import gathered
from costmodels.intervals import pair
from costmodels.kernel_times import KernelTimes, kernel_times
from costmodels.kernels import matrix_rate, sixteen_bit_rate
from costmodels.memory import memory_use
from costmodels.training import stages_of, tables_of
from spaces.columns import Columns, FloatArray
from spaces.expressions import SymbolTable
from spaces.graph import MATRIX_KINDS, Graph, Placement
from spaces.plan import Recompute
from spaces.problem import Problem
from spaces.stages import FIRST, LAST

Record = TypeVar("Record")


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTime:
    """One operator of the busiest device in a step: calls, seconds in all, its datasheet bound, FLOPs and bytes of memory."""

    name: str
    kind: str
    phase: str
    calls: float
    time: float
    roofline_time: float
    flops: float
    bytes: float
    evidence: str


def operator_times(problem: Problem, plan: Columns) -> tuple[OperatorTime, ...]:
    """Operators, recomputation and collectives of the plan's busiest stage in a step; `plan` is a batch of one."""
    stack = find_stack(problem.stack)
    at = problem.at(plan)
    model = graphs(problem.architecture, stack.traits)
    stages, place = stages_of(problem, plan, stack)
    pipeline = int(np.max(at["pipeline"]))
    stage = _busiest(problem, plan, stages.counts[:, :, place[0]], pipeline)
    ends = [1.0 if pipeline == 1 or stage == FIRST else 0.0, 1.0 if pipeline == 1 or stage == LAST else 0.0]
    layers = [float(count) for count in stages.counts[:, stage, place[0]]]
    microbatches = float(np.max(at["global_batch"] // (at["data"] * at["micro_batch"])))
    policy = int(np.max(at["recompute"]))
    names = problem.labels.get("generation", ("unknown",))
    evidence = pair(problem.stack, names[int(np.max(at.get("generation", 0)))])[2].name.lower().replace("_", "-")
    parallel = bool(np.max(at["sequence_parallel"]) and np.max(at["tensor"]) > 1)
    times = kernel_times(problem)
    found: list[OperatorTime] = []
    for graph, count, layer in zip(blocks_of(model), [*layers, *ends], [*[True] * len(layers), False, False], strict=True):
        if not count:
            continue
        where, local = placed(at, parallel)
        again = rerun_operators(graph, stack, policy) if layer and policy != Recompute.FIRST_K else frozenset()
        work = kernels(graph, where, local, 1, stack, times)
        calls = count * microbatches
        for kernel in work:
            rate = matrix_rate(local, True)[0] if kernel.kind in MATRIX_KINDS else sixteen_bit_rate(local)
            for phase in [kernel.phase] + (["recompute"] if kernel.phase == FORWARD and kernel.operator in again else []):
                time, flops, traffic = (float(np.max(value)) for value in (kernel.time, kernel.flops, kernel.traffic))
                bound = max(flops / float(np.max(rate)), traffic / float(np.max(local["device.memory_bandwidth"])))
                if time:
                    found.append(
                        OperatorTime(
                            name=kernel.operator,
                            kind=kernel.kind.value,
                            phase=phase,
                            calls=calls,
                            time=time * calls,
                            roofline_time=bound * calls,
                            flops=flops * calls,
                            bytes=traffic * calls,
                            evidence=evidence,
                        )
                    )
        found += _moves(graph, where, local, work, calls, evidence, times)
    return tuple(found)


def _busiest(problem: Problem, plan: Columns, counts: FloatArray, pipeline: int) -> int:
    """Stage profile whose microbatch takes longest; `counts` are (kinds, 3)."""
    time = Known().blocks(problem, plan, find_stack(problem.stack), with_time=True).time
    if time is None or pipeline == 1:
        return FIRST
    each = (time.forward + time.backward[:, 0])[:, 0]
    stages = each[: len(counts)] @ counts
    stages[FIRST] += each[-2]
    stages[LAST] += each[-1]
    return int(np.argmax(stages))


def _moves(
    graph: Graph,
    where: Placement,
    at: SymbolTable,
    work: list[Kernel],
    calls: float,
    evidence: str,
    times: KernelTimes,
) -> Iterator[OperatorTime]:
    """Collectives of a block: exposed seconds, with the bytes over the links at their datasheet rate as the bound."""
    for move in exchanges(graph, where, at, work, times):
        exposed = float(np.max(move.exposed))
        inner, outer = float(np.max(move.inner_bytes)), float(np.max(move.outer_bytes))
        if exposed:
            bound = inner / float(np.max(at["device.scale_up_bandwidth"])) + outer / float(np.max(at["device.nic_bandwidth"]))
            yield OperatorTime(
                name=f"{move.operator} {move.kind}",
                kind=f"{move.axis} communication",
                phase=move.phase,
                calls=calls,
                time=exposed * calls,
                roofline_time=min(bound, exposed) * calls,
                flops=0.0,
                bytes=(inner + outer) * calls,
                evidence=evidence,
            )


def _everywhere(record: Record, stage: int) -> Record:
    """A record of (3, n) arrays in which every stage is the given one."""

    def everywhere(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: everywhere(each) for name, each in value.items()}
        return np.repeat(value[stage : stage + 1], 3, axis=0)

    rows = {f.name: everywhere(getattr(record, f.name)) for f in fields(record)}  # type: ignore[arg-type]
    return type(record)(**rows)


def stage_memory(problem: Problem, plan: Columns) -> tuple[tuple[str, Mapping[str, float]], ...]:
    """(stage, bytes by part) of the first, the heaviest middle and the last stage of a batch of one."""
    tables = tables_of(problem, plan, with_time=False)
    at = problem.at(plan)
    pipeline = int(np.max(at["pipeline"]))
    live, state = gathered(tables.live, tables.by_pipe), gathered(tables.state, tables.by_data)
    stages = {1: [("the only stage", 0)], 2: [("first stage", 0), ("last stage", 2)]}
    chosen = stages.get(pipeline, [("first stage", 0), ("heaviest middle stage", 1), ("last stage", 2)])
    found = []
    one = np.zeros(1, np.int64)
    for name, stage in chosen:
        use = memory_use(at, _everywhere(live, stage), one, _everywhere(state, stage), one)
        found.append(
            (name, {**{part: float(value[0]) for part, value in use.parts.items()}, "reserve": float(use.overhead[0])})
        )
    return tuple(found)
