"""Steady state of continuous batching in closed form: what millions of serving plans deliver, without simulating one.

Tables are filled once per engine, curves of load once per engine and workload; a plan is then one look-up: where on its curve
the rate or the concurrency asked for lies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.kernel_models.protocol import KernelModel
from costmodels.metrics import Metrics
from costmodels.serving import load
from costmodels.serving.capacity import Capacity, capacity
from costmodels.serving.engine import engines
from costmodels.serving.intake import intake_seconds, lone_seconds
from costmodels.serving.intervals import interval
from costmodels.serving.operating_cost import joules_per_second, price_per_second
from costmodels.serving.speculation import accepted_tokens, verified_tokens
from costmodels.serving.stack import find_serving_stack, plans_ahead
from costmodels.serving.under_load import Served, in_closed_loop, in_open_loop
from costmodels.step_tables import Batch, StepTables, parts_of
from spaces.columns import Bindings, Columns, FloatArray, IntArray, distinct
from spaces.problem import Problem
from spaces.serving_plan import SERVING_PLAN, SERVING_WORKLOAD

ROWS = 1 << 14
"""Plans evaluated at a time."""
LOAD_ONLY = frozenset({"request_rate", "concurrency", "data", "devices"})
"""Symbols that say how much is asked of a replica, not what it is."""
HELD = frozenset({"device.memory_capacity", "device.host_memory"})
"""What memory in use is read off a device; how quick it is tells nothing."""
BATCH_LIMITS = frozenset({"max_batch", "kv_fraction"})
"""Symbols that say how large a batch may grow, not what it costs."""


def _of_memory(symbol: str) -> bool:
    """Whether memory in use may depend on a symbol: all but what says how quick a device is."""
    return symbol in HELD or not symbol.startswith(("device.", "kernel.", "link.", "chip.", "base.", "energy."))


@dataclass(frozen=True, slots=True)
class ServingModel:
    """Cost model of serving in steady state. Stateless: everything comes from the problem and the columns."""

    kernel_model: KernelModel | None = None

    @property
    def reads(self) -> frozenset[str]:
        """Symbols of plan and workload; the model's, the device's and the stack's are read as well."""
        return frozenset({*SERVING_PLAN, *SERVING_WORKLOAD})

    def bound(self, problem: Problem, points: Columns) -> Metrics:
        """Exact memory, from the graph before any time is computed."""
        combinations, index = distinct(points, frozenset(filter(_of_memory, points.levels)) - LOAD_ONLY)
        at = problem.at(combinations)
        room = _room(capacity(problem.architecture, find_serving_stack(problem.stack), at), at)
        devices = _rows(problem.at(points)["devices"], points.n)
        return Metrics(n=points.n, value={"devices": devices}, violation={"memory": room[index]})

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:
        """All metrics of the n plans, with parts of the time per token."""
        pieces = list(self.stream(problem, points))
        return pieces[0][1] if len(pieces) == 1 else _joined(points.n, pieces)

    def only(self, problem: Problem, points: Columns, names: frozenset[str]) -> Metrics:
        """The named metrics and the violations of the n plans alone."""
        states = states_of(problem, points, self.kernel_model)
        parts = [slice(start, min(start + ROWS, points.n)) for start in range(0, max(points.n, 1), ROWS)]
        pieces = [(rows, _metrics(problem, problem.at(points.take(rows)), states, rows, names)) for rows in parts]
        return pieces[0][1] if len(pieces) == 1 else _joined(points.n, pieces)

    def stream(self, problem: Problem, points: Columns) -> Iterator[tuple[slice, Metrics]]:
        """The same in consecutive slices of rows."""
        yield from self.under(states_of(problem, points, self.kernel_model), problem, points)

    def under(self, states: States, problem: Problem, points: Columns) -> Iterator[tuple[slice, Metrics]]:
        """The same with states that are known: `points` may ask for other loads than those that the states were made of."""
        for start in range(0, max(points.n, 1), ROWS):
            rows = slice(start, min(start + ROWS, points.n))
            yield rows, _metrics(problem, problem.at(points.take(rows)), states, rows)

    def latencies(self, states: States, problem: Problem, points: Columns) -> tuple[FloatArray, FloatArray, FloatArray]:
        """(seconds to the first token, seconds a token, requests a second) alone, of the same points, (n,) each."""
        found = []
        for start in range(0, max(points.n, 1), ROWS):
            rows = slice(start, min(start + ROWS, points.n))
            at = problem.at(points.take(rows))
            groups = _groups(at, states, rows)
            s = _served(at, states, rows, groups)
            found.append((s.first, s.token, s.rate * groups))
        first, token, rate = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        return first, token, rate


@dataclass(frozen=True, slots=True, eq=False)
class States:
    """Curves of k combinations of engine and workload, memory of m combinations that also know the limits of a batch.

    `index`, `held` (n,) are the combinations of every point; `most` (m,) requests that may run at once in one batch, `room`
    (m,) use of memory over the limit − 1. `open_` or `closed` are there where some point asks for them.
    """

    tables: StepTables
    work: load.Work
    open_: load.Curve | None
    closed: load.Curve | None
    index: IntArray
    capacity: Capacity
    most: FloatArray
    room: FloatArray
    held: IntArray

    def take(self, rows: IntArray) -> States:
        """The states of some of the points, which may repeat."""
        return dataclasses.replace(self, index=self.index[rows], held=self.held[rows])


def states_of(problem: Problem, points: Columns, model: KernelModel | None = None) -> States:
    """Everything about the points that does not depend on how much is asked of them."""
    names = frozenset(points.levels) - LOAD_ONLY
    combinations, index = distinct(points, names - BATCH_LIMITS)
    tables, engine = engines(problem, combinations, model)
    work = work_of(problem.at(combinations), engine)
    limited, held = distinct(points, names)
    of_limited = np.zeros(limited.n, np.int64)  # a point of each combination, to find its work by
    of_limited[held] = index
    at = problem.at(limited)
    memory = capacity(problem.architecture, find_serving_stack(problem.stack), at)
    asked = np.asarray(problem.at(points)["concurrency"], np.float64)
    return States(
        tables=tables,
        work=work,
        open_=load.curve(tables, work, closed=False) if np.any(asked <= 0) else None,
        closed=load.curve(tables, work, closed=True) if np.any(asked > 0) else None,
        index=index,
        capacity=memory,
        most=_most(at, memory, tables, work, of_limited),
        room=_room(memory, at),
        held=held,
    )


def work_of(at: Bindings, engine: IntArray) -> load.Work:
    """The work of a request for the k combinations bound in `at`, whose engines are given (k,)."""
    k = at.n
    tokens, output = _rows(at["input_tokens"], k), np.maximum(_rows(at["output_tokens"], k), 1.0)
    hit = np.clip(_rows(at["prefix_hit"], k), 0.0, 1.0)
    prompt = np.maximum(tokens * (1.0 - hit), 1.0)
    return load.Work(
        engine=engine,
        prompt=prompt,
        pairs=prompt * tokens * hit + prompt**2 / 2.0,
        found=tokens * hit,
        cached=tokens + output / 2.0,
        output=output,
        budget=np.maximum(_rows(at["token_budget"], k), 1.0),
        mixed=_rows(at["stack.mixed_steps"], k),
        drafted=_rows(at["speculation"], k),
        acceptance=_rows(at["acceptance"], k),
        overhead=_rows(lone_seconds(at, tokens), k),
        intake=_rows(intake_seconds(at, tokens), k),
        ahead=_rows(plans_ahead(at), k),
        groups=_rows(at["attention_data"], k),
    )


def _most(at: Bindings, memory: Capacity, tables: StepTables, work: load.Work, of_limited: IntArray) -> FloatArray:
    """Requests that one batch may hold, (m,); a pipeline of p stages keeps p batches in flight, which share the cache."""
    each = np.asarray(at["input_tokens"], np.float64) + np.asarray(at["output_tokens"], np.float64)
    each = np.where(np.asarray(at["stack.reserve_output"]) > 0, each, work.cached[of_limited])
    fit = np.minimum(np.floor(memory.tokens / each), np.asarray(at["max_batch"], np.float64))
    stages = tables.stages[work.engine[of_limited]]
    return np.asarray(np.maximum(np.minimum(fit / stages, load.supplied(work)[of_limited]), 1.0))


def _room(held: Capacity, at: Bindings) -> FloatArray:
    """Use over limit − 1 of the fullest device, or its host, when the cache holds one request, (k,)."""
    one = np.asarray(at["input_tokens"], np.float64) + at["output_tokens"]
    return held.excess(_rows(one, at.n), _rows(at["kv_offload"], at.n))


def _rows(value: Any, n: int) -> FloatArray:
    return np.broadcast_to(np.asarray(value, np.float64), (n,)).copy()


def _groups(at: Bindings, states: States, rows: slice) -> FloatArray:
    """Batches that the replicas, attention groups and stages of every plan keep in flight, (n,)."""
    engine = states.work.engine[states.index[rows]]
    return np.asarray(_rows(at["data"], at.n) * _rows(at["attention_data"], at.n) * states.tables.stages[engine])


def _served(at: Bindings, states: States, rows: slice, groups: FloatArray) -> Served:
    """What the plans deliver under the load that each is asked for."""
    n, place, held = at.n, states.index[rows], states.held[rows]
    work, tables = states.work, states.tables
    engine = work.engine[place]
    uneven = np.maximum(tables.stages[engine] * tables.slowest_share[engine], 1.0)
    asked, together = _rows(at["request_rate"], n), _rows(at["concurrency"], n)
    closed = together > 0
    served = {name: np.empty(n) for name in Served.__slots__}
    ways = ((~closed, states.open_, asked, in_open_loop), (closed, states.closed, together, in_closed_loop))
    for mask, curve, wanted, answer in ways:
        some = np.flatnonzero(mask)
        if len(some):
            assert curve is not None
            most = states.most[held[some]]
            found = answer(tables, work, curve, place[some], wanted[some] / groups[some], most, uneven[some])
            for name, array in served.items():
                array[some] = getattr(found, name)
    return Served(**served)


def _metrics(problem: Problem, at: Bindings, states: States, rows: slice, names: frozenset[str] | None = None) -> Metrics:
    """All metrics of some of the plans, or the values of those named."""
    n, place, held = at.n, states.index[rows], states.held[rows]
    work, tables = states.work, states.tables
    engine = work.engine[place]
    groups = _groups(at, states, rows)
    s = _served(at, states, rows, groups)
    output = work.output[place]
    rate = s.rate * groups
    devices = _rows(at["devices"], n)
    latency = s.first + (output - 1.0) * s.token
    tokens = rate * output
    value = {
        "ttft": s.first,
        "tpot": s.token,
        "request_latency": latency,
        "request_rate": rate,
        "highest_rate": s.highest * groups,
        "tokens_per_second": tokens,
        "tokens_per_second_per_device": tokens / devices,
        "tokens_per_second_per_user": 1.0 / s.token,
        "running_requests": s.running * groups,
        "kv_capacity": states.capacity.tokens[held] * _rows(at["attention_data"], n),
        "kv_headroom": _headroom(states, place, held, s.running * tables.stages[engine]),
        "memory": (states.capacity.fixed + states.capacity.token * states.capacity.tokens)[held],
        "devices": devices,
        "rated_power": devices * _rows(at["device.power"], n),
    }
    violation = {"memory": states.room[held], "rate": s.excess, "context": _context(problem, at, n)}
    if names is None or not names <= value.keys():
        step = s.token * accepted_tokens(work.drafted, work.acceptance)[place]
        bytes_each = work.cached[place] * states.capacity.token[held]
        watts = joules_per_second(problem, at, rate, work, place, step, s.running, bytes_each, tables.stages[engine])
        value |= {
            "price_per_million_tokens": price_per_second(at) / np.maximum(tokens, 1e-12) * 1e6,
            "energy_per_token": watts / np.maximum(tokens, 1e-12),
        }
    if names is not None:
        return Metrics(n=n, value={name: value[name] for name in names}, violation=violation)
    low, high, evidence = interval(problem, at, value)
    return Metrics(
        n=n,
        value=value,
        low=low,
        high=high,
        parts={"tpot": _parts(states, place, s)},
        violation=violation,
        evidence=evidence,
    )


def _headroom(states: States, place: IntArray, row: IntArray, running: FloatArray) -> FloatArray:
    """Share of the cache that the running requests of a group leave free, (n,)."""
    held = states.capacity.tokens[row]
    used = running * states.work.cached[place]
    return np.asarray(np.where(held > 0, np.maximum(1.0 - used / np.maximum(held, 1.0), 0.0), 0.0))


def _parts(states: States, place: IntArray, s: Served) -> Mapping[str, FloatArray]:
    """The time per token split by what takes it; sums to it."""
    work = states.work
    verified = verified_tokens(work.drafted[place])
    running = np.maximum(s.running, 1.0)
    batch = Batch(decode_requests=running, decode_kv=running * work.cached[place], decode_tokens=running * verified)
    parts = parts_of(states.tables, work.engine[place], batch)
    whole = sum(parts.values())
    scale = np.minimum(s.decode, s.token) / np.maximum(np.asarray(whole), 1e-300)
    found = {name: part * scale for name, part in parts.items()}
    found["prefill"] = s.token - np.asarray(sum(found.values()))
    return found


def _context(problem: Problem, at: Bindings, n: int) -> FloatArray:
    longest = float(problem.architecture.max_sequence)
    return _rows((np.asarray(at["input_tokens"], np.float64) + at["output_tokens"]) / longest - 1.0, n)


def _joined(n: int, pieces: list[tuple[slice, Metrics]]) -> Metrics:
    """Slices of rows end to end."""

    def whole(pick: Any) -> dict[str, FloatArray]:
        return {name: np.concatenate([pick(piece)[name] for _, piece in pieces]) for name in pick(pieces[0][1])}

    first = pieces[0][1]
    evidence = [piece.evidence for _, piece in pieces if piece.evidence is not None]
    return Metrics(
        n=n,
        value=whole(lambda m: m.value),
        low=whole(lambda m: m.low),
        high=whole(lambda m: m.high),
        parts={metric: whole(lambda m, metric=metric: m.parts[metric]) for metric in first.parts},
        violation=whole(lambda m: m.violation),
        evidence=np.concatenate(evidence) if evidence else None,
    )
