"""Exact search by slices: each is searched by itself, here or elsewhere, written down, and joined to the others in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from search.execution import Executor
from search.front import Points
from search.keeping import Samples, State
from search.packing import packed, unpacked
from search.result import Progress
from search.store import Ledger
from search.visiting import Hopeless, Task
from spaces.listing import Listing
from spaces.space import Space

_BOUNDED = 8  # batches bounded together: bounds rule most points out, and what is left makes tables anew each time
_GRAIN = 1 << 19  # points of a batch, and of most slices: every batch makes the tables of the model's parts anew
_FIRST = 1 << 11  # points of a slice before the cost of one is known: of a model that takes 5 ms a point, ten seconds
_LARGEST = 1 << 21  # points of a slice
_LEAST = 1 << 18  # points of a slice that is not cut smaller towards the end
_PROBE = 64  # the same before the cost of a point is known: each may take a second
_CHUNK_S = 3.0  # seconds of work in a slice
_WAITS = 5.0  # wall seconds for one of the processor, from which a model counts as waiting


@dataclass(frozen=True, slots=True, eq=False)
class Errand:
    """What a worker does with a slice; it travels to each worker once."""

    task: Task
    listing: Listing
    none: Points
    axes: tuple[str, ...]
    top: int
    sample: int
    seed: int
    rows: int

    def __call__(self, chunk: Slice) -> Found:
        """The state after the slice alone."""
        clock, processor = time.perf_counter(), time.process_time()
        state = State.empty(self.none, len(self.task.objectives), self.top, self.sample)
        state = replace(state, reservoir=replace(state.reservoir, below=chunk.below))
        bits = np.random.PCG64(self.seed)
        bits.advance(chunk.start)
        random = np.random.Generator(bits)
        offset = chunk.start
        hopeless = ""
        try:
            for batch in self.listing.batches(chunk.start, chunk.n, self.none.columns.levels, self.axes, _BOUNDED * self.rows):
                patient = chunk.start > 0  # only who starts the space may give up
                keys = random.random(batch.n)
                for visit in self.task.visits(batch, state, None, self.rows, offset, patient):
                    state = state.after(visit, keys[visit.places])
        except Hopeless as error:
            hopeless = str(error)
        return Found(
            start=chunk.start,
            n=chunk.n,
            state=packed(state),
            cpu_s=time.process_time() - processor,
            wall_s=time.perf_counter() - clock,
            hopeless=hopeless,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """`n` consecutive points of the space from number `start` on; sample keys from `below` on are known to be of no use."""

    start: int
    n: int
    below: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was found in a slice (`search.packing`), and the CPU and wall seconds it took."""

    start: int
    n: int
    state: bytes
    cpu_s: float
    wall_s: float
    hopeless: str

    @property
    def cost(self) -> float:
        """Seconds a point: of the processor, or by the clock where the model waits for something else than a busy machine."""
        return (self.wall_s if self.wall_s > _WAITS * self.cpu_s else self.cpu_s) / max(self.n, 1)


@dataclass(slots=True, kw_only=True)
class Spread:
    """A search by slices: the state so far, why it stopped ("" when it did not), and the CPU seconds of other processes."""

    space: Space
    errand: Errand
    executor: Executor
    ledger: Ledger | None
    state: State
    stopped: str = ""
    elsewhere: float = 0.0
    _cost: float = 0.0  # seconds a point
    _samples: Samples | None = None

    def run(self, progress: Callable[[Progress], None] | None, cancelled: Callable[[], bool] | None) -> None:
        """Search what the ledger does not hold, and join all of it in the order of the space."""
        clock = time.perf_counter()
        size = self.space.size()
        none = self.state.reservoir
        samples = self._samples = Samples(none)
        waiting: dict[int, tuple[State, str]] = {}
        known = {} if self.ledger is None else dict(self.ledger.slices())

        def arrive(start: int, data: bytes, hopeless: str) -> None:
            """Keep what was found until its turn comes; its sample tells now what others need not send."""
            state = unpacked(data, self.errand.none)
            samples.see(state.reservoir.keys)
            waiting[start] = state, hopeless

        def join() -> None:
            """Join what comes next, from the ledger or as it was found."""
            while not self.stopped and (turn := self.state.visited) < size and (turn in waiting or turn in known):
                if self.ledger is not None and turn in known:
                    data, cpu_s = self.ledger.found(turn)
                    self.elsewhere += cpu_s
                    del known[turn]
                    arrive(turn, data, "")
                later, self.stopped = waiting.pop(turn)
                samples.add(later.reservoir)
                self.state = self.state.then(replace(later, reservoir=none))

        results = self.executor.map(self.errand, self._chunks(dict(known)))
        try:
            join()
            for _, found in results:
                arrive(found.start, found.state, found.hopeless)
                self._cost = found.cost
                self.elsewhere += found.cpu_s if self.executor.apart else 0.0
                if self.ledger is not None and not found.hopeless:
                    self.ledger.keep(found.start, found.n, found.state, found.cpu_s)
                join()
                if progress is not None:
                    progress(self.state.progress(size, time.perf_counter() - clock))
                if cancelled is not None and cancelled():
                    self.stopped = self.stopped or "cancelled"
                if self.stopped:
                    return
        except KeyboardInterrupt:
            self.stopped = "interrupted"
        finally:
            results.close()
            self.state = replace(self.state, reservoir=samples.joined())

    def _chunks(self, known: Mapping[int, int]) -> Iterator[Slice]:
        """The slices that are not known: by measured cost, up to the next on record."""
        starts = np.array(sorted(known), np.int64)
        size, hands = self.space.size(), self.executor.hands
        start = 0
        while start < size:
            if start in known:
                start += known[start]
                continue
            after = int(np.searchsorted(starts, start))
            until = int(starts[after]) if after < len(starts) else size
            # smaller towards the end, so that workers end together; a single one has nobody to wait for. A worker's whole part
            # of what is left is enough: what the others then get is cut again, and every slice makes tables anew
            left = size - start
            share = max(_LEAST, left // hands) if self._cost else max(_PROBE, left // (2 * hands))
            share = share if hands > 1 else size
            n = max(1, min(_chunk(self._cost), share, until - start))
            yield Slice(start=start, n=n, below=np.inf if self._samples is None else self._samples.below)
            start += n


def _chunk(cost: float) -> int:
    """Points of the next slice, by the measured seconds a point: some seconds' work, in whole grains where that is many."""
    if not cost:
        return _FIRST
    points = int(_CHUNK_S / cost)
    return min(points - points % _GRAIN, _LARGEST) if points >= _GRAIN else max(1, points)
