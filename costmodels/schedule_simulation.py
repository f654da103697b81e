"""Pipeline schedules executed op by op for one profile: the slow reference that `costmodels.schedule` is tested against.

Each rank runs its ops in the published order; an op starts when the rank is free and its input has arrived.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from costmodels.schedules.orders import BACKWARD, FORWARD, WEIGHT, Op, alternate, input_of, mirrored_input_of

Profile = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """What a simulated pipeline took."""

    total: float
    """Seconds from the first op's start to the last op's end."""
    peak_in_flight: tuple[int, ...]
    """Microbatch-chunks whose activations each rank holds at its worst moment."""


def simulate(
    orders: Sequence[Sequence[Op]],
    forward: Profile,
    backward: Profile,
    weight: Profile | None = None,
    send: float = 0.0,
    *,
    mirrored: bool = False,
) -> Timeline:
    """Longest path through the ops of all ranks.

    orders: per rank its ops. forward, backward: seconds [rank][chunk]; backward includes `weight`, which is taken out
    of it where the order holds WEIGHT ops. send: seconds between the end of an op and its neighbour's start. Model
    order is chunk by chunk: rank 0..p−1 of chunk 0, then of chunk 1; `mirrored`, as under DualPipe, chunk 1 is another
    pipeline from the last rank to the first. Raises if the orders wait for each other.
    """
    pipeline, chunks = len(orders), len(forward[0])
    split = any(op.kind == WEIGHT for order in orders for op in order)
    end: dict[tuple[int, Op], float] = {}
    clock, done = [0.0] * pipeline, [0] * pipeline

    def source_of(rank: int, op: Op) -> tuple[int, Op] | None:
        return mirrored_input_of(rank, op, pipeline) if mirrored else input_of(rank, op, pipeline, chunks)

    def seconds(rank: int, op: Op) -> float:
        if op.kind == FORWARD:
            return forward[rank][op.chunk]
        shifted = weight[rank][op.chunk] if split and weight is not None and not op.whole else 0.0
        return shifted if op.kind == WEIGHT else backward[rank][op.chunk] - shifted

    progress = True
    while progress:
        progress = False
        for rank, order in enumerate(orders):
            while done[rank] < len(order):
                stop = done[rank] + 1
                while stop < len(order) and order[stop].joined:
                    stop += 1
                together = order[done[rank] : stop]
                sources = [source for op in together if (source := source_of(rank, op)) is not None]
                if any(source not in end for source in sources):
                    break
                ready = max([clock[rank], *(end[source] + (send if source[0] != rank else 0.0) for source in sources)])
                clock[rank] = ready + sum(seconds(rank, op) for op in together)
                for op in together:
                    end[rank, op.plain()] = clock[rank]
                done[rank] = stop
                progress = True
    if any(count < len(order) for count, order in zip(done, orders, strict=True)):
        raise ValueError("the ranks' orders wait for each other: this schedule cannot run")
    return Timeline(total=max(clock), peak_in_flight=tuple(peak_held(order, split) for order in orders))


def peak_held(order: Sequence[Op], split: bool) -> int:
    """Most microbatch-chunks between their forward and the op that frees them (WEIGHT where gradients are split)."""
    held = peak = 0
    for op in order:
        held += (op.kind == FORWARD) - (op.whole or op.kind == (WEIGHT if split else BACKWARD))
        peak = max(peak, held)
    return peak


def gpipe_order(microbatches: int) -> list[Op]:
    """All forwards, then all backwards (Huang 2019, fig. 2c)."""
    return [Op(kind, j, 0) for kind in (FORWARD, BACKWARD) for j in range(microbatches)]


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
