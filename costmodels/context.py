"""Context parallelism as a stack runs it: how keys and values reach every rank, and what merging partial results moves.

A ring passes keys and values on step by step, hidden behind the attention of the chunk at hand (Liu 2023). PyTorch gathers them
once, waits for them after the first chunk, gathers them again backward and sends the gradients on in fp32. Which of the two a
stack does, and what its merging moves, is data of the stack (`context:` in costmodels/data/stacks).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spaces.columns import Value
from spaces.expressions import SymbolTable

_WIDTH = 2.0  # bytes of a gradient that a placement's change counts


def exchanged(
    at: SymbolTable, size: Value, attention: Value, *, backward: bool, cost: Callable[[str, Value], tuple[Value, Value, Value]]
) -> tuple[Value, Value, Value, Value]:
    """Seconds, seconds hidden, and bytes inside and outside a domain of keys' or values' exchange; (n,) or numbers.

    size: bytes of the whole tensor of the model's key-value heads; attention: seconds it may hide behind, those of keys and of
    values together; cost(kind, size): seconds and bytes of a collective of that many bytes.
    """
    ranks = np.asarray(at["context"], np.float64)
    gathers = np.asarray(at["stack.context.gathers"]) > 0
    repeated = np.where(np.asarray(at["stack.context.repeats"]) > 0, at["heads"] / np.maximum(at["kv_heads"], 1), 1.0)
    room = at["stack.overlap.context"] * attention / 2
    first = np.where(gathers, room / ranks, room)  # what is gathered once is waited for after the first chunk
    gathered = size * repeated
    if not backward:
        time, inner, outer = cost("all_gather", gathered)
        return time, np.minimum(time, first), inner, outer
    # one step more than a ring's, the last of which brings a chunk home
    wider = at["stack.context.gradient_bytes"] / _WIDTH * np.where(gathers, ranks / np.maximum(ranks - 1.0, 1.0), 1.0)
    time, inner, outer = cost("reduce_scatter", gathered * wider)
    hidden = np.minimum(time, room)
    if np.any(gathers):
        again, more_inner, more_outer = (np.where(gathers, value, 0.0) for value in cost("all_gather", gathered))
        hidden = np.minimum(hidden + np.minimum(again, first), room)
        time, inner, outer = time + again, inner + more_inner, outer + more_outer
    return time, hidden, inner, outer


def merging(at: SymbolTable, elements: Value, *, backward: bool) -> Value:
    """Bytes moved to merge the chunks' results into `elements` of attention's output, or their gradients; (n,) or a number."""
    steps = np.asarray(at["context"], np.float64) - 1.0
    return at[f"stack.context.merge_{'backward' if backward else 'forward'}"] * elements * steps
