"""Every executor by the name of its kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from search.execution import Executor, Serial


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


def _local(workers: int | None) -> Executor:
    from search.local import Local

    return Local(workers=workers)


def _ray(workers: int | None, address: str | None) -> Executor:
    from search.on_ray import OnRay

    return OnRay(workers=workers, address=address)
