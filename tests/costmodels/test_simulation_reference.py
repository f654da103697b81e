"""The simulator agrees with a plain one, request by request and token by token, whatever the scheduler's limits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_reference import Reference
from serving_tables import imagined_tables

from costmodels.simulation import KvLink, Limits, Outcome, Pool, simulate, simulate_disaggregated
from costmodels.simulation import state as w
from costmodels.simulation.layout import Block
from spaces.workload import Requests


@dataclass(frozen=True)
class Case:
    """A small system under load, and its requests."""

    pools: tuple[Pool, ...]
    requests: Requests
    router: str
    link: KvLink

    def simulated(self, watch: Callable[[Block], None] | None = None) -> Outcome:
        if len(self.pools) == 1:
            pool = self.pools[0]
            several = {"replicas": pool.replicas, "router": self.router, "watch": watch}
            return simulate(pool.tables, pool.engine, self.requests, pool.limits, **several)  # type: ignore[arg-type]
        prefill, decode = self.pools
        return simulate_disaggregated(prefill, decode, self.requests, self.link, router=self.router, watch=watch)

    def reference(self) -> Reference:
        return Reference(self.pools, self.requests, self.link, self.router).run()


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    batch = draw(st.integers(1, 6))
    verified = draw(st.integers(1, 4))
    limits = Limits(
        max_batch=batch,
        max_tokens=draw(st.integers(batch * verified, batch * verified + 60)),
        chunk=draw(st.sampled_from([0, 0, 7, 20])),
        chunked=draw(st.booleans()),
        policy=draw(st.sampled_from(["mixed", "mixed", "prefill-first", "static"])),
        kv_blocks=draw(st.integers(8, 40)),
        block_size=draw(st.sampled_from([1, 3, 4])),
        watermark=draw(st.sampled_from([0.0, 0.1])),
        reserve=draw(st.sampled_from(["prompt", "prompt", "whole"])),
        preemption=draw(st.sampled_from(["recompute", "swap"])),
        host_blocks=draw(st.sampled_from([0, 10, 1000])),
        swap_time_per_token=1e-4,
        context=draw(st.sampled_from([0, 60])),
        attention_dp=draw(st.integers(1, 3)),
        patience=draw(st.sampled_from([0, 0, 1, 3, 50])),
        ahead=draw(st.booleans()),
        verified_tokens=verified,
        accepted_tokens=draw(st.floats(1.0, float(verified))),
    )
    stages = draw(st.integers(1, 3))
    tables = imagined_tables(
        stages=stages,
        slowest_share=draw(st.floats(1.0 / stages, 1.0)),
        launch=draw(st.sampled_from([0.0, 8e-3])),
        graph_sequences=draw(st.sampled_from([0.0, 3.0, 64.0])),
        seed=draw(st.integers(0, 5)),
        fetch=draw(st.sampled_from([0.0, 0.0, 2e-4])),
    )
    return Pool(tables=tables, engine=draw(st.integers(0, 1)), limits=limits, replicas=draw(st.integers(1, 3)))


@st.composite
def requests(draw: st.DrawFn) -> Requests:
    n = draw(st.integers(1, 25))
    generator = np.random.default_rng(draw(st.integers(0, 10**6)))
    closed = draw(st.booleans())
    gaps = generator.exponential(draw(st.sampled_from([1e-3, 1e-2, 0.1])), n)
    optional: dict[str, object] = {}
    if draw(st.booleans()):
        optional["priority"] = generator.integers(0, 3, n)
    prompt = generator.integers(1, 40, n)
    if draw(st.booleans()):
        optional["prefix"] = generator.integers(-1, 4, n)
        optional["shared"] = generator.integers(0, 40, n)
        optional["keeps"] = generator.random(n) < 0.5
    if draw(st.booleans()):
        follows = np.full(n, -1)
        for i in range(1, n):
            free = np.setdiff1d(np.arange(i), follows)
            if len(free) and generator.random() < 0.5:
                follows[i] = generator.choice(free)
        optional["follows"] = follows
        optional["think"] = generator.exponential(0.02, n)
    if draw(st.booleans()):
        optional["known"] = generator.integers(0, 40, n)
    return Requests(
        arrival=np.zeros(n) if closed else np.cumsum(gaps),
        prompt=prompt,
        output=generator.integers(1, 30, n),
        concurrency=draw(st.integers(1, 8)) if closed else 0,
        turnaround=draw(st.sampled_from([0.0, 4e-3])),
        **optional,  # type: ignore[arg-type]
    )


@st.composite
def cases(draw: st.DrawFn) -> Case:
    systems = (draw(pools()), draw(pools())) if draw(st.integers(0, 2)) == 0 else (draw(pools()),)
    return Case(
        systems,
        draw(requests()),
        draw(st.sampled_from(["round-robin", "least-loaded", "prefix-aware"])),
        KvLink(latency=draw(st.sampled_from([0.0, 5e-3])), time_per_token=1e-4),
    )


@settings(max_examples=50, deadline=None)
@given(cases())
def test_every_token_comes_when_the_plain_simulator_says(case: Case) -> None:
    outcome, reference = case.simulated(), case.reference()
    assert outcome.steps == reference.scheduled
    for request in reference.requests:
        i = request.number
        if request.state == "rejected":
            assert outcome.too_long[i] > 0
            continue
        assert request.state == "done"
        np.testing.assert_allclose(outcome.tokens.times(i), request.times, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(outcome.admitted[i], request.admitted, rtol=1e-9, atol=1e-12)
        assert outcome.preemptions[i] == request.preemptions
        assert len(request.times) == request.output
    gaps, weights = outcome.tokens.gaps(np.ones(len(outcome), bool))
    every = np.concatenate([np.diff(one.times) for one in reference.requests] or [np.zeros(0)])
    assert np.sum(weights) == len(every)
    np.testing.assert_allclose(np.sort(np.repeat(gaps, weights)), np.sort(every), rtol=1e-6, atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(cases())
def test_no_block_is_lost_or_used_twice_and_no_time_runs_backward(case: Case) -> None:
    clock = [0.0]

    def audit(block: Block) -> None:
        now = float(block.f[w.NOW])
        assert now >= clock[0]
        clock[0] = now
        pool = block.lane(w.L_POOL)
        size, whole = block.m[pool + w.P_BLOCK], block.m[pool + w.P_WHOLE]
        used = np.zeros(block.n_lanes, np.int64)
        state = block.request(w.STATE)
        for i in np.flatnonzero(np.isin(state, (w.PREFILLING, w.DECODING, w.MOVING))):
            cell = block.request(w.CELL)[i]
            lane = (block.m[cell + w.LANE] - block.lanes) // w.LANE_WORDS
            prompt, output = block.request(w.PROMPT)[i], block.request(w.OUTPUT)[i]
            ahead = 0
            cached = prompt + block.request(w.PRODUCED)[i] - (state[i] == w.MOVING)
            if state[i] == w.DECODING:
                cached = prompt + output - (block.request(w.KEY)[i] - block.m[cell + w.TOKENS]) - 1
                ahead = block.m[cell + w.GAIN]  # a step in flight has its blocks
            held = prompt + output - 1 if whole[lane] else cached + ahead
            used[lane] += -(-held // size[lane]) - block.request(w.HIT)[i] // size[lane]
        prefixes = _prefixes(block)
        for lane in range(block.n_lanes):
            shared = [(entry[w.CACHED] // size[lane], entry[w.USERS]) for entry in prefixes[lane]]
            pinned, unused = (sum(n for n, users in shared if (users > 0) == held) for held in (True, False))
            assert used[lane] + pinned + block.lane(w.L_FREE)[lane] == block.lane(w.L_TOTAL)[lane]
            assert unused == block.lane(w.L_EVICTABLE)[lane] <= block.lane(w.L_FREE)[lane]

    outcome = case.simulated(audit)
    assert outcome.counts["unfinished"] == 0
    done = outcome.completed
    assert np.all(outcome.admitted[done] >= outcome.arrival[done])
    assert np.all(outcome.first[done] > outcome.admitted[done])
    assert np.all(outcome.finish[done] >= outcome.first[done])
    assert np.all(outcome.kv_peak <= outcome.kv_blocks)
    assert sum(outcome.counts.values()) == len(case.requests)


def _prefixes(block: Block) -> np.ndarray:
    bases = block.lane(w.L_PREFIXES)
    count = (int(block.m[w.PENDING]) - int(bases[0])) // w.PREFIX_WORDS // block.n_lanes
    return np.stack([block.m[base : base + count * w.PREFIX_WORDS].reshape(count, w.PREFIX_WORDS) for base in bases])


@settings(max_examples=10, deadline=None)
@given(cases())
def test_the_same_arguments_give_the_same_outcome(case: Case) -> None:
    one, two = case.simulated(), case.simulated()
    for name in ("arrival", "admitted", "first", "finish", "preemptions"):
        assert getattr(one, name).tobytes() == getattr(two, name).tobytes()
    assert one.tokens.end.tobytes() == two.tokens.end.tobytes()


@settings(max_examples=15, deadline=None)
@given(cases(), st.integers(1, 30))
def test_more_memory_never_loses_a_request(case: Case, more: int) -> None:
    grown = tuple(replace(pool, limits=replace(pool.limits, kv_blocks=pool.limits.kv_blocks + more)) for pool in case.pools)
    before, after = case.simulated(), replace(case, pools=grown).simulated()
    assert not np.any(before.completed & ~after.completed)


def test_a_request_that_gives_way_to_itself_comes_back() -> None:
    """The blocks that it shares with nobody any more are what it lacks: they are free once it has let go of them."""
    limits = Limits(max_batch=2, max_tokens=2, chunked=False, kv_blocks=22, block_size=1, watermark=0.0)
    asked = Requests(
        arrival=np.array([0.0012, 0.0034, 0.0047]), prompt=np.array([2, 6, 2]), output=np.array([15, 13, 21]),
        prefix=np.array([2, 2, 2]), shared=np.array([25, 26, 23]), keeps=np.array([False, True, False]),
        known=np.array([16, 32, 34]),
    )  # fmt: skip
    for policy in ("mixed", "prefill-first", "static"):
        pool = Pool(tables=imagined_tables(seed=0), engine=0, limits=replace(limits, policy=policy), replicas=1)
        case = Case((pool,), asked, "round-robin", KvLink(latency=0.0, time_per_token=1e-4))
        outcome = case.simulated()
        assert outcome.counts["unfinished"] == 0
        assert [one.state for one in case.reference().requests] == ["done"] * 3
        assert sum(outcome.preemptions) > 0
