"""Time of the pipeline of microbatches: stage times from the blocks, then the schedule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from costmodels.block import FAMILIES, BlockTime, links_of
from costmodels.collectives import collective_bytes, collective_time
from costmodels.memory import first_k_share, policy_of
from costmodels.schedule import StageTimes, pipeline_time
from spaces.columns import FloatArray, IntArray, Value
from spaces.expressions import SymbolTable
from spaces.plan import RankOrder, Recompute
from spaces.stages import FIRST, LAST, MIDDLE, StageTable

PARTS = (*FAMILIES, "recompute", "pipeline_communication", "bubble")
"""Parts of the pipeline's time, in report order."""


@dataclass(frozen=True, slots=True, eq=False)
class PipelineTime:
    """Seconds per step; arrays of shape (n,). `parts` sum to `total`.

    `forward`, `backward` are the slowest stage's of one of the `microbatches`: what communication can hide behind; `layers` the
    layers of a mean stage, `ahead` how much longer than the host the slowest stage's device takes where it does, in all its
    microbatches, `recomputed_share` the share of them that first-k recomputes. `flops`, `traffic`, `inner_bytes`,
    `outer_bytes` are per step on a mean device.
    """

    total: FloatArray
    parts: dict[str, FloatArray]
    microbatches: FloatArray
    forward: FloatArray
    backward: FloatArray
    layers: FloatArray
    ahead: FloatArray
    recomputed_share: FloatArray
    flops: FloatArray
    traffic: FloatArray
    inner_bytes: FloatArray
    outer_bytes: FloatArray


def pipeline_of(at: SymbolTable, blocks: BlockTime, combination: IntArray, stages: StageTable, place: IntArray) -> PipelineTime:
    """Pipeline time of n plans; `combination` and `place` (n,) index the block and stage tables."""
    counts = stages.counts[:, :, place]
    pipeline = np.asarray(at["pipeline"])
    microbatches = at["global_batch"] // (at["data"] * at["micro_batch"])
    again = first_k_share(at, counts) if np.any(np.asarray(at["recompute"]) == Recompute.FIRST_K) else None
    select = _Selector(combination, counts, pipeline, policy_of(at, len(place)), again)
    forward = select.plain(blocks.forward)
    backward = select.chosen(blocks.backward)
    weight = select.plain(blocks.weight)
    send, send_inner, send_outer = _send(at)
    send = send * at["virtual"]
    times = StageTimes(
        forward_first=forward[FIRST] + send,
        forward_middle=forward[MIDDLE] + send,
        forward_last=forward[LAST] + send,
        backward_first=backward[FIRST] + send,
        backward_middle=backward[MIDDLE] + send,
        backward_last=backward[LAST] + send,
        weight_first=weight[FIRST],
        weight_middle=weight[MIDDLE],
        weight_last=weight[LAST],
        forward_sum=select.total(forward) + pipeline * send,
        backward_sum=select.total(backward) + pipeline * send,
        send=np.zeros_like(forward[0]),
    )
    timed = pipeline_time(times, pipeline, at["virtual"], microbatches, at["schedule"])
    slowest = np.argmax(forward + backward, axis=0)

    def at_slowest(value: FloatArray) -> FloatArray:
        return np.asarray(np.take_along_axis(value, slowest[None], axis=0)[0] * microbatches, np.float64)

    parts = {name: select.at(slowest, blocks.families[:, :, i]) * microbatches for i, name in enumerate(FAMILIES)}
    parts["recompute"] = select.at(slowest, blocks.recompute) * microbatches
    parts["pipeline_communication"] = 2.0 * send * microbatches
    # DualPipe's devices each host two stages, a slow and a fast one: its busy time is less than the slowest stage's
    busy = np.asarray(sum(parts.values()), np.float64)
    share = np.minimum(1.0, np.divide(timed.busy, busy, out=np.ones_like(busy), where=busy > 0))
    parts = {name: part * share for name, part in parts.items()}
    parts["bubble"] = timed.total - busy * share

    def mean(value: FloatArray) -> FloatArray:
        return np.asarray(select.total(select.chosen(value)) / pipeline * microbatches, np.float64)

    layers = counts.sum(axis=0)
    inner, outer = mean(blocks.inner_bytes), mean(blocks.outer_bytes)
    return PipelineTime(
        total=timed.total,
        parts=parts,
        microbatches=np.broadcast_to(np.asarray(microbatches, np.float64), slowest.shape),
        forward=at_slowest(forward) / microbatches,
        backward=at_slowest(backward) / microbatches,
        layers=np.maximum(layers.mean(axis=0), 1.0),
        ahead=select.at(slowest, blocks.ahead) * microbatches,
        recomputed_share=np.zeros(len(place))
        if again is None
        else (again * layers).sum(axis=0) / np.maximum(layers.sum(axis=0), 1.0),
        flops=mean(blocks.flops),
        traffic=mean(blocks.traffic),
        inner_bytes=inner + 2.0 * microbatches * send_inner,
        outer_bytes=outer + 2.0 * microbatches * send_outer,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Selector:
    """Sums block costs over the layers of each stage profile, under every plan's recomputation policy.

    `policy` (n,) is the policy of most layers; `again` (3, n) the share of each stage's layers that first-k recomputes, None
    where no plan does.
    """

    combination: IntArray
    counts: FloatArray
    pipeline: IntArray
    policy: IntArray
    again: FloatArray | None

    def plain(self, cost: FloatArray) -> FloatArray:
        """(blocks, m) summed to (3, n)."""
        *layers, embedding, head = (block[self.combination] for block in cost)
        return self._with_ends(self._over_layers(self.counts, layers), embedding, head)

    def chosen(self, cost: FloatArray) -> FloatArray:
        """(blocks, 3 policies, m) summed to (3, n) under the policy of each plan."""
        stage = self._layers(self.counts, self.again, cost)
        kinds = self.counts.shape[0]
        return self._with_ends(stage, cost[kinds, 0][self.combination], cost[kinds + 1, 0][self.combination])

    def at(self, stage: IntArray, cost: FloatArray) -> FloatArray:
        """`chosen` on one stage of each plan, (n,): its first, its middle or its last."""
        if not cost.any():
            return np.zeros(len(stage))
        kinds, rows = self.counts.shape[0], np.arange(len(stage))
        again = None if self.again is None else self.again[stage, rows]
        found = self._layers(self.counts[:, stage, rows], again, cost)
        embedding, head = cost[kinds, 0][self.combination], cost[kinds + 1, 0][self.combination]
        alone = self.pipeline == 1
        return found + np.where(
            alone, embedding + head, np.where(stage == FIRST, embedding, np.where(stage == LAST, head, 0.0))
        )

    def _layers(self, counts: FloatArray, again: FloatArray | None, cost: FloatArray) -> FloatArray:
        """The sum over `counts` (kinds, …, n) of layers, of which the share `again` (…, n) is run again."""
        kinds = len(counts)
        place = self.policy * cost.shape[2] + self.combination
        found = self._over_layers(counts, [cost[kind].ravel()[place] for kind in range(kinds)])
        if again is not None:
            more = [(cost[kind, 2] - cost[kind, 0])[self.combination] for kind in range(kinds)]
            found += again * self._over_layers(counts, more)
        return found

    def _over_layers(self, counts: FloatArray, layers: Sequence[FloatArray]) -> FloatArray:
        stage = counts[0] * layers[0]
        for kind in range(1, len(layers)):
            stage += counts[kind] * layers[kind]
        return np.asarray(stage, np.float64)

    def _with_ends(self, stage: FloatArray, embedding: FloatArray, head: FloatArray) -> FloatArray:
        alone = self.pipeline == 1
        stage[FIRST] += embedding + np.where(alone, head, 0.0)
        stage[LAST] += head + np.where(alone, embedding, 0.0)
        stage[MIDDLE] = np.where(alone, stage[FIRST], stage[MIDDLE])
        return stage

    def total(self, stage: FloatArray) -> FloatArray:
        """Sum over all stages, from the three profiles; middle stages count as the heaviest of them."""
        several = stage[FIRST] + stage[LAST] + np.maximum(self.pipeline - 2, 0) * stage[MIDDLE]
        return np.asarray(np.where(self.pipeline == 1, stage[FIRST], several), np.float64)


def _send(at: SymbolTable) -> tuple[Value, Value, Value]:
    """Seconds of one exposed send of a microbatch's activations to the next stage, and its bytes inside and outside a domain.

    Tensor ranks each send their share (scatter/gather, Narayanan 2021 §4.1).
    """
    pipeline = np.asarray(at["pipeline"])
    size = at["micro_batch"] * at["sequence"] / at["context"] * at["hidden"] * 2.0 / at["tensor"]
    within = at["tensor"] * at["context"]
    after_data = np.asarray(at["rank_order"]) == RankOrder.TENSOR_CONTEXT_DATA_PIPELINE
    stride = np.where(after_data, within * at["data"], within)
    inside, inner, outer = links_of(at, pipeline, stride)
    pair = np.where(pipeline > 1, 2, 1)
    together = np.where(inside >= pipeline, pair, 1)
    time = collective_time("send_recv", size, pair, together, inner, outer)
    sent = collective_bytes("send_recv", size, pair, together)
    return time * (1.0 - at["stack.overlap.pipeline"]), *sent
