"""What a served engine is locally: its symbols as columns beside a grid of step totals, and the layers it runs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from costmodels.block_table import graphs
from costmodels.serving.stack import ServingStack
from spaces.architecture import Architecture
from spaces.columns import Bindings, Value
from spaces.graph import Graph, Placement

PLACEMENT = Placement(
    {
        "heads": ("tensor",),
        "kv_heads": ("tensor",),
        "ffn": ("tensor", "attention_data"),
        "shared_ffn": ("tensor", "attention_data"),
        "vocab": ("tensor",),
        "experts": ("expert",),
        "moe_ffn": ("expert_tensor",),
    }
)
"""Which mesh axes shard a dimension of a served model."""
_FIXED = {
    "micro_batch": 1,
    "context": 1,
    "stream_shards": 1,
    "activation_bytes": 2.0,
    "dispatch_bytes": 2.0,
    "logits_bytes": 2.0,
}


@dataclass(frozen=True, slots=True, eq=False)
class Local:
    """Symbols of c engines as (c, 1) columns beside a grid of step totals; `tokens` stand for the sequence of a graph."""

    at: Bindings
    tokens: Value

    def __getitem__(self, symbol: str) -> Value:
        if symbol == "sequence":
            return self.tokens
        if symbol in _FIXED:
            return _FIXED[symbol]
        return column(self.at[symbol])


@dataclass(frozen=True, slots=True, eq=False)
class Wide:
    """Symbols of c engines as (c, 1, 1)."""

    at: Bindings

    def __getitem__(self, symbol: str) -> Value:
        value = self.at[symbol]
        return value[:, None, None] if isinstance(value, np.ndarray) and value.ndim == 1 else value


def column(value: Value) -> Value:
    """A scalar as it is, an array (c,) as (c, 1)."""
    return value[:, None] if isinstance(value, np.ndarray) and value.ndim == 1 else value


def layer_graphs(architecture: Architecture, stack: ServingStack) -> tuple[tuple[str, Graph, int], ...]:
    """(kind, block graph, how many layers are of it), in order of first appearance."""
    model = graphs(architecture, stack.traits)
    count = Counter(model.order)
    return tuple((kind, graph, count[kind]) for kind, graph in model.layers.items())
