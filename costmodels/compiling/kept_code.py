"""Machine code kept on disk from one process to the next, each file named by all that it was made from.

A name is a digest of the functions (their byte code, the numbers they read, the functions they call), of the translation to
LLVM, of LLVM itself and of the processor. A file begins with the digest of the rest. One that is cut, changed, in the way or
somebody else's is not read, and one that cannot be written is done without: then the code is made as if there were none.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

FOLDER = "frontplan"
"""The folder's name among the caches of a person."""
_DIGEST = hashlib.sha256().digest_size
_SUFFIX = ".code"


def default_folder() -> Path | None:
    """Where code is kept: `$FRONTPLAN_CACHE` (empty: nowhere), else `frontplan` among the person's caches."""
    own = os.environ.get("FRONTPLAN_CACHE")
    if own is not None:
        return Path(own) if own else None
    with contextlib.suppress(RuntimeError):  # nobody's home
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / FOLDER
    return None


def name_of(function: FunctionType, maker: str) -> str:
    """The file name of a function's code as `maker` makes it: the same for the same lines, numbers and maker alone."""
    told = hashlib.sha256(f"{sys.version_info} {maker}".encode())
    for piece in _pieces(function, set()):
        told.update(piece.encode() + b"\0")
    return told.hexdigest() + _SUFFIX


def _pieces(function: FunctionType, known: set[FunctionType]) -> Iterator[str]:
    """All that a function's code depends on, the functions it calls included."""
    known.add(function)
    code: CodeType = function.__code__
    yield f"{function.__module__}.{function.__qualname__} {sorted(function.__annotations__.items())}"
    yield f"{code.co_code.hex()} {code.co_consts} {code.co_names} {code.co_varnames}"
    owners = [function.__globals__]
    owners += [vars(one) for name in code.co_names if isinstance(one := function.__globals__.get(name), ModuleType)]
    for name in code.co_names:
        for owner in owners:
            value: Any = owner.get(name)
            if isinstance(value, FunctionType):
                yield f"{name} is {value.__module__}.{value.__qualname__}"
                if value not in known:
                    yield from _pieces(value, known)
            elif isinstance(value, bool | int | float):
                yield f"{name} is {value!r}"


def read(folder: Path, name: str) -> bytes | None:
    """The code of that name; None where there is none that can be trusted."""
    try:
        with (folder / name).open("rb") as file:
            if hasattr(os, "getuid") and os.fstat(file.fileno()).st_uid != os.getuid():
                return None
            whole = file.read()
    except OSError:
        return None
    digest, code = whole[:_DIGEST], whole[_DIGEST:]
    return code if code and hashlib.sha256(code).digest() == digest else None


def write(folder: Path, name: str, code: bytes) -> None:
    """Keep the code of that name, whole or not at all, in place of what is older."""
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, made = tempfile.mkstemp(dir=folder, suffix=".part")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            Path(made).replace(folder / name)
        finally:
            Path(made).unlink(missing_ok=True)
        _thin(folder)


_KEPT = 16


def _thin(folder: Path) -> None:
    """Leave the newest files only: every version of the code leaves one."""
    files = sorted(folder.glob(f"*{_SUFFIX}"), key=lambda path: path.stat().st_mtime)
    for path in files[:-_KEPT]:
        path.unlink(missing_ok=True)
