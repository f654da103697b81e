"""Every executor by the name of its kind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from search.execution import Executor, Serial

if TYPE_CHECKING:
    from search.on_ray import OnRay


def executor(kind: str, workers: int | None = None, address: str | None = None) -> Executor:
    """The executor of that kind: `serial`, `local` (processes) or `ray`. Raises ValueError for another."""
    made: dict[str, Callable[[], Any]] = {
        "serial": Serial,
        "local": lambda: _local(workers),
        "ray": lambda: _ray(workers, address),
    }
    if kind not in made:
        raise ValueError(f"no executor is called '{kind}'; there are {', '.join(made)}")
    found: Executor = made[kind]()
    return found


def shared(kind: str, workers: int | None = None, address: str | None = None) -> AbstractContextManager[None]:
    """A block of several searches by such an executor: what takes long to start is started once for all of them."""
    return _ray(workers, address).joined() if kind == "ray" else nullcontext()


def _local(workers: int | None) -> Executor:
    from search.local import Local

    return Local(workers=workers)


def _ray(workers: int | None, address: str | None) -> OnRay:
    from search.on_ray import OnRay

    return OnRay(workers=workers, address=address)
