"""Serving simulated iteration by iteration: the same plans and step tables as the closed form, with queues, tails and limits.

Times come from the simulation; what does not depend on queues (memory, device-hours, watts) from the closed form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.metrics import CostModel, Metrics
from costmodels.serving.capacity import capacity
from costmodels.serving.engine import engines
from costmodels.serving.intake import held_up, intake_seconds, lone_seconds, since_sent, waits
from costmodels.serving.pools import side, transfer_time
from costmodels.serving.speculation import accepted_tokens
from costmodels.serving.stack import find_serving_stack, plans_ahead
from costmodels.serving.statistics import Statistics, percentile_of
from spaces.columns import Columns, FloatArray
from spaces.problem import Problem
from spaces.serving_space import PREFILL
from spaces.traffic import Traffic, requests
from spaces.workload import Requests

LEAST, MOST = 1024, 20_000
"""Requests that are simulated unless the traffic says how many: ten times those in flight, between these."""
BISECTIONS = 8
"""Rates tried in search of the goodput, beside the ends."""
ATTAINED = 0.95
"""Share of requests that must keep the objective at the goodput."""

_MEASURES: Mapping[str, str] = {"ttft": "ttft", "tpot": "tpot", "inter_token": "inter_token", "request_latency": "latency"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SimulatedServing:
    """Cost model of serving by simulation; `closed` gives what queues do not change, and what is not simulated.

    `context` is the longest prompt and answer together, tokens; longer requests are refused and counted (`refused`). `router`
    deals requests out to replicas and attention groups (`costmodels.simulation.limits.ROUTERS`).
    """

    closed: CostModel
    traffic: Traffic
    asked: Statistics
    context: int = 0
    seed: int = 0
    router: str = "least-loaded"

    @property
    def reads(self) -> frozenset[str]:
        """The symbols of the closed form."""
        return self.closed.reads

    def bound(self, problem: Problem, points: Columns) -> Metrics:
        """The closed form's own bound."""
        return self.closed.bound(problem, points)

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:
        """All metrics of the n plans, simulated one after another."""
        found = self.closed.evaluate(problem, points)
        servers = _Servers.of(problem, points, self.context, self.router)
        count = self.count(found)
        rows = [self._simulated(servers, found, row, count) for row in range(points.n)]
        names = rows[0].keys() if rows else self._statistics(None).keys()
        own = {name: np.array([row[name] for row in rows], np.float64) for name in names}
        told = _replaced(found, own)
        return dataclasses.replace(told, parts={**told.parts, "memory": memory_parts(problem, points)})

    def count(self, found: Metrics) -> int:
        """Requests to simulate, the same for every plan of a batch whose closed form is `found`."""
        traffic = self.traffic
        if traffic.trace is not None:
            return len(traffic.trace)
        if traffic.count:
            return traffic.count
        sharp = max((percentile_of(name)[1] for name in self.asked.percentiles), default=50.0)
        least = max(LEAST, min(int(20 / max(1 - sharp / 100, 1e-3)), 2 * MOST))
        if traffic.concurrency:
            return int(np.clip(10 * traffic.concurrency, least, MOST))
        flying = found.value["request_rate"] * found.value["request_latency"]
        return int(np.clip(10 * float(np.median(flying)) if len(flying) else 0, least, MOST))

    def _simulated(self, servers: _Servers, found: Metrics, row: int, count: int) -> dict[str, float]:
        """Statistics of one plan."""
        if found.violation["memory"][row] > 0:  # nothing runs: the closed form says by how much
            return {name: float("nan") for name in self._statistics(None)}
        outcome = servers.serve(row, requests(self.traffic, count, self.seed))
        figures = self._statistics(outcome, servers.overhead)
        if self.asked.goodput and self.asked.objective:
            figures["goodput"] = self._goodput(servers, found, row, count)
            figures["goodput_per_device"] = figures["goodput"] / float(found.value["devices"][row])
        return figures

    def _statistics(self, outcome: Any, overhead: float = 0.0) -> dict[str, float]:
        """Figures of one simulation, seen by a client `overhead` seconds away; names alone when there is none."""
        steady = self.traffic.concurrency == 0 and self.traffic.trace is None
        names = [*_MEASURES, *self.asked.percentiles, "tokens_per_second", "requests_per_second", "kv_headroom", "refused"]
        names += ["slo_attainment"] if self.asked.objective else []
        names += ["goodput", "goodput_per_device"] if self.asked.goodput and self.asked.objective else []
        if outcome is None:
            return dict.fromkeys(names, 0.0)
        figures = {name: outcome.mean(measure, steady=steady) for name, measure in _MEASURES.items()}
        if not np.isfinite(figures["tpot"]):  # answers of one token have no time between tokens
            figures["tpot"] = figures["inter_token"] = 0.0
        for name in self.asked.percentiles:
            latency, q = percentile_of(name)
            figures[name] = outcome.percentile(_MEASURES[latency], q, steady=steady)
        for name in figures:  # the way from the client and back is part of both, and of nothing else
            figures[name] += overhead if name.startswith(("ttft", "request_latency")) else 0.0
        figures["tokens_per_second"] = outcome.token_throughput(steady=steady)
        figures["requests_per_second"] = outcome.request_throughput(steady=steady)
        figures["kv_headroom"] = float(np.min(1.0 - outcome.kv_peak / np.maximum(outcome.kv_blocks, 1)))
        figures["refused"] = float(np.sum(outcome.too_long > 0))
        if self.asked.objective:
            figures["slo_attainment"] = outcome.attainment(self._slo(overhead), steady=steady)
        return figures

    def _slo(self, overhead: float) -> Any:
        """The objective as the scheduler sees it: less the client's way to it and back."""
        from costmodels.simulation.outcome import Slo

        ttft, latency = (max(bound - overhead, 1e-6) for bound in (self.asked.ttft, self.asked.latency))
        return Slo(ttft=ttft, tpot=self.asked.tpot, latency=latency)

    def _goodput(self, servers: _Servers, found: Metrics, row: int, count: int) -> float:
        """The largest rate at which `ATTAINED` of the requests keep the objective, by bisection; 0 when not even few do."""
        excess = float(found.violation["rate"][row])
        rate = float(found.value["request_rate"][row])
        highest = rate / max(1.0 + excess, 1e-3) if excess > -0.999 else rate
        slo = self._slo(servers.overhead)

        def attained(at: float) -> float:
            return float(servers.serve(row, requests(self.traffic, count, self.seed, at)).attainment(slo, steady=True))

        low, high = 0.02 * highest, 1.2 * highest
        if attained(low) < ATTAINED:
            return 0.0
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if attained(middle) >= ATTAINED else (low, middle)
        return low


def serve(problem: Problem, points: Columns, asked: Requests, context: int = 0) -> tuple[Any, float]:
    """The outcome of given requests on one plan (a batch of one), and seconds between a client and its scheduler."""
    servers = _Servers.of(problem, points, context)
    return servers.serve(0, asked), servers.overhead


def _replaced(found: Metrics, own: Mapping[str, FloatArray]) -> Metrics:
    """The closed form's metrics with those that were simulated in their place, and what follows from them."""
    value, low, high = dict(found.value), dict(found.low), dict(found.high)
    own = dict(own)
    ran = np.isfinite(own["ttft"])
    # what the closed form divides by, where a trace has no rate and it serves nothing
    scale = np.where(ran, own["tokens_per_second"] / np.maximum(found.value["tokens_per_second"], 1e-12), 1.0)
    own["tokens_per_second_per_device"] = own["tokens_per_second"] / found.value["devices"]
    own["tokens_per_second_per_user"] = np.divide(1.0, own["tpot"], out=np.zeros_like(own["tpot"]), where=own["tpot"] > 0)
    own["request_rate"] = own["requests_per_second"]
    own["price_per_million_tokens"] = found.value["price_per_million_tokens"] / np.maximum(scale, 1e-300)
    own["energy_per_token"] = found.value["energy_per_token"]
    for name, array in own.items():
        known = name in found.value
        chosen = np.where(ran, array, found.value[name]) if known else np.where(ran, array, 0.0)
        before = np.where(found.value[name] == 0, 1.0, found.value[name]) if known else np.ones(found.n)
        value[name] = chosen
        for interval, end in ((low, found.low), (high, found.high)):
            ratio = np.where(found.value[name] == 0, 1.0, end[name] / before) if known and name in end else np.ones(found.n)
            interval[name] = chosen * ratio
    parts = dict(found.parts)
    if "tpot" in parts:
        whole = np.asarray(sum(parts["tpot"].values()))
        # the closed form's parts, less of each where the simulation came out quicker than their sum
        scale = np.minimum(value["tpot"] / np.maximum(whole, 1e-300), 1.0)
        split = {name: part * scale for name, part in parts["tpot"].items()}
        parts["tpot"] = {**split, "queueing_and_mixing": np.maximum(value["tpot"] - whole, 0.0)}
    return dataclasses.replace(found, value=value, low=low, high=high, parts=parts)


def memory_parts(problem: Problem, points: Columns) -> dict[str, FloatArray]:
    """Bytes on the fullest device by what they hold, (n,) each; of two pools those of the fuller."""
    mode = np.broadcast_to(np.asarray(problem.at(points).get("mode", 0)), (points.n,))
    whole = {name: np.zeros(points.n) for name in _HELD}
    for code in (0, 1):
        rows = np.flatnonzero(mode == code)
        if not len(rows):
            continue
        some = points.take(rows)
        sides = [side(problem, some, start) for start in (PREFILL, "")] if code else [(problem, some)]
        held = [_held(*one) for one in sides]
        fuller = np.argmax(np.stack([np.asarray(sum(parts.values())) for parts in held]), axis=0)
        for name in _HELD:
            whole[name][rows] = np.choose(fuller, [parts[name] for parts in held])
    return whole


_HELD = ("weights", "activations", "graphs", "reserve", "kv_cache")


def _held(problem: Problem, points: Columns) -> dict[str, FloatArray]:
    found = capacity(problem.architecture, find_serving_stack(problem.stack), problem.at(points))
    parts = {name: getattr(found, name) for name in _HELD[:-1]}
    return parts | {"kv_cache": found.token * found.tokens}


@dataclass(frozen=True, slots=True, eq=False)
class _Servers:
    """The engines of n plans as the simulator wants them: one pool each, or a prefill and a decode pool with a link."""

    problem: Problem
    pools: tuple[tuple[Any, ...], ...]
    links: tuple[Any, ...]
    paces: FloatArray
    router: str

    @property
    def overhead(self) -> float:
        """Seconds between a client and the scheduler."""
        return float(lone_seconds(self.problem.scalars, self.problem.scalars["input_tokens"]))

    @classmethod
    def of(cls, problem: Problem, points: Columns, context: int, router: str = "least-loaded") -> _Servers:
        """Tables and limits of n plans."""
        from costmodels.simulation.limits import KvLink

        mode = np.broadcast_to(np.asarray(problem.at(points).get("mode", 0)), (points.n,))
        pools: list[tuple[Any, ...]] = [()] * points.n
        links: list[Any] = [None] * points.n
        together = np.flatnonzero(mode == 0)
        if len(together):
            for row, pool in zip(together, _pools(problem, points.take(together), context), strict=True):
                pools[row] = (pool,)
        apart = np.flatnonzero(mode == 1)
        if len(apart):
            some = points.take(apart)
            both = [_pools(*side(problem, some, start), context) for start in (PREFILL, "")]
            per_token, latency = transfer_time(problem, some)
            for i, row in enumerate(apart):
                pools[row] = (both[0][i], both[1][i])
                links[row] = KvLink(latency=float(latency[i]), time_per_token=float(per_token[i]))
        paces = np.broadcast_to(np.asarray(problem.at(points)["kernel.host.pace"], np.float64), (points.n,))
        return cls(problem, tuple(pools), tuple(links), paces, router)

    def serve(self, row: int, asked: Requests) -> Any:
        """The outcome of one plan."""
        from costmodels.simulation.simulator import simulate, simulate_disaggregated

        pools = self.pools[row]
        if asked.concurrency:  # a client's next request is as far from the scheduler as its last answer
            asked = dataclasses.replace(asked, turnaround=self.overhead)
        pool = pools[0]
        at = {**self.problem.scalars, "kernel.host.pace": float(self.paces[row])}
        waited = waits(asked, intake_seconds(at, asked.prompt), pool.ranks)
        asked = held_up(asked, waited)
        if len(pools) == 2:
            found = simulate_disaggregated(pools[0], pools[1], asked, self.links[row], router=self.router)
        else:
            found = simulate(pool.tables, pool.engine, asked, pool.limits, replicas=pool.replicas, router=self.router)
        return since_sent(found, waited)


def _pools(problem: Problem, points: Columns, context: int) -> list[Any]:
    """Each plan's engines under the stack's scheduler."""
    from costmodels.simulation.limits import UNBOUNDED_BLOCKS, Limits, Pool

    tables, engine = engines(problem, points)
    stack = find_serving_stack(problem.stack)
    at = problem.at(points)
    held = capacity(problem.architecture, stack, at)

    def rows(name: str, default: float = 0.0) -> FloatArray:
        return np.broadcast_to(np.asarray(at.get(name, default), np.float64), (points.n,))

    block = np.maximum(rows("stack.block_tokens", 16), 1).astype(int)
    batch = np.maximum(rows("max_batch"), 1).astype(int)
    drafted = rows("speculation").astype(int)
    accepted = accepted_tokens(rows("speculation"), rows("acceptance"))
    mixed, whole = rows("stack.mixed_steps", 1) > 0, rows("stack.reserve_output") > 0
    swaps = rows("preemption") > 0
    spare = np.maximum(held.host_memory - held.on_host - rows("kv_offload") * held.whole * held.tokens, 0.0)
    on_host = np.minimum(spare / np.maximum(held.token, 1e-3) / block, UNBOUNDED_BLOCKS).astype(int)
    ahead = np.broadcast_to(plans_ahead(at), (points.n,)) > 0
    # every device moves its own part of a token over its own link
    each = held.token / (rows("device.host_link_bandwidth") * rows("link.host.copy"))
    found = []
    for i in range(points.n):
        limits = Limits(
            max_batch=int(batch[i]),
            max_tokens=int(max(rows("token_budget")[i], batch[i] * (1 + drafted[i]))),
            policy="mixed" if mixed[i] else "prefill-first",
            # a server that cuts no prompt holds the longest beside what decodes, else it was told to cut
            chunked=bool(rows("stack.chunked", 1)[i] or rows("input_tokens")[i] + batch[i] > rows("token_budget")[i]),
            kv_blocks=max(int(held.tokens[i] // block[i]), 1),
            block_size=int(block[i]),
            reserve="whole" if whole[i] else "prompt",
            context=context,
            ahead=bool(ahead[i]),
            preemption="swap" if swaps[i] else "recompute",
            host_blocks=int(on_host[i]),
            swap_time_per_token=float(each[i]),
            attention_dp=int(rows("attention_data")[i]),
            verified_tokens=1 + int(drafted[i]),
            accepted_tokens=float(np.clip(accepted[i], 1, 1 + drafted[i])),
        )
        found.append(Pool(tables=tables, engine=int(engine[i]), limits=limits, replicas=int(rows("data")[i])))
    return found
