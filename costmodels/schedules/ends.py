"""When the passes of a schedule end, one after the other: the loop that is compiled (costmodels.compiling.machine_code)."""

from __future__ import annotations

import functools
from collections.abc import Callable

from spaces.columns import FloatArray, IntArray


def ends(
    before: IntArray,
    sent: FloatArray,
    kind: IntArray,
    cost: FloatArray,
    wait: FloatArray,
    end: FloatArray,
    last: FloatArray,
    passes: int,
    rows: int,
    sends: int,
) -> None:
    """Put when each pass ends into `end` (passes + 1, rows), 0 at the start, and the latest into `last` (rows,).

    `before` (passes, 3), `sent` (passes, 2) and `kind` (passes,) as `Walk.before`, `sent` and `cost`; `cost` (kinds, rows)
    seconds of each kind of pass, `wait` (rows,) those of a send, not read where `sends` is 0.
    """
    for place in range(passes):
        here = (place + 1) * rows
        own, first, second = before[3 * place] * rows, before[3 * place + 1] * rows, before[3 * place + 2] * rows
        far, further = sent[2 * place], sent[2 * place + 1]
        cell = kind[place] * rows
        if sends > 0:
            for row in range(rows):
                ready = max(end[own + row], end[first + row] + far * wait[row])
                end[here + row] = max(ready, end[second + row] + further * wait[row]) + cost[cell + row]
        elif second > 0:
            for row in range(rows):
                end[here + row] = max(max(end[own + row], end[first + row]), end[second + row]) + cost[cell + row]
        else:
            for row in range(rows):
                end[here + row] = max(end[own + row], end[first + row]) + cost[cell + row]
        for row in range(rows):
            last[row] = max(last[row], end[here + row])


@functools.cache
def compiled_ends() -> Callable[..., None]:
    """`ends` as machine code, made once for all processes of a person: most plans never come here."""
    from costmodels.compiling.kept_code import default_folder
    from costmodels.compiling.machine_code import compiled

    return compiled(ends, default_folder())
