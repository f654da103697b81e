"""What a sampling search knows: every point evaluated, once each, within a budget.

A method proposes ordinals of the space; the archive answers from memory what it knows, evaluates the rest in one batch,
refuses what the budget does not pay for, and keeps the front and the top lists. Points that fail are recorded with the
reason and never asked again.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, final

import numpy as np
from numpy.typing import NDArray

from costmodels.metrics import Metrics
from search.certificate import Certificate, Failure
from search.front import Front, Points, TopList, join
from search.numbering import Numbering
from search.packing import packed_points, unpacked_points
from search.result import Progress
from search.store import Trials, TrialStore, taken
from spaces.columns import Columns, FloatArray, IntArray
from spaces.ranking import Ranking
from spaces.space import Space

_TOLD = 20  # failed points that are kept to be shown
_SCREENED_WHOLE = 1 << 20  # points of a space whose every bound is asked at once
_BATCH = 1 << 17  # of so many points


class Question(Protocol):
    """What is asked of points: `search.visiting.Task`, or the outer question of a nested search."""

    def none(self, space: Space) -> Points:
        """A batch of none; its costs have one column per objective."""
        ...

    def proven(self, points: Columns, broken: dict[str, int]) -> dict[str, FloatArray]:
        """Violations that cheap bounds prove, each (n,), by constraint; in `broken` is counted why a bound raised."""
        ...

    def evaluated(self, batch: Columns, ordinals: IntArray) -> tuple[Points, FloatArray, list[tuple[Columns, str]]]:
        """The points evaluated, their greatest violation (n,), and those that failed with the reason."""
        ...


@final
class Archive:
    """Points evaluated so far, in the order in which they were asked.

    `ordinals` (n,), `costs` (n, objectives; less is better, infinite where the model failed) and `violation` (n,; the greatest,
    at most 0 is feasible, infinite where it failed) grow with every call of `evaluate`. `left` is what may still be evaluated.
    """

    def __init__(
        self,
        *,
        ranking: Ranking,
        question: Question,
        most: int,
        top: int = 10,
        deadline: float | None = None,
        cancelled: Callable[[], bool] | None = None,
        told: Callable[[Archive], None] | None = None,
        store: TrialStore | None = None,
    ) -> None:
        """`deadline` is on the clock of `time.perf_counter`; `told` is called after every batch.

        With a `store`, every batch is put on record there before the search goes on, with all figures of those of its points
        that stand on the front or in a list, and points that are on record already are answered from it: a search asked
        again with the same seed goes on where it stopped and evaluates nothing twice.
        """
        self.ranking = ranking
        self.question = question
        self.most = min(most, ranking.size)
        self.stopped = ""
        self.evaluated = 0
        self.failed: dict[str, int] = {}
        self.failures: tuple[Failure, ...] = ()
        self.broken: dict[str, int] = {}
        self.evaluation_s = 0.0
        self.closest: Points | None = None
        self.feasible = 0
        none = question.none(ranking.space)
        self.front = Front(points=none, ties=np.empty(0, np.int64))
        self.tops = tuple(TopList(objective=j, limit=top, points=none) for j in range(none.costs.shape[1]))
        self._deadline = deadline
        self._cancelled = cancelled
        self._told = told
        self._store = store
        self._record = store.trials() if store is not None else Trials.none(none.costs.shape[1])
        self._recorded = Numbering(self._record.ordinals)
        self._figures = none
        for figures in self._record.figures:
            self._figures = join(self._figures, unpacked_points(figures, none)[0])
        self._rows = Numbering()
        self._ruled_out: list[tuple[IntArray, NDArray[np.int8]]] = []
        self._screen: NDArray[np.bool_] | None = None
        self._reasons: dict[str, int] = {}
        self._least = np.inf
        self._n = 0
        self._ordinals = np.empty(64, np.int64)
        self._costs = np.empty((64, none.costs.shape[1]))
        self._violation = np.empty(64)

    def __len__(self) -> int:
        return self._n

    @property
    def ordinals(self) -> IntArray:
        """Every point evaluated or failed, shape (n,)."""
        return self._ordinals[: self._n]

    @property
    def costs(self) -> FloatArray:
        """Their costs, shape (n, objectives)."""
        return self._costs[: self._n]

    @property
    def violation(self) -> FloatArray:
        """Their greatest violation, shape (n,)."""
        return self._violation[: self._n]

    @property
    def left(self) -> int:
        """Evaluations that remain; 0 once time is up or the search was cancelled."""
        if not self.stopped:
            if self._cancelled is not None and self._cancelled():
                self.stopped = "cancelled"
            elif self._deadline is not None and time.perf_counter() >= self._deadline:
                self.stopped = "out of time"
        return 0 if self.stopped else self.most - self._n

    def known(self, ordinals: IntArray) -> NDArray[np.bool_]:
        """Which points were asked before, shape (n,)."""
        return self._rows.known(ordinals)

    def fresh(self, ordinals: IntArray) -> IntArray:
        """The distinct points among some that were not asked before, in the order given."""
        _, first = np.unique(ordinals, return_index=True)
        once = ordinals[np.sort(first)]
        return once[~self.known(once)]

    def evaluate(self, ordinals: IntArray) -> IntArray:
        """Evaluate what is new, as far as the budget goes; the row of each point in the archive, −1 where it was refused."""
        new = self.fresh(ordinals)[: self.left]
        if len(new):
            self._evaluate(new)
        return self._rows.find(ordinals)

    def rule_out(self, ordinals: IntArray) -> NDArray[np.bool_]:
        """Which points the model's bound proves infeasible, shape (n,); they count as pruned, not as evaluated.

        A small space is screened whole at the first call: a bound costs less the more points it is asked about.
        """
        if self.ranking.size > _SCREENED_WHOLE:
            return self._bound(ordinals)
        if self._screen is None:
            size = self.ranking.size
            parts = [np.arange(start, min(start + _BATCH, size)) for start in range(0, size, _BATCH)]
            self._screen = np.concatenate([self._bound(part) for part in parts] or [np.empty(0, np.bool_)])
        return np.asarray(self._screen[ordinals], np.bool_)

    def proven(self, ordinals: IntArray) -> FloatArray:
        """The greatest violation that bounds prove of each point, (n,); minus infinity where they say nothing."""
        found = self.question.proven(self.ranking.columns(ordinals), {}).values() if len(ordinals) else ()
        return np.max(np.array([*found]), axis=0) if found else np.full(len(ordinals), -np.inf)

    def _bound(self, ordinals: IntArray) -> NDArray[np.bool_]:
        """Ask the bound."""
        reason = np.full(len(ordinals), -1, np.int8)
        for name, violation in self.question.proven(self.ranking.columns(ordinals), self.broken).items():
            reason[(violation > 0) & (reason < 0)] = self._reasons.setdefault(name, len(self._reasons))
        out = reason >= 0
        self._ruled_out.append((ordinals[out], reason[out]))
        return out

    def pruned(self) -> dict[str, int]:
        """Distinct points ruled out by bounds and not evaluated, by reason."""
        if not self._ruled_out:
            return {}
        ordinals = np.concatenate([part for part, _ in self._ruled_out])
        reasons = np.concatenate([part for _, part in self._ruled_out])
        _, first = np.unique(ordinals, return_index=True)
        first = first[~self.known(ordinals[first])]
        counts = np.bincount(reasons[first], minlength=len(self._reasons))
        return {name: int(counts[code]) for name, code in self._reasons.items() if counts[code]}

    def certificate(self) -> Certificate:
        """How much of the space is accounted for."""
        pruned, failed = self.pruned(), sum(self.failed.values())
        unvisited = self.ranking.size - sum(pruned.values()) - self.evaluated - failed
        return Certificate(
            space=self.ranking.size, pruned=pruned, evaluated=self.evaluated, failed=failed, unvisited=unvisited
        )

    def progress(self, wall_s: float) -> Progress:
        """What to show of it."""
        return Progress(
            space=self.ranking.size,
            most=self.most,
            visited=self._n,
            evaluated=self.evaluated,
            pruned=0,
            failed=self._n - self.evaluated,
            feasible=self.feasible,
            front=len(self.front),
            wall_s=wall_s,
        )

    def sample(self, limit: int, random: np.random.Generator) -> IntArray:
        """Rows of a uniform sample of the points evaluated, in the order of the space."""
        sound = np.flatnonzero(np.isfinite(self.costs).all(axis=1))
        rows = random.choice(sound, limit, replace=False) if len(sound) > limit else sound
        return np.asarray(rows[np.argsort(self.ordinals[rows])], np.int64)

    def _evaluate(self, ordinals: IntArray) -> None:
        """Evaluate new points, or take them from the record; put them on record, and keep what counts."""
        row = self._recorded.find(ordinals)
        self._take(np.sort(row[row >= 0]))  # as they were told: failed points last
        new = ordinals[row < 0]
        if len(new):
            started = time.perf_counter()
            points, worst, failed = self.question.evaluated(self.ranking.columns(new), new)
            self.evaluation_s += time.perf_counter() - started
            lost = _ordinals(self.ranking, [point for point, _ in failed])
            reasons = {len(points) + i: reason for i, (_, reason) in enumerate(failed)}
            trials = Trials(
                ordinals=np.concatenate([points.ordinals, lost]),
                costs=np.concatenate([points.costs, np.full((len(lost), self._costs.shape[1]), np.inf)]),
                violation=np.concatenate([worst, np.full(len(lost), np.inf)]),
                reasons=reasons,
            )
            self._keep(points, worst)
            if self._store is not None:
                standing = np.flatnonzero(np.isin(points.ordinals, np.concatenate([p.ordinals for p in self._standing()])))
                self._store.tell(trials, packed_points(points.take(standing), worst[standing], {}))
            self._append(trials)
        if self._told is not None:
            self._told(self)

    def _take(self, rows: IntArray) -> None:
        """Points of the record; the figures of those that come to stand on the front or in a list are on record too."""
        if not len(rows):
            return
        trials = taken(self._record, rows)
        sound = np.flatnonzero(np.isfinite(trials.costs).all(axis=1))
        ordinals = trials.ordinals[sound]
        full = functools.reduce(join, self._standing())
        self._dress(_bare)
        columns, none = self.ranking.columns(ordinals), Metrics(n=len(sound), value={})
        self._keep(Points(columns=columns, metrics=none, costs=trials.costs[sound], ordinals=ordinals), trials.violation[sound])
        wanted = np.setdiff1d(np.concatenate([points.ordinals for points in self._standing()]), full.ordinals)
        lacking = np.setdiff1d(wanted, self._figures.ordinals)
        if len(lacking):  # a record without figures
            full = join(full, self.question.evaluated(self.ranking.columns(lacking), lacking)[0])
        full = join(full, self._figures.take(np.flatnonzero(np.isin(self._figures.ordinals, wanted))))
        order = np.argsort(full.ordinals, kind="stable")
        self._dress(lambda points: full.take(order[np.searchsorted(full.ordinals[order], points.ordinals)]))
        self._append(trials)

    def _standing(self) -> list[Points]:
        """All points whose figures are kept: of the front, of the lists, and the closest where none is feasible."""
        return [self.front.points, *(kept.points for kept in self.tops), *([] if self.closest is None else [self.closest])]

    def _dress(self, as_now: Callable[[Points], Points]) -> None:
        """The same points with other figures."""
        self.front = replace(self.front, points=as_now(self.front.points))
        self.tops = tuple(replace(kept, points=as_now(kept.points)) for kept in self.tops)
        self.closest = None if self.closest is None else as_now(self.closest)

    def _keep(self, points: Points, worst: FloatArray) -> None:
        """Extend the front and the lists."""
        fits = np.flatnonzero(worst <= 0)
        self.feasible += len(fits)
        self.front = self.front.extended(points, fits)
        self.tops = tuple(kept.extended(points, fits) for kept in self.tops)
        if not self.feasible:
            self._nearer(points, worst)

    def _nearer(self, points: Points, worst: FloatArray) -> None:
        """Keep the point that comes closest to feasible while none is."""
        if not len(points) or worst.min() >= self._least:
            return
        self._least = float(worst.min())
        self.closest = points.take(np.array([np.argmin(worst)]))

    def _append(self, trials: Trials) -> None:
        """Write rows at the end; storage doubles, so that a row costs the same however many there are."""
        end = self._n + len(trials)
        if end > len(self._ordinals):
            room = max(end, 2 * len(self._ordinals))
            self._ordinals = np.resize(self._ordinals, room)
            self._costs = np.resize(self._costs, (room, self._costs.shape[1]))
            self._violation = np.resize(self._violation, room)
        self._ordinals[self._n : end] = trials.ordinals
        self._costs[self._n : end] = trials.costs
        self._violation[self._n : end] = trials.violation
        self._rows.add(trials.ordinals)
        self._n = end
        self.evaluated += len(trials) - len(trials.reasons)
        for row, reason in trials.reasons.items():
            self.failed[reason] = self.failed.get(reason, 0) + 1
            if len(self.failures) < _TOLD:
                point = self.ranking.columns(trials.ordinals[row : row + 1]).row(0)
                self.failures += (Failure(point=point, reason=reason),)


def _bare(points: Points) -> Points:
    """The points without their figures."""
    return replace(points, metrics=Metrics(n=len(points), value={}))


def _ordinals(ranking: Ranking, points: list[Columns]) -> IntArray:
    """The numbers of points that come one by one."""
    if not points:
        return np.empty(0, np.int64)
    codes = [[int(point.codes[axis.name][0]) for axis in ranking.space.axes] for point in points]
    return ranking.rank(np.array(codes, np.int64).T)
