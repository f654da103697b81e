"""What is asked: the model, the workload and everything that is fixed, as symbols bound to scalars."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from spaces.architecture import Architecture
from spaces.columns import Bindings, Columns

NO_MODEL = Architecture(
    name="none", layers=1, hidden=1, heads=1, kv_heads=1, head_dim=1, ffn=1, vocab=1, max_sequence=1
)
"""In the place of a model where cost model and space are about something else."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """A model, a software stack (neither where the question is about something else) and the symbols that do not vary.

    `scalars` holds every symbol that is not an axis (`sequence`, `global_batch`, `tensor`, `device.memory_bandwidth`, …; SI
    units). `labels` gives the names behind coded symbols: labels["device"] = ("H100-80GB-SXM", …), labels["schedule"] = ….
    """

    architecture: Architecture = NO_MODEL
    stack: str = ""
    scalars: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: MappingProxyType({}))

    def at(self, columns: Columns) -> Bindings:
        """The symbols of this problem and of the design points under one roof."""
        return Bindings(self.scalars, columns)

    def label(self, symbol: str, value: Any) -> Any:
        """The name behind a coded value, or the value itself."""
        names = self.labels.get(symbol)
        return names[int(value)] if names is not None else value
