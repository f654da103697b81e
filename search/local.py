"""Chunks of work in processes of this machine.

Each worker is started afresh (spawn) and receives the function once. When a worker is killed the pool is made again and the
chunks that were under way are done again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from search.executors import ExecutorError

T = TypeVar("T")
R = TypeVar("R")

_held: list[Callable[[Any], Any]] = []  # in a worker: the function


def _hold(function: Callable[[Any], Any]) -> None:
    """Start of a worker; Ctrl-C is the driver's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _held[:] = [function]


def _call(chunk: Any) -> Any:
    return _held[0](chunk)


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """Processes of this machine: `workers` of them, or one for each core; `retries` times in a row workers may die."""

    workers: int | None = None
    retries: int = 3

    @property
    def apart(self) -> bool:
        """The work is done in other processes."""
        return True

    def map(self, function: Callable[[T], R], chunks: Iterator[T]) -> Generator[tuple[int, R], None, None]:
        """Yield (index of the chunk, result) as they come. Raises ExecutorError when workers keep dying."""
        count = self.workers or os.cpu_count() or 1
        source = enumerate(chunks)
        again: list[tuple[int, T]] = []
        deaths = 0
        while True:
            pool = _pool(count, function)
            running: dict[Future[R], tuple[int, T]] = {}
            try:
                while True:
                    drawn = again + list(islice(source, max(0, 2 * count - len(running) - len(again))))
                    again = []
                    for at, entry in enumerate(drawn):
                        again = drawn[at:]  # what a pool that broke did not take
                        running[pool.submit(_call, entry[1])] = entry
                    again = []
                    if not running:
                        return
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        result = future.result()
                        index, _ = running.pop(future)
                        deaths = 0
                        yield index, result
            except BrokenProcessPool:
                deaths += 1
                if deaths > self.retries:
                    raise ExecutorError(f"worker processes died {deaths} times in a row (killed, or out of memory)") from None
                again = [*running.values(), *again]
            finally:
                _end(pool)


def _pool(count: int, function: Callable[[Any], Any]) -> ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(count, mp_context=context, initializer=_hold, initargs=(function,))


def _end(pool: ProcessPoolExecutor) -> None:
    """Give up what has not begun; what has is short."""
    pool.shutdown(wait=True, cancel_futures=True)
