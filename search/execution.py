"""Where chunks of work run: the protocol, and the executor that runs them here, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""Threads that libraries of linear algebra may start, read when numpy is imported: one each unless set, for there is a worker
on every core, matrices of a regression are small, and threads that wait for each other burn shared cores."""

T = TypeVar("T")
R = TypeVar("R")


class ExecutorError(RuntimeError):
    """Workers that cannot be started or that keep dying."""


@runtime_checkable
class Executor(Protocol):
    """Runs a pure function on chunks.

    Contract: each chunk is done exactly once as seen from here, however often a worker dies on the way; results come as
    they are ready, in any order; chunks are drawn lazily, a few more than there are workers at most, so that later ones can be
    sized by what the earlier cost; what the function raises is raised. Closing the generator gives up what has not come back.
    """

    @property
    def apart(self) -> bool:
        """Whether the work is done in other processes, whose CPU time this one's clock does not count."""
        ...

    @property
    def hands(self) -> int:
        """Chunks done at a time, as far as is known; while `map` runs it is."""
        ...

    def map(self, function: Callable[[T], R], chunks: Iterator[T]) -> Generator[tuple[int, R], None, None]:
        """Yield (index of the chunk, result)."""
        ...


@runtime_checkable
class Lasting(Protocol):
    """An executor whose workers can stay from one map to the next."""

    def kept(self, about: Any = None) -> AbstractContextManager[Executor]:
        """The executor for a block of several maps, one at a time; its workers end with the block.

        With `about`, something that what they will do holds, they start now: they come to know the code it needs while this
        process still gets the work ready. Without, they start when there is work.
        """
        ...


def kept(executor: Executor, about: Any = None) -> AbstractContextManager[Executor]:
    """A block in which the executor's workers stay (`Lasting`), where it has any that can."""
    return executor.kept(about) if isinstance(executor, Lasting) else nullcontext(executor)


@dataclass(frozen=True, slots=True)
class Serial:
    """Runs every chunk in this process, in order."""

    @property
    def apart(self) -> bool:
        """The work is done here."""
        return False

    @property
    def hands(self) -> int:
        """One."""
        return 1

    def map(self, function: Callable[[T], R], chunks: Iterator[T]) -> Generator[tuple[int, R], None, None]:
        """Yield (index of the chunk, result), in order."""
        for index, chunk in enumerate(chunks):
            yield index, function(chunk)
