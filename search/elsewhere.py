"""Points of a dear cost model evaluated by workers: the question of `search.visiting.Task`, answered by an executor.

A batch is sent out when it is worth it, by the seconds that the last one took: most models answer thousands of plans in less
time than they need to travel. The answer is the same whoever gives it.
"""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import numpy as np

from costmodels.metrics import Metrics
from search.execution import Executor, kept
from search.front import Points, join
from search.packing import packed_points, unpacked_points
from search.visiting import Task
from spaces.columns import Columns, FloatArray, IntArray
from spaces.space import Space

_WORTH = 0.3  # seconds of work from which a batch is sent out
_DEAR = 1e-4  # seconds a point from which that is: figures of a point take a tenth of it to travel
_PROBED = 2  # points of the first batch that are evaluated here, to see what one costs,
_GROWTH = 8  # and so many times as many, and so on, while that takes less than
_BRIEF = 0.1  # seconds: a batch of a vectorised model costs hardly more than a point
_PARTS = 4  # pieces of a batch for each worker: points differ in cost
_PIECE = 0.02  # seconds of work in a piece, at least


_Judged = tuple[Points, FloatArray, list[tuple[Columns, str]]]
"""Points evaluated, the greatest violation of each, and those that failed with the reason."""


@dataclass(frozen=True, slots=True, eq=False)
class Errand:
    """What a worker does with some points: evaluate them."""

    task: Task

    def __call__(self, piece: tuple[Columns, IntArray]) -> tuple[bytes, float, float]:
        """The points with figures and failures (`search.packing`), and the seconds and CPU seconds they took."""
        clock, processor = time.perf_counter(), time.process_time()
        columns, ordinals = piece
        points, worst, failed = self.task.evaluated(columns, ordinals)
        lost = ordinals[~np.isin(ordinals, points.ordinals)].tolist()
        data = packed_points(points, worst, dict(zip(lost, [reason for _, reason in failed], strict=True)))
        return data, time.perf_counter() - clock, time.process_time() - processor


@final
class Elsewhere:
    """A task whose dear batches an executor evaluates; `cpu_s` are the CPU seconds of other processes so far."""

    def __init__(self, task: Task, executor: Executor) -> None:
        self.cpu_s = 0.0
        self._task = task
        self._executor = executor
        self._errand = Errand(task)
        self._cost: float | None = None  # seconds a point, as of the last batch

    def none(self, space: Space) -> Points:
        """As of the task."""
        return self._task.none(space)

    def proven(self, points: Columns, broken: dict[str, int]) -> dict[str, FloatArray]:
        """As of the task: bounds are cheap."""
        return self._task.proven(points, broken)

    def evaluated(self, batch: Columns, ordinals: IntArray) -> tuple[Points, FloatArray, list[tuple[Columns, str]]]:
        """Every point evaluated once, here or elsewhere; as `Task.evaluated`."""
        if not batch.n:
            return self._task.evaluated(batch, ordinals)
        if self._cost is not None:
            return self._judged(batch, ordinals, self._cost)
        done, probe = 0, min(_PROBED, batch.n)
        parts: list[_Judged] = []
        while probe:
            own = slice(done, done + probe)
            parts.append(self._here(batch.take(own), ordinals[own]))
            done += probe
            brief = (self._cost or 0.0) * probe < _BRIEF
            probe = min(probe * _GROWTH, batch.n - done) if brief else 0
        if done < batch.n:
            parts.append(self._judged(batch.take(slice(done, batch.n)), ordinals[done:], self._cost or 0.0))
        return _joined(parts)

    def _judged(self, batch: Columns, ordinals: IntArray, cost: float) -> _Judged:
        """Where it is done hangs on what a point costs."""
        if batch.n < 2 or cost < _DEAR or cost * batch.n < _WORTH:
            return self._here(batch, ordinals)
        return self._there(batch, ordinals, cost)

    def _here(self, batch: Columns, ordinals: IntArray) -> _Judged:
        started = time.perf_counter()
        found = self._task.evaluated(batch, ordinals)
        self._cost = (time.perf_counter() - started) / max(batch.n, 1)
        return found

    def _there(self, batch: Columns, ordinals: IntArray, cost: float) -> _Judged:
        pieces = int(min(batch.n, _PARTS * self._executor.hands, max(2.0, cost * batch.n / _PIECE)))
        ends = np.linspace(0, batch.n, pieces + 1).round().astype(np.int64)
        rows = [slice(int(a), int(b)) for a, b in itertools.pairwise(ends)]
        found: dict[int, bytes] = {}
        took = 0.0
        for index, (data, wall_s, cpu_s) in self._executor.map(self._errand, ((batch.take(r), ordinals[r]) for r in rows)):
            found[index] = data
            took += wall_s
            self.cpu_s += cpu_s
        self._cost = took / batch.n
        nothing, bare = batch.take(slice(0, 0)), Metrics(n=0, value={})
        none = Points(columns=nothing, metrics=bare, costs=np.empty((0, 0)), ordinals=ordinals[:0])
        parts: list[_Judged] = []
        for index, own in enumerate(rows):
            points, worst, lost = unpacked_points(found[index], none)
            place = {int(ordinal): own.start + row for row, ordinal in enumerate(ordinals[own].tolist())}
            failed = [(batch.take(np.array([place[ordinal]])), reason) for ordinal, reason in lost.items()]
            parts.append((points, worst, failed))
        return _joined(parts)


def _joined(parts: list[_Judged]) -> _Judged:
    """Consecutive parts of a batch as one."""
    points = functools.reduce(join, [part[0] for part in parts])
    return points, np.concatenate([part[1] for part in parts]), [lost for part in parts for lost in part[2]]


@contextmanager
def evaluating(task: Task, executor: Executor | None) -> Iterator[Task | Elsewhere]:
    """The task; its dear batches are evaluated by the workers of the executor, if it has any, who stay until the block ends."""
    if executor is None or not executor.apart:
        yield task
        return
    with kept(executor) as held:
        yield Elsewhere(task, held)


def cpu_elsewhere(question: Task | Elsewhere) -> float:
    """CPU seconds of other processes that a question took."""
    return question.cpu_s if isinstance(question, Elsewhere) else 0.0
