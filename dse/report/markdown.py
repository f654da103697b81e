"""report.md: the run as plain Markdown, readable as it is."""

from __future__ import annotations

from dse.answers import Run
from dse.kinds.registry import find
from dse.report import words
from dse.report.words import Sheet
from dse.tables import baseline_text, certificate_text, nothing_fits, place


def page(run: Run) -> str:
    """The whole report."""
    blocks = [f"# {run.name}", run.title + "."]
    if run.front:
        blocks += [f"## Front: {words.objectives_text(run.objectives)}", words.READING, as_table(words.front_sheet(run))]
        if len(run.front) > words.LISTED:
            blocks.append(f"{len(run.front) - words.LISTED:,} more plans are in front.csv.")
        blocks += [*_winner(run), *_sensitivity(run)]
    else:
        blocks += ["## Nothing is feasible", _plain(nothing_fits(run))]
    if baseline_text(run):
        blocks += ["## Baseline", _plain(baseline_text(run))]
    blocks += ["## Certificate", certificate_text(run), as_table(words.certificate_sheet(run))]
    if run.removed:
        blocks += ["## What structure removed", as_table(words.removed_sheet(run))]
    blocks += ["## Assumptions", "\n".join(f"- {line}" for line in run.assumptions)]
    return "\n\n".join(blocks) + "\n"


def _winner(run: Run) -> list[str]:
    best = run.front[0]
    blocks = [f"## Plan 1: {place(best)}{best.text}", as_table(words.figures_sheet(best))]
    for metric, heading in find(run.kind).breakdowns:
        if best.parts.get(metric):
            blocks += [f"### {heading}", as_table(words.parts_sheet(best, metric))]
    return blocks


def _sensitivity(run: Run) -> list[str]:
    if run.sensitivity is None:
        return []
    blocks = ["## What the front leans on", words.sensitivity_text(run)]
    for i, member in enumerate(run.sensitivity["members"]):
        blocks += [f"### {i + 1}: {run.front[i].text}", as_table(words.sensitivity_sheet(member))]
        blocks.append(words.bottleneck_text(member))
        if member["break_evens"]:
            blocks.append("\n".join(f"- {even['said']}" for even in member["break_evens"]))
    return blocks


def as_table(sheet: Sheet) -> str:
    """A sheet as a Markdown table."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = ["---" if i in sheet.left else "---:" for i in range(len(sheet.headings))]
    return "\n".join([line(list(sheet.headings)), line(rule), *(line(list(row)) for row in sheet.rows)])


def _plain(text: str) -> str:
    return f"```text\n{text}\n```"
