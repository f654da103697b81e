"""Executors: the same answer whoever does the work, workers that die, functions that raise, addresses that do not answer."""

from __future__ import annotations

import itertools
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from search import spreading
from search.exact import Result, search
from search.execution import Executor, ExecutorError, Serial, kept
from search.executors import executor
from search.local import Local
from search.on_ray import OnRay
from tests.search.errands import always_dies, dawdles_once, killed_once, raises
from tests.search.test_exact import DEVICES, MEMORY, PROBLEM, SPEED, TIME, Toy, keys, space_of


def told(result: Result) -> tuple[object, ...]:
    """All that must not hang on who did the work."""
    return (
        keys(result.front.points.columns),
        result.front.points.costs.tolist(),
        result.front.ties.tolist(),
        {name: top.ordinals.tolist() for name, top in result.top.items()},
        result.certificate,
        result.sample.ordinals.tolist(),
        result.sample.values.tolist(),
        result.failures,
        result.failed_by_reason,
        None if result.closest is None else (keys(result.closest.points.columns), result.closest.lacks),
        result.stopped,
    )


@pytest.mark.parametrize("size", [1, 7, 40, 1000])
@pytest.mark.parametrize(
    "model",
    [
        Toy(),
        Toy(limit=4.0, bounds=()),
        Toy(limit=0.5),
        Toy(limit=0.5, bounds=()),
        Toy(raises=frozenset({(2, 2, 2), (5, 5, 5)}), unknown=frozenset({(3, 3, 3)})),
    ],
)
def test_slices_change_nothing(monkeypatch: pytest.MonkeyPatch, model: Toy, size: int) -> None:
    monkeypatch.setattr(spreading, "_chunk", lambda _: size)
    asked = (space_of(), model, PROBLEM, (TIME, MEMORY, SPEED))
    alone = search(*asked, sample=20, seed=3)
    assert told(search(*asked, sample=20, seed=3, executor=Serial())) == told(alone)


@dataclass(frozen=True)
class Shuffled(Serial):
    """Does some chunks at a time and hands them back in another order."""

    seed: int
    together: int

    def map(self, function: Callable[[Any], Any], chunks: Iterator[Any]) -> Generator[tuple[int, Any], None, None]:
        random, numbered = Random(self.seed), enumerate(chunks)
        while drawn := list(itertools.islice(numbered, self.together)):
            random.shuffle(drawn)
            yield from ((index, function(chunk)) for index, chunk in drawn)


@given(seed=st.integers(0, 1000), together=st.integers(1, 9), size=st.integers(5, 60), limit=st.integers(0, 40))
@settings(max_examples=20)
def test_slices_may_come_back_in_any_order(seed: int, together: int, size: int, limit: int) -> None:
    asked = (space_of(), Toy(limit=9.0), PROBLEM, (TIME, MEMORY))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spreading, "_chunk", lambda _: size)
        found = search(*asked, sample=limit, executor=Shuffled(seed, together))
    assert told(found) == told(search(*asked, sample=limit))


@pytest.mark.parametrize("kind", ["one", "two", "ray"])
def test_the_same_answer_whoever_does_the_work(
    kind: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(spreading, "_chunk", lambda _: 30)
    who: Executor = request.getfixturevalue("ray_once") if kind == "ray" else Local(workers=1 if kind == "one" else 2)
    asked = (space_of(), Toy(), PROBLEM, (TIME, MEMORY, DEVICES))
    assert told(search(*asked, sample=20, executor=who)) == told(search(*asked, sample=20))


@pytest.mark.parametrize("kind", ["local", "ray"])
def test_a_worker_that_is_killed_loses_nothing(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    who: Executor = request.getfixturevalue("ray_once") if kind == "ray" else Local(workers=2)
    found = list(who.map(killed_once, ((i, tmp_path / "marker") for i in range(20))))
    assert sorted(found) == [(i, i * i) for i in range(20)]
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("kind", ["local", "ray"])
def test_a_straggler_is_overtaken_by_a_copy(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    who: Executor = request.getfixturevalue("ray_once") if kind == "ray" else Local(workers=2)
    started = time.monotonic()
    found = list(who.map(dawdles_once, ((i, tmp_path / "marker") for i in range(8))))
    assert sorted(found) == [(i, i * i) for i in range(8)]
    assert (tmp_path / "marker").exists()
    assert time.monotonic() - started < 60  # a straggler sleeps for as long by itself


@pytest.mark.parametrize("kind", ["local", "ray"])
def test_workers_told_what_it_is_about_do_the_same(kind: str, request: pytest.FixtureRequest) -> None:
    who: Executor = request.getfixturevalue("ray_once") if kind == "ray" else Local(workers=2)
    with kept(who, about=Toy()) as held:
        assert sorted(held.map(abs, iter([-3, 1, -2]))) == [(0, 3), (1, 1), (2, 2)]
    with pytest.raises(ExecutorError, match="cannot be sent to workers"), kept(who, about=threading.Lock()):
        pass


def test_workers_that_die_before_there_is_work_are_replaced() -> None:
    with Local(workers=2).kept(about=Toy()) as held:
        early = multiprocessing.active_children()
        for process in early:
            process.kill()
        assert sorted(held.map(abs, iter([-3, 1, -2]))) == [(0, 3), (1, 1), (2, 2)]
    assert len(early) == 2
    assert not multiprocessing.active_children()


def test_workers_that_keep_dying_are_told() -> None:
    with pytest.raises(ExecutorError, match="workers on chunk 0 died 2 times"):
        list(Local(workers=1, retries=1).map(always_dies, iter([1])))


@pytest.mark.parametrize("kind", ["serial", "local", "ray"])
def test_what_the_function_raises_is_raised(kind: str, request: pytest.FixtureRequest) -> None:
    who: Executor = request.getfixturevalue("ray_once") if kind == "ray" else executor(kind, 1)
    with pytest.raises(ZeroDivisionError, match="cannot"):
        list(who.map(raises, iter([1])))


def test_a_ray_address_that_does_not_answer_is_told_in_time() -> None:
    started = time.monotonic()
    with pytest.raises(ExecutorError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        list(OnRay(address="127.0.0.1:1", patience=2.0).map(raises, iter([1])))
    with pytest.raises(ExecutorError, match="host:port or auto"):
        list(OnRay(address="nowhere").map(raises, iter([1])))
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_a_port_where_something_else_listens_is_told_in_time(said: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            line, _ = server.accept()
            line.sendall(said)
            time.sleep(0.0 if said else 0.5)
            line.close()

        listener = threading.Thread(target=answer)
        listener.start()
        with pytest.raises(ExecutorError, match=r"no Ray cluster answers at 127\.0\.0\.1:"):
            list(OnRay(address=f"127.0.0.1:{server.getsockname()[1]}", patience=0.2).map(raises, iter([1])))
        listener.join()


def test_cancelled_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreading, "_chunk", lambda _: 10)
    result = search(space_of(), Toy(), PROBLEM, (TIME,), executor=Serial(), cancelled=lambda: True)
    assert result.stopped == "cancelled"
    assert result.certificate.unvisited == space_of().size() - 10


def test_an_unknown_executor_and_a_screen_elsewhere_are_refused() -> None:
    with pytest.raises(ValueError, match="serial, local, ray"):
        executor("slurm")
    with pytest.raises(ValueError, match="prune_dominated"):
        search(space_of(), Toy(), PROBLEM, (TIME,), executor=Serial(), prune_dominated=True)


class Two:
    """Two hands that work one after the other, and remember what they were given."""

    apart, hands = False, 2

    def __init__(self) -> None:
        self.given: list[int] = []

    def map(self, function: Callable[[Any], Any], chunks: Iterator[Any]) -> Generator[tuple[int, Any], None, None]:
        first = list(itertools.islice(chunks, self.hands))  # both begin before either is done
        for number, chunk in enumerate(itertools.chain(first, chunks)):
            self.given.append(chunk.n)
            yield number, function(chunk)


def test_a_small_space_is_shared_before_the_cost_of_a_point_is_known() -> None:
    """A model may be so dear that a thousand points are minutes."""
    space, hands = space_of(), Two()
    result = search(space, Toy(), PROBLEM, (TIME,), executor=hands)
    assert result.certificate.complete
    assert sum(hands.given) == space.size()
    first, second = hands.given[:2]
    assert max(first, second) <= max(space.size() / 4, spreading._PROBE)
    assert min(first, second) >= min(spreading._PROBE, space.size() / 4)


@pytest.mark.parametrize(
    ("cpu_s", "wall_s", "cost"), [(0.4, 0.5, 0.004), (0.4, 1.5, 0.004), (0.001, 0.5, 0.005), (0.0, 0.0, 0.0)]
)
def test_a_model_that_waits_costs_what_the_clock_says(cpu_s: float, wall_s: float, cost: float) -> None:
    found = spreading.Found(start=0, n=100, state=b"", cpu_s=cpu_s, wall_s=wall_s, hopeless="")
    assert found.cost == pytest.approx(cost)
