"""The one door to numba: functions of the event loop are compiled when first run, and kept on disk for the next process.

Only the entry point is cached, under a key that holds the content of every file compiled into it: numba itself looks at the
entry point's own file alone and would go on running a callee that has since been changed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])

SOURCES = ("compiling", "state", "queues", "timing", "prefix_cache", "memory", "scheduling", "loop", "entry")
"""Modules whose code ends up in the event loop."""


_OPTIONS: Mapping[str, Any] = {"error_model": "numpy", "_nrt": False}
"""Division as numpy does it; no reference counts, for nothing is allocated."""
_INNER: Mapping[str, Any] = {**_OPTIONS, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}


def compiled(function: Function) -> Function:
    """A function of two arrays and numbers, compiled where it is called from compiled code; it allocates nothing."""
    return cast(Function, numba.njit(**_INNER)(function))


def kept(function: Function) -> Function:
    """An entry point: compiled and cached on disk beside its file, or in the person's cache folder."""
    return cast(Function, numba.njit(**_OPTIONS, cache=True)(function))


def stamp() -> str:
    """Hash of the sources."""
    folder = Path(__file__).parent
    content = b"".join((folder / f"{name}.py").read_bytes() for name in SOURCES)
    return hashlib.sha256(content).hexdigest()
