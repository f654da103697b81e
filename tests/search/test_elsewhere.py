"""Points of a dear model evaluated by workers: the same answer, sent out only where it pays."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from search import elsewhere
from search.budget import Budget
from search.elsewhere import Elsewhere, evaluating
from search.execution import Serial
from search.local import Local
from search.methods import method
from search.nested import nested_search
from search.sampled import sampled_search
from search.visiting import Task
from spaces.ranking import ranking
from tests.search.errands import killed_once, own_number
from tests.search.test_exact import MEMORY, PROBLEM, TIME, Toy, space_of
from tests.search.test_executors import told

TOY = Toy(raises=frozenset({(2, 2, 2), (5, 5, 5)}), unknown=frozenset({(3, 3, 3)}))


@dataclass
class Others:
    """Workers that are this process, give pieces back in the wrong order, and count them."""

    pieces: list[int] = field(default_factory=list)

    @property
    def apart(self) -> bool:
        return True

    @property
    def hands(self) -> int:
        return 2

    def map(self, function: Callable[[Any], Any], chunks: Iterator[Any]) -> Generator[tuple[int, Any], None, None]:
        held = list(chunks)
        self.pieces.append(len(held))
        yield from reversed([(i, function(chunk)) for i, chunk in enumerate(held)])


@pytest.fixture
def dear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is worth sending out."""
    for name in ("_WORTH", "_DEAR", "_PIECE", "_BRIEF"):
        monkeypatch.setattr(elsewhere, name, 1e-12)


@pytest.mark.usefixtures("dear")
@pytest.mark.parametrize("name", ["evolutionary", "nsga2"])
def test_a_sampled_search_finds_the_same_whoever_evaluates(name: str) -> None:
    asked = (space_of(), TOY, PROBLEM, (TIME, MEMORY))
    how: dict[str, Any] = {"method": method(name), "budget": Budget(points=60), "seed": 1}
    who = Others()
    assert told(sampled_search(*asked, **how, executor=who)) == told(sampled_search(*asked, **how))
    assert who.pieces


@pytest.mark.usefixtures("dear")
def test_a_nested_search_finds_the_same_whoever_evaluates() -> None:
    asked = (space_of(), TOY, PROBLEM, (TIME, MEMORY))
    who = Others()
    found = nested_search(*asked, outer=("devices",), method="exact", executor=who).result
    assert told(found) == told(nested_search(*asked, outer=("devices",), method="exact").result)
    assert who.pieces


@pytest.mark.parametrize("seconds", [0.0, 0.01])
def test_only_what_is_dear_is_sent_out(seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(elsewhere.time, "perf_counter", lambda: now[0])
    task = Task(TOY, PROBLEM, (TIME, MEMORY), ())
    evaluated = Task.evaluated

    def timed(self: Task, batch: Any, *asked: Any) -> Any:
        now[0] += 0.03 + seconds * batch.n
        return evaluated(self, batch, *asked)

    monkeypatch.setattr(Task, "evaluated", timed)
    who, numbered = Others(), ranking(space_of())
    question = Elsewhere(task, who)
    ordinals = np.arange(numbered.size)
    points, _, failed = question.evaluated(numbered.columns(ordinals), ordinals)
    assert len(points) + len(failed) == numbered.size
    assert (np.diff(points.ordinals) > 0).all()
    assert bool(who.pieces) == (seconds > 0)


def test_workers_stay_from_one_batch_to_the_next() -> None:
    with Local(workers=1).kept() as kept:
        first = list(kept.map(own_number, iter([1])))
        assert list(kept.map(own_number, iter([1]))) == first
        assert list(kept.map(abs, iter([-3]))) == [(0, 3)]
    assert list(Local(workers=1).map(own_number, iter([1]))) != first


def test_this_process_alone_has_nobody_to_send_to() -> None:
    task = Task(TOY, PROBLEM, (TIME,), ())
    with evaluating(task, Serial()) as question:
        assert question is task


def test_workers_that_stay_are_replaced_when_they_are_killed(tmp_path: Path) -> None:
    with Local(workers=1).kept() as kept:
        (first,) = kept.map(own_number, iter([0]))
        found = list(kept.map(killed_once, ((i, tmp_path / "marker") for i in range(4, 7))))
        assert sorted(found) == [(0, 16), (1, 25), (2, 36)]
        (last,) = kept.map(own_number, iter([0]))
    assert first != last
