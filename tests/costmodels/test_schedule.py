"""Pipeline schedules: the vectorised times against the op-by-op simulation, and against the closed forms of the papers."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from time import process_time

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from costmodels.schedule import Schedule, StageTimes, bound, group_size, in_flight, pipeline_time
from costmodels.schedule_simulation import Timeline, gpipe_order, interleaved_order, simulate
from costmodels.schedules import recurrence
from costmodels.schedules.interleaved import passes
from costmodels.schedules.orders import (
    Op,
    dualpipe_order,
    input_of,
    one_f_one_b_order,
    zero_bubble_order,
)

# how far a time may be from the simulation
SHORTFALL = {
    Schedule.GPIPE: 1e-9,
    Schedule.ONE_F_ONE_B: 0.01,
    Schedule.INTERLEAVED: 0.01,
    Schedule.ZERO_BUBBLE: 0.01,
}
SIMULATED = tuple(SHORTFALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """One design point with the seconds of every chunk, [rank][chunk]."""

    virtual: int
    microbatches: int
    forward: list[list[float]]
    backward: list[list[float]]
    weight: list[list[float]]
    send: float

    @property
    def ranks(self) -> int:
        return len(self.forward)


def stage_times(pipelines: Sequence[Pipeline]) -> StageTimes:
    rows = []
    for x in pipelines:
        stages = [[sum(chunks) for chunks in kind] for kind in (x.forward, x.backward, x.weight)]
        ends = [seconds for kind in stages for seconds in (kind[0], kind[len(kind) > 2], kind[-1])]
        rows.append([*ends, sum(stages[0]), sum(stages[1]), x.send])
    names = [field.name for field in fields(StageTimes)]
    return StageTimes(**dict(zip(names, np.array(rows, dtype=np.float64).reshape(-1, len(names)).T, strict=True)))


def counts(pipelines: Sequence[Pipeline]) -> list[np.ndarray]:
    return [np.array([getattr(x, name) for x in pipelines], dtype=np.int64) for name in ("ranks", "virtual", "microbatches")]


def total(pipelines: Sequence[Pipeline], schedule: Schedule) -> np.ndarray:
    return pipeline_time(stage_times(pipelines), *counts(pipelines), schedule).total


def orders(schedule: Schedule, p: int, m: int, v: int) -> list[list[Op]]:
    if schedule == Schedule.GPIPE:
        return [gpipe_order(m) for _ in range(p)]
    if schedule == Schedule.INTERLEAVED and v > 1:
        return [interleaved_order(i, p, m, v, int(group_size(p, m))) for i in range(p)]
    order = zero_bubble_order if schedule == Schedule.ZERO_BUBBLE else one_f_one_b_order
    return [order(i, p, m) for i in range(p)]


def simulated(x: Pipeline, schedule: Schedule) -> Timeline:
    listed = orders(schedule, x.ranks, x.microbatches, x.virtual)
    return simulate(listed, x.forward, x.backward, x.weight, x.send)


def equal(p: int, m: int, v: int = 1, f: float = 1.0, b: float = 2.0, w: float = 1.0, send: float = 0.0) -> Pipeline:
    return Pipeline(
        virtual=v,
        microbatches=m,
        forward=[[f / v] * v for _ in range(p)],
        backward=[[b / v] * v for _ in range(p)],
        weight=[[w / v] * v for _ in range(p)],
        send=send,
    )


@st.composite
def single_chunk(draw: st.DrawFn) -> Pipeline:
    """Ends up to 3 × heavier or lighter than the middle, forward and backward apart."""
    p, m = draw(st.integers(1, 16)), draw(st.integers(1, 48))
    forward, backward = 1.0, draw(st.floats(0.2, 5.0))
    scale = st.floats(-1.0, 1.0).map(lambda exponent: 3.0**exponent)
    f, b = [forward] * p, [backward] * p
    for end in {0, p - 1}:
        f[end], b[end] = forward * draw(scale), backward * draw(scale)
    share = draw(st.floats(0.2, 0.5))
    return Pipeline(
        virtual=1,
        microbatches=m,
        forward=[[x] for x in f],
        backward=[[x] for x in b],
        weight=[[share * x] for x in b],
        send=draw(st.floats(0.0, 0.1)) * min(forward, backward),
    )


@st.composite
def several_chunks(draw: st.DrawFn) -> Pipeline:
    """The model's first and last chunk give up layers, and carry the embedding and the head.

    Two ranks have no middle one to tell a light chunk from a light rank: there the last chunk is heavier, no more.
    """
    p, v = draw(st.integers(2, 10)), draw(st.integers(2, 6))
    x = equal(p, p * draw(st.integers(1, 6)), v, b=draw(st.floats(0.2, 5.0)), w=0.1)
    given_up = draw(st.floats(0.0, 1.0)) if p > 2 else 0.0
    for rank, chunk, most in ((0, 0, 0.5 if p > 2 else 0.0), (p - 1, v - 1, 3.0)):
        carried = draw(st.floats(0.0, most))
        ratio = draw(st.floats(0.7, 1.4))
        x.forward[rank][chunk] *= 1 - given_up + carried
        x.backward[rank][chunk] *= 1 - given_up + carried * ratio
    return replace(x, send=draw(st.floats(0.0, 0.3)) * min(x.forward[0][1], x.backward[0][1]))


@pytest.mark.parametrize("schedule", [s for s in SIMULATED if s != Schedule.INTERLEAVED])
@given(x=single_chunk())
def test_times_agree_with_the_simulation(schedule: Schedule, x: Pipeline) -> None:
    exact = simulated(x, schedule).total
    assert total([x], schedule)[0] == pytest.approx(exact, rel=SHORTFALL[schedule])


@given(x=single_chunk())
def test_one_f_one_b_is_exact_without_sends(x: Pipeline) -> None:
    x = replace(x, send=0.0)
    assert total([x], Schedule.ONE_F_ONE_B)[0] == pytest.approx(simulated(x, Schedule.ONE_F_ONE_B).total, rel=1e-9)


@given(x=several_chunks())
def test_interleaved_agrees_with_the_simulation(x: Pipeline) -> None:
    exact = simulated(x, Schedule.INTERLEAVED).total
    assert total([x], Schedule.INTERLEAVED)[0] == pytest.approx(exact, rel=SHORTFALL[Schedule.INTERLEAVED])


@given(x=single_chunk(), half=st.integers(1, 5), rounds=st.integers(0, 30))
def test_dualpipe_agrees_with_the_simulation(x: Pipeline, half: int, rounds: int) -> None:
    p = 2 * half
    m = 2 * p + 2 * rounds
    stages = [x.forward, x.backward, x.weight]
    forward, backward, weight = ([kind[0], *([[1.0 if i == 0 else share]] * (p - 2)), kind[-1]]
                                 for i, (kind, share) in enumerate(zip(stages, (1.0, 2.0, 0.8), strict=True)))  # fmt: skip
    y = Pipeline(virtual=1, microbatches=m, forward=forward, backward=backward, weight=weight, send=x.send)
    kinds = (forward, backward, weight)
    held = [[[own[0], mirror[0]] for own, mirror in zip(kind, kind[::-1], strict=True)] for kind in kinds]
    exact = simulate([dualpipe_order(i, p, m) for i in range(p)], *held, x.send, mirrored=True).total
    assert total([y], Schedule.DUALPIPE)[0] == pytest.approx(exact, rel=0.01)


@given(p=st.integers(1, 10), m=st.integers(1, 40), v=st.integers(1, 5), send=st.floats(0.0, 0.05))
@example(p=3, m=28, v=5, send=0.05)  # goes by groups of 4, which a shorter run must keep
def test_interleaved_runs_with_any_number_of_microbatches(p: int, m: int, v: int, send: float) -> None:
    x = equal(p, m, v, send=send)
    assert total([x], Schedule.INTERLEAVED)[0] == pytest.approx(simulated(x, Schedule.INTERLEAVED).total, rel=1e-9)


@pytest.mark.parametrize("schedule", SIMULATED)
@given(data=st.data())
def test_the_bound_is_below_every_run(schedule: Schedule, data: st.DataObject) -> None:
    x = data.draw(several_chunks() if schedule == Schedule.INTERLEAVED else single_chunk())
    low = bound(stage_times([x]), *counts([x]), schedule)[0]
    assert low <= simulated(x, schedule).total * (1 + 1e-9)
    assert low <= total([x], schedule)[0] * (1 + 1e-9)


@pytest.mark.parametrize("schedule", SIMULATED)
@given(data=st.data())
def test_in_flight_is_the_simulations_peak(schedule: Schedule, data: st.DataObject) -> None:
    p, m = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 40))
    v = data.draw(st.integers(1, 5)) if schedule == Schedule.INTERLEAVED else 1
    x = equal(p, m, v)
    held = in_flight(schedule, p, v, m, np.arange(p))
    assert tuple(held.tolist()) == simulated(x, schedule).peak_in_flight


def test_interleaved_holds_what_megatron_holds() -> None:
    p, v = 8, 4
    assert in_flight(Schedule.INTERLEAVED, p, v, 64, 0) == p * v + p - 1
    assert in_flight(Schedule.INTERLEAVED, p, 1, 64, 0) == in_flight(Schedule.ONE_F_ONE_B, p, 1, 64, 0) == p
    assert in_flight(Schedule.DUALPIPE, p, 1, 64, 3) == p + 1


@given(p=st.integers(1, 64), m=st.integers(1, 512), f=st.floats(0.1, 10), b=st.floats(0.1, 10))
def test_equal_stages_of_one_f_one_b(p: int, m: int, f: float, b: float) -> None:
    for schedule in (Schedule.ONE_F_ONE_B, Schedule.GPIPE):
        assert total([equal(p, m, f=f, b=b)], schedule)[0] == pytest.approx((m + p - 1) * (f + b))


@given(p=st.integers(1, 32), groups=st.integers(1, 16), v=st.integers(1, 8), f=st.floats(0.1, 10), b=st.floats(0.1, 10))
def test_interleaving_divides_the_bubble(p: int, groups: int, v: int, f: float, b: float) -> None:
    x = equal(p, p * groups, v, f=f, b=b)
    time = pipeline_time(stage_times([x]), *counts([x]), Schedule.INTERLEAVED)
    assert time.bubble[0] == pytest.approx((p - 1) * (f + b) / v, abs=1e-9 * time.total[0])


def test_zero_bubble_of_equal_stages() -> None:
    f, b, w = 1.0, 2.2, 1.0
    time = pipeline_time(stage_times([equal(8, 32, f=f, b=b, w=w)]), 8, 1, 32, Schedule.ZERO_BUBBLE)
    assert time.bubble[0] == pytest.approx(7 * (f + b - 2 * w))


@given(x=single_chunk())
def test_zero_bubble_is_not_slower_than_one_f_one_b(x: Pipeline) -> None:
    # heavier ends can make ZB-H1's held-back weight gradients late: the promise is for equal stages
    flat = equal(x.ranks, x.microbatches, b=x.backward[0][0], w=x.weight[0][0])
    assert total([flat], Schedule.ZERO_BUBBLE)[0] <= total([flat], Schedule.ONE_F_ONE_B)[0] * (1 + 1e-9)


def test_dualpipe_has_its_authors_bubble() -> None:
    f, b, w, p, m = 1.0, 2.0, 0.8, 16, 64
    time = pipeline_time(stage_times([equal(p, m, f=f, b=b, w=w)]), p, 1, m, Schedule.DUALPIPE)
    assert time.busy[0] == pytest.approx(m * (f + b))
    assert time.total[0] == pytest.approx(m * (f + b) + (p / 2 - 1) * ((f + b) + b - 3 * w), rel=0.01)


@pytest.mark.parametrize("schedule", Schedule)
@pytest.mark.parametrize("m", [1, 3, 17])
def test_one_stage_is_its_work_alone(schedule: Schedule, m: int) -> None:
    x = equal(1, m, f=1.5, b=2.5, send=0.3)
    time = pipeline_time(stage_times([x]), *counts([x]), schedule)
    assert time.total[0] == pytest.approx(4.0 * m)
    assert time.bubble[0] == 0.0


def test_the_bubble_is_charged() -> None:
    """A model cut into 32 stages is not 32 × as fast: with 8 microbatches it is 6.6 × as fast."""
    m, p = 8, 32
    whole, cut = equal(1, m), equal(p, m, f=1 / p, b=2 / p, w=1 / p)
    speedup = total([whole], Schedule.ONE_F_ONE_B)[0] / total([cut], Schedule.ONE_F_ONE_B)[0]
    assert speedup == pytest.approx(m * p / (m + p - 1))
    assert speedup < 7


def test_the_last_stage_carries_the_head() -> None:
    """Σ stage + (m − 1) · slowest is exact with the slowest stage last, and too much with it first (PHYSICS: up to 16 %)."""
    m, p = 16, 8
    last, first = equal(p, m), equal(p, m)
    last.forward[-1][0], last.backward[-1][0] = 2.0, 4.0
    first.forward[0][0], first.backward[0][0] = 2.0, 4.0
    rule = 3.0 * (p + 1) + (m - 1) * 6.0
    assert total([last], Schedule.ONE_F_ONE_B)[0] == pytest.approx(rule)
    assert total([first], Schedule.ONE_F_ONE_B)[0] < rule


@pytest.mark.parametrize("schedule", [Schedule.GPIPE, Schedule.ONE_F_ONE_B])
@given(x=single_chunk())
def test_more_microbatches_take_longer(schedule: Schedule, x: Pipeline) -> None:
    x = replace(x, send=0.0)
    times = total([replace(x, microbatches=m) for m in range(1, 40)], schedule)
    assert (np.diff(times) > 0).all()


@pytest.mark.parametrize("schedule", Schedule)
@given(x=single_chunk())
def test_total_is_busy_and_bubble(schedule: Schedule, x: Pipeline) -> None:
    time = pipeline_time(stage_times([x]), *counts([x]), schedule)
    assert time.bubble[0] >= 0
    assert time.total[0] == pytest.approx(time.busy[0] + time.bubble[0], rel=1e-12)


@pytest.mark.parametrize("schedule", SIMULATED)
@given(data=st.data())
def test_sends_cost_time(schedule: Schedule, data: st.DataObject) -> None:
    x = data.draw(several_chunks() if schedule == Schedule.INTERLEAVED else single_chunk())
    without, with_sends = total([replace(x, send=0.0), replace(x, send=2 * x.send + 0.01)], schedule)
    assert with_sends >= without


def test_one_microbatch_waits_for_every_send() -> None:
    for schedule in (Schedule.GPIPE, Schedule.ONE_F_ONE_B):
        assert total([equal(8, 1, send=0.1)], schedule)[0] == pytest.approx(8 * 3.0 + 14 * 0.1)


def test_a_batch_is_its_rows_and_none_is_a_batch() -> None:
    rng = np.random.default_rng(5)
    many = []
    for _ in range(300):
        p, v = int(rng.integers(1, 20)), int(rng.integers(1, 5))
        x = equal(p, p * int(rng.integers(1, 5)), v, b=rng.uniform(0.5, 3), send=rng.choice([0.0, rng.uniform(0, 0.1)]))
        x.forward[-1][-1] *= rng.uniform(0.8, 3)
        x.forward[0][0] *= rng.uniform(0.8, 3)
        many.append(x)
    schedule = rng.integers(0, len(Schedule), len(many))
    together = pipeline_time(stage_times(many), *counts(many), schedule).total
    alone = [total([x], Schedule(code))[0] for x, code in zip(many, schedule, strict=True)]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    nothing = pipeline_time(stage_times([]), *counts([]), np.empty(0, dtype=np.int64))
    assert nothing.total.shape == nothing.busy.shape == nothing.bubble.shape == (0,)
    assert bound(stage_times([]), *counts([]), Schedule.ONE_F_ONE_B).shape == (0,)


def test_unequal_middle_stages_keep_their_sums() -> None:
    x = equal(6, 24)
    x.forward[2][0], x.backward[2][0] = 1.1, 2.2
    times = stage_times([x])
    times = replace(times, forward_middle=np.array([1.1]), backward_middle=np.array([2.2]))
    time = pipeline_time(times, *counts([x]), Schedule.ONE_F_ONE_B)
    assert time.total[0] == pytest.approx(simulated(x, Schedule.ONE_F_ONE_B).total, rel=0.01)


def test_groups_of_microbatches_are_those_megatron_takes() -> None:
    assert group_size(4, [4, 8, 6, 9, 10, 7, 2]).tolist() == [4, 4, 6, 9, 5, 7, 2]


def test_orders_that_wait_for_each_other_are_told() -> None:
    short_last_group = [interleaved_order(i, 4, 5, 3) for i in range(4)]
    chunks = [[1.0] * 3] * 4
    with pytest.raises(ValueError, match="wait for each other"):
        simulate(short_last_group, chunks, chunks)


@pytest.mark.parametrize(("schedule", "least"), [(Schedule.ONE_F_ONE_B, 4e5), (Schedule.INTERLEAVED, 5e4)])
def test_points_per_second(schedule: Schedule, least: float) -> None:
    """Well under what an idle core does, so that a busy one passes: 4 M and 0.6 M a second."""
    n = 100_000
    x = equal(8, 32, 2)
    times = StageTimes(**{f.name: np.full(n, getattr(stage_times([x]), f.name)[0]) for f in fields(StageTimes)})
    start = process_time()
    pipeline_time(times, 8, 2, 32, schedule)
    assert n / (process_time() - start) > least


@pytest.mark.parametrize(("p", "v", "m"), [(2, 1, 1), (2, 3, 4), (3, 2, 2), (4, 3, 8), (4, 2, 6), (5, 2, 3), (3, 3, 7)])
def test_interleaved_passes_are_those_of_its_order(p: int, v: int, m: int) -> None:
    """Written as arrays or taken pass by pass from the published order, the schedule takes the same time."""
    ends = {(0, 0): 0, (p - 1, v - 1): 4}
    places = [[ends.get((i, c), 1 if i == 0 else 3 if i == p - 1 else 2) for c in range(v)] for i in range(p)]
    orders = [interleaved_order(i, p, m, v, int(group_size(p, m))) for i in range(p)]
    written = recurrence.walk(orders, places, partial(input_of, pipeline=p, chunks=v))
    random = np.random.default_rng(p * 100 + v * 10 + m)
    seconds, send = random.random((3, 5, 6)), random.random(6) * (random.random(6) > 0.5)
    found = recurrence.longest(passes(p, v, m, int(group_size(p, m))), seconds, send)
    assert np.array_equal(found, recurrence.longest(written, seconds, send))
