"""Pipeline schedules executed op by op for one profile: the slow reference that `costmodels.schedule` is tested against.

Each rank runs its ops in the published order; an op starts when the rank is free and its input has arrived.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

FORWARD, BACKWARD, WEIGHT = "F", "B", "W"

Profile = Sequence[Sequence[float]]


class Op(NamedTuple):
    """One pass of one microbatch through one of a rank's chunks."""

    kind: str
    microbatch: int
    chunk: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """What a simulated pipeline took."""

    total: float
    """Seconds from the first op's start to the last op's end."""
    peak_in_flight: tuple[int, ...]
    """Microbatch-chunks whose activations each rank holds at its worst moment."""


def gpipe_order(microbatches: int) -> list[Op]:
    """All forwards, then all backwards (Huang 2019, fig. 2c)."""
    return [Op(kind, j, 0) for kind in (FORWARD, BACKWARD) for j in range(microbatches)]


def one_f_one_b_order(rank: int, pipeline: int, microbatches: int) -> list[Op]:
    """min(m, p−i−1) warm-up forwards, then one forward and one backward in turn (Narayanan 2021, fig. 4 top)."""
    forward = [Op(FORWARD, j, 0) for j in range(microbatches)]
    backward = [Op(BACKWARD, j, 0) for j in range(microbatches)]
    return alternate(forward, backward, pipeline - rank - 1)


def interleaved_order(rank: int, pipeline: int, microbatches: int, virtual: int, group: int | None = None) -> list[Op]:
    """Megatron-LM's interleaved 1F1B (Narayanan 2021, fig. 4 bottom; `forward_backward_pipelining_with_interleaving`).

    Microbatches go in groups (of p by default); each group passes through the rank's v chunks one after another.
    Warm-up is 2(p−i−1) + (v−1) · group forwards, at most all of them.
    """
    size = group or pipeline
    groups = [range(start, min(start + size, microbatches)) for start in range(0, microbatches, size)]
    forward = [Op(FORWARD, j, c) for together in groups for c in range(virtual) for j in together]
    backward = [Op(BACKWARD, j, c) for together in groups for c in reversed(range(virtual)) for j in together]
    return alternate(forward, backward, 2 * (pipeline - rank - 1) + (virtual - 1) * size)


def zero_bubble_order(rank: int, pipeline: int, microbatches: int) -> list[Op]:
    """ZB-H1 (Qi 2023, fig. 3): 1F1B of F and input gradient B; a rank's weight gradients trail by its index.

    Rank i starts its weight gradients once i of them wait, then does one after every B: its activations are held
    no longer than those of rank 0 under 1F1B; the i that wait fill the drain.
    """
    order: list[Op] = []
    waiting: list[int] = []
    for op in one_f_one_b_order(rank, pipeline, microbatches):
        order.append(op)
        if op.kind == BACKWARD:
            waiting.append(op.microbatch)
            if len(waiting) > rank:
                order.append(Op(WEIGHT, waiting.pop(0), 0))
    return order + [Op(WEIGHT, j, 0) for j in waiting]


def alternate(forward: list[Op], backward: list[Op], warmup: int) -> list[Op]:
    """`warmup` forwards, then forward and backward in turn, then the backwards left."""
    warmup = min(warmup, len(forward))
    order = forward[:warmup]
    for f, b in zip(forward[warmup:], backward, strict=False):
        order += [f, b]
    return order + backward[len(forward) - warmup :]


def simulate(
    orders: Sequence[Sequence[Op]],
    forward: Profile,
    backward: Profile,
    weight: Profile | None = None,
    send: float = 0.0,
) -> Timeline:
    """Longest path through the ops of all ranks.

    orders: per rank its ops. forward, backward: seconds [rank][chunk]; backward includes `weight`, which is taken out
    of it where the order holds WEIGHT ops. send: seconds between the end of an op and its neighbour's start. Model
    order is chunk by chunk: rank 0..p−1 of chunk 0, then of chunk 1. Raises if the orders wait for each other.
    """
    pipeline, chunks = len(orders), len(forward[0])
    split = any(op.kind == WEIGHT for order in orders for op in order)
    end: dict[tuple[int, Op], float] = {}
    clock, done = [0.0] * pipeline, [0] * pipeline

    def input_of(rank: int, op: Op) -> tuple[int, Op] | None:
        place = op.chunk * pipeline + rank
        if op.kind == WEIGHT:
            return rank, op._replace(kind=BACKWARD)
        if op.kind == FORWARD:
            return None if place == 0 else ((place - 1) % pipeline, op._replace(chunk=(place - 1) // pipeline))
        if place == pipeline * chunks - 1:
            return rank, op._replace(kind=FORWARD)
        return (place + 1) % pipeline, op._replace(chunk=(place + 1) // pipeline)

    def seconds(rank: int, op: Op) -> float:
        if op.kind == FORWARD:
            return forward[rank][op.chunk]
        shifted = weight[rank][op.chunk] if split and weight is not None else 0.0
        return shifted if op.kind == WEIGHT else backward[rank][op.chunk] - shifted

    progress = True
    while progress:
        progress = False
        for rank, order in enumerate(orders):
            while done[rank] < len(order):
                op = order[done[rank]]
                source = input_of(rank, op)
                if source is not None and source not in end:
                    break
                ready = 0.0 if source is None else end[source] + (send if source[0] != rank else 0.0)
                clock[rank] = end[rank, op] = max(clock[rank], ready) + seconds(rank, op)
                done[rank] += 1
                progress = True
    if any(count < len(order) for count, order in zip(done, orders, strict=True)):
        raise ValueError("the ranks' orders wait for each other: this schedule cannot run")
    return Timeline(total=max(clock), peak_in_flight=tuple(peak_held(order, split) for order in orders))


def peak_held(order: Sequence[Op], split: bool) -> int:
    """Most microbatch-chunks between their forward and the op that frees them (WEIGHT where gradients are split)."""
    held = peak = 0
    for op in order:
        held += (op.kind == FORWARD) - (op.kind == (WEIGHT if split else BACKWARD))
        peak = max(peak, held)
    return peak
