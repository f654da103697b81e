"""When every token came out, from the times at which decode steps ended.

The requests of a cell decode in lock step, so a request's token times are a stretch of its cell's step times; the log keeps
the steps once and per request where its stretch begins and ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from costmodels.simulation import state as w
from costmodels.simulation.layout import Block
from spaces.columns import FloatArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenLog:
    """`end` (steps,): when decode steps ended, cell by cell; `first_step` (cells + 1,): where each cell's begin.

    Stretches of decode, in order of request and time: `request`, steps `begin` to `stop` in `end`, and `joined`, the time of
    the request's last token before. `accepted` tokens a step of each cell; `first`, `output`, (n,), of all requests.
    """

    end: FloatArray
    first_step: IntArray
    request: IntArray
    begin: IntArray
    stop: IntArray
    joined: FloatArray
    accepted: FloatArray
    cell: IntArray
    first: FloatArray
    finish: FloatArray
    output: IntArray

    def times(self, request: int) -> FloatArray:
        """Times of a completed request's tokens, (output,)."""
        found: list[FloatArray] = [self.first[[request]]]
        for i in np.flatnonzero(self.request == request):
            if self.joined[i] > found[-1][-1]:
                found.append(self.joined[[i]])  # a recomputed prompt yields a token of its own
            if self.stop[i] > self.begin[i]:
                steps = np.arange(self.begin[i], self.stop[i]) - self.first_step[self.cell[i]]
                found.append(np.repeat(self.end[self.begin[i] : self.stop[i]], self._gained(steps, self.cell[i])))
        times = np.concatenate(found)[: self.output[request]]
        if len(times) < self.output[request] and np.isfinite(self.finish[request]):
            times = np.append(times, self.finish[request])  # it ended with a recomputed prompt
        return times

    def _gained(self, steps: IntArray, cell: int) -> IntArray:
        total = np.floor(self.accepted[cell] * np.append(steps, steps[-1] + 1) + 1e-9)
        return np.asarray(np.diff(total), np.int64)

    def gaps(self, requests: NDArray[np.bool_]) -> tuple[FloatArray, IntArray]:
        """Times between a request's successive tokens and how many tokens waited as long, over the `requests` (mask).

        Tokens accepted together come at once: the first of them waited, the others did not.
        """
        chosen: NDArray[np.bool_] = requests[self.request]
        begin, stop, request, joined = self.begin[chosen], self.stop[chosen], self.request[chosen], self.joined[chosen]
        some = stop > begin
        running = np.zeros(len(self.end) + 1, np.int64)
        np.add.at(running, begin[some] + 1, 1)  # its first step follows `joined`, the later ones the step before
        np.add.at(running, stop[some], -1)
        weight = np.cumsum(running)[:-1]
        steps = np.flatnonzero(weight > 0)
        last = joined.copy()
        last[some] = self.end[stop[some] - 1]
        final = np.append(request[1:] != request[:-1], True)[: len(request)]
        resumed = np.where(final, self.finish[request], np.append(joined[1:], 0.0)[: len(request)])
        paused = (resumed - last)[resumed > last]  # a recomputed prompt yields a token of its own
        gaps = [self.end[steps] - self.end[steps - 1], self.end[begin[some]] - joined[some], paused]
        weights = [weight[steps], np.ones(int(np.sum(some)), np.int64), np.ones(len(paused), np.int64)]
        ended = requests & np.isfinite(self.finish)
        together = int(np.sum(self.output[ended] - 1)) - int(sum(np.sum(part) for part in weights))
        if together > 0 and np.any(self.accepted > 1):
            gaps.append(np.zeros(1))
            weights.append(np.asarray([together]))
        return np.concatenate(gaps), np.concatenate(weights)


def token_log(block: Block, steps: Sequence[IntArray], stints: Sequence[IntArray]) -> TokenLog:
    """Put what the loop logged in order: (entries, STEP_WORDS) and (entries, STINT_WORDS), part by part."""
    end = np.concatenate([part[:, w.STEP_END] for part in steps]).view(np.float64)
    if block.n_cells > 1:
        of_cell = np.concatenate([part[:, w.STEP_CELL] for part in steps])
        end = end[np.argsort(of_cell, kind="stable")]
    decoded = block.cell(w.DECODE_STEPS)
    first_step = np.concatenate([[0], np.cumsum(decoded)])
    pool = block.m[block.cell(w.LANE) + w.L_POOL]
    accepted = block.f[pool + w.P_ACCEPTED]
    last = np.flatnonzero(block.request(w.BEGIN) > 0)
    cell = block.number_of_cell(block.request(w.CELL)[last])
    key, ratio = block.request(w.KEY)[last], accepted[cell]
    reached = key if np.all(ratio == 1.0) else np.ceil((key - 1e-9) / ratio).astype(np.int64)
    begin, stop = block.request(w.BEGIN)[last] - 1, np.minimum(reached, decoded[cell])
    joined = block.request_time(w.JOINED)[last]
    early = np.concatenate(stints)
    if len(early):
        number = (early[:, w.S_REQUEST] - block.requests) // w.REQUEST_WORDS
        last = np.concatenate([number, last])
        order = np.argsort(last, kind="stable")
        last = last[order]
        cell = np.concatenate([block.number_of_cell(early[:, w.S_CELL]), cell])[order]
        begin = np.concatenate([early[:, w.S_BEGIN], begin])[order]
        stop = np.concatenate([early[:, w.S_END], stop])[order]
        joined = np.concatenate([early[:, w.S_JOINED].copy().view(np.float64), joined])[order]
    return TokenLog(
        end=end,
        first_step=first_step,
        request=last,
        cell=cell,
        begin=first_step[cell] + begin,
        stop=first_step[cell] + stop,
        joined=joined,
        accepted=accepted,
        first=block.request_time(w.FIRST),
        finish=block.request_time(w.FINISH),
        output=block.request(w.OUTPUT),
    )
