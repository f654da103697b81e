"""What servers' own attention, over a paged cache, takes beside the kernels that were measured here.

The kernel model tells how long PyTorch's attention reads a cache of that size. Servers' kernels (FlashAttention-3, XQA, MMHA)
read long caches as quickly, and differ where there is little to read or where they read fewer bytes a value:

- a layer costs a `start` more: the cache's own write, splits and their joining, and casts of queries where values are narrow;
- a compute unit takes a block (all queries of one key-value head of one request) at a time, none in less than `block`, so that
  short and windowed caches of many requests are bound by blocks and not by bytes;
- TensorRT-LLM's kernel for 16-bit caches cuts them into parts, also where a window lets most of them do nothing: each wave of
  parts takes `part`, to `parts_most` in all;
- a cache in 8 bits is not read in half the time: its halved bytes count `cache_64`, `cache_128` or `cache_256` times, by the
  width of a head; a window of 128 tokens makes a layer take `window` times as long, for blocks reach over its edges.

Prompts likewise: a layer costs a `start`, as much as `passes` over its queries (turned, cast and written; blocks that begin and
end) and `slower` times what the model says, and `window` times as long with such a window.

The constants are in the stacks' files; tests/costmodels/serving/test_paged_attention.py holds them to what others measured.
"""

from __future__ import annotations

import numpy as np

from costmodels.kernels import smooth_max
from costmodels.serving.formats import cache_bytes
from spaces.columns import Value
from spaces.expressions import SymbolTable

_NAMED = "stack.decode_attention."
_PROMPTS = "stack.prefill_attention."
_ROWS = 64.0  # queries of one key-value head that a block holds
_PART = 128.0  # tokens of a part


def narrow(at: SymbolTable) -> Value:
    """Whether a cached value has fewer than 16 bits."""
    return np.asarray(cache_bytes(at["kv_precision"]) < 2.0)


def counted_share(at: SymbolTable) -> Value:
    """Bytes of a cached value over those of 16 bits, as far as reading them tells."""
    width = np.asarray(at["head_dim"])
    counts = np.where(width <= 128, at[_NAMED + "cache_128"], at[_NAMED + "cache_256"])
    counts = np.where(width <= 64, at[_NAMED + "cache_64"], counts)
    return np.where(narrow(at), counts, 1.0) * cache_bytes(at["kv_precision"]) / 2.0


def blocks_time(at: SymbolTable, requests: Value, length: Value, heads: Value, kv_heads: Value) -> Value:
    """Seconds below which a layer's kernel does not come, whatever it reads: blocks, and parts of `length` tokens each has."""
    thin = narrow(at)
    waves = requests * kv_heads * np.ceil(heads / kv_heads / _ROWS) / at["device.compute_units"]
    most = np.maximum(at[_NAMED + "parts_most"], 1e-12)
    parts = -most * np.expm1(-waves * np.maximum(length / _PART - 1.0, 0.0) * at[_NAMED + "part"] / most)
    block = np.where(thin, at[_NAMED + "block_narrow"], at[_NAMED + "block"])
    return smooth_max(waves * block, np.where(thin, 0.0, parts))


def start_time(at: SymbolTable) -> Value:
    """Seconds of a layer that its requests and their lengths do not change."""
    return np.where(narrow(at), at[_NAMED + "start_narrow"], at[_NAMED + "start"])


def windowed(at: SymbolTable, length: Value, seen: Value) -> Value:
    """Times as long that a layer takes whose window cuts what is cached."""
    return _over_edges(at[_NAMED + "window"], at["sliding_window"], np.asarray(seen) < length)


def _over_edges(times: Value, window: Value, cut: Value) -> Value:
    """`times` is of a window of 128 tokens; what blocks read beside it is as much of any, and less against a longer one."""
    return np.where(cut, 1.0 + (times - 1.0) * _PART / np.maximum(window, 1.0), 1.0)


def prompts_slower(at: SymbolTable, cut: Value) -> Value:
    """Times as long that a layer's products of queries and keys take in a prompt; `cut` where a window leaves keys out."""
    slower = np.where(narrow(at), at[_PROMPTS + "slower_narrow"], at[_PROMPTS + "slower"])
    return slower * _over_edges(at[_PROMPTS + "window"], at["sliding_window"], cut)


def prompts_beside(at: SymbolTable, queries: Value, heads: Value) -> Value:
    """Seconds of a layer beside its products, for so many new tokens of prompts; passes read and write 16 bits."""
    moved = at[_PROMPTS + "passes"] * 4.0 * queries * heads * at["head_dim"]
    start = np.where(narrow(at), at[_PROMPTS + "start_narrow"], at[_PROMPTS + "start"])
    return start + moved / at["device.memory_bandwidth"]
