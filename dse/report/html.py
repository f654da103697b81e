"""report.html: one page that needs no network, light or dark as the reader's system asks."""

from __future__ import annotations

from html import escape
from importlib.resources import files

import numpy as np

from dse.answers import PlanAnswer, Run
from dse.kinds.registry import find
from dse.measures import measure
from dse.report import drawing, words
from dse.report.drawing import Mark
from dse.report.words import Sheet
from dse.tables import baseline_text, certificate_text, nothing_fits, place

DRAWN = 3000
"""Sample points a scatter shows; more only make the page heavy."""


def page(run: Run) -> str:
    """The whole page."""
    blocks = [f"<h1>{escape(run.name)}</h1>", f"<p class=lead>{escape(run.title)}.</p>"]
    if run.front:
        blocks += _front(run) + _winner(run) + _sensitivity(run)
    else:
        blocks += ["<h2>Nothing is feasible</h2>", _text(nothing_fits(run))]
    if baseline_text(run):
        blocks += ["<h2>Against the plan run today</h2>", _text(baseline_text(run))]
    blocks += ["<h2>How sure: the certificate</h2>", _text(certificate_text(run)), _table(words.certificate_sheet(run))]
    if run.removed:
        blocks += [
            "<h2>What structure removed</h2>",
            "<p>Partial choices that cannot be completed to a plan, counted where they were ruled out; none was evaluated.</p>",
            _table(words.removed_sheet(run)),
        ]
    blocks += ["<h2>Assumptions</h2>", "<ul>" + "".join(f"<li>{escape(a)}</li>" for a in run.assumptions) + "</ul>"]
    body = "\n".join(blocks)
    style = files("dse").joinpath("report", "style.css").read_text(encoding="utf-8")
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(run.name)}</title><style>\n{style}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body><main>\n{body}\n</main></body></html>\n'


def _front(run: Run) -> list[str]:
    blocks = [f"<h2>The front: {escape(words.objectives_text(run.objectives))}</h2>"]
    if len(run.objectives) > 1:
        first = run.objectives[0][0]
        blocks += [_scatter(run, other, first) for other, _ in run.objectives[1:4]]
        today = " Orange: the plan run today." if run.baseline else ""
        blocks.append(
            "<p class=note>Large dots: the front, its first plan ringed. Small dots: a seeded sample of the plans evaluated, "
            f"grey where a constraint is broken.{today} Hover for the plan.</p>"
        )
    blocks += [f"<p class=note>{words.READING}</p>", _table(words.front_sheet(run))]
    if len(run.front) > words.LISTED:
        blocks.append(f"<p class=note>{len(run.front) - words.LISTED:,} more plans are in front.csv.</p>")
    return blocks


def _scatter(run: Run, across: str, up: str) -> str:
    x, y = measure(across), measure(up)
    marks = _sample_marks(run, across, up)
    if run.baseline is not None:
        marks.append(_mark(run.baseline, across, up, "baseline", "baseline: "))
    marks += [_mark(a, across, up, "front", f"#{i} ") for i, a in reversed(list(enumerate(run.front, 1))) if i > 1]
    marks.append(_mark(run.front[0], across, up, "winner", "#1 "))
    return f"<figure>{drawing.scatter(marks, x, y, f'{y.title} over {x.title}')}</figure>"


def _mark(answer: PlanAnswer, across: str, up: str, kind: str, lead: str) -> Mark:
    x, y = answer.figures[across].value, answer.figures[up].value
    said = f"{measure(up).show(y, with_unit=True)}, {measure(across).show(x, with_unit=True)}"
    return Mark(x=x, y=y, title=f"{lead}{place(answer)}{answer.text}\n{said}", kind=kind)


def _sample_marks(run: Run, across: str, up: str) -> list[Mark]:
    """The sample near the front: points far beyond it would squeeze the front into a corner."""
    names = (f"metric.{across}", f"metric.{up}")
    if not all(name in run.sample for name in names):
        return []
    x, y = (np.asarray(run.sample[name], np.float64) for name in names)
    near = np.isfinite(x) & np.isfinite(y)
    for values, metric in ((x, across), (y, up)):
        best = [a.figures[metric].value for a in run.front]
        near &= (values <= 4 * max(best)) & (values >= min(best) / 4)
    feasible = np.asarray(run.sample["feasible"], np.bool_)
    rows = np.flatnonzero(near)
    rows = rows[np.linspace(0, len(rows) - 1, min(DRAWN, len(rows)), dtype=np.int64)]  # evenly: it is in the space's order
    rows = rows[np.argsort(feasible[rows], kind="stable")]
    return [Mark(x=float(x[i]), y=float(y[i]), title="", kind="sample" if feasible[i] else "infeasible") for i in rows]


def _winner(run: Run) -> list[str]:
    best = run.front[0]
    blocks = [f"<h2>Plan 1</h2><p class=lead>{escape(place(best) + best.text)}</p>"]
    for metric, heading in find(run.kind).breakdowns:
        if best.parts.get(metric):
            blocks.append(f"<h3>{escape(heading)}</h3>")
            blocks += _memory(best) if metric == "memory" else _parts(run, metric)
            blocks.append(_table(words.parts_sheet(best, metric)))
    return [*blocks, "<h3>All figures</h3>", _table(words.figures_sheet(best))]


def _sensitivity(run: Run) -> list[str]:
    """What the front's members lean on; the first is open."""
    if run.sensitivity is None:
        return []
    blocks = ["<h2>What the front leans on</h2>", f"<p class=note>{escape(words.sensitivity_text(run))}</p>"]
    for i, member in enumerate(run.sensitivity["members"]):
        evens = "".join(f"<li>{escape(even['said'])}</li>" for even in member["break_evens"] or ())
        plans = "".join(f"<li>{escape(name)}: {escape(plan)}</li>" for name, plan in member["best_plans"].items())
        blocks.append(
            f"<details{' open' if i == 0 else ''}><summary>#{i + 1} {escape(run.front[i].text)}</summary><ul>{plans}</ul>"
            f"{_table(words.sensitivity_sheet(member))}<p>{escape(words.bottleneck_text(member))}</p><ul>{evens}</ul></details>"
        )
    return blocks


def _parts(run: Run, metric: str) -> list[str]:
    """The winner's parts of a metric, above those of the plan run today."""
    shown = measure(metric)
    rows = [("plan 1", run.front[0].parts[metric])]
    if run.baseline is not None and run.baseline.parts.get(metric):
        rows.append(("baseline", run.baseline.parts[metric]))
    return [f"<figure>{drawing.stacked(rows, shown, f'{shown.title} by part')}</figure>"]


def _memory(best: PlanAnswer) -> list[str]:
    """Memory by stage beside what the device holds."""
    memory = measure("memory")
    stages = list(best.stages) or [("fullest stage", best.parts["memory"])]
    limit = _capacity(best)
    blocks = [f"<figure>{drawing.stacked(stages, memory, 'device memory by part', limit)}</figure>"]
    if limit is not None:
        blocks.append(f"<p class=note>The dashed line is what the device holds: {memory.show(limit, with_unit=True)}.</p>")
    return blocks


def _capacity(answer: PlanAnswer) -> float | None:
    """Bytes the device holds, from use / limit − 1."""
    excess = answer.violation.get("memory")
    return None if excess is None or excess <= -1 else answer.figures["memory"].value / (1 + excess)


def _table(sheet: Sheet) -> str:
    def cells(row: list[str], tag: str) -> str:
        kinds = [" class=w" if i in sheet.left else "" for i in range(len(row))]
        return "".join(f"<{tag}{kind}>{escape(text)}</{tag}>" for kind, text in zip(kinds, row, strict=True))

    head = f"<thead><tr>{cells(list(sheet.headings), 'th')}</tr></thead>"
    rows = "".join(f"<tr>{cells(list(row), 'td')}</tr>\n" for row in sheet.rows)
    return f"<div class=scroll><table>{head}<tbody>\n{rows}</tbody></table></div>"


def _text(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"
