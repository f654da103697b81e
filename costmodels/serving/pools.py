"""Serving in steady state with prefill and decode together or in pools of their own, the two joined by their rate.

The prefill pool serves requests of one output token; the decode pool requests whose prompt is cached already; between them the
cache crosses a link. Each side is evaluated once per distinct plan of its own and gathered: a space of pairs costs its sides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.metrics import Metrics
from costmodels.serving.capacity import capacity
from costmodels.serving.stack import find_serving_stack
from costmodels.serving.steady_state import ServingModel, states_of
from spaces.columns import Bindings, Columns, FloatArray, IntArray, distinct
from spaces.problem import Problem
from spaces.serving_space import PREFILL, engine_devices

RATES = 24
"""Rates at which each side is evaluated where only the concurrency is known."""


@dataclass(frozen=True, slots=True)
class PooledServingModel:
    """Cost model of serving in steady state, aggregated or disaggregated as `mode` says."""

    model: ServingModel = field(default_factory=ServingModel)

    @property
    def reads(self) -> frozenset[str]:
        """Symbols of plan and workload, those of the prefill pool included."""
        own = self.model.reads
        return own | {PREFILL + symbol for symbol in own} | {"mode", "link_bandwidth", "link_latency"}

    def bound(self, problem: Problem, points: Columns) -> Metrics:
        """Exact memory, from the graph before any time is computed; of pools the fuller."""
        return self._by_mode(problem, points, self.model.bound, _bound_of_pools)

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:
        """All metrics of the n plans."""
        return self._by_mode(problem, points, self.model.evaluate, _evaluate_pools)

    def _by_mode(self, problem: Problem, points: Columns, together: Any, apart: Any) -> Metrics:
        if "mode" not in points.levels and problem.scalars.get("mode", 0) == 0:
            found: Metrics = together(problem, points)
            return found
        mode = np.broadcast_to(np.asarray(problem.at(points)["mode"]), (points.n,))
        rows = [np.flatnonzero(mode == code) for code in (0, 1)]
        pieces: list[tuple[IntArray, Metrics]] = []
        if len(rows[0]) or not points.n:
            pieces.append((rows[0], together(problem, _without_prefill(points.take(rows[0])))))
        if len(rows[1]):
            pieces.append((rows[1], apart(self.model, problem, points.take(rows[1]))))
        return pieces[0][1] if len(pieces) == 1 else _merged(points.n, pieces)


def side(problem: Problem, points: Columns, start: str) -> tuple[Problem, Columns]:
    """One pool of disaggregated plans as plans of their own: its problem, and its columns without the other pool's.

    The prefill pool's requests have one output token, the decode pool's a prompt that is cached. `devices` are the pool's.
    """
    names = {symbol for symbol in points.levels if symbol.startswith(PREFILL)}
    shared = {"mode", "devices", *names}
    levels = {symbol: entry for symbol, entry in points.levels.items() if symbol not in shared}
    own = {symbol.removeprefix(start): value for symbol, value in problem.scalars.items() if start and symbol.startswith(start)}
    if start:
        renamed = {symbol.removeprefix(start): points.levels[symbol] for symbol in names}
        levels = {symbol: entry for symbol, entry in levels.items() if symbol not in {*renamed, *own}} | renamed
    used = {axis for axis, _ in levels.values()}
    columns = Columns(n=points.n, codes={axis: points.codes[axis] for axis in used}, levels=levels)
    given = {"output_tokens": 1.0, "acceptance": 0.0} if start else {"prefix_hit": 1.0}
    pool = dataclasses.replace(problem, scalars={**problem.scalars, **own, **given, "mode": 0})
    combinations, index = distinct(columns, _ENGINE)
    count, place = np.unique(np.broadcast_to(_devices(pool, combinations), (combinations.n,)), return_inverse=True)
    return pool, _with_levels(columns, "devices", count, place[index])


_ENGINE = ("pipeline", "tensor", "attention_data", "expert", "expert_tensor", "data")
"""Symbols that say how many devices a pool has."""


def _devices(problem: Problem, columns: Columns) -> FloatArray:
    at = problem.at(columns)
    engine = {symbol: at[symbol] for symbol in _ENGINE if symbol != "data"}
    return np.asarray(engine_devices(engine) * at["data"], np.float64)


def _with_column(columns: Columns, name: str, values: FloatArray) -> Columns:
    levels, codes = np.unique(values, return_inverse=True)
    return _with_levels(columns, name, levels, codes)


def _with_levels(columns: Columns, name: str, levels: FloatArray, codes: IntArray) -> Columns:
    return Columns(
        n=columns.n,
        codes={**columns.codes, name: codes.astype(np.int32)},
        levels={**columns.levels, name: (name, levels)},
    )


def _without_prefill(points: Columns) -> Columns:
    """The columns of aggregated plans, which have no prefill pool."""
    levels = {s: entry for s, entry in points.levels.items() if not s.startswith(PREFILL) and s != "mode"}
    used = {axis for axis, _ in levels.values()}
    return Columns(n=points.n, codes={axis: points.codes[axis] for axis in used}, levels=levels)


def transfer_time(problem: Problem, points: Columns) -> tuple[FloatArray, FloatArray]:
    """(seconds a prompt token's cache takes to cross, seconds of latency) of n disaggregated plans.

    Every device sends or receives its shard over a link of its own; the pool whose devices take longer for a token decides.
    """
    return _transfer_time(problem, points, [side(problem, points, start) for start in (PREFILL, "")])


def _transfer_time(
    problem: Problem, points: Columns, pools: Sequence[tuple[Problem, Columns]]
) -> tuple[FloatArray, FloatArray]:
    at = problem.at(points)
    given = np.asarray(at.get("link_bandwidth", 0.0), np.float64)
    slowest = np.zeros(points.n)
    for pool, columns in pools:
        combinations, index = distinct(columns, frozenset(columns.levels) - {"devices", "data", "request_rate", "concurrency"})
        held = capacity(pool.architecture, find_serving_stack(pool.stack), pool.at(combinations))
        own = np.broadcast_to(np.asarray(pool.at(columns)["device.nic_bandwidth"], np.float64), (points.n,))
        slowest = np.maximum(slowest, held.whole[index] / np.where(given > 0, given, own))
    latency = np.broadcast_to(np.asarray(at.get("link_latency", 1e-4), np.float64), (points.n,))
    return slowest, np.asarray(latency)


def _bound_of_pools(model: ServingModel, problem: Problem, points: Columns) -> Metrics:
    memory = np.full(points.n, -np.inf)
    for start in (PREFILL, ""):
        pool, columns = side(problem, points, start)
        combinations, index = distinct(columns, columns.levels)
        memory = np.maximum(memory, model.bound(pool, combinations).violation["memory"][index])
    devices = np.broadcast_to(np.asarray(problem.at(points)["devices"], np.float64), (points.n,)).copy()
    return Metrics(n=points.n, value={"devices": devices}, violation={"memory": memory})


def _evaluate_pools(model: ServingModel, problem: Problem, points: Columns) -> Metrics:
    at = problem.at(points)
    together = np.broadcast_to(np.asarray(at["concurrency"], np.float64), (points.n,))
    pools = [side(problem, points, start) for start in (PREFILL, "")]
    per_token, latency = _transfer_time(problem, points, pools)
    if np.any(together > 0):
        levels, codes = np.unique(_rate_of(model, pools, at, per_token, latency, together), return_inverse=True)
        none = np.zeros(points.n, np.int64)
        pools = [
            (pool, _with_levels(_with_levels(columns, "request_rate", levels, codes), "concurrency", np.zeros(1), none))
            for pool, columns in pools
        ]
    sides = []
    for pool, columns in pools:
        combinations, index = distinct(columns, columns.levels)
        sides.append((model.evaluate(pool, combinations), index))
    return _joined(problem, points, sides[0], sides[1], per_token, latency)


Side = tuple[Metrics, IntArray]


def _joined(
    problem: Problem, points: Columns, prefill: Side, decode: Side, per_token: FloatArray, latency: FloatArray
) -> Metrics:
    """Metrics of n pairs: times follow one another, rates are the lesser, violations the greater, costs add up."""
    at = problem.at(points)
    n = points.n
    (first, i), (then, j) = prefill, decode

    def rows(value: Any) -> FloatArray:
        return np.broadcast_to(np.asarray(value, np.float64), (n,))

    def both(name: str) -> tuple[FloatArray, FloatArray]:
        return first.value[name][i], then.value[name][j]

    output = np.maximum(rows(at["output_tokens"]), 1.0)
    gaps = np.maximum(output - 1.0, 1.0)
    cross = latency + per_token * rows(at["input_tokens"])
    ttft, token = first.value["ttft"][i], then.value["tpot"][j]
    wait = np.maximum(then.value["ttft"][j] - token, 0.0)
    tpot = token + (cross + wait) / gaps
    rate = np.minimum(*both("request_rate"))
    tokens = rate * output
    devices = sum(both("devices"))

    def per_second(name: str) -> FloatArray:
        """What both pools take a second of something that is given per output token."""
        return np.asarray(sum(m.value[name][k] * m.value["tokens_per_second"][k] for m, k in (prefill, decode)))

    value = {
        "ttft": ttft,
        "tpot": tpot,
        "request_latency": ttft + (output - 1.0) * tpot,
        "request_rate": rate,
        "highest_rate": np.minimum(*both("highest_rate")),
        "tokens_per_second": tokens,
        "tokens_per_second_per_device": tokens / devices,
        "tokens_per_second_per_user": 1.0 / tpot,
        "running_requests": np.asarray(sum(both("running_requests"))),
        "kv_capacity": then.value["kv_capacity"][j],
        "kv_headroom": then.value["kv_headroom"][j],
        "memory": np.maximum(*both("memory")),
        "devices": np.asarray(devices),
        "rated_power": np.asarray(sum(both("rated_power"))),
        "price_per_million_tokens": per_second("price_per_million_tokens") / np.maximum(tokens, 1e-12),
        "energy_per_token": per_second("energy_per_token") / np.maximum(tokens, 1e-12),
    }
    parts = {name: part[j] for name, part in then.parts["tpot"].items()} | {"transfer": cross / gaps, "admission": wait / gaps}
    low: dict[str, FloatArray] = {}
    high: dict[str, FloatArray] = {}
    for name, array in value.items():
        source, k = (first, i) if name == "ttft" else (then, j)
        own = source.value[name]
        for sides, factor in ((low, source.low[name]), (high, source.high[name])):
            sides[name] = array * np.divide(factor, own, out=np.ones_like(own), where=own != 0)[k]
    names = tuple(dict.fromkeys((*first.violation, *then.violation)))
    violation = {name: np.maximum(first.violation[name][i], then.violation[name][j]) for name in names}
    evidence = None
    if first.evidence is not None and then.evidence is not None:
        evidence = np.maximum(first.evidence[i], then.evidence[j])
    return Metrics(n=n, value=value, low=low, high=high, parts={"tpot": parts}, violation=violation, evidence=evidence)


def _rate_of(
    model: ServingModel,
    pools: Sequence[tuple[Problem, Columns]],
    at: Bindings,
    per_token: FloatArray,
    latency: FloatArray,
    together: FloatArray,
) -> FloatArray:
    """Requests a second at which `together` requests are in flight in all: where rate · latency meets them, (n,).

    Each side's latency is read off its own curve over the rate (Little's law joins them). Between two points of both curves the
    requests in flight are a square of the rate: bisection finds the points, and the square is solved.
    """
    gaps = np.maximum(np.broadcast_to(np.asarray(at["output_tokens"], np.float64), (at.n,)) - 1.0, 0.0)
    cross = latency + per_token * np.asarray(at["input_tokens"], np.float64)
    curves = [_latencies(model, *pool, prefill=number == 0) for number, pool in enumerate(pools)]
    rate = np.empty(at.n)
    for start in range(0, at.n, _ROWS):
        part = slice(start, start + _ROWS)
        pair = [(most[index[part]], times, index[part]) for most, times, index in curves]
        rate[part] = _meeting(pair[0], pair[1], gaps[part], cross[part], together[part])
    return rate


_ROWS = 1 << 13
"""Plans joined at a time: their arrays stay in the cache of a core."""
_Pool = tuple[FloatArray, FloatArray, IntArray]
"""(highest rate (n,), seconds at `_SHARES` of it (k, RATES), row of each plan (n,)) of one pool."""


def _meeting(prefill: _Pool, decode: _Pool, gaps: FloatArray, cross: FloatArray, together: FloatArray) -> FloatArray:
    """The rate, at most what both pools carry, at which rate · (cross + prefill + gaps · decode) is `together`, (n,)."""

    def few(here: _Pool, point: IntArray) -> NDArray[np.bool_]:
        """Whether the requests in flight are too few at a point of one pool's curve."""
        rate = here[0] * _SHARES[point]
        own, other = here[1][here[2], point], _read(decode if here is prefill else prefill, rate)
        seconds = own + gaps * other if here is prefill else other + gaps * own
        return np.asarray(rate * (cross + seconds) <= together)

    places = []
    for here in (prefill, decode):
        most = here[0]
        left, right = np.full(len(most), -1), np.full(len(most), RATES)  # few at the left point, many at the right
        for _ in range(5):  # halves of 25 intervals
            middle = (left + right) // 2
            inside = right - left > 1
            below = few(here, np.clip(middle, 0, RATES - 1))
            left, right = np.where(inside & below, middle, left), np.where(inside & ~below, middle, right)
        places.append(left)
    square = np.zeros(len(cross))
    slope = cross.copy()
    for (most, times, index), left, weight in zip((prefill, decode), places, (1.0, gaps), strict=True):
        inner = np.clip(left, 0, RATES - 2)
        flat = (left < 0) | (left > RATES - 2)
        step = (times[index, inner + 1] - times[index, inner]) / (_SHARES[inner + 1] - _SHARES[inner]) / most
        step = np.where(flat, 0.0, step)
        slope = slope + weight * (times[index, np.clip(left, 0, RATES - 1)] - step * most * _SHARES[inner])
        square = square + weight * step
    root = np.sqrt(np.maximum(slope * slope + 4.0 * square * together, 0.0))
    highest = np.minimum(prefill[0], decode[0]) * (1.0 - 1e-11)  # rounding must not put it above what they carry
    return np.minimum(2.0 * together / (slope + root), highest)


def _latencies(
    model: ServingModel, problem: Problem, columns: Columns, *, prefill: bool
) -> tuple[FloatArray, FloatArray, IntArray]:
    """(highest rate (k,), seconds at RATES shares of it (k, RATES), combination of each plan (n,)) of one pool."""
    free = frozenset(columns.levels) - {"request_rate", "concurrency"}
    combinations, index = distinct(columns, free)
    levels = {name: entry for name, entry in combinations.levels.items() if name in free}
    base = Columns(n=combinations.n, codes={axis: combinations.codes[axis] for axis, _ in levels.values()}, levels=levels)
    open_ = dataclasses.replace(problem, scalars={**problem.scalars, "concurrency": 0.0, "request_rate": 1e12})
    states = states_of(open_, base, model.kernel_model)
    most = np.maximum(model.latencies(states, open_, base)[2], 1e-9)
    shares = _SHARES
    each = np.repeat(np.arange(base.n), RATES)
    repeated, states = base.take(each), states.take(each)
    rates = (most[:, None] * shares[None, :]).reshape(-1)
    first, token, _ = model.latencies(states, open_, _with_column(repeated, "request_rate", rates))
    times = first if prefill else token
    return most, times.reshape(base.n, RATES), index


_SHARES = np.concatenate([np.geomspace(0.001, 0.5, RATES // 2), 1.0 - np.geomspace(0.45, 0.002, RATES - RATES // 2)])


def _read(pool: _Pool, rate: FloatArray) -> FloatArray:
    """Seconds of each plan's pool at its rate, between the points of the curve, (n,)."""
    most, times, index = pool
    share = np.clip(rate / most, _SHARES[0], _SHARES[-1])
    left = np.clip(np.searchsorted(_SHARES, share, side="right") - 1, 0, RATES - 2)
    part = (share - _SHARES[left]) / (_SHARES[left + 1] - _SHARES[left])
    return np.asarray(times[index, left] * (1.0 - part) + times[index, left + 1] * part)


def _merged(n: int, pieces: list[tuple[IntArray, Metrics]]) -> Metrics:
    """Metrics of rows in any order, put in their places; what a piece lacks is 0 among parts."""

    def place(arrays: list[tuple[IntArray, Mapping[str, FloatArray]]], missing: float) -> dict[str, FloatArray]:
        whole: dict[str, FloatArray] = {}
        for rows, found in arrays:
            for name, array in found.items():
                whole.setdefault(name, np.full(n, missing))[rows] = array
        return whole

    metrics = dict.fromkeys(metric for _, piece in pieces for metric in piece.parts)
    evidence = np.zeros(n, np.int8)
    known = all(piece.evidence is not None for _, piece in pieces)
    for rows, piece in pieces:
        if piece.evidence is not None:
            evidence[rows] = piece.evidence
    return Metrics(
        n=n,
        value=place([(rows, piece.value) for rows, piece in pieces], np.nan),
        low=place([(rows, piece.low) for rows, piece in pieces], np.nan),
        high=place([(rows, piece.high) for rows, piece in pieces], np.nan),
        parts={m: place([(rows, piece.parts.get(m, {})) for rows, piece in pieces], 0.0) for m in metrics},
        violation=place([(rows, piece.violation) for rows, piece in pieces], -1.0),
        evidence=evidence if known else None,
    )
