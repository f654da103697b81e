"""The compiled event loop, made when first asked for and kept for later processes."""

from __future__ import annotations

import functools
from collections.abc import Callable

from costmodels.compiling.kept_code import default_folder
from costmodels.compiling.machine_code import compiled
from costmodels.simulation.loop import advance
from spaces.columns import FloatArray, IntArray


@functools.cache
def event_loop() -> Callable[[IntArray, FloatArray, int], int]:
    """`costmodels.simulation.loop.advance` as machine code."""
    return compiled(advance, default_folder())
