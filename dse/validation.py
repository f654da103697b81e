"""`validate`: the engine against published training results that it was not fitted to.

Errors are relative errors in step time, percent. One configuration counts once, under its best-defined metric; a refused row
counts as an error of 100 %. Rows of the split `calibration` gave constants and intervals; those of `held-out` gave nothing.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, TypeAlias

from costmodels.comparison import (
    Comparison,
    ErrorStatistics,
    RankAgreement,
    by_source,
    compare,
    error_statistics,
    median_of_source_medians,
    rank_agreement,
)
from costmodels.published import (
    JUDGED_GENERATIONS,
    Fact,
    MemoryFact,
    Prediction,
    best_rows,
    memory_errors,
    memory_rows,
    read_facts,
)
from costmodels.published_serving import compare_serving, order_of_plans, order_of_replicas, read_serving_facts
from dse.measures import nearest
from dse.prediction import predict_rows

Predictor: TypeAlias = Callable[[list[dict[str, str]]], Sequence[Prediction]]
Orders: TypeAlias = Mapping[str, Callable[[Sequence[Comparison]], RankAgreement]]

SPLITS = ("held-out", "calibration", "all")
JUDGED = "+".join(sorted(JUDGED_GENERATIONS))
"""Name of the group that the bars are about."""
TABLE_5 = "Table 5"
"""In the citations of the step times that Korthikanti et al. 2022 print."""
TRAINING_ORDERS: Orders = {"plans": rank_agreement}
SERVING_ORDERS: Orders = {"plans": order_of_plans, "replicas": order_of_replicas}
"""How pairs of plans are found among published runs."""

_WIDTH = 128  # columns of the printed tables


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceErrors:
    """One source: its split, the generations of its devices, its errors, and why rows were refused, commonest first.

    `orders` are pairs of its plans put in the right order, by name: `plans` on as many accelerators for one job, and in
    serving `replicas`, plans of other sizes, each as replicas that fill as many accelerators.
    """

    source: str
    split: str
    generation: str
    errors: ErrorStatistics
    reasons: tuple[tuple[str, int], ...]
    orders: tuple[tuple[str, RankAgreement], ...]

    def to_json(self) -> dict[str, Any]:
        """An entry of `dse validate --json`; figures in percent."""
        e = self.errors
        return {
            "source": self.source,
            "rows": e.rows,
            "median": e.median,
            "mean": e.mean,
            "p90": e.p90,
            "bias": e.bias,
            "coverage": e.coverage,
            "width": e.width,
            "refused": e.refused,
            "split": self.split,
            "generation": self.generation,
            "orders": {name: {"pairs": found.pairs, "agreed": found.agreed} for name, found in self.orders},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupErrors:
    """Rows of one split on devices of one generation; `median_of_medians` is over the sources' medians, percent."""

    split: str
    generation: str
    sources: int
    errors: ErrorStatistics
    median_of_medians: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryErrors:
    """One source's published bytes against a column of the prediction: percent; `worst` is signed, positive too much."""

    source: str
    split: str
    published: str
    predicted: str
    rows: int
    refused: int
    median: float
    worst: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """Configurations of a source without a usable figure, and why."""

    source: str
    configurations: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """A figure that accuracy is held to, percent, and the limits it should lie between."""

    name: str
    value: float
    least: float = -math.inf
    most: float = math.inf

    @property
    def met(self) -> bool:
        """Whether the figure lies between the limits; one that is not there does not."""
        return self.least <= self.value <= self.most

    @property
    def asked(self) -> str:
        """The limits in words: `≤ 8 %`, `≥ 90 %`, `80–97 %`."""
        if math.isinf(self.most):
            return f"≥ {self.least:g} %"
        return f"≤ {self.most:g} %" if math.isinf(self.least) else f"{self.least:g}–{self.most:g} %"

    def __str__(self) -> str:
        return f"{self.name}: {percent(self.value)} %, asked {self.asked}{'' if self.met else ': missed'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Published results beside predictions. Everything else is counted from them.

    `compared` has one step time a configuration, `memory` one memory figure with its relative error (NaN when refused),
    `left_out` what no prediction can be held to, `serving` one figure of a serving run each, as seconds; all of the split.
    """

    split: str
    compared: tuple[Comparison, ...]
    memory: tuple[tuple[MemoryFact, float], ...]
    left_out: tuple[LeftOut, ...]
    serving: tuple[Comparison, ...] = ()

    @property
    def serving_sources(self) -> tuple[SourceErrors, ...]:
        """Errors of published serving results by source and figure, in the order of the data file."""
        return tuple(_source(name, group, SERVING_ORDERS) for name, group in by_source(self.serving).items())

    @property
    def sources(self) -> tuple[SourceErrors, ...]:
        """Errors by source, in the order of the data file."""
        return tuple(_source(name, group, TRAINING_ORDERS) for name, group in by_source(self.compared).items())

    @property
    def groups(self) -> tuple[GroupErrors, ...]:
        """Errors by split and generation; the judged generations together come first."""
        return tuple(_groups(self.compared))

    @property
    def judged(self) -> tuple[Comparison, ...]:
        """The held-out rows that bars are about: Ampere and Hopper."""
        return tuple(c for c in self.compared if c.fact.split == "held-out" and c.fact.generation in JUDGED_GENERATIONS)

    @property
    def agreement(self) -> RankAgreement:
        """Order of plans for one job, over all rows of the chosen split."""
        return rank_agreement(self.compared)

    def serving_order(self, name: str, split: str = "") -> RankAgreement:
        """Order of serving plans by one of `SERVING_ORDERS`, over all rows or those of one split."""
        return SERVING_ORDERS[name]([c for c in self.serving if split in ("", c.fact.split)])

    @property
    def refused(self) -> tuple[Comparison, ...]:
        """Rows that the engine did not predict; `refused` of each says why."""
        return tuple(c for c in self.compared if c.refused)

    def to_json(self) -> list[dict[str, Any]]:
        """What `dse validate --json` prints last: one entry a source."""
        return [source.to_json() for source in (*self.sources, *self.serving_sources)]

    def __str__(self) -> str:
        return _page(self)


def validate(
    split: str = "held-out", *, facts: Sequence[Fact] | None = None, predictor: Predictor = predict_rows
) -> Validation:
    """Predict published results and compare; `split` is held-out, calibration or all. Raises ValueError for any other.

    `facts` defaults to the packaged results; `predictor` gives one prediction row for every row of inputs, in order.
    """
    if split not in SPLITS:
        raise ValueError(f"--split: no such value {split!r}{nearest(split, SPLITS)}")
    chosen = [fact for fact in (read_facts() if facts is None else facts) if split in ("all", fact.split)]
    served = [fact for fact in (read_serving_facts() if facts is None else ()) if split in ("all", fact.split)]
    best, memory = best_rows(chosen), memory_rows(chosen)
    answers = predictor([dict(fact.inputs) for fact in [*best, *(row.fact for row in memory)]])
    return Validation(
        split=split,
        compared=tuple(compare(best, answers[: len(best)])),
        memory=tuple(zip(memory, memory_errors(memory, answers[len(best) :]), strict=True)),
        left_out=tuple(_left_out(chosen)),
        serving=tuple(compare_serving(served, predict_rows([dict(fact.inputs) for fact in served], "serving"))),
    )


# --- counting ---------------------------------------------------------------------------------------------------------


def _source(name: str, group: Sequence[Comparison], orders: Orders) -> SourceErrors:
    return SourceErrors(
        source=name,
        split=group[0].fact.split,
        generation="+".join(sorted({c.fact.generation for c in group})),
        errors=error_statistics(group),
        reasons=tuple(Counter(c.refused for c in group if c.refused).most_common()),
        orders=tuple((kind, count(group)) for kind, count in orders.items()),
    )


def _groups(compared: Sequence[Comparison]) -> Iterable[GroupErrors]:
    for split in SPLITS[:2]:
        rows = [c for c in compared if c.fact.split == split]
        if not rows:
            continue
        yield _group(split, JUDGED, [c for c in rows if c.fact.generation in JUDGED_GENERATIONS])
        for generation in sorted({c.fact.generation for c in rows}):
            yield _group(split, generation, [c for c in rows if c.fact.generation == generation])


def _group(split: str, generation: str, rows: Sequence[Comparison]) -> GroupErrors:
    return GroupErrors(
        split=split,
        generation=generation,
        sources=len(by_source(rows)),
        errors=error_statistics(rows),
        median_of_medians=median_of_source_medians(rows),
    )


def _left_out(facts: Sequence[Fact]) -> Iterable[LeftOut]:
    used = {fact.id for fact in facts if fact.usable}
    reasons: dict[str, tuple[str, str]] = {}
    for fact in facts:
        if fact.id not in used:
            reasons.setdefault(fact.id, (fact.source, fact.why))
    for (source, why), count in Counter(reasons.values()).items():
        yield LeftOut(source=source, configurations=count, why=why)


def memory_by_source(validation: Validation) -> tuple[MemoryErrors, ...]:
    """Errors in bytes by source and by what is compared with what."""
    found: dict[tuple[str, str, str, str], list[float]] = {}
    for row, error in validation.memory:
        found.setdefault((row.fact.source, row.fact.split, row.kind, row.column), []).append(error)
    return tuple(_memory(*key, errors) for key, errors in found.items())


def _memory(source: str, split: str, published: str, predicted: str, errors: Sequence[float]) -> MemoryErrors:
    known = [error for error in errors if math.isfinite(error)]
    return MemoryErrors(
        source=source,
        split=split,
        published=published,
        predicted=predicted,
        rows=len(errors),
        refused=len(errors) - len(known),
        median=100.0 * median(map(abs, known)) if known else math.nan,
        worst=100.0 * max(known, key=abs) if known else math.nan,
    )


def bars(validation: Validation) -> tuple[Bar, ...]:
    """What accuracy on held-out rows of the judged generations is held to; none when the split has no such rows."""
    judged = validation.judged
    if not judged:
        return ()
    all_rows, sources = error_statistics(judged), by_source(judged)
    medians = {name: error_statistics(group).median for name, group in sources.items()}
    worst = max(medians, key=lambda name: medians[name])
    table_5 = [c for c in judged if c.fact.source == "kort22" and TABLE_5 in c.fact.citation]
    return (
        Bar(name="median of the sources' medians", value=median_of_source_medians(judged), most=8.0),
        Bar(name="mean over all rows", value=all_rows.mean, most=12.0),
        Bar(name=f"largest median of a source ({worst})", value=medians[worst], most=15.0),
        Bar(name="rows answered", value=100.0 * all_rows.predicted / all_rows.rows, least=90.0),
        Bar(name="Korthikanti 2022 Table 5, mean", value=error_statistics(table_5).mean, most=5.0),
        Bar(name="plans of one job in the right order", value=rank_agreement(judged).share, least=85.0),
        Bar(name="90 % intervals that hold the truth", value=all_rows.coverage, least=80.0, most=97.0),
        Bar(name="median half width of those intervals", value=all_rows.width / 2.0, most=15.0),
    )


# --- as text ----------------------------------------------------------------------------------------------------------

_FIGURES = ("rows", "median", "mean", "p90", "bias", "coverage", "width", "refused")


def _page(validation: Validation) -> str:
    """What a terminal shows."""
    blocks = [
        "Error in step time against published results, percent; bias > 0 predicts too slow; a refused row counts as 100.",
        _table("By source", ("source", "split", "generation", *_FIGURES), _source_cells(validation)),
        _table("Serving: by source and figure", ("source", "split", "generation", *_FIGURES), _serving_cells(validation))
        if validation.serving
        else "",
        _table("By generation", ("split", "generation", "sources", *_FIGURES, "median of medians"), _group_cells(validation)),
        _order_text(validation.agreement),
        _serving_order_text(validation) if validation.serving else "",
        "\n".join(f"  {'✓' if bar.met else '✗'} {bar}" for bar in bars(validation)),
        _refusals(validation),
    ]
    return "\n\n".join(block for block in blocks if block)


def _refusals(validation: Validation) -> str:
    reasons = Counter((c.fact.source, c.refused) for c in validation.refused)
    return "\n".join(f"refused: {count} of {source}: {reason}" for (source, reason), count in reasons.most_common())


def _order_text(found: RankAgreement) -> str:
    if not found.pairs:
        return "Order of plans: no two plans for one job."
    share = f"{found.agreed} of {found.pairs} pairs, {found.share:.1f} %"
    return f"Order of plans: of two plans for one job that differ by more than 5 %, the faster is put first in {share}."


_ORDER_WORDS = {"plans": "on as many accelerators", "replicas": "of different sizes, each replicated to as many accelerators"}


def _serving_order_text(validation: Validation) -> str:
    """Both orders of serving plans, each split by itself."""
    counts = []
    for name, words in _ORDER_WORDS.items():
        for split in SPLITS[:2]:
            found = validation.serving_order(name, split)
            if found.pairs:
                counts.append(f"  {words}, {split}: {found.agreed} of {found.pairs} pairs, {found.share:.1f} %")
    if not counts:
        return "Order of serving plans: no two plans for one job."
    return "\n".join(("Order of serving plans: of two that differ by more than 5 %, the faster is put first:", *counts))


def _table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A rich table as plain text, numbers to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0, 0, 1))
    for heading in headings:
        table.add_column(heading, justify="left" if heading in ("source", "split", "generation") else "right")
    for row in rows:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=_WIDTH, highlight=False, markup=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())


def _source_cells(validation: Validation) -> Iterable[Sequence[str]]:
    return ([s.source, s.split, s.generation, *_cells(s.errors)] for s in validation.sources)


def _serving_cells(validation: Validation) -> Iterable[Sequence[str]]:
    return ([s.source, s.split, s.generation, *_cells(s.errors)] for s in validation.serving_sources)


def _group_cells(validation: Validation) -> Iterable[Sequence[str]]:
    for g in validation.groups:
        yield [g.split, g.generation, str(g.sources), *_cells(g.errors), percent(g.median_of_medians)]


def _cells(errors: ErrorStatistics) -> list[str]:
    return [_cell(getattr(errors, name)) for name in _FIGURES]


def _cell(value: float) -> str:
    return str(value) if isinstance(value, int) else percent(value)


def percent(value: float) -> str:
    """One decimal; a dash where there is nothing."""
    return f"{value:.1f}" if math.isfinite(value) else "–"
