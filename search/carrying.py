"""What travels to a worker process of this machine and back, as bytes, and how one starts without the script that asked.

What a script or a notebook defines itself (module `__main__`) travels by value: a worker started afresh has no such module,
and to import the script again would start its search again. All else travels by the name under which it can be imported.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.reduction import ForkingPickler
from types import MappingProxyType, ModuleType
from typing import Any

from search.execution import ExecutorError

_starting = threading.Lock()


def to_bytes(value: Any) -> bytes:
    """A value as bytes that `from_bytes` reads in another process. Raises what pickling raises."""
    try:
        data = bytes(ForkingPickler.dumps(value))
    except Exception:  # it holds a function or class that no module has under its name
        return _by_value(value)
    return _by_value(value) if b"__main__" in data else data


def from_bytes(data: bytes | memoryview) -> Any:
    """The value again."""
    return ForkingPickler.loads(data)


def work_to_bytes(function: Any) -> bytes:
    """A function for workers. Raises ExecutorError when it holds something that cannot leave this process."""
    try:
        return to_bytes(function)
    except Exception as error:
        raise ExecutorError(immovable(error)) from error


def immovable(error: BaseException) -> str:
    """What to tell of work that cannot be sent to workers."""
    first = next(iter(str(error).strip().splitlines()), "")
    return (
        f"the cost model, or what it is asked, cannot be sent to workers: {type(error).__name__}: {first}; keep open files, "
        "locks and connections out of its attributes, or search with executor: serial"
    )


@contextmanager
def unimported_main() -> Iterator[None]:
    """Processes started in the block do not import the script that runs here."""
    with _starting:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            yield
        finally:
            sys.modules["__main__"] = main


def _by_value(value: Any) -> bytes:
    import cloudpickle

    return bytes(cloudpickle.dumps(value))


def _thaw(mapping: MappingProxyType[Any, Any]) -> tuple[Any, ...]:
    return _frozen, (dict(mapping),)


def _frozen(mapping: dict[Any, Any]) -> MappingProxyType[Any, Any]:
    return MappingProxyType(mapping)


ForkingPickler.register(MappingProxyType, _thaw)  # read-only mappings travel too
