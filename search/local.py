"""Chunks of work in processes of this machine.

Each worker is started afresh (spawn) and receives the function once. One that is killed is replaced and its chunk done again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar, final

from search.assignment import Assignment
from search.carrying import from_bytes, to_bytes, unimported_main, work_to_bytes
from search.execution import THREADS, Executor, ExecutorError

T = TypeVar("T")
R = TypeVar("R")

_LESSON, _CHUNK = b"f", b"c"  # what a message to a worker begins with: what to do, or what to do it with


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """Processes of this machine: `workers` of them, or one for each core; a chunk may be lost `retries` times."""

    workers: int | None = None
    retries: int = 3

    @property
    def apart(self) -> bool:
        """The work is done in other processes."""
        return True

    @property
    def hands(self) -> int:
        """The processes."""
        return self.workers or os.cpu_count() or 1

    def map(self, function: Callable[[T], R], chunks: Iterator[T]) -> Generator[tuple[int, R], None, None]:
        """Yield (index of the chunk, result) as they come. Raises ExecutorError when workers keep dying."""
        workers: list[_Worker] = []
        try:
            yield from _done(workers, self, work_to_bytes(function), chunks)
        finally:
            for worker in workers:
                worker.dismiss()

    @contextmanager
    def kept(self, about: Any = None) -> Iterator[Executor]:
        """The executor with its processes held until the end of the block; told what it is about they start now."""
        workers: list[_Worker] = []
        try:
            if about is not None:
                carried = work_to_bytes(about)
                workers += [_Worker.started() for _ in range(self.hands)]
                for worker in workers:
                    worker.learn(carried)
            yield _Kept(self, workers)
        finally:
            for worker in workers:
                worker.dismiss()


@final
class _Kept:
    """Processes that stay from one map to the next, and know what the last one was about."""

    def __init__(self, who: Local, workers: list[_Worker]) -> None:
        self._who = who
        self._workers = workers
        self._known: Callable[[Any], Any] | None = None
        self._carried = b""

    @property
    def apart(self) -> bool:
        """The work is done in other processes."""
        return True

    @property
    def hands(self) -> int:
        """The processes."""
        return self._who.hands

    def map(self, function: Callable[[T], R], chunks: Iterator[T]) -> Generator[tuple[int, R], None, None]:
        """Yield (index of the chunk, result) as they come."""
        if function is not self._known:
            self._carried, self._known = work_to_bytes(function), function
            for worker in self._workers:
                worker.learn(self._carried)
        try:
            yield from _done(self._workers, self._who, self._carried, chunks)
        finally:
            for worker in [worker for worker in self._workers if worker.at is not None]:
                self._workers.remove(worker)
                worker.dismiss()


def _done(workers: list[_Worker], who: Local, carried: bytes, chunks: Iterator[T]) -> Generator[tuple[int, Any], None, None]:
    """The chunks done by workers, who know what is `carried`; those that are missing are started and taught it."""
    work = Assignment(chunks, retries=who.retries)
    while not work.over:
        for worker in workers:
            worker.take(work)
        fresh: list[tuple[_Worker, tuple[int, T]]] = []
        while len(workers) + len(fresh) < who.hands and (job := work.take()) is not None:
            fresh.append((_Worker.started(), job))
        for worker, job in fresh:  # all of them start while the first is still to read
            worker.learn(carried)
            worker.give(job)
            workers.append(worker)
        ready = wait([worker.pipe for worker in workers if worker.at is not None], timeout=work.until_straggler())
        for worker, index in [(w, w.at) for w in workers if w.pipe in ready and w.at is not None]:
            answer = worker.answer()
            if answer is None:
                workers.remove(worker)
                work.lost(index, worker.end)
                continue
            good, result = answer
            if not good:
                raise result
            first = work.finished(index)
            worker.take(work)  # before the result is looked at
            if first:
                yield index, result


@dataclass(slots=True, eq=False)
class _Worker:
    """A process, the pipe to it, and the number of the chunk it is at (None: free)."""

    process: BaseProcess
    pipe: Connection
    at: int | None = None

    @classmethod
    def started(cls) -> _Worker:
        """A new one, which does not know yet what to do."""
        context = multiprocessing.get_context("spawn")
        pipe, far = context.Pipe()
        process = context.Process(target=_serve, args=(far,), daemon=True)
        with unimported_main():
            process.start()
        far.close()
        return cls(process, pipe)

    def learn(self, function: bytes) -> None:
        """What to do from now on."""
        self._send(_LESSON + function)

    def give(self, job: tuple[int, Any]) -> None:
        """A chunk."""
        self.at = job[0]
        self._send(_CHUNK + to_bytes(job[1]))

    def take(self, work: Assignment[Any]) -> None:
        """The next chunk, if it is free and there is one."""
        if self.at is None and (job := work.take()) is not None:
            self.give(job)

    def answer(self) -> tuple[bool, Any] | None:
        """Whether its chunk went well, and the result or what was raised; None when it died."""
        try:
            data = self.pipe.recv_bytes()
        except (EOFError, OSError):
            self.dismiss()
            return None
        self.at = None
        answer: tuple[bool, Any] = from_bytes(data)
        return answer

    @property
    def end(self) -> str:
        """How it ended."""
        code = self.process.exitcode
        return f"killed by signal {-code}, or out of memory" if code is not None and code < 0 else f"exit code {code}"

    def dismiss(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def _send(self, data: bytes) -> None:
        try:
            self.pipe.send_bytes(data)
        except OSError:  # it died; the next look at the pipe tells
            return


def _serve(pipe: Connection) -> None:
    """In a worker: answer chunks until the driver is gone. Ctrl-C is the driver's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in THREADS:
        os.environ.setdefault(name, "1")
    try:
        function: Callable[[Any], Any] = _learnt(b"")
        while True:
            data = memoryview(pipe.recv_bytes())
            if data[:1] == _LESSON:
                function = _learnt(data[1:])
            else:
                pipe.send_bytes(_answer(function, data[1:]))
    except (EOFError, OSError):
        return


def _learnt(function: bytes | memoryview) -> Callable[[Any], Any]:
    """What to do; where this process cannot read it, to say so."""
    try:
        learnt: Callable[[Any], Any] = from_bytes(function)
    except Exception as error:
        why = ExecutorError(f"a worker cannot read what it is to do: {type(error).__name__}: {error}")

        def unable(_: Any) -> Any:
            raise why

        return unable
    return learnt


def _answer(function: Callable[[Any], Any], chunk: memoryview) -> bytes:
    try:
        return to_bytes((True, function(from_bytes(chunk))))
    except Exception as error:
        return to_bytes((False, _portable(error)))


def _portable(error: Exception) -> Exception:
    """The error, or where it cannot travel, its text."""
    try:
        from_bytes(to_bytes(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error
