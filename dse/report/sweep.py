"""A sweep as report.md: the joined front and one line for each run."""

from __future__ import annotations

from dse.report.markdown import as_table
from dse.report.words import LISTED, objectives_text
from dse.swept import Sweep, certificate, front_sheet, heading, runs_sheet


def page(sweep: Sweep) -> str:
    """report.md."""
    first = sweep.runs[0]
    blocks = [f"# {sweep.name}", heading(sweep), f"## Front over all runs: {objectives_text(first.objectives)}"]
    blocks.append(as_table(front_sheet(sweep)) if sweep.front else "Nothing is feasible in any run.")
    if len(sweep.front) > LISTED:
        blocks.append(f"{len(sweep.front) - LISTED:,} more plans are in front.csv.")
    blocks += ["## Runs", as_table(runs_sheet(sweep)), certificate(sweep)]
    return "\n\n".join(blocks) + "\n"
