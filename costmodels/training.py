"""The training step: pipeline of microbatches, gradient synchronisation, optimizer and host, with memory, energy and price.

Each part is evaluated once per distinct combination of the symbols it reads and gathered; what is left per plan is a few
hundred array operations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.block_table import BlockTable, block_table, graphs
from costmodels.constants import Stack, device_symbols, find_stack
from costmodels.data_parallel import data_parallel_time, exposed_time
from costmodels.energy import energy, price
from costmodels.flops import convention_flops
from costmodels.intervals import interval
from costmodels.kernels import sixteen_bit_rate
from costmodels.memory import MemoryUse, first_k_share, memory_use, policy_of, stage_parameters, trained_share
from costmodels.metrics import Metrics
from costmodels.pipeline import pipeline_of
from costmodels.reliability import effective_share
from spaces.architecture import Architecture
from spaces.blocks import scalars
from spaces.columns import Bindings, Columns, FloatArray, IntArray, distinct
from spaces.hardware import Device
from spaces.plan import DEFAULTS, NAMES, Recompute
from spaces.problem import Problem
from spaces.stages import StageTable, stage_table

MAXIMISED = frozenset(
    "tokens_per_second tokens_per_second_per_device mfu hfu mfu_causal model_flops_per_device hardware_flops_per_device "
    "effective_tokens_per_second".split()
)
"""Metrics of which more is better; of all others less is."""
ROWS = 1 << 14
"""Plans evaluated at a time: their arrays stay in the cache of a core."""
SECONDS_PER_DAY = 86_400.0


def training_problem(
    architecture: Architecture, stack: str, device: Device | None = None, fixed: Mapping[str, float] | None = None
) -> Problem:
    """A problem with every symbol of the model, the stack's device symbols (when one device is given) and the plan's defaults.

    `fixed` binds `sequence`, `global_batch` and whatever else is not an axis; SI units. Symbols that turn out to be columns win.
    """
    bound: dict[str, float] = {**DEFAULTS, "shard_degree": 0, **scalars(architecture)}
    labels = {**NAMES}
    if device is not None:
        bound |= device_symbols(device, stack)
        labels["device"] = (device.name,)
        bound["device"] = 0
        bound["generation"] = 0
        labels["generation"] = (device.generation,)
    return Problem(architecture=architecture, stack=stack, scalars={**bound, **(fixed or {})}, labels=labels)


@dataclass(frozen=True, slots=True)
class TrainingModel:
    """Cost model of one training step. Stateless: everything comes from the problem and the columns."""

    @property
    def reads(self) -> frozenset[str]:
        """Symbols of plan and workload; the model's, the device's and the stack's are read as well."""
        from spaces.plan import PLAN_SYMBOLS

        return frozenset({*PLAN_SYMBOLS, "sequence", "global_batch"})

    def bound(self, problem: Problem, points: Columns) -> Metrics:
        """Exact memory, counted from the graph before any time is computed."""
        stack = find_stack(problem.stack)
        table = block_table(problem, points, stack, with_time=False)
        stages, place = _stages(problem, points, stack)
        pieces = []
        for rows in _slices(points.n):
            at = problem.at(points.take(rows))
            use = _memory(problem, stack, at, table, stages, place, rows)
            limit = np.asarray(at["device.memory_capacity"], np.float64)
            pieces.append(
                Metrics(
                    n=use.peak.shape[0],
                    value={"memory": use.device, "devices": _full(at["devices"], use.peak.shape[0])},
                    violation={"memory": use.device / limit - 1.0},
                )
            )
        return _join(pieces)

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:
        """All metrics of the n plans, with parts of step time, memory and energy."""
        stack = find_stack(problem.stack)
        table = block_table(problem, points, stack, with_time=True)
        stages, place = _stages(problem, points, stack)
        flops, flops_place = _convention(problem, points, stack)
        pieces = []
        for rows in _slices(points.n):
            at = problem.at(points.take(rows))
            pieces.append(_evaluate(problem, stack, at, table, stages, place, flops, flops_place, rows))
        return _join(pieces)


def _slices(n: int) -> list[slice]:
    return [slice(start, min(start + ROWS, n)) for start in range(0, n, ROWS)] or [slice(0, 0)]


def _full(value: Any, n: int) -> FloatArray:
    return np.broadcast_to(np.asarray(value, np.float64), (n,)).copy()


def _join(pieces: Sequence[Metrics]) -> Metrics:
    """Batches one after the other."""
    if len(pieces) == 1:
        return pieces[0]

    def cat(columns: Sequence[Mapping[str, FloatArray]]) -> dict[str, FloatArray]:
        return {name: np.concatenate([part[name] for part in columns]) for name in columns[0]}

    first = pieces[0]
    return Metrics(
        n=sum(piece.n for piece in pieces),
        value=cat([piece.value for piece in pieces]),
        low=cat([piece.low for piece in pieces]) if first.low else {},
        high=cat([piece.high for piece in pieces]) if first.high else {},
        parts={metric: cat([piece.parts[metric] for piece in pieces]) for metric in first.parts},
        violation=cat([piece.violation for piece in pieces]),
        evidence=None if first.evidence is None else np.concatenate([p.evidence for p in pieces if p.evidence is not None]),
    )


def _stages(problem: Problem, points: Columns, stack: Stack) -> tuple[StageTable, IntArray]:
    """Layers per stage for each distinct (pipeline, virtual, layout), and the row of every point."""
    model = graphs(problem.architecture, stack.traits)
    combinations, place = distinct(points, ("pipeline", "virtual", "stage_layout"))
    at = problem.at(combinations)
    n = max(combinations.n, 1 if points.n else 0)
    columns = [np.broadcast_to(np.asarray(at[name], np.int64), (n,)) for name in ("pipeline", "virtual", "stage_layout")]
    return stage_table(model.order, tuple(model.layers), *columns), place


def _convention(problem: Problem, points: Columns, stack: Stack) -> tuple[Any, IntArray]:
    reads = {name for name in points.levels if name in problem.scalars or name == "sequence"} - set(DEFAULTS)
    reads = {name for name in reads if not name.startswith(("device", "kernel", "link", "stack"))} - {"shard_degree", "global_batch"}
    combinations, place = distinct(points, (*reads, "precision"))
    return convention_flops(graphs(problem.architecture, stack.traits), stack, problem.at(combinations), max(combinations.n, 1)), place


def _memory(
    problem: Problem, stack: Stack, at: Bindings, table: BlockTable, stages: StageTable, place: IntArray, rows: slice
) -> MemoryUse:
    tied = problem.architecture.tied_embeddings
    return memory_use(stack, at, table.memory, table.index[rows], stages, place[rows], tied)


def _evaluate(
    problem: Problem,
    stack: Stack,
    at: Bindings,
    table: BlockTable,
    stages: StageTable,
    place: IntArray,
    flops: Any,
    flops_place: IntArray,
    rows: slice,
) -> Metrics:
    assert table.time is not None
    n = at.n
    use = _memory(problem, stack, at, table, stages, place, rows)
    pipe = pipeline_of(at, table.time, table.index[rows], stages, place[rows])
    step, parts, moved = _step(problem, stack, at, table, stages, place, rows, pipe)
    used = energy(at, step, pipe.flops, pipe.traffic, pipe.inner_bytes + moved[0], pipe.outer_bytes + moved[1])
    joules = np.asarray(sum(used.values()))
    value = _rates(stack, at, step, flops, flops_place[rows], stages.counts[:, :, place[rows]])
    value |= {
        "step_time": step,
        "memory": use.device,
        "peak_memory": use.peak,
        "devices": _full(at["devices"], n),
        "energy": joules,
        "price": price(at, step),
    }
    tokens = np.asarray(at["global_batch"] * at["sequence"], np.float64)
    value["energy_per_token"] = joules / tokens
    value["price_per_million_tokens"] = value["price"] / tokens * 1e6
    _run_length(at, value, tokens)
    low, high, evidence = interval(problem, at, value, MAXIMISED)
    memory_parts = {**use.parts, "reserve": use.overhead}
    limit = np.asarray(at["device.memory_capacity"], np.float64)
    return Metrics(
        n=n,
        value=value,
        low=low,
        high=high,
        parts={"step_time": parts, "memory": memory_parts, "energy": used},
        violation={"memory": use.device / limit - 1.0},
        evidence=evidence,
    )


def _step(
    problem: Problem,
    stack: Stack,
    at: Bindings,
    table: BlockTable,
    stages: StageTable,
    place: IntArray,
    rows: slice,
    pipe: Any,
) -> tuple[FloatArray, dict[str, FloatArray], tuple[FloatArray, FloatArray]]:
    """Seconds of a step, its parts, and the bytes a rank sends for data parallelism inside and outside its domain."""
    counts = stages.counts[:, :, place[rows]]
    tied = problem.architecture.tied_embeddings
    dense, expert = stage_parameters(table.memory, table.index[rows], counts, tied, at["pipeline"])
    heaviest = np.argmax(dense + expert, axis=0)[None]
    own_dense = np.take_along_axis(dense, heaviest, axis=0)[0]
    own_expert = np.take_along_axis(expert, heaviest, axis=0)[0]
    data = data_parallel_time(at, own_dense, own_expert, trained_share(at))
    microbatches = at["global_batch"] // (at["data"] * at["micro_batch"])
    zero = np.asarray(at["zero_stage"])
    overlap, contention = at["stack.overlap.data"], at["stack.contention"]
    # sharded gradients cannot wait for the last microbatch, except where the stack keeps them whole until then
    often = np.where((zero >= 2) & (at["stack.reduce_every_microbatch"] > 0), microbatches, 1)
    reduce = often * exposed_time(data.reduce, pipe.backward, overlap, contention)
    layers = np.maximum(counts.sum(axis=(0, 1)) / 3.0, 1.0)
    once = exposed_time(data.gather, pipe.compute - pipe.backward, overlap, contention)
    shard = at["stack.overlap.shard"]
    forward = exposed_time(data.gather, pipe.compute - pipe.backward, shard, contention)
    again = exposed_time(data.gather, np.maximum(pipe.backward - data.reduce * overlap, 0.0), shard, contention)
    gathers = np.where(zero >= 3, microbatches * (forward + again) + data.gather / layers, np.where(zero >= 1, once, 0.0))
    accumulate = np.where(microbatches > 1, microbatches * data.accumulate, 0.0)
    parts = dict(pipe.parts)
    parts["data_parallel_communication"] = reduce + gathers
    parts["accumulation"] = accumulate
    parts["optimizer"] = data.optimizer
    parts["step_overhead"] = _full(at["stack.host_per_step"], at.n)
    step = pipe.total + reduce + gathers + accumulate + data.optimizer + parts["step_overhead"]
    return step, parts, (often * data.inner_bytes, often * data.outer_bytes)


def _rates(
    stack: Stack, at: Bindings, step: FloatArray, flops: Any, place: IntArray, counts: FloatArray
) -> dict[str, FloatArray]:
    """Throughput and utilisation by the published convention."""
    devices = np.asarray(at["devices"], np.float64)
    batch = np.asarray(at["global_batch"], np.float64)
    tokens = batch * at["sequence"] / step
    per_device = batch / (step * devices)
    peak = sixteen_bit_rate(at)
    policy = policy_of(at)
    again = flops.again[policy, place]
    if np.any(np.asarray(at["recompute"]) == Recompute.FIRST_K):
        layers = np.maximum(counts.sum(axis=0), 1.0)
        share = (first_k_share(at, counts) * layers).sum(axis=0) / layers.sum(axis=0)
        again = np.where(np.asarray(at["recompute"]) == Recompute.FIRST_K, share * flops.again[2, place], again)
    model = 3.0 * flops.full[place] * per_device
    hardware = (3.0 * flops.full[place] + again) * per_device
    return {
        "tokens_per_second": tokens,
        "tokens_per_second_per_device": tokens / devices,
        "model_flops_per_device": model,
        "hardware_flops_per_device": hardware,
        "mfu": model / peak,
        "hfu": hardware / peak,
        "mfu_causal": 3.0 * flops.causal[place] * per_device / peak,
    }


def _run_length(at: Bindings, value: dict[str, FloatArray], tokens: FloatArray) -> None:
    """Adds what a whole run of `workload.tokens` takes, and effective throughput under failures."""
    share = effective_share(at, value["devices"]) if "reliability.failures_per_device_hour" in at else None
    if share is not None:
        value["effective_tokens_per_second"] = value["tokens_per_second"] * share
    if "workload.tokens" not in at:
        return
    steps = np.asarray(at["workload.tokens"], np.float64) / tokens
    stretch = 1.0 if share is None else 1.0 / share
    value["training_days"] = steps * value["step_time"] * stretch / SECONDS_PER_DAY
    value["training_price"] = steps * value["price"] * stretch
    value["training_energy"] = steps * value["energy"] * stretch


