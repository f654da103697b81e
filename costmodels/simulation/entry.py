"""The compiled event loop, kept on disk between processes under a key that changes with any of its sources."""

from __future__ import annotations

import functools
from collections.abc import Callable

from costmodels.simulation.compiling import kept, stamp
from costmodels.simulation.loop import advance
from spaces.columns import FloatArray, IntArray


@functools.cache
def event_loop() -> Callable[[IntArray, FloatArray, int], int]:
    """`costmodels.simulation.loop.advance`, compiled or read from disk at its first call."""
    sources = stamp()

    def run(m: IntArray, f: FloatArray, pause: int) -> int:
        return advance(m, f, pause) if len(sources) > 0 else 0

    return kept(run)
