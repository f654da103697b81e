"""Chunks of work as Ray tasks, on this machine or on a cluster: the only module that imports Ray.

The function goes into the object store once and each worker process takes it out once. Ray does a chunk again when its
worker or node is lost.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from search.executors import ExecutorError

T = TypeVar("T")
R = TypeVar("R")

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

    def map(self, function: Callable[[T], R], chunks: Iterator[T]) -> Generator[tuple[int, R], None, None]:
        """Yield (index of the chunk, result) as they come."""
        import ray

        self._join(ray)
        task = ray.remote(max_retries=self.retries)(_call)
        shared = ray.put(function)
        cores = int(ray.cluster_resources().get("CPU", 1))
        window = 2 * cores if self.workers is None or self.workers >= cores else self.workers
        running: dict[Any, int] = {}
        source = enumerate(chunks)
        try:
            while True:
                for index, chunk in islice(source, window - len(running)):
                    running[task.remote([shared], chunk)] = index
                if not running:
                    return
                for ready in ray.wait(list(running), num_returns=1)[0]:
                    result = ray.get(ready)
                    yield running.pop(ready), result
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except ray.exceptions.RayError as error:
            raise ExecutorError(f"Ray lost a chunk more than {self.retries} times: {error}") from None
        finally:
            for left in running:
                ray.cancel(left)

    def _join(self, ray: Any) -> None:
        """Join or start the cluster, unless one is joined already."""
        if ray.is_initialized():
            return
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        quiet: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "error"}
        if self.address is None:
            ray.init(address="local", num_cpus=self.workers, **quiet)
            return
        if self.address != "auto":
            _knock(self.address, self.patience)
        try:
            ray.init(address=self.address, log_to_driver=False, logging_level="error")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ExecutorError(f"no Ray cluster answers at {self.address}: {error}") from None


def _knock(address: str, patience: float) -> None:
    """ExecutorError when nothing listens at host:port."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        raise ExecutorError(f"a Ray address is host:port or auto, got '{address}'")
    try:
        socket.create_connection((host, int(port)), timeout=patience).close()
    except OSError as error:
        raise ExecutorError(f"no Ray cluster answers at {address} within {patience:g} s: {error}") from None


def _call(shared: list[Any], chunk: Any) -> Any:
    """In a worker: the shared function of a chunk."""
    import ray

    name = shared[0].hex()
    if name not in _held:
        _held.clear()
        _held[name] = ray.get(shared[0])
    return _held[name](chunk)
