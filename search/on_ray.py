"""Chunks of work as Ray tasks, on this machine or on a cluster: the only module that imports Ray.

The function goes into the object store once and each worker process takes it out once. Machines of a cluster need this
package installed in the Python that Ray runs there.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, final

from search.assignment import Assignment
from search.carrying import immovable
from search.execution import Executor, ExecutorError

T = TypeVar("T")
R = TypeVar("R")

_SETTINGS = 4  # type of the first frame that either side of HTTP/2, and so of gRPC, sends (RFC 9113 §3.4, §6.5)
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, _SETTINGS, 0, 0, 0, 0, 0])

_WITHOUT = "leave search.address out for a Ray of its own"

_held: dict[str, Callable[[Any], Any]] = {}  # in a worker: the function by its name in the object store


@dataclass(frozen=True, slots=True, kw_only=True)
class OnRay:
    """A Ray cluster: the one at `address` (host:port or "auto"), the one already joined, or one started here.

    `workers` bounds the chunks at work (None: every core); an address that does not answer within `patience` seconds, and a
    chunk that is lost more than `retries` times, raise ExecutorError.
    """

    workers: int | None = None
    address: str | None = None
    patience: float = 10.0
    retries: int = 3

    @property
    def apart(self) -> bool:
        """The work is done in other processes."""
        return True

    @property
    def hands(self) -> int:
        """What `workers` allows of the cluster's cores; before it is joined, `workers` or 1."""
        import ray

        cores = max(1, int(_cores(ray))) if ray.is_initialized() else self.workers or 1
        return min(self.workers or cores, cores)

    def map(self, function: Callable[[T], R], chunks: Iterator[T]) -> Generator[tuple[int, R], None, None]:
        """Yield (index of the chunk, result) as they come."""
        with self.kept() as joined:
            yield from joined.map(function, chunks)

    @contextmanager
    def kept(self, about: Any = None) -> Iterator[Executor]:
        """The executor, which leaves what it joins or starts at the end of the block; told what it is about, it joins now."""
        joined = _Joined(self)
        try:
            if about is not None:
                joined.tell(about)
            yield joined
        finally:
            joined.leave()

    @contextmanager
    def joined(self) -> Iterator[None]:
        """One cluster for all searches of a block, joined or started now."""
        import ray

        started = self.join(ray)
        try:
            yield
        finally:
            if started:
                ray.shutdown()

    def join(self, ray: Any) -> bool:
        """Join or start the cluster, unless one is joined already; whether it is to be left again."""
        if self.address is not None and self.address != "auto":
            _knock(self.address, self.patience)
        if ray.is_initialized():
            joined = str(ray.get_runtime_context().gcs_address)
            if self.address not in (None, "auto", joined):
                raise ExecutorError(f"this process belongs to the Ray cluster at {joined} already, not {self.address}")
            return False
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own is 15: whatever else runs goes before the search
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if self.address is None:
            ray.init(address="local", num_cpus=self.workers, include_dashboard=False, **quiet)
            return True
        try:
            ray.init(address=self.address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ExecutorError(f"no Ray cluster answers at {self.address}: {error}; {_WITHOUT}") from None
        return True


@final
class _Joined:
    """A cluster from the first map on: what to do is put into its object store once, however many maps do it."""

    def __init__(self, who: OnRay) -> None:
        self._who = who
        self._started = False
        self._known: Callable[[Any], Any] | None = None
        self._shared: Any = None

    @property
    def apart(self) -> bool:
        """The work is done in other processes."""
        return True

    @property
    def hands(self) -> int:
        """As of the executor."""
        return self._who.hands

    def map(self, function: Callable[[T], R], chunks: Iterator[T]) -> Generator[tuple[int, R], None, None]:
        """Yield (index of the chunk, result) as they come."""
        import ray

        self._started = self._who.join(ray) or self._started
        task = ray.remote(max_retries=0)(_call)
        if self._known is not function:
            self._shared, self._known = _put(ray, function), function
        shared = self._shared
        workers, cores = self._who.workers, max(1, int(_cores(ray)))
        window = 2 * cores if workers is None or workers >= cores else workers
        work = Assignment(chunks, retries=self._who.retries)
        running: dict[Any, int] = {}
        try:
            while not work.over:
                while len(running) < window and (job := work.take()) is not None:
                    running[task.remote([shared], job[1])] = job[0]
                for ready in ray.wait(list(running), num_returns=1, timeout=work.until_straggler())[0]:
                    index = running.pop(ready)
                    try:
                        result = ray.get(ready)
                    except ray.exceptions.RayTaskError as error:
                        raise error.cause from None
                    except ray.exceptions.RayError as error:
                        work.lost(index, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
                        continue
                    if work.finished(index):
                        yield index, result
        except ray.exceptions.RaySystemError as error:
            raise ExecutorError(f"the Ray cluster is gone: {error}") from None
        finally:
            for left in running:
                ray.cancel(left, force=True)

    def tell(self, about: Any) -> None:
        """Join, and let every worker read something that what it will do holds: it comes to know the code it needs."""
        import ray

        self._started = self._who.join(ray) or self._started
        read, told = ray.remote(max_retries=0)(_read), _put(ray, about)
        for _ in range(self.hands):
            read.remote([told])

    def leave(self) -> None:
        """Leave what was joined or started here."""
        self._shared = None
        if self._started:
            import ray

            ray.shutdown()


def _put(ray: Any, value: Any) -> Any:
    """Something in the object store. Raises ExecutorError when it cannot leave this process."""
    try:
        return ray.put(value)
    except TypeError as error:
        raise ExecutorError(immovable(error.__cause__ or error)) from error


def _cores(ray: Any) -> float:
    return float(ray.cluster_resources().get("CPU", 1))


def _knock(address: str, patience: float) -> None:
    """ExecutorError when nothing that speaks gRPC answers at host:port: Ray itself would wait there for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        raise ExecutorError(f"a Ray address is host:port or auto, got '{address}'")
    silent = f"no Ray cluster answers at {address} within {patience:g} s"
    try:
        with socket.create_connection((host, int(port)), timeout=patience) as line:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return
            line.sendall(_HELLO)
            frame = line.recv(4)
    except OSError as error:
        raise ExecutorError(f"{silent}: {error}; {_WITHOUT}") from None
    if len(frame) < 4 or frame[3] != _SETTINGS:
        raise ExecutorError(f"{silent}: something else listens there; {_WITHOUT}")


def _read(told: list[Any]) -> None:
    """In a worker: read something, for the code that comes with it. What cannot be read is told when there is work."""
    import ray

    with suppress(Exception):
        ray.get(told[0])


def _call(shared: list[Any], chunk: Any) -> Any:
    """In a worker: the shared function of a chunk."""
    import ray

    name = shared[0].hex()
    if name not in _held:
        _held.clear()
        _held[name] = ray.get(shared[0])
    return _held[name](chunk)
