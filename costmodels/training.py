"""The training step: pipeline of microbatches, gradient synchronisation, optimizer and host, with memory, energy and price.

Each part is evaluated once per distinct combination of the symbols it reads and gathered; what is left per plan is a few
hundred array operations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.block_table import Known, graphs
from costmodels.constants import Stack, device_symbols, find_stack
from costmodels.data_parallel import DataParallelTime, Ends, data_parallel_time, exposed_time
from costmodels.energy import energy, price
from costmodels.factors import gathered, joined, thinned
from costmodels.flops import ConventionFlops, DeviceFlops, convention_flops, device_flops
from costmodels.intervals import Around, interval
from costmodels.kernel_times import kernel_times
from costmodels.kernels import sixteen_bit_rate
from costmodels.memory import (
    activation_memory,
    memory_use,
    policy_of,
    stage_parameters,
    stage_rounding,
    state_memory,
    trained_share,
)
from costmodels.metrics import Metrics
from costmodels.model_state import optimizer_symbols
from costmodels.pipeline import PipelineTime, pipeline_of
from costmodels.reliability import effective_share
from costmodels.sharded_memory import kept_for_pipeline, stays_gathered
from costmodels.step_moments import ActivationMemory, StateMemory
from spaces.architecture import Architecture
from spaces.blocks import scalars
from spaces.columns import Bindings, Columns, FloatArray, IntArray, Value, distinct
from spaces.hardware import Device
from spaces.plan import DEFAULTS, NAMES, PLAN_SYMBOLS
from spaces.problem import Problem
from spaces.stages import FIRST, LAST, StageTable, stage_table

ROWS = 1 << 14
"""Plans evaluated at a time: their arrays stay in the cache of a core."""
SECONDS_PER_DAY = 86_400.0


def training_problem(
    architecture: Architecture,
    stack: str,
    device: Device | None = None,
    fixed: Mapping[str, float] | None = None,
    optimizer: str | None = None,
    kernels: str = "",
    calibration: str = "",
) -> Problem:
    """A problem with every symbol of the model, the stack's device symbols (when one device is given) and the plan's defaults.

    `fixed` binds `sequence`, `global_batch` and whatever else is not an axis; SI units. Columns win over them.
    `optimizer` names a state layout of costmodels/data/optimizers.yaml in place of the stack's own, `kernels` a kernel model
    (costmodels.kernel_models.registry) in place of the learned one, `calibration` a folder of somebody's own measurements.
    """
    chosen = find_stack(stack)
    bound: dict[str, float] = {**DEFAULTS, "shard_degree": 0, **scalars(architecture)}
    bound["parameters"] = graphs(architecture, chosen.traits).parameters()
    bound |= optimizer_symbols(optimizer or chosen.optimizer)
    labels = {**NAMES, "kernel_model": (kernels,), "calibration": (calibration,)}
    if device is not None:
        bound |= device_symbols(device, stack)
        labels["device"] = (device.name,)
        bound["device"] = 0
        bound["generation"] = 0
        labels["generation"] = (device.generation,)
    return Problem(architecture=architecture, stack=stack, scalars={**bound, **(fixed or {})}, labels=labels)


@dataclass(frozen=True, slots=True)
class TrainingModel:
    """Cost model of one training step: everything comes from the problem and the columns.

    What blocks cost is remembered from one batch to the next; that changes when they are computed, and no figure.
    """

    known: Known = field(default_factory=Known, repr=False, compare=False)

    @property
    def reads(self) -> frozenset[str]:
        """Symbols of plan and workload; the model's, the device's and the stack's are read as well."""
        return frozenset({*PLAN_SYMBOLS, "sequence", "global_batch"})

    def bound(self, problem: Problem, points: Columns) -> Metrics:
        """Exact memory, counted from the graph before any time is computed."""
        parts = tables_of(problem, points, with_time=False, known=self.known)
        return _join(points.n, ((rows, _bounds(problem.at(points.take(rows)), parts, rows)) for rows in _slices(points.n)))

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:
        """All metrics of the n plans, with parts of step time, memory and energy."""
        return _join(points.n, self.stream(problem, points))

    def stream(self, problem: Problem, points: Columns) -> Iterator[tuple[slice, Metrics]]:
        """The same in consecutive slices of rows, for those who need no row twice: nothing is held beyond a slice."""
        parts = tables_of(problem, points, with_time=True, known=self.known)
        for rows in _slices(points.n):
            yield rows, _metrics(problem, problem.at(points.take(rows)), parts, rows)


@dataclass(frozen=True, slots=True, eq=False)
class Tables:
    """Every part of the model once per distinct combination of what it reads, and each point's row in it.

    `pipe`, `live` and `flops` by `by_pipe` (n,): all but what only parameters feel. `data` and `state` by `by_data` (n,): all
    but what only microbatches feel.
    """

    pipe: PipelineTime | None
    flops: DeviceFlops | None
    live: ActivationMemory
    by_pipe: IntArray
    data: DataParallelTime | None
    state: StateMemory
    by_data: IntArray


PARAMETERS_ONLY = frozenset({"zero_stage", "shard_degree", "offload"})
"""Symbols that the time and the activations of a microbatch do not depend on."""
MICROBATCH_ONLY = frozenset({"micro_batch", "sequence_parallel", "schedule", "recompute", "recompute_layers"})
"""Symbols that parameters, their reduction and the optimizer do not depend on."""

TIME_ONLY = frozenset({"rank_order"})
"""Symbols that no memory depends on."""


def parameters_only(problem: Problem, points: Columns) -> frozenset[str]:
    """`PARAMETERS_ONLY`; without buffers that always hold the gradients, a microbatch's memory depends on their sharding."""
    name = "stack.memory.persistent_gradients"
    persistent = points.levels[name][1] if name in points.levels else problem.scalars[name]
    return PARAMETERS_ONLY if np.all(np.asarray(persistent) > 0) else PARAMETERS_ONLY - {"zero_stage"}


def tables_of(problem: Problem, points: Columns, *, with_time: bool, known: Known | None = None) -> Tables:
    """Evaluate every part of the model once per distinct combination; without time, memory alone.

    `known` is what was evaluated before; what is new is added to it.
    """
    known = Known() if known is None else known
    stack = find_stack(problem.stack)
    names = frozenset(points.levels)
    names -= frozenset() if with_time else TIME_ONLY
    inner, by_pipe = distinct(points, names - parameters_only(problem, points))
    times = kernel_times(problem)
    blocks = known.blocks(problem, inner, stack, with_time=with_time)
    stages, place = stages_of(problem, inner, stack)
    outer, by_data = distinct(points, names - MICROBATCH_ONLY)
    first = np.zeros(outer.n, np.int64)  # a point of each combination, to find its parameters by
    first[by_data[::-1]] = np.arange(points.n)[::-1]
    shared = by_pipe[first]
    data, state = [], []
    tied = problem.architecture.tied_embeddings
    for rows in _slices(outer.n):
        at = problem.at(outer.take(rows))
        counts = stages.counts[:, :, place[shared[rows]]]
        combination = blocks.index[shared[rows]]
        dense, expert = stage_parameters(blocks.memory, combination, counts, tied, at["pipeline"])
        embedding, head = (blocks.memory.dense[counts.shape[0] + end][combination] for end in (0, 1))
        rounding = stage_rounding(blocks.memory, combination, counts, at["pipeline"])
        state.append(state_memory(at, dense, expert, counts, embedding, head, tied, rounding))
        if with_time:
            heaviest = np.argmax(dense + expert, axis=0)[None]
            own = [np.take_along_axis(share, heaviest, axis=0)[0] for share in (dense, expert)]
            whole = np.asarray(at["pipeline"]) == 1
            ends = Ends(
                embedding=np.where(whole | (heaviest[0] == FIRST), embedding, 0.0),
                head=np.where(whole | (heaviest[0] == LAST), head, 0.0),
                tied=tied,
            )
            data.append(data_parallel_time(at, own[0], own[1], trained_share(at), ends, times))
    pipe, live, flops = [], [], []
    convention = _convention(problem, inner, stack, known) if with_time else None
    for rows in _slices(inner.n):
        at = problem.at(inner.take(rows))
        live.append(activation_memory(at, blocks.memory, blocks.index[rows], stages, place[rows]))
        if blocks.time is not None and convention is not None:
            pipe.append(pipeline_of(at, blocks.time, blocks.by_time[rows], stages, place[rows]))
            of, sequences = convention
            flops.append(device_flops(at, of, sequences[rows], policy_of(at, at.n), pipe[-1].recomputed_share))
    return Tables(
        pipe=thinned(joined(pipe)) if with_time else None,
        flops=thinned(joined(flops)) if with_time else None,
        live=joined(live),
        by_pipe=by_pipe,
        data=thinned(joined(data)) if with_time else None,
        state=joined(state),
        by_data=by_data,
    )


def _bounds(at: Bindings, parts: Tables, rows: slice) -> Metrics:
    use = memory_use(at, parts.live, parts.by_pipe[rows], parts.state, parts.by_data[rows], False)
    limit = np.asarray(at["device.memory_capacity"], np.float64)
    return Metrics(
        n=at.n,
        value={"memory": use.device, "peak_memory": use.peak, "devices": _full(at["devices"], at.n)},
        violation={"memory": use.device / limit - 1.0},
    )


def _slices(n: int) -> list[slice]:
    return [slice(start, min(start + ROWS, n)) for start in range(0, n, ROWS)] or [slice(0, 0)]


def _full(value: Any, n: int) -> FloatArray:
    return np.broadcast_to(np.asarray(value, np.float64), (n,))


def _join(n: int, pieces: Iterable[tuple[slice, Metrics]]) -> Metrics:
    """Slices of rows written into arrays of n rows as they come: no slice outlives its turn."""
    whole: dict[tuple[str, ...], FloatArray] = {}
    piece: Metrics | None = None
    evidence: NDArray[np.int8] | None = None
    for rows, piece in pieces:
        if rows == slice(0, n):
            return piece
        for path, array in _arrays(piece):
            whole.setdefault(path, np.empty(n))[rows] = array
        if piece.evidence is not None:
            evidence = np.empty(n, np.int8) if evidence is None else evidence
            evidence[rows] = piece.evidence
    assert piece is not None

    def under(*prefix: str) -> dict[str, FloatArray]:
        return {path[-1]: array for path, array in whole.items() if path[:-1] == prefix}

    value = under("value")
    sides = {}
    for name, side in (("low", piece.low), ("high", piece.high)):
        sides[name] = Around(value, **under(name), above=side.above) if isinstance(side, Around) else {}
    return Metrics(
        n=n,
        value=value,
        low=sides["low"],
        high=sides["high"],
        parts={metric: under("parts", metric) for metric in piece.parts},
        violation=under("violation"),
        evidence=evidence,
    )


def _arrays(metrics: Metrics) -> Iterator[tuple[tuple[str, ...], FloatArray]]:
    """Every array of some metrics under its path."""
    for name, array in metrics.value.items():
        yield ("value", name), array
    for name, array in metrics.violation.items():
        yield ("violation", name), array
    for metric, parts in metrics.parts.items():
        for name, array in parts.items():
            yield ("parts", metric, name), array
    for name, side in (("low", metrics.low), ("high", metrics.high)):
        if isinstance(side, Around):
            yield from (((name, "low"), side.low), ((name, "high"), side.high), ((name, "rate"), side.rate))


def stages_of(problem: Problem, points: Columns, stack: Stack) -> tuple[StageTable, IntArray]:
    """Layers per stage for each distinct (pipeline, virtual, layout), and the row of every point."""
    model = graphs(problem.architecture, stack.traits)
    combinations, place = distinct(points, ("pipeline", "virtual", "stage_layout"))
    at = problem.at(combinations)
    n = max(combinations.n, 1 if points.n else 0)
    columns = [np.broadcast_to(np.asarray(at[name], np.int64), (n,)) for name in ("pipeline", "virtual", "stage_layout")]
    return stage_table(model.order, tuple(model.layers), *columns), place


def _convention(problem: Problem, points: Columns, stack: Stack, known: Known) -> tuple[ConventionFlops, IntArray]:
    """Convention FLOPs of one sequence: a matter of the model's shape and the sequence, whatever the plan and machine."""
    machine = ("device", "generation", "kernel.", "link.", "stack.", "optimizer.", "reliability.", "workload.")
    reads = {name for name in points.levels if name not in PLAN_SYMBOLS and not name.startswith(machine)} - {"global_batch"}
    combinations, place = distinct(points, reads)
    model = graphs(problem.architecture, stack.traits)

    def evaluated(few: Columns) -> ConventionFlops:
        return convention_flops(model, stack, problem.at(few), few.n)

    flops, row = known.found(problem, combinations, ConventionFlops, evaluated)
    return flops, row[place]


def _metrics(problem: Problem, at: Bindings, tables: Tables, rows: slice) -> Metrics:
    assert tables.pipe is not None
    assert tables.data is not None
    assert tables.flops is not None
    n = at.n
    use = memory_use(at, tables.live, tables.by_pipe[rows], tables.state, tables.by_data[rows])
    pipe = gathered(tables.pipe, tables.by_pipe[rows])
    data = gathered(tables.data, tables.by_data[rows])
    step, parts, often = _step(at, pipe, data)
    used = energy(
        at,
        step,
        pipe.flops,
        pipe.traffic + data.traffic,
        pipe.inner_bytes + often * data.inner_bytes,
        pipe.outer_bytes + often * data.outer_bytes,
        np.maximum(step - parts["bubble"], 0.0),
    )
    joules = used["static"] + used["compute"] + used["memory"] + used["scale_up"] + used["scale_out"]
    value = _rates(at, step, gathered(tables.flops, tables.by_pipe[rows]))
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
    low, high, evidence = interval(problem, at, value)
    limit = np.asarray(at["device.memory_capacity"], np.float64)
    return Metrics(
        n=n,
        value=value,
        low=low,
        high=high,
        parts={"step_time": parts, "memory": {**use.parts, "reserve": use.overhead}, "energy": used},
        violation={"memory": use.device / limit - 1.0},
        evidence=evidence,
    )


def _step(at: Bindings, pipe: PipelineTime, data: DataParallelTime) -> tuple[FloatArray, dict[str, FloatArray], Value]:
    """Seconds of a step, its parts, and how often it reduces gradients."""
    microbatches = pipe.microbatches
    zero = np.asarray(at["zero_stage"])
    overlap, contention = at["stack.overlap.data"], at["stack.contention"]
    # sharded gradients cannot wait for the last microbatch, except where the stack keeps them whole until then
    each = at["stack.reduce_every_microbatch"]
    apart = (zero >= 2) & (each > 0) & ~kept_for_pipeline(at)
    often = np.where(apart, microbatches, 1.0) if np.any(each) else 1.0
    late = data.last_reduce
    reduce = often * (late + exposed_time(data.reduce - late, pipe.backward, overlap, contention))
    gathers = exposed_time(data.gather, pipe.forward, overlap, contention)
    whole = zero >= 3
    if np.any(whole):
        gathers = np.where(whole, _gathers(at, pipe, data), gathers)
    parts = dict(pipe.parts)
    parts["data_parallel_communication"] = reduce + gathers + often * data.copies
    parts["accumulation"] = microbatches * data.accumulate * (microbatches > 1)
    parts["optimizer"] = data.optimizer
    parts["step_overhead"] = _full(at["stack.host_per_step"], at.n)
    step = pipe.total + parts["data_parallel_communication"] + parts["accumulation"] + data.optimizer + parts["step_overhead"]
    if np.any(late := parts["host"]):
        # one stage waits for nobody: the host makes up for its delays wherever the device is the slower, up to the next step
        slack = pipe.ahead + step - pipe.total - parts["step_overhead"]
        caught_up = np.where(np.asarray(at["pipeline"]) == 1, np.minimum(late, slack), 0.0)
        parts["host"] = late - caught_up
        step = step - caught_up
    unit = at["stack.host_per_unit"]
    if np.any(whole) and np.any(unit):
        # gathers, reductions and kernels queue up on the device while the host prepares the next sharded layer
        host = np.where(whole, microbatches * (pipe.layers + 1.0) * unit, 0.0)
        waited = np.maximum(host - step, 0.0)
        parts["host"] = parts["host"] + waited
        step = step + waited
    return step, parts, often


def _gathers(at: Bindings, pipe: PipelineTime, data: DataParallelTime) -> FloatArray:
    """Seconds of gathering parameters for every microbatch, forward and where they were let go again backward."""
    shard, contention = at["stack.overlap.shard"], at["stack.contention"]
    early = data.first_gather
    later = data.gather - early
    again = np.maximum(pipe.backward - data.reduce * at["stack.overlap.data"], 0.0)
    forward = early + exposed_time(later, pipe.forward, shard, contention)
    backward = exposed_time(later, again, shard, contention) * (1.0 - stays_gathered(at))
    times = np.where(kept_for_pipeline(at), 1.0, pipe.microbatches)
    return np.asarray(times * (forward + backward) + data.gather / pipe.layers, np.float64)


def _rates(at: Bindings, step: FloatArray, flops: DeviceFlops) -> dict[str, FloatArray]:
    """Throughput and utilisation by the published convention."""
    tokens = np.asarray(at["global_batch"] * at["sequence"], np.float64) / step
    model, hardware = flops.model / step, flops.hardware / step
    peak = sixteen_bit_rate(at)
    return {
        "tokens_per_second": tokens,
        "tokens_per_second_per_device": tokens / at["devices"],
        "model_flops_per_device": model,
        "hardware_flops_per_device": hardware,
        "mfu": model / peak,
        "hfu": hardware / peak,
        "mfu_causal": flops.causal / (step * peak),
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
