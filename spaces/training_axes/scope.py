"""What the axes of the training space are built from, and the forms that many of them have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spaces.architecture import Architecture
from spaces.columns import Value
from spaces.plan import DEFAULTS
from spaces.space import Axis, Rule

Chosen = Mapping[str, Value]
Options = Mapping[str, Sequence[int]]

# axes that stay at their default unless opened by name: they change what is trained, or are rarely worth their size
_CLOSED = ("precision", "trainable", "expert_tensor", "shard_degree")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Scope:
    """What the axes are built from. `nodes[code]` is the devices per node of a device kind."""

    architecture: Architecture
    nodes: NDArray[np.int64]
    counts: tuple[int, ...]
    global_batch: int
    sequence: int
    options: Options
    uneven: bool

    def levels(self, name: str, every: Iterable[int]) -> list[int]:
        """Values of an axis: those asked for, else every one there is, ascending."""
        if name not in self.options and name in _CLOSED and name in DEFAULTS:
            return [DEFAULTS[name]]
        return sorted(set(self.options.get(name) or every))

    def node(self, chosen: Chosen) -> Value:
        """Devices per node, (n, 1) or a number."""
        return self.nodes[chosen["device"]] if len(self.nodes) > 1 else int(self.nodes[0])


def divisors(number: int) -> list[int]:
    """Positive divisors, ascending."""
    small = [i for i in range(1, int(number**0.5) + 1) if number % i == 0]
    return sorted({*small, *(number // i for i in small)})


def axis_of(name: str, levels: Sequence[int], *rules: tuple[str, Rule]) -> Axis:
    """An axis that binds one symbol."""
    return Axis(name=name, symbols={name: np.array(levels, np.int64)}, rules=rules)


def optional(
    name: str, wanted: Sequence[int], neutral: int, meaning: str, matters: Rule, *rules: tuple[str, Rule]
) -> Axis:
    """An axis that is held at `neutral` where it does not matter, and takes the values wanted where it does.

    `meaning` is the reason given for values removed where the choice does not matter.
    """

    def meaningful(chosen: Chosen, values: Value) -> Value:
        return matters(chosen, values) | (values == neutral)

    def asked(chosen: Chosen, values: Value) -> Value:
        return ~matters(chosen, values) | np.isin(values, np.array(wanted, np.int64))

    levels = sorted({neutral, *wanted})
    both = ((meaning, meaningful), *rules)
    return axis_of(name, levels, *both, *(() if neutral in wanted else (("not asked for", asked),)))


def plain(name: str, every: Iterable[int]) -> Callable[[Scope], Axis]:
    """A choice without structure."""
    return lambda scope: axis_of(name, scope.levels(name, every))


def stage_ranks(chosen: Chosen) -> Value:
    """Ranks of one pipeline stage, (n, 1)."""
    return chosen["tensor"] * chosen["context"] * chosen["data"]


def microbatches_of(scope: Scope, chosen: Chosen) -> Value:
    """Microbatches a replica runs per step, (n, 1)."""
    return scope.global_batch // (chosen["data"] * chosen["micro_batch"])
