"""Serving simulated the slow, plain way: a list of requests, a set of numbered KV blocks, one loop a token.

The reference that `costmodels.simulation` must agree with. It shares no code with it: no counters that stand for many
requests, no residues, no linked lists; every block has a number and an owner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from costmodels.simulation import KvLink, Limits, Pool
from costmodels.step_tables import Batch, step_time
from spaces.workload import Requests


@dataclass(eq=False)
class Request:
    number: int
    arrival: float
    prompt: int
    output: int
    priority: int
    prefix: int
    shared: int
    keeps: bool
    known: int
    times: list[float] = field(default_factory=list)
    state: str = "new"
    cached: int = 0
    own: list[int] = field(default_factory=list)
    hit: int = 0
    admitted: float = math.nan
    preemptions: int = 0
    lane: Lane | None = None
    joined: int = 0

    @property
    def target(self) -> int:
        return self.prompt + len(self.times)


@dataclass(eq=False)
class Lane:
    pool: Pool
    engine: int
    free: list[int]
    waiting: list[Request] = field(default_factory=list)
    running: list[Request] = field(default_factory=list)
    prefixes: dict[int, list[int]] = field(default_factory=dict)
    users: dict[int, int] = field(default_factory=dict)
    unused: list[int] = field(default_factory=list)
    on_host: int = 0

    def available(self) -> int:
        return len(self.free) + sum(len(self.prefixes[k]) for k in self.unused)

    def take(self, count: int) -> list[int]:
        while len(self.free) < count:
            oldest = self.unused[0]
            self.free.append(self.prefixes[oldest].pop())
            if not self.prefixes[oldest]:
                self.unused.pop(0)
        taken = self.free[:count]
        del self.free[:count]
        return taken


@dataclass(eq=False)
class Cohort:
    engine: int
    cells: list[list[Request]]
    next: float = math.inf
    busy: bool = False
    ready: bool = False
    steps: list[int] = field(default_factory=list)
    decoding: list[list[Request]] = field(default_factory=list)
    chunks: list[list[Request]] = field(default_factory=list)
    filling: list[bool] = field(default_factory=list)
    began: float = math.inf
    waited: int = 0


class Reference:
    """One run; `requests` afterwards hold their token times."""

    def __init__(self, pools: tuple[Pool, ...], requests: Requests, link: KvLink, router: str) -> None:
        self.pools, self.link, self.router = pools, link, router
        self.requests = [
            Request(
                i,
                float(requests.arrival[i]),
                int(requests.prompt[i]),
                int(requests.output[i]),
                0 if requests.priority is None else int(requests.priority[i]),
                -1 if requests.prefix is None else int(requests.prefix[i]),
                0 if requests.shared is None else min(int(requests.shared[i]), int(requests.prompt[i])),
                requests.keeps is not None and bool(requests.keeps[i]),
                0 if requests.known is None else min(int(requests.known[i]), int(requests.prompt[i]) - 1),
            )
            for i in range(len(requests))
        ]
        follows = [-1] * len(requests) if requests.follows is None else [int(j) for j in requests.follows]
        self.after = {j: i for i, j in enumerate(follows) if j >= 0}
        self.turnaround = requests.turnaround
        self.think = [0.0] * len(requests) if requests.think is None else [float(t) for t in requests.think]
        heads = sorted((i for i, j in enumerate(follows) if j < 0), key=lambda i: (float(requests.arrival[i]), i))
        known = requests.concurrency or len(heads)
        self.static, self.spare = heads[:known], heads[known:]
        self.coming: list[tuple[float, int]] = []
        self.lanes: list[list[Lane]] = []
        self.cohorts: list[Cohort] = []
        self.engines: list[tuple[Pool, list[Lane]]] = []
        self.entry: list[float] = []
        self.link_free: list[float] = []
        self.turn = [0] * len(pools)
        self.preemptions = self.scheduled = self.joins = 0
        for pool in pools:
            mine: list[Lane] = []
            for _ in range(pool.replicas):
                number = len(self.engines)
                ranks = pool.limits.attention_dp
                lanes = [Lane(pool, number, list(range(pool.limits.kv_blocks))) for _ in range(ranks)]
                stages = int(pool.tables.stages[pool.engine])
                for _ in range(stages):
                    cohort = Cohort(number, [[] for _ in range(ranks)])
                    cohort.steps, cohort.filling = [0] * ranks, [True] * ranks
                    self.cohorts.append(cohort)
                self.engines.append((pool, lanes))
                self.entry.append(0.0)
                self.link_free.append(0.0)
                mine += lanes
            self.lanes.append(mine)

    def run(self) -> Reference:
        while True:
            cohort = min(self.cohorts, key=lambda one: one.next)
            arrival = self.next_arrival()
            now = min(cohort.next, arrival)
            if now == math.inf:
                return self
            if arrival <= cohort.next:
                self.arrive(now)
                continue
            if cohort.busy:
                self.complete(cohort, now)
                if self.next_arrival() <= now:
                    continue
            self.start(cohort, now)

    def next_arrival(self) -> float:
        times = [self.requests[self.static[0]].arrival] if self.static else []
        return min([*times, *(time for time, _ in self.coming)], default=math.inf)

    def arrive(self, now: float) -> None:
        back = sorted(one for one in self.coming if one[0] <= now)
        if back:
            self.coming.remove(back[0])
            request = self.requests[back[0][1]]
        else:
            request = self.requests[self.static.pop(0)]
        stage = 0
        if request.state == "moving":
            lane = request.lane
            assert lane is not None
            if request.keeps:
                self.offer(lane, request, request.prompt)
            self.free(lane, request)
            self.wake(lane.engine, now)
            request.state, stage = "arrived", 1
        else:
            request.arrival = now
            if self.never(request):
                request.state = "rejected"
                self.follow(request, now)
                return
            request.state = "waiting"
        lane = self.route(stage, request)
        lane.waiting.append(request)
        lane.waiting.sort(key=lambda one: one.priority)
        self.wake(lane.engine, now)

    def never(self, request: Request) -> bool:
        for number, pool in enumerate(self.pools):
            limits = pool.limits
            if limits.context and request.prompt + request.output > limits.context:
                return True
            moved = len(self.pools) > 1 and number == 0
            cached = request.prompt if moved else request.prompt + request.output - 1 + limits.verified_tokens - 1
            if math.ceil(cached / limits.block_size) > limits.kv_blocks:
                return True
        return False

    def route(self, stage: int, request: Request) -> Lane:
        lanes, pool = self.lanes[stage], self.pools[stage]
        if self.router == "round-robin":
            turn = self.turn[stage]
            self.turn[stage] = (turn + 1) % len(lanes)
            return lanes[(turn % pool.replicas) * pool.limits.attention_dp + turn // pool.replicas]
        loads = [len(lane.waiting) + len(lane.running) for lane in lanes]
        best = loads.index(min(loads))
        if self.router == "prefix-aware" and stage == 0:
            longest = 0
            for i, lane in enumerate(lanes):
                hit = self.found(lane, request)
                if hit > longest and loads[i] <= 2 * min(loads) + 4:
                    best, longest = i, hit
        return lanes[best]

    def follow(self, request: Request, now: float) -> None:
        if request.number in self.after:
            successor = self.after[request.number]
            self.coming.append((now + self.think[successor], successor))
        elif self.spare:
            self.coming.append((now + self.turnaround, self.spare.pop(0)))

    def wake(self, engine: int, now: float) -> None:
        for cohort in self.cohorts:
            if cohort.engine == engine and not cohort.busy and not cohort.ready:
                cohort.ready, cohort.next = True, max(now, self.entry[engine])
                return

    def found(self, lane: Lane, request: Request) -> int:
        size = lane.pool.limits.block_size
        usable = min(request.shared, request.target - 1) // size
        return min(len(lane.prefixes.get(request.prefix, [])), usable) * size if request.prefix >= 0 else 0

    def offer(self, lane: Lane, request: Request, tokens: int) -> None:
        if request.prefix < 0:
            return
        size = lane.pool.limits.block_size
        blocks = lane.prefixes.setdefault(request.prefix, [])
        more = tokens // size - request.hit // size
        if more <= 0 or len(blocks) != request.hit // size:
            return
        if request.hit == 0:
            lane.users[request.prefix] = lane.users.get(request.prefix, 0) + 1
        blocks += request.own[:more]
        del request.own[:more]
        request.hit += more * size

    def free(self, lane: Lane, request: Request) -> None:
        lane.free += request.own
        request.own = []
        if request.hit:
            lane.users[request.prefix] -= 1
            if not lane.users[request.prefix]:
                lane.unused.append(request.prefix)
            request.hit = 0

    def blocks(self, limits: Limits, request: Request, tokens: int) -> int:
        if limits.reserve == "whole" and not (len(self.pools) > 1 and limits is self.pools[0].limits):
            tokens = request.prompt + request.output - 1
        return math.ceil(tokens / limits.block_size)

    def complete(self, cohort: Cohort, now: float) -> None:
        cohort.busy, cohort.ready = False, True
        pool, lanes = self.engines[cohort.engine]
        for rank, lane in enumerate(lanes):
            if cohort.decoding[rank]:
                gain = self.gain(pool.limits, cohort, rank)
                cohort.steps[rank] += 1
                ended = [(i, one) for i in range(gain) for one in cohort.decoding[rank] if self.left(one) == i + 1]
                for request in cohort.decoding[rank]:
                    request.times += [now] * min(gain, self.left(request))
                    request.cached += gain
                for _, request in sorted(ended, key=lambda pair: (pair[0], -pair[1].joined)):
                    self.finish(lane, cohort, rank, request, now)
            for request in cohort.chunks[rank]:
                if request.cached == request.target:
                    self.end_prefill(pool, lane, cohort, rank, request, now)

    def left(self, request: Request) -> int:
        return request.output - len(request.times)

    def gain(self, limits: Limits, cohort: Cohort, rank: int) -> int:
        steps, accepted = cohort.steps[rank], limits.accepted_tokens
        return math.floor(accepted * (steps + 1) + 1e-9) - math.floor(accepted * steps + 1e-9)

    def end_prefill(self, pool: Pool, lane: Lane, cohort: Cohort, rank: int, request: Request, now: float) -> None:
        request.times.append(now)
        self.offer(lane, request, min(request.shared, request.prompt))
        if not self.left(request):
            self.finish(lane, cohort, rank, request, now)
        elif len(self.pools) > 1 and pool is self.pools[0]:
            cohort.cells[rank].remove(request)
            lane.running.remove(request)
            request.state, request.lane = "moving", lane
            engine = lane.engine
            self.link_free[engine] = max(self.link_free[engine], now) + request.prompt * self.link.time_per_token
            self.coming.append((self.link_free[engine] + self.link.latency, request.number))
        else:
            self.join(request)

    def join(self, request: Request) -> None:
        self.joins += 1
        request.joined, request.state = self.joins, "decoding"

    def finish(self, lane: Lane, cohort: Cohort, rank: int, request: Request, now: float) -> None:
        cohort.cells[rank].remove(request)
        lane.running.remove(request)
        if request.keeps:
            self.offer(lane, request, min(request.cached, request.prompt + request.output - 1))
        self.free(lane, request)
        request.state = "done"
        self.follow(request, now)

    def start(self, cohort: Cohort, now: float) -> None:
        pool, lanes = self.engines[cohort.engine]
        cohort.decoding, cohort.chunks = [[] for _ in lanes], [[] for _ in lanes]
        seconds = -1.0
        for seen in [cohort.began, now] if pool.limits.ahead else [now]:
            if seconds < 0:
                held = self.hold(pool, lanes, cohort, seen)
                for rank, lane in enumerate(lanes):
                    seconds = max(seconds, self.schedule(pool, lane, cohort, rank, now, seen, held))
        cohort.began = now if seconds >= 0 else math.inf
        cohort.ready, cohort.busy = False, seconds >= 0
        cohort.next = math.inf
        if seconds >= 0:
            self.scheduled += 1
            cohort.next = now + seconds
            self.entry[cohort.engine] = now + seconds * float(pool.tables.slowest_share[pool.engine])
            if any(lane.waiting for lane in lanes) and pool.tables.stages[pool.engine] > 1:
                self.wake(cohort.engine, now)

    def hold(self, pool: Pool, lanes: list[Lane], cohort: Cohort, seen: float) -> bool:
        limits = pool.limits
        if not limits.patience or len(lanes) == 1 or (len(self.pools) > 1 and pool is self.pools[1]):
            return False
        cohort.waited += 1
        all_decode = all(any(one.state == "decoding" for one in cell) for cell in cohort.cells)
        ready = [self.has_prompt(limits, lane, cell, seen) for lane, cell in zip(lanes, cohort.cells, strict=True)]
        if all(ready) or not all_decode or cohort.waited >= limits.patience:
            cohort.waited = 0
            return False
        return True

    def has_prompt(self, limits: Limits, lane: Lane, cell: list[Request], seen: float) -> bool:
        if any(one.state == "prefill" for one in cell):
            return True
        if not lane.waiting or len(lane.running) >= limits.max_batch:
            return False
        request = lane.waiting[0]
        return request.state == "waiting" and request.arrival <= seen and self.fits(limits, lane, request)

    def fits(self, limits: Limits, lane: Lane, request: Request) -> bool:
        hit = self.found(lane, request)
        own = self.blocks(limits, request, request.target) - hit // limits.block_size
        pinned = hit // limits.block_size if hit and not lane.users.get(request.prefix, 0) else 0
        kept = math.ceil(limits.watermark * limits.kv_blocks) if lane.running else 0
        return own + pinned + kept <= lane.available()

    def schedule(self, pool: Pool, lane: Lane, cohort: Cohort, rank: int, now: float, seen: float, held: bool) -> float:
        limits, cell = pool.limits, cohort.cells[rank]
        step = Step(limits.max_tokens)
        if not cell:
            cohort.filling[rank] = True
        mixed = limits.policy == "mixed"
        if not mixed and not held:
            self.continue_prefill(limits, cell, step)
            if limits.policy != "static" or cohort.filling[rank]:
                self.admit(pool, lane, cohort, rank, step, now, seen, prefills=True, decodes=False, gain=0)
        decoding: list[Request] = []
        if mixed or not step.queries:
            gain = self.gain(limits, cohort, rank)
            gave_way = self.grow(limits, lane, cell, gain, step)
            step.budget -= limits.verified_tokens * sum(one.state == "decoding" for one in cell)
            if mixed and not held:
                self.continue_prefill(limits, cell, step)
            alone = gave_way and not cell
            if alone or not gave_way:
                prefills = alone or (mixed and not held)
                self.admit(pool, lane, cohort, rank, step, now, seen, prefills=prefills, decodes=True, gain=gain)
            decoding = [one for one in cell if one.state == "decoding"]
            if decoding:
                cohort.filling[rank] = False
        cohort.decoding[rank], cohort.chunks[rank] = decoding, step.chunks
        if not decoding and not step.queries:
            return -1.0
        batch = Batch(
            decode_requests=float(len(decoding)),
            decode_kv=float(sum(one.cached for one in decoding)),
            decode_tokens=float(len(decoding) * limits.verified_tokens),
            prefill_queries=float(step.queries),
            prefill_pairs=step.pairs,
            prefill_cached=float(step.found),
            prompts_finished=float(sum(one.cached == one.target for one in step.chunks)),
        )
        return float(step_time(pool.tables, pool.engine, batch)) + step.delay

    def grow(self, limits: Limits, lane: Lane, cell: list[Request], gain: int, step: Step) -> bool:
        gave_way = False
        while True:
            decoding = [one for one in cell if one.state == "decoding"]
            needs = [
                0
                if limits.reserve == "whole"
                else self.blocks(limits, one, one.cached + gain) - one.hit // limits.block_size - len(one.own)
                for one in decoding
            ]
            if sum(needs) <= lane.available():
                for one, need in zip(decoding, needs, strict=True):
                    one.own += lane.take(need)
                return gave_way
            gave_way = True
            lowest = max(one.priority for one in cell)
            victim = [one for one in cell if one.priority == lowest][-1]
            self.preemptions += 1
            victim.preemptions += 1
            blocks = math.ceil(victim.cached / limits.block_size)
            swapped = victim.state == "decoding" and limits.preemption == "swap" and lane.on_host + blocks <= limits.host_blocks
            if swapped:
                lane.on_host += blocks
                step.delay += victim.cached * limits.swap_time_per_token
            else:
                victim.cached = 0
            self.free(lane, victim)
            cell.remove(victim)
            lane.running.remove(victim)
            victim.state = "swapped" if swapped else "waiting"
            lane.waiting.insert(0, victim)
            lane.waiting.sort(key=lambda one: one.priority)

    def continue_prefill(self, limits: Limits, cell: list[Request], step: Step) -> None:
        for request in cell:
            if request.state == "prefill" and step.budget > 0:
                self.chunk(limits, request, step)

    def chunk(self, limits: Limits, request: Request, step: Step) -> None:
        tokens = request.target - request.cached
        if limits.chunked:
            tokens = min(tokens, step.budget, limits.chunk or tokens)
        step.found += request.cached
        step.pairs += float(sum(request.cached + i + 1 for i in range(tokens)))
        step.queries += tokens
        step.budget -= tokens
        step.chunks.append(request)
        request.cached += tokens

    def admit(
        self,
        pool: Pool,
        lane: Lane,
        cohort: Cohort,
        rank: int,
        step: Step,
        now: float,
        seen: float,
        *,
        prefills: bool,
        decodes: bool,
        gain: int,
    ) -> None:
        limits, cell = pool.limits, cohort.cells[rank]
        stages = int(pool.tables.stages[pool.engine])
        together = min(limits.max_batch, len(lane.running) + len(lane.waiting))
        most = math.ceil(together / stages) if stages > 1 else limits.max_batch
        while step.budget > 0 and lane.waiting and len(lane.running) < limits.max_batch and len(cell) < most:
            request = lane.waiting[0]
            if request.arrival > seen:
                return
            kept = math.ceil(limits.watermark * limits.kv_blocks) if lane.running else 0
            if request.state == "waiting":
                hit = self.found(lane, request)
                filled = max(hit, request.known)
                rest = request.target - filled
                if not prefills or (not limits.chunked and rest > step.budget and step.budget < limits.max_tokens):
                    return
                if not self.fits(limits, lane, request):
                    return
                own = self.blocks(limits, request, request.target) - hit // limits.block_size
                pinned = hit // limits.block_size
                if hit and not lane.users.get(request.prefix, 0):
                    lane.unused.remove(request.prefix)
                    while len(lane.prefixes[request.prefix]) > pinned:
                        lane.free.append(lane.prefixes[request.prefix].pop())
                if hit:
                    lane.users[request.prefix] = lane.users.get(request.prefix, 0) + 1
                request.own, request.hit, request.cached = lane.take(own), hit, filled
                request.state = "prefill"
                self.begin(lane, cell, request, now)
                self.chunk(limits, request, step)
            else:
                own = self.blocks(limits, request, request.cached + gain)
                if not decodes or step.budget < limits.verified_tokens or own + kept > lane.available():
                    return
                if request.state == "swapped":
                    lane.on_host -= math.ceil(request.cached / limits.block_size)
                    step.delay += request.cached * limits.swap_time_per_token
                step.budget -= limits.verified_tokens
                request.own = lane.take(own)
                self.join(request)
                self.begin(lane, cell, request, now)

    def begin(self, lane: Lane, cell: list[Request], request: Request, now: float) -> None:
        if math.isnan(request.admitted):
            request.admitted = now
        lane.waiting.pop(0)
        lane.running.append(request)
        cell.append(request)


@dataclass(eq=False)
class Step:
    budget: int
    queries: int = 0
    pairs: float = 0.0
    found: int = 0
    delay: float = 0.0
    chunks: list[Request] = field(default_factory=list)
