"""The compiled event loop, made when first asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable

from costmodels.simulation.compiling import compiled
from costmodels.simulation.loop import advance
from spaces.columns import FloatArray, IntArray


@functools.cache
def event_loop() -> Callable[[IntArray, FloatArray, int], int]:
    """`costmodels.simulation.loop.advance` as machine code."""
    return compiled(advance)
