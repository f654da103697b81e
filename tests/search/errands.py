"""What workers are sent to do in the tests of executors: to square, to die, to raise, to dawdle."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def killed_once(chunk: tuple[int, Path]) -> int:
    """Dies in the middle of one chunk, the first time."""
    number, marker = chunk
    if number == 5 and not marker.exists():
        marker.write_text("died", encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def dawdles_once(chunk: tuple[int, Path]) -> int:
    """Sleeps over one chunk for a minute, the first time."""
    number, marker = chunk
    if number == 5 and not marker.exists():
        marker.write_text("slept", encoding="utf-8")
        time.sleep(60)
    return number * number


def always_dies(_: int) -> int:
    """Dies."""
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def raises(_: int) -> int:
    """Cannot."""
    raise ZeroDivisionError("cannot")


def slowly_squared(number: int) -> int:
    """A square that takes a twentieth of a second."""
    time.sleep(0.05)
    return number * number


def own_number(_: int) -> int:
    """Which process this is."""
    return os.getpid()
