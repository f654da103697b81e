"""The order in which each rank of a pipeline runs its passes, schedule by schedule, as published."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

FORWARD, BACKWARD, WEIGHT = "F", "B", "W"


class Op(NamedTuple):
    """One pass of one microbatch through one of a rank's chunks."""

    kind: str
    microbatch: int
    chunk: int
    whole: bool = False
    """A backward that holds its weight gradient, in a schedule where others leave it to an op of its own."""
    joined: bool = False
    """It starts together with the op before it, and both end when the work of both is done."""

    def plain(self) -> Op:
        """Which pass it is, however it is run."""
        return Op(self.kind, self.microbatch, self.chunk)


def one_f_one_b_order(rank: int, pipeline: int, microbatches: int) -> list[Op]:
    """min(m, p−i−1) warm-up forwards, then one forward and one backward in turn (Narayanan 2021, fig. 4 top)."""
    forward = [Op(FORWARD, j, 0) for j in range(microbatches)]
    backward = [Op(BACKWARD, j, 0) for j in range(microbatches)]
    return alternate(forward, backward, pipeline - rank - 1)


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


def dualpipe_order(rank: int, pipeline: int, microbatches: int) -> list[Op]:
    """DualPipe (DeepSeek-V3 2024, fig. 5): microbatches enter from both ends, half of them at each.

    Chunk 0 is the stage of the rank's own index, which the microbatches from the first rank pass; chunk 1 that of its mirror
    p − 1 − rank, which those from the last pass. The eight steps are those of the authors' program (deepseek-ai/DualPipe,
    dualpipe.py): even p and m ≥ 2p.
    """
    near = 0 if rank < pipeline // 2 else 1  # the direction whose start is closer
    outer = min(rank, pipeline - 1 - rank)
    inner = pipeline // 2 - outer - 1
    count = {(kind, side): 0 for kind in (FORWARD, BACKWARD) for side in (0, 1)}
    order: list[Op] = []
    waiting: list[Op] = []

    def run(kind: str, side: int, *, split: bool = False, joined: bool = False) -> None:
        chunk = side ^ near
        op = Op(kind, count[kind, chunk], chunk, whole=kind == BACKWARD and not split, joined=joined)
        count[kind, chunk] += 1
        order.append(op)
        if split:
            waiting.append(Op(WEIGHT, op.microbatch, chunk))

    def both(forward: int, backward: int) -> None:
        run(FORWARD, forward)
        run(BACKWARD, backward, joined=True)

    for _ in range(2 * inner):
        run(FORWARD, 0)
    for _ in range(outer + 1):
        run(FORWARD, 0)
        run(FORWARD, 1)
    for _ in range(inner):
        run(BACKWARD, 1, split=True)
        order.append(waiting.pop(0))
        run(FORWARD, 1)
    for step in range(microbatches // 2 - pipeline + outer + 1):
        if step == 0 and not inner:
            run(FORWARD, 0)
            run(BACKWARD, 1)
        else:
            both(0, 1)
        both(1, 0)
    for _ in range(inner):
        run(BACKWARD, 1)
        both(1, 0)
    half = (outer + 1) // 2
    for step in range(outer + 1):
        run(BACKWARD, 1, split=step > half or (step == half and outer % 2 == 1))
        run(BACKWARD, 0, split=step >= half)
    for _ in range(inner):
        order.append(waiting.pop(0))
        run(BACKWARD, 0, split=True)
    return order + waiting


def alternate(forward: Sequence[Op], backward: Sequence[Op], warmup: int) -> list[Op]:
    """`warmup` forwards, then forward and backward in turn, then the backwards left."""
    warmup = min(warmup, len(forward))
    order = [*forward[:warmup]]
    for f, b in zip(forward[warmup:], backward, strict=False):
        order += [f, b]
    return [*order, *backward[len(forward) - warmup :]]


def input_of(rank: int, op: Op, pipeline: int, chunks: int) -> tuple[int, Op] | None:
    """The (rank, pass) whose output a pass takes, None for the first forward.

    Model order is chunk by chunk: rank 0..p−1 of chunk 0, then of chunk 1.
    """
    if op.kind == WEIGHT:
        return rank, Op(BACKWARD, op.microbatch, op.chunk)
    place = op.chunk * pipeline + rank
    if op.kind == BACKWARD and place == pipeline * chunks - 1:
        return rank, Op(FORWARD, op.microbatch, op.chunk)
    source = place - 1 if op.kind == FORWARD else place + 1
    return None if source < 0 else (source % pipeline, Op(op.kind, op.microbatch, source // pipeline))


def mirrored_input_of(rank: int, op: Op, pipeline: int) -> tuple[int, Op] | None:
    """As `input_of` under DualPipe: chunk 0 is a stage of the model from the first rank on, chunk 1 from the last rank on."""
    if op.kind == WEIGHT:
        return rank, Op(BACKWARD, op.microbatch, op.chunk)
    stage = pipeline - 1 - rank if op.chunk else rank
    if op.kind == BACKWARD and stage == pipeline - 1:
        return rank, Op(FORWARD, op.microbatch, op.chunk)
    source = stage - 1 if op.kind == FORWARD else stage + 1
    if source < 0:
        return None
    return (pipeline - 1 - source if op.chunk else source), Op(op.kind, op.microbatch, op.chunk)
