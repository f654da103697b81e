"""One batch prefilled and decoded together, without a server: all its requests start and end at the same steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from costmodels.step_tables import Batch, StepTables, step_time
from spaces.columns import FloatArray, IntArray

_STEPS = 32  # decode steps looked at where there are more: times are nearly linear in the cached tokens


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StaticBatch:
    """Seconds to the first token, and the mean of a later one; (n,)."""

    first: FloatArray
    token: FloatArray


def static_batch(
    tables: StepTables, engine: IntArray, requests: FloatArray, prompt: FloatArray, output: FloatArray
) -> StaticBatch:
    """`requests` of `prompt` tokens each are prefilled in one step; then `output` − 1 steps decode one token of each; (n,)."""
    queries = requests * prompt
    batch = Batch(prefill_queries=queries, prefill_pairs=queries * prompt / 2.0, prompts_finished=requests)
    first = step_time(tables, engine, batch)
    steps = np.maximum(output - 1.0, 1.0)
    share = (np.arange(_STEPS) + 0.5) / _STEPS
    # the step that makes token i + 1 attends to prompt + i tokens, its own included
    length = prompt[:, None] + 0.5 + share[None, :] * steps[:, None]
    wide = np.broadcast_to(requests[:, None], length.shape)
    times = step_time(
        tables, np.broadcast_to(engine[:, None], length.shape), Batch(decode_requests=wide, decode_kv=wide * length)
    )
    return StaticBatch(first=first, token=np.asarray(times.mean(axis=1)))
