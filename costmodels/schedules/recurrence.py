"""The recurrence of a schedule: when each of its passes ends, for many stage profiles at once.

A pass ends after the latest of the pass before it on its rank and the passes it takes its input from: max-plus algebra, exact
for any profile. The passes of one (schedule, p, v, m) are put in order once; a compiled loop takes them for many profiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.schedules.ends import compiled_ends
from costmodels.schedules.orders import BACKWARD, FORWARD, WEIGHT, Op
from costmodels.schedules.profiles import FloatArray, IntArray, Profiles
from spaces.space import combination_keys

# ends of passes held at a time: profiles are taken in blocks that keep to it
_CELLS = 1 << 19

# microbatches walked, in pipelines, before the schedule is taken to repeat itself
_ROUNDS = 6

_KINDS = (FORWARD, BACKWARD, WEIGHT)


@dataclass(frozen=True, slots=True, eq=False)
class Walk:
    """The passes of one schedule from place 1 on, each after those that it waits for; place 0 is the start of the step.

    `before` (passes, 3) are the places of what each waits for, 0 for nothing: the pass before on its rank, and the inputs, that
    of the backward last where a forward and a backward run together. `sent` (passes, 2) is 1 where the input comes from another
    rank. `cost` (passes,) is the row in `costs` of what a pass takes: sums over (kind, chunk) of the table handed to `longest`.
    """

    before: IntArray
    sent: FloatArray
    cost: IntArray
    costs: tuple[tuple[tuple[int, int], ...], ...]


def walk(
    orders: Sequence[Sequence[Op]], places: Sequence[Sequence[int]], input_of: Callable[[int, Op], tuple[int, Op] | None]
) -> Walk:
    """The passes of all ranks; `places[rank][chunk]` is the chunk's row in the tables of seconds.

    input_of: the (rank, pass) whose output a pass takes. Raises if the orders wait for each other.
    """
    split = any(op.kind == WEIGHT for order in orders for op in order)
    joined = [_joined(order) for order in orders]
    nodes: list[tuple[int, tuple[Op, ...]]] = []
    done, last = [0] * len(orders), [-1] * len(orders)
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
                if any(source is not None and source not in owner for source in sources):
                    break
                node = len(nodes)
                inputs = [-1 if source is None else owner[source] for source in sources]
                before.append([last[rank], *inputs, *([-1] * (2 - len(inputs)))])
                away = [
                    float(source is not None and (source[0], source[1].chunk) != (rank, op.chunk))
                    for source, op in zip(sources, together, strict=True)
                ]
                sent.append([*away, *([0.0] * (2 - len(away)))])
                nodes.append((rank, together))
                for op in together:
                    owner[rank, op.plain()] = node
                last[rank] = node
                done[rank] += 1
                moved = True
    if any(count < len(passes) for count, passes in zip(done, joined, strict=True)):
        raise ValueError("the ranks' orders wait for each other: this schedule cannot run")
    costs: dict[tuple[tuple[int, int], ...], int] = {}
    cost = [costs.setdefault(_cost(ops, places[rank], split), len(costs)) for rank, ops in nodes]
    return Walk(np.array(before) + 1, np.array(sent), np.array(cost), tuple(costs))  # place 0 is the start


def longest(walk: Walk, seconds: FloatArray, send: FloatArray) -> FloatArray:
    """Seconds from the first pass to the last, (n,).

    seconds (3, places, n): forward, input gradient and weight gradient of a microbatch through each kind of chunk; send (n,)
    seconds between the end of a pass and the start of what takes its output on another rank.
    """
    n, passes = seconds.shape[2], len(walk.cost)
    best = np.zeros(n)
    block = max(64, _CELLS // (passes + 1))
    for first in range(0, n, block):
        rows = slice(first, min(first + block, n))
        cost = np.stack([np.asarray(sum(seconds[kind, place, rows] for kind, place in parts)) for parts in walk.costs])
        found = np.zeros(rows.stop - first)
        end = np.zeros((passes + 1, len(found)))
        waits = np.ascontiguousarray(send[rows], np.float64)
        compiled_ends()(walk.before, walk.sent, walk.cost, cost, waits, end, found, passes, len(found), int(waits.any()))
        best[rows] = found
    return best


def longest_each(
    rows: Profiles, seconds: FloatArray, walk_of: Callable[[int, int, int, int], Walk], period: IntArray, slowest: FloatArray
) -> FloatArray:
    """Seconds of rows that differ in p, v and m, (n,); `seconds` as for `longest`, `walk_of(p, v, m, period)` a row's passes.

    Past a few pipelines' worth of microbatches, and a few periods, a schedule repeats itself: `period` (n,) microbatches more
    add what the last ones added, and no less than `slowest` (n,) seconds each. A walk of fewer microbatches keeps the period.
    """
    total = np.empty(len(rows.p))
    most = np.maximum(_ROUNDS * np.maximum(rows.p, period), 24)
    left = (np.maximum(rows.m - most, 0) // period * period).astype(np.int64)
    # rows whose walks are the same are walked together, however many microbatches they leave out
    keys, group = _distinct_columns(np.stack([rows.p, rows.v, rows.m - left, period]).astype(np.int64))
    for number, (p, v, m, every) in enumerate(keys.T.tolist()):
        chosen = np.flatnonzero(group == number)
        given = np.concatenate([seconds[:, :, chosen].reshape(-1, len(chosen)), rows.send[None, chosen]])
        first, again = _alike(given)
        few = given[:, first]
        table, send = few[:-1].reshape(*seconds.shape[:2], -1), few[-1]
        time = longest(walk_of(p, v, m, every), table, send)
        total[chosen] = time[again]
        if left[chosen].any():
            step = every * max(p // every, 1)
            before = longest(walk_of(p, v, m - step, every), table, send)
            each = ((time - before) / step)[again]
            total[chosen] += left[chosen] * np.maximum(each, slowest[chosen])
    return total


def _distinct_columns(codes: IntArray) -> tuple[IntArray, IntArray]:
    """Distinct columns of integers that are at least 0, (k, m), and which of them each column is, (n,)."""
    keys, _ = combination_keys(codes, [int(row.max(initial=0)) + 1 for row in codes])
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    return codes[:, first], group


def _alike(columns: FloatArray) -> tuple[IntArray, IntArray]:
    """A column of each kind of (k, n) numbers, and which of those every column is like, (n,): by the bits of its numbers.

    Weighted sums of the bits tell columns apart, quicker than sorting them; where two sums meet by chance all are kept.
    """
    weights = np.random.default_rng(0).integers(1, 1 << 63, len(columns), dtype=np.uint64) | np.uint64(1)
    bits = np.ascontiguousarray(columns).view(np.uint64)
    key = ((bits ^ (bits >> np.uint64(32))) * weights[:, None]).sum(axis=0)
    _, first, again = np.unique(key, return_index=True, return_inverse=True)
    if not np.array_equal(columns[:, first[again]], columns):
        first = again = np.arange(columns.shape[1])
    return first, again


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
