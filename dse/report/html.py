"""report.html: one page that needs no network, light or dark as the reader's system asks."""

from __future__ import annotations

from html import escape

import numpy as np

from dse.answers import PlanAnswer, Run, plan_text
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
        blocks += _front(run) + _winner(run)
    else:
        blocks += ["<h2>Nothing is feasible</h2>", _text(nothing_fits(run))]
    if run.baseline is not None:
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
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(run.name)}</title>'
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n'


def _front(run: Run) -> list[str]:
    blocks = [f"<h2>The front: {escape(words.objectives_text(run.objectives))}</h2>"]
    if len(run.objectives) > 1:
        first = run.objectives[0][0]
        blocks += [_scatter(run, other, first) for other, _ in run.objectives[1:4]]
        blocks.append(
            "<p class=note>Large: the front, its first plan ringed. Small: a seeded sample of the space, grey where it does not "
            "fit" + ("; diamond colour: the baseline" if run.baseline else "") + ". Hover for the plan.</p>"
        )
    blocks.append(_table(words.front_sheet(run)))
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
    return Mark(x=x, y=y, title=f"{lead}{place(answer)}{plan_text(answer.plan)}\n{said}", kind=kind)


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
    rows = np.flatnonzero(near)[:DRAWN]
    rows = rows[np.argsort(feasible[rows], kind="stable")]
    return [Mark(x=float(x[i]), y=float(y[i]), title="", kind="sample" if feasible[i] else "infeasible") for i in rows]


def _winner(run: Run) -> list[str]:
    best = run.front[0]
    time, memory = measure("step_time"), measure("memory")
    blocks = [f"<h2>Plan 1</h2><p class=lead>{escape(place(best) + plan_text(best.plan))}</p>"]
    if best.parts.get("step_time"):
        rows = [("plan 1", best.parts["step_time"])]
        if run.baseline is not None and run.baseline.parts.get("step_time"):
            rows.append(("baseline", run.baseline.parts["step_time"]))
        blocks += ["<h3>Where the step goes</h3>", f"<figure>{drawing.stacked(rows, time, 'step time by part')}</figure>"]
        blocks.append(_table(words.parts_sheet(best, "step_time")))
    if best.parts.get("memory"):
        stages = list(best.stages) or [("fullest stage", best.parts["memory"])]
        limit = _capacity(best)
        blocks.append("<h3>Where the memory goes</h3>")
        blocks.append(f"<figure>{drawing.stacked(stages, memory, 'device memory by part', limit)}</figure>")
        if limit is not None:
            blocks.append(f"<p class=note>The dashed line is what the device holds: {memory.show(limit, with_unit=True)}.</p>")
        blocks.append(_table(words.parts_sheet(best, "memory")))
    return [*blocks, "<h3>All figures</h3>", _table(words.figures_sheet(best))]


def _capacity(answer: PlanAnswer) -> float | None:
    """Bytes the device holds, from use / limit − 1."""
    excess = answer.violation.get("memory")
    return None if excess is None or excess <= -1 else answer.figures["memory"].value / (1 + excess)


def _table(sheet: Sheet) -> str:
    def cells(row: list[str], tag: str) -> str:
        return "".join(f"<{tag}{' class=w' if i in sheet.left else ''}>{escape(text)}</{tag}>" for i, text in enumerate(row))

    rows = "".join(f"<tr>{cells(list(row), 'td')}</tr>\n" for row in sheet.rows)
    return f"<div class=scroll><table><thead><tr>{cells(list(sheet.headings), 'th')}</tr></thead><tbody>{rows}</tbody></table></div>"


def _text(text: str) -> str:
    return f"<pre>{escape(text)}</pre>"


_STYLE = """
:root{color-scheme:light dark;--ink:#1d2433;--soft:#667085;--line:#d9dee7;--paper:#fff;--panel:#f6f7f9;--accent:#2f6fde;--warm:#d9622b}
@media(prefers-color-scheme:dark){:root{--ink:#e4e8ef;--soft:#98a2b3;--line:#343b48;--paper:#14171d;--panel:#1c2129;--accent:#7aa7ff;--warm:#ff9a62}}
body{margin:0;background:var(--paper);color:var(--ink);font:15px/1.55 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1040px;margin:0 auto;padding:32px 20px 64px}
h1{font-size:28px;margin:0 0 4px}h2{font-size:20px;margin:44px 0 10px;border-top:1px solid var(--line);padding-top:22px}h3{font-size:16px;margin:26px 0 8px}
.lead{color:var(--soft);margin:0 0 12px}.note{color:var(--soft);font-size:13px}
figure{margin:12px 0}svg{width:100%;max-width:860px;height:auto;display:block}
svg text{font:12px system-ui,sans-serif;fill:var(--ink)}svg .name{font-size:13px;fill:var(--soft)}
.axis{fill:none;stroke:var(--soft)}.grid{fill:none;stroke:var(--line);stroke-width:.7}.limit{stroke:var(--warm);stroke-dasharray:5 4;stroke-width:1.5}
.front{fill:var(--accent);stroke:var(--paper)}.winner{fill:var(--accent);stroke:var(--ink);stroke-width:2}.baseline{fill:var(--warm);stroke:var(--paper)}
.sample{fill:var(--accent);opacity:.22}.infeasible{fill:var(--soft);opacity:.22}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:13.5px;font-variant-numeric:tabular-nums;margin:8px 0}
th,td{padding:4px 12px 4px 0;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}th{color:var(--soft);font-weight:600}.w{text-align:left}
pre{background:var(--panel);padding:12px 14px;border-radius:6px;overflow-x:auto;font:13px/1.5 ui-monospace,monospace}
"""
