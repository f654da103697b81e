"""What both reports say, as headings, paragraphs and tables without markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dse.answers import TIE, PlanAnswer, Run
from dse.measures import measure
from dse.tables import interval, limit_text, plan_texts, shown_metrics, tied

LISTED = 100
"""Front plans a report lists; front.csv holds them all."""


READING = (
    "On the front stand the plans that no other beats on every objective. Brackets hold the 90 % interval of a prediction. "
    f"Plans that differ by no more than {TIE * 100:.0f} % on every objective, with overlapping intervals, are ties. Evidence "
    "says what a plan's figures rest on: measured, interpolated, extrapolated or first-principles."
)
"""How a table of the front reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A table: headings, rows of text, and which columns are words rather than numbers."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: frozenset[int]


def front_sheet(run: Run) -> Sheet:
    """The front's plans with intervals, ties and evidence."""
    metrics = shown_metrics(run)
    headings = ["#", "plan", *(m.heading for m in metrics), "ties with", "evidence"]
    rows = [
        [str(i), plan, *(interval(a.figures[m.name], m) for m in metrics), tied(a, 5), a.evidence]
        for i, (a, plan) in enumerate(zip(run.front[:LISTED], plan_texts(run.front[:LISTED]), strict=True), 1)
    ]
    return Sheet(headings=headings, rows=rows, left=frozenset({1, len(headings) - 1}))


def removed_sheet(run: Run) -> Sheet:
    """What structure ruled out: partial choices by axis and reason."""
    rows = [[axis, reason, f"{count:,}"] for axis, reason, count in run.removed]
    return Sheet(headings=["axis", "reason", "partial choices removed"], rows=rows, left=frozenset({0, 1}))


def certificate_sheet(run: Run) -> Sheet:
    """The identity: space = pruned + evaluated + failed + unvisited."""
    c = run.certificate
    rows = [["legal plans in the space", f"{c['space']:,}"]]
    rows += [[f"pruned: {limit_text(reason)}", f"{count:,}"] for reason, count in c["pruned"].items()]
    rows += [[name, f"{c[name]:,}"] for name in ("evaluated", "failed", "unvisited")]
    return Sheet(headings=["", "plans"], rows=rows, left=frozenset({0}))


def sensitivity_text(run: Run) -> str:
    """How many front members were looked at, and how the figures read."""
    found = run.sensitivity or {}
    rest = "" if found["with_break_evens"] >= found["front"] else "; dse explain RUN --rank N does any other"
    return (
        "Percent that a figure moves for one percent more of a parameter, the best plans found anew. "
        f"Elasticities of {found['with_elasticities']:,} of {found['front']:,} front members, "
        f"break-even points of {found['with_break_evens']:,}{rest}. All of it is in sensitivity.json."
    )


def bottleneck_text(member: Mapping[str, Any]) -> str:
    """What a front member would gain from next, by objective."""
    pays = {metric: name for metric, name in member["next_bottleneck"].items() if name}
    told = "; ".join(f"{measure(metric).title}: {name}" for metric, name in pays.items())
    return f"Next bottleneck by objective: {told}." if told else "No single parameter, grown, improves an objective."


def sensitivity_sheet(member: Mapping[str, Any]) -> Sheet:
    """One front member's elasticities, upwards; with the one downwards where they differ."""
    found = member["elasticities"]
    names = list(next(iter(found.values())))
    rows = [[name, *(_slope(found[metric][name]) for metric in found)] for name in names]
    return Sheet(headings=["parameter", *(f"{measure(m).title}, %" for m in found)], rows=rows, left=frozenset({0}))


CORNER = 0.05
"""Elasticities up and down that differ by more are both shown."""


def _slope(one: Mapping[str, float]) -> str:
    up, down = f"{one['up']:+.2f}", f"{one['down']:+.2f}"
    return up if abs(one["up"] - one["down"]) < CORNER else f"{up} ({down} down)"


def parts_sheet(answer: PlanAnswer, metric: str) -> Sheet:
    """The parts that sum to a metric, largest first."""
    shown, total = measure(metric), answer.figures[metric].value
    parts = sorted(answer.parts.get(metric, {}).items(), key=lambda part: -part[1])
    rows = [[name.replace("_", " "), shown.show(v), f"{v / total * 100:.1f} %"] for name, v in parts if v]
    rows.append(["total", shown.show(total), "100 %"])
    return Sheet(headings=["part", shown.heading, "share"], rows=rows, left=frozenset({0}))


def figures_sheet(answer: PlanAnswer) -> Sheet:
    """Every figure of one plan with its interval."""
    rows = [[measure(m).title, interval(f, measure(m)), measure(m).unit] for m, f in answer.figures.items()]
    return Sheet(headings=["figure", "value (interval)", "unit"], rows=rows, left=frozenset({0, 2}))


def objectives_text(objectives: Iterable[tuple[str, bool]]) -> str:
    """`min step time, max MFU`."""
    return ", ".join(f"{'max' if maximise else 'min'} {measure(metric).title}" for metric, maximise in objectives)
