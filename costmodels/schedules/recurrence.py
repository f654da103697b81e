"""The recurrence of a schedule: when each of its passes ends, for many stage profiles at once.

A pass ends after the latest of the pass before it on its rank and the passes it takes its input from: max-plus algebra, exact
for any profile. The passes of one (schedule, p, v, m) are put in order of depth once; each depth is a few array operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from costmodels.schedules.orders import BACKWARD, FORWARD, WEIGHT, Op
from costmodels.schedules.profiles import FloatArray, IntArray, Profiles

# ends of passes held at a time: profiles are taken in blocks that keep to it
_CELLS = 1 << 19

# microbatches walked, in pipelines, before the schedule is taken to repeat itself
_ROUNDS = 6

_KINDS = (FORWARD, BACKWARD, WEIGHT)


@dataclass(frozen=True, slots=True, eq=False)
class Depth:
    """Passes that wait for none of each other, at places start … stop − 1.

    `before` (stop − start, 3) are the places of what each waits for, 0 for nothing: the pass before on its rank, and the
    inputs, that of the backward last where a forward and a backward run together. `sent` (stop − start, 2) is 1 where the
    input comes from another rank.
    """

    start: int
    stop: int
    before: IntArray
    sent: FloatArray
    cost: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """The passes of one schedule in order of depth: `passes` of them from place 1, place 0 is the start of the step.

    `costs` are what the passes take: sums over (kind, chunk) of the table handed to `longest`.
    """

    passes: int
    depths: tuple[Depth, ...]
    costs: tuple[tuple[tuple[int, int], ...], ...]


def walk(
    orders: Sequence[Sequence[Op]], places: Sequence[Sequence[int]], input_of: Callable[[int, Op], tuple[int, Op] | None]
) -> Walk:
    """The passes of all ranks in order of depth; `places[rank][chunk]` is the chunk's row in the tables of seconds.

    input_of: the (rank, pass) whose output a pass takes. Raises if the orders wait for each other.
    """
    split = any(op.kind == WEIGHT for order in orders for op in order)
    joined = [_joined(order) for order in orders]
    depth: dict[tuple[int, Op], int] = {}
    nodes: list[tuple[int, int, int, tuple[Op, ...]]] = []
    done, last = [0] * len(orders), [-1] * len(orders)
    latest = [0] * len(orders)
    owner: dict[tuple[int, Op], int] = {}
    before: list[list[int]] = []
    sent: list[list[float]] = []
    moved = True
    while moved:
        moved = False
        for rank, passes in enumerate(joined):
            while done[rank] < len(passes):
                together = passes[done[rank]]
                sources = [input_of(rank, op) for op in together]
                if any(source is not None and source not in depth for source in sources):
                    break
                own = max([latest[rank], *(depth[source] for source in sources if source is not None)]) + 1
                node = len(nodes)
                inputs = [-1 if source is None else owner[source] for source in sources]
                before.append([last[rank], *inputs, *([-1] * (2 - len(inputs)))])
                away = [
                    float(source is not None and (source[0], source[1].chunk) != (rank, op.chunk))
                    for source, op in zip(sources, together, strict=True)
                ]
                sent.append([*away, *([0.0] * (2 - len(away)))])
                nodes.append((own, node, rank, together))
                for op in together:
                    depth[rank, op.plain()], owner[rank, op.plain()] = own, node
                latest[rank], last[rank] = own, node
                done[rank] += 1
                moved = True
    if any(count < len(passes) for count, passes in zip(done, joined, strict=True)):
        raise ValueError("the ranks' orders wait for each other: this schedule cannot run")
    costs: dict[tuple[tuple[int, int], ...], int] = {}
    cost = [costs.setdefault(_cost(ops, places[rank], split), len(costs)) for _, _, rank, ops in nodes]
    level = np.array([own for own, *_ in nodes])
    order = np.argsort(level, kind="stable")
    place = np.zeros(len(nodes) + 1, np.int64)
    place[order] = np.arange(1, len(nodes) + 1)  # node −1 is the start, place 0
    place[-1] = 0
    waits, away_, cost_ = place[np.array(before)[order]], np.array(sent)[order], np.array(cost)[order]
    bounds = np.append(np.flatnonzero(np.diff(level[order], prepend=0)), len(nodes))
    depths = tuple(Depth(int(a) + 1, int(b) + 1, waits[a:b], away_[a:b], cost_[a:b]) for a, b in pairwise(bounds))
    return Walk(len(nodes), depths, tuple(costs))


def longest(walk: Walk, seconds: FloatArray, send: FloatArray) -> FloatArray:
    """Seconds from the first pass to the last, (n,).

    seconds (3, places, n): forward, input gradient and weight gradient of a microbatch through each kind of chunk; send (n,)
    seconds between the end of a pass and the start of what takes its output on another rank.
    """
    n = seconds.shape[2]
    best = np.empty(n)
    block = max(64, _CELLS // (walk.passes + 1))
    for first in range(0, n, block):
        rows = slice(first, first + block)
        cost = np.stack([sum(seconds[kind, place, rows] for kind, place in parts) for parts in walk.costs])
        wait = send[rows] if send[rows].any() else None
        end = np.zeros((walk.passes + 1, cost.shape[1]))
        for depth in walk.depths:
            ready = end[depth.before[:, 0]]
            for way in (0, 1):
                source = depth.before[:, way + 1]
                if source.any():
                    arrived = end[source]
                    if wait is not None:
                        arrived += depth.sent[:, way, None] * wait
                    np.maximum(ready, arrived, out=ready)
            np.add(ready, cost[depth.cost], out=end[depth.start : depth.stop])
        best[rows] = end.max(axis=0)
    return best


def longest_each(
    rows: Profiles, seconds: FloatArray, walk_of: Callable[[int, int, int], Walk], period: IntArray, slowest: FloatArray
) -> FloatArray:
    """Seconds of rows that differ in p, v and m, (n,); `seconds` as for `longest`, `walk_of(p, v, m)` the passes of a row.

    Past a few pipelines' worth of microbatches a schedule repeats itself: `period` (n,) microbatches more add what the last
    ones added, and no less than `slowest` (n,) seconds each.
    """
    total = np.empty(len(rows.p))
    keys, inverse = np.unique(np.stack([rows.p, rows.v, rows.m, period]).astype(np.int64), axis=1, return_inverse=True)
    for number, (p, v, m, every) in enumerate(keys.T.tolist()):
        chosen = np.flatnonzero(inverse.ravel() == number)
        table, send = seconds[:, :, chosen], rows.send[chosen]
        left = max(m - max(_ROUNDS * p, 24), 0) // every * every
        time = longest(walk_of(p, v, m - left), table, send)
        if left:
            step = every * max(p // every, 1)
            before = longest(walk_of(p, v, m - left - step), table, send)
            time = time + left * np.maximum((time - before) / step, slowest[chosen])
        total[chosen] = time
    return total


def _joined(order: Sequence[Op]) -> list[tuple[Op, ...]]:
    """Passes that run together as one."""
    together: list[tuple[Op, ...]] = []
    for op in order:
        if op.joined:
            together[-1] = (*together[-1], op)
        else:
            together.append((op,))
    return together


def _cost(ops: Sequence[Op], places: Sequence[int], split: bool) -> tuple[tuple[int, int], ...]:
    parts: list[tuple[int, int]] = []
    for op in ops:
        parts.append((_KINDS.index(op.kind), places[op.chunk]))
        if op.kind == BACKWARD and (op.whole or not split):
            parts.append((_KINDS.index(WEIGHT), places[op.chunk]))
    return tuple(parts)
