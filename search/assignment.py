"""Which chunk a free worker gets next: those that were lost first, then new ones, then copies of stragglers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from search.execution import ExecutorError

T = TypeVar("T")

_SLOWNESS = 3.0  # a chunk under way for this many times the longest so far is a straggler
_BRIEF = 1.0  # seconds under way before which no chunk is one


@dataclass(slots=True)
class _UnderWay(Generic[T]):
    chunk: T
    since: float
    copies: int = 1


@dataclass(slots=True)
class Assignment(Generic[T]):
    """The chunks of one map: each comes back once, however often it is handed out.

    A chunk is drawn when one is asked for and none waits. When none is left to draw, a chunk that has been under way long is
    handed out a second time and whoever is first counts. A chunk lost more than `retries` times raises ExecutorError.
    """

    chunks: Iterator[T]
    retries: int
    _drawn: deque[tuple[int, T]] = field(default_factory=deque)
    _under_way: dict[int, _UnderWay[T]] = field(default_factory=dict)
    _losses: dict[int, int] = field(default_factory=dict)
    _count: int = 0
    _exhausted: bool = False
    _longest: float = 0.0

    def take(self) -> tuple[int, T] | None:
        """Number and chunk for a free worker, or None when there is nothing for it now."""
        now = time.monotonic()
        if self._waits():
            index, chunk = self._drawn.popleft()
            self._under_way[index] = _UnderWay(chunk, now)
            return index, chunk
        late = [(work.since, index) for index, work in self._under_way.items() if self._due(work) <= now and work.copies == 1]
        if not late:
            return None
        index = min(late)[1]
        self._under_way[index].copies += 1
        return index, self._under_way[index].chunk

    def finished(self, index: int) -> bool:
        """A result of a chunk came: whether it is the first."""
        work = self._under_way.pop(index, None)
        if work is None:
            return False
        if work.copies == 1:
            self._longest = max(self._longest, time.monotonic() - work.since)
        return True

    def lost(self, index: int, why: str) -> None:
        """A worker was lost on a chunk: it is handed out again unless a copy is under way."""
        work = self._under_way.get(index)
        if work is None:
            return
        self._losses[index] = self._losses.get(index, 0) + 1
        if self._losses[index] > self.retries:
            raise ExecutorError(f"the workers on chunk {index} died {self._losses[index]} times ({why})")
        work.copies -= 1
        if not work.copies:
            del self._under_way[index]
            self._drawn.appendleft((index, work.chunk))

    @property
    def over(self) -> bool:
        """Whether every chunk has come back."""
        return not self._waits() and not self._under_way

    def until_straggler(self) -> float | None:
        """Seconds until a chunk under way may be copied; None while there are others to hand out, or none to copy."""
        single = [self._due(work) for work in self._under_way.values() if work.copies == 1]
        if self._drawn or not self._exhausted or not single:
            return None
        return max(0.0, min(single) - time.monotonic())

    def _waits(self) -> bool:
        """Whether a chunk waits to be handed out; the next one is drawn if need be."""
        if not self._drawn and not self._exhausted:
            for chunk in self.chunks:
                self._drawn.append((self._count, chunk))
                self._count += 1
                break
            else:
                self._exhausted = True
        return bool(self._drawn)

    def _due(self, work: _UnderWay[T]) -> float:
        return work.since + max(_BRIEF, _SLOWNESS * self._longest)
