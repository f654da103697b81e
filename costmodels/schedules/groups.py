"""How many microbatches the interleaved schedule takes through a chunk in a row."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from costmodels.schedules.profiles import IntArray
from spaces.columns import numbered


def group_size(pipeline: ArrayLike, microbatches: ArrayLike) -> IntArray:
    """Microbatches the interleaved schedule takes through a chunk in a row: p where that divides m.

    Else the smallest divisor of m that is at least p: Megatron-core's `microbatch_group_size_per_vp_stage` must not leave a
    last group smaller than p, which the ranks would wait for. All m where m < p (Megatron-core refuses that).
    """
    p, m = np.broadcast_arrays(np.asarray(pipeline, dtype=np.int64), np.asarray(microbatches, dtype=np.int64))
    size = np.where(m % p == 0, p, m)
    odd = np.flatnonzero((m % p != 0) & (m > p))
    if odd.size:
        few, most = p.ravel()[odd], m.ravel()[odd]
        radix = int(most.max()) + 1
        pairs, place = numbered(few * radix + most, (int(few.max()) + 1) * radix)
        legal = [next(g for g in range(a, b + 1) if b % g == 0) for a, b in zip(*np.divmod(pairs, radix), strict=True)]
        size.ravel()[odd] = np.asarray(legal, dtype=np.int64)[place]
    return np.asarray(size, dtype=np.int64)
