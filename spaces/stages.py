"""Which layers sit on which pipeline stage.

A stage layout deals the layers to pipeline · virtual chunks, chunk c of rank r being global chunk c·pipeline + r
(Narayanan 2021 §2.2). Ranks differ only at the ends and where the kinds of layers differ, so three profiles describe them
all: the first rank, the heaviest rank between the ends, and the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from spaces.columns import FloatArray, IntArray
from spaces.plan import StageLayout

FIRST, MIDDLE, LAST = 0, 1, 2


@dataclass(frozen=True, slots=True, eq=False)
class StageTable:
    """Layers per rank profile for n (pipeline, virtual, layout) combinations.

    `counts` has shape (kinds, 3, n): layers of each kind on the first, the heaviest middle and the last rank. With one stage
    all three are the whole model. `first_chunk` (n,) is the number of layers of the largest chunk.
    """

    counts: FloatArray
    largest_chunk: FloatArray


def chunk_sizes(layers: int, chunks: int, layout: int) -> IntArray:
    """Layers of every global chunk in order, shape (chunks,).

    Even: as equal as can be, the chunks after the first one more: the first already carries the embedding. Light ends: the
    first and the last chunk one layer less, so that embedding and head have room (Llama 3 §3.3.2).
    """
    spare = 2 if layout == StageLayout.LIGHT_ENDS and chunks > 1 else 0
    base, more = divmod(layers + spare, chunks)
    sizes = np.full(chunks, base, np.int64)
    sizes[1 : 1 + more] += 1
    if spare:
        sizes[0] -= 1
        sizes[-1] -= 1
    return sizes


def stage_table(
    order: Sequence[str], kinds: Sequence[str], pipeline: IntArray, virtual: IntArray, layout: IntArray
) -> StageTable:
    """Layer counts of the three rank profiles, for arrays of shape (n,); `order` is the kind of every layer."""
    kind_of = np.array([list(kinds).index(kind) for kind in order], np.int64)
    counts = np.zeros((len(kinds), 3, len(pipeline)))
    largest = np.zeros(len(pipeline))
    memo: dict[tuple[int, int, int], tuple[FloatArray, float]] = {}
    for i, key in enumerate(zip(pipeline.tolist(), virtual.tolist(), layout.tolist(), strict=True)):
        if key not in memo:
            memo[key] = _profiles(kind_of, len(kinds), *key)
        counts[:, :, i], largest[i] = memo[key]
    return StageTable(counts, largest)


def _profiles(kind_of: IntArray, kinds: int, pipeline: int, virtual: int, layout: int) -> tuple[FloatArray, float]:
    sizes = chunk_sizes(len(kind_of), pipeline * virtual, layout)
    rank_of_layer = np.repeat(np.arange(pipeline * virtual) % pipeline, np.maximum(sizes, 0))
    per_rank = np.zeros((pipeline, kinds))
    np.add.at(per_rank, (rank_of_layer, kind_of), 1.0)
    middle = per_rank[1:-1] if pipeline > 2 else per_rank[-1:]
    heaviest = middle[int(np.argmax(middle.sum(axis=1)))]
    return np.stack([per_rank[0], heaviest, per_rank[-1]], axis=1), float(sizes.max())
