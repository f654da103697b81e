"""Boosted trees read from lightgbm's text and evaluated with numpy: a prediction needs neither its import nor libgomp."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spaces.columns import FloatArray

_ROWS = 256  # rows walked at once: all trees of so many rows stay in the processor's cache


class UnreadableTrees(ValueError):
    """A model text that this reader does not hold: another format, categorical splits, or a transformed output."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trees:
    """All nodes of t trees in one struct of arrays; node i of a tree goes left when x[feature] <= threshold.

    `left` and `right` are positions in the same arrays; a leaf points at itself, so that a walk of `depth` steps ends there
    from every root. `value` is the leaf's output, shape (nodes,); `roots` has shape (t,).
    """

    feature: NDArray[np.int32]
    threshold: FloatArray
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: FloatArray
    roots: NDArray[np.int32]
    depth: int
    names: tuple[str, ...]

    def predict(self, x: FloatArray) -> FloatArray:
        """Sum of the trees for each row of x, shape (n, features) -> (n,). Raises ValueError for another number of features."""
        if x.ndim != 2 or x.shape[1] != len(self.names):
            raise ValueError(f"the trees read {len(self.names)} features, got an array of shape {x.shape}")
        result = np.zeros(len(x))
        for start in range(0, len(x), _ROWS):
            part = np.ascontiguousarray(x[start : start + _ROWS])
            result[start : start + _ROWS] = self._walk(part)
        return result

    def _walk(self, x: FloatArray) -> FloatArray:
        flat, offset = x.ravel(), (np.arange(len(x), dtype=np.int64) * x.shape[1])[:, None]
        node = np.broadcast_to(self.roots, (len(x), len(self.roots)))
        for _ in range(self.depth):
            goes_left = flat[offset + self.feature[node]] <= self.threshold[node]
            node = np.where(goes_left, self.left[node], self.right[node])
        return np.asarray(self.value[node].sum(axis=1), dtype=np.float64)


def read_trees(text: str) -> Trees:
    """The trees of a lightgbm text model (version v4, numerical splits, identity output). Raises UnreadableTrees."""
    head, *bodies = text.split("\nTree=")
    facts = _facts(head)
    if facts.get("version") != "v4":
        raise UnreadableTrees(f"version {facts.get('version')!r} of the text format; this reads v4")
    if facts.get("num_tree_per_iteration", "1") != "1":
        raise UnreadableTrees("several outputs an iteration")
    columns: dict[str, list[NDArray[Any]]] = {name: [] for name in ("feature", "threshold", "left", "right", "value")}
    roots, base, depth = [], 0, 0
    for body in bodies:
        tree = _tree(_facts(body.split("\nend of trees")[0]), base)
        for name, values in columns.items():
            values.append(tree[name])
        roots.append(base)
        depth = max(depth, _depth(tree, base))
        base += len(tree["value"])
    joined = {name: np.concatenate(values) if values else np.zeros(0) for name, values in columns.items()}
    return Trees(
        feature=joined["feature"].astype(np.int32),
        threshold=joined["threshold"].astype(np.float64),
        left=joined["left"].astype(np.int32),
        right=joined["right"].astype(np.int32),
        value=joined["value"].astype(np.float64),
        roots=np.asarray(roots, dtype=np.int32),
        depth=depth,
        names=tuple(facts.get("feature_names", "").split()),
    )


def _facts(block: str) -> dict[str, str]:
    """The key=value lines of a block."""
    return dict(line.split("=", 1) for line in block.splitlines() if "=" in line)


def _tree(facts: Mapping[str, str], base: int) -> dict[str, NDArray[Any]]:
    """One tree's nodes with positions counted from `base`: the inner nodes first, then the leaves."""
    leaves = np.array(facts["leaf_value"].split(), dtype=np.float64)
    inner = int(facts["num_leaves"]) - 1
    itself = base + inner + np.arange(len(leaves))
    if inner == 0:
        zero = np.zeros(len(leaves), dtype=np.int64)
        return {"feature": zero, "threshold": np.zeros(len(leaves)), "left": itself, "right": itself, "value": leaves}
    if facts.get("num_cat", "0") != "0":
        raise UnreadableTrees("categorical splits")

    def children(side: str) -> NDArray[np.int64]:
        child = np.array(facts[side].split(), dtype=np.int64)
        return np.concatenate([base + np.where(child >= 0, child, inner - child - 1), itself])

    blank = np.zeros(len(leaves))
    return {
        "feature": np.concatenate([np.array(facts["split_feature"].split(), dtype=np.int64), blank.astype(np.int64)]),
        "threshold": np.concatenate([np.array(facts["threshold"].split(), dtype=np.float64), blank]),
        "left": children("left_child"),
        "right": children("right_child"),
        "value": np.concatenate([np.zeros(inner), leaves]),
    }


def _depth(tree: Mapping[str, NDArray[Any]], base: int) -> int:
    """Steps from the root to the furthest leaf."""
    level, steps = np.zeros(1, dtype=np.int64), 0
    while True:
        level = level[tree["left"][level] - base != level]  # leaves point at themselves
        if len(level) == 0:
            return steps
        level = np.concatenate([tree["left"][level], tree["right"][level]]) - base
        steps += 1
