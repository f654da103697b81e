"""Boosted trees read from lightgbm's text and evaluated with numpy: a prediction needs neither its import nor libgomp.

A row's leaf in a tree is found by elimination (QuickScorer: Lucchese 2015, SIGIR): every split whose test fails rules out the
leaves on its left, and of the leaves that remain the leftmost is the row's. Splits of one feature are sorted by threshold,
so the leaves that all failed splits of a feature rule out are one row of a table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces.columns import FloatArray, IntArray

_ROWS = 512  # rows at once: their sets of leaves stay in the processor's cache
_FIELDS = ("num_leaves", "num_cat", "leaf_value", "threshold", "split_feature", "left_child", "right_child")
_LEAVES = 64  # of one tree: a set of them is one machine word


class UnreadableTrees(ValueError):
    """A model text that this reader does not hold: another format, categorical splits, large trees, a transformed output."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Splits:
    """All splits on one feature, k distinct thresholds ascending, over the u trees that use it.

    `allowed[i]` (u,) are the leaves left in each of `trees` (u,) when the first i thresholds fail (x above them).
    """

    feature: int
    threshold: FloatArray
    trees: IntArray
    allowed: NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trees:
    """t trees: their splits by feature, and `value` (t, leaves), the output of every leaf from left to right."""

    splits: tuple[Splits, ...]
    value: FloatArray
    names: tuple[str, ...]

    def predict(self, x: FloatArray) -> FloatArray:
        """Sum of the trees for each row of x, shape (n, features) -> (n,). Raises ValueError for another number of features."""
        if x.ndim != 2 or x.shape[1] != len(self.names):
            raise ValueError(f"the trees read {len(self.names)} features, got an array of shape {x.shape}")
        result = np.zeros(len(x))
        for start in range(0, len(x), _ROWS):
            result[start : start + _ROWS] = self._sum(x[start : start + _ROWS])
        return result

    def _sum(self, x: FloatArray) -> FloatArray:
        leaves = np.full((len(self.value), len(x)), np.iinfo(np.uint64).max, dtype=np.uint64)
        for splits in self.splits:
            failed = np.searchsorted(splits.threshold, x[:, splits.feature], side="left")
            leaves[splits.trees] &= splits.allowed.T[:, failed]
        first = leaves & (~leaves + np.uint64(1))
        # a power of two below 2^64 is exact in a double, and its exponent is the leaf's position
        position = np.frexp(first.astype(np.float64))[1] - 1
        return np.asarray(np.take_along_axis(self.value, position.astype(np.int64), axis=1).sum(axis=0), dtype=np.float64)


def read_trees(text: str) -> Trees:
    """The trees of a lightgbm text model (version v4, numerical splits, identity output). Raises UnreadableTrees."""
    head = text.split("\nTree=", 1)[0]
    facts = _facts(head)
    if facts.get("version") != "v4":
        raise UnreadableTrees(f"version {facts.get('version')!r} of the text format; this reads v4")
    if facts.get("num_tree_per_iteration", "1") != "1":
        raise UnreadableTrees("several outputs an iteration")
    body = _lines(text[len(head) :])
    if any(count != "0" for count in body["num_cat"]):
        raise UnreadableTrees("categorical splits")
    counts = np.array(body["num_leaves"], dtype=np.int64)
    if counts.max(initial=1) > _LEAVES:
        raise UnreadableTrees(f"{counts.max()} leaves in a tree; this reads {_LEAVES}")
    outputs, thresholds = (_numbers(body, name, np.float64) for name in ("leaf_value", "threshold"))
    features, left, right = (_numbers(body, name, np.int64) for name in ("split_feature", "left_child", "right_child"))
    left_of, right_of = left.tolist(), right.tolist()
    value = np.zeros((len(counts), int(counts.max(initial=1))))
    masks = np.zeros(len(features), dtype=np.uint64)
    start, first = 0, 0
    for t, leaves in enumerate(counts.tolist()):
        inner = leaves - 1
        own = slice(start, start + inner)
        order, ruled_out = _order(left_of[own], right_of[own])
        value[t, :leaves] = outputs[first : first + leaves][order]
        masks[own] = ruled_out
        start, first = start + inner, first + leaves
    owner = np.repeat(np.arange(len(counts)), counts - 1)
    splits = tuple(
        _splits(int(feature), thresholds[features == feature], owner[features == feature], masks[features == feature])
        for feature in np.unique(features)
    )
    return Trees(splits=splits, value=value, names=tuple(facts.get("feature_names", "").split()))


def _lines(body: str) -> dict[str, list[str]]:
    """What follows `name=` in every tree, in order, by name."""
    found: dict[str, list[str]] = {name: [] for name in _FIELDS}
    for line in body.split("\n"):
        name, _, value = line.partition("=")
        if name in found:
            found[name].append(value)
    return found


def _numbers(body: Mapping[str, list[str]], name: str, kind: Any) -> NDArray[Any]:
    """A field of every tree, end to end; a tree of one leaf has no splits."""
    return np.array(" ".join(body[name]).split(), dtype=kind)


def _order(left: list[int], right: list[int]) -> tuple[list[int], list[int]]:
    """Leaves from left to right, and for every split the set of all leaves but those on its left, as bits."""
    if not left:
        return [0], []
    order: list[int] = []
    below = [0] * len(left)
    stack: list[tuple[int, int]] = [(0, -1)]
    while stack:
        node, since = stack.pop()
        if node < 0:
            order.append(-node - 1)
        elif since < 0:
            stack += [(right[node], -1), (node, len(order)), (left[node], -1)]
        else:  # everything on its left has been numbered
            below[node] = ((1 << len(order)) - 1) ^ ((1 << since) - 1)
    everything = (1 << _LEAVES) - 1
    return order, [everything ^ bits for bits in below]


def _splits(feature: int, threshold: FloatArray, owner: IntArray, mask: NDArray[np.uint64]) -> Splits:
    distinct, place = np.unique(threshold, return_inverse=True)
    trees, column = np.unique(owner, return_inverse=True)
    allowed = np.full((len(distinct) + 1, len(trees)), np.iinfo(np.uint64).max, dtype=np.uint64)
    np.bitwise_and.at(allowed, (place + 1, column), mask)
    return Splits(feature=feature, threshold=distinct, trees=trees, allowed=np.bitwise_and.accumulate(allowed, axis=0))


def _facts(block: str) -> dict[str, str]:
    """The key=value lines of a block."""
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
