"""A sweep in words: the joined front and one line for each run, for the terminal and for report.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dse.report.words import LISTED, Sheet, objectives_text
from dse.tables import interval, place, shown_metrics, table

if TYPE_CHECKING:
    from dse.sweeps import Sweep


def page(sweep: Sweep) -> str:
    """report.md."""
    from dse.report.markdown import as_table

    first = sweep.runs[0]
    blocks = [f"# {sweep.name}", first.title + ".", f"## Front over all runs: {objectives_text(first.objectives)}"]
    blocks.append(as_table(front_sheet(sweep)) if sweep.front else "Nothing is feasible in any run.")
    if len(sweep.front) > LISTED:
        blocks.append(f"{len(sweep.front) - LISTED:,} more plans are in front.csv.")
    blocks += ["## Runs", as_table(runs_sheet(sweep)), certificate(sweep)]
    return "\n\n".join(blocks) + "\n"


def text(sweep: Sweep) -> str:
    """For the terminal."""
    front, runs = front_sheet(sweep, 20), runs_sheet(sweep)
    blocks = [sweep.name]
    if sweep.front:
        blocks.append(f"Front over all runs: {objectives_text(sweep.runs[0].objectives)}")
        blocks.append(table(front.headings, front.rows, left=front.left))
    else:
        blocks.append("Nothing is feasible in any run.")
    blocks += [table(runs.headings, runs.rows, left=runs.left), certificate(sweep), str(sweep.folder / "report.md")]
    return "\n\n".join(blocks)


def front_sheet(sweep: Sweep, most: int = LISTED) -> Sheet:
    """The joined front, with what was set."""
    metrics = shown_metrics(sweep.runs[0])
    keys = list(sweep.cells[0].settings)
    rows = [
        [str(rank), *(str(sweep.cells[i].settings[key]) for key in keys), place(a) + a.text]
        + [interval(a.figures[m.name], m) for m in metrics]
        for rank, (i, a) in enumerate(sweep.front[:most], 1)
    ]
    headings = ["#", *keys, "plan", *(m.heading for m in metrics)]
    return Sheet(headings=headings, rows=rows, left=frozenset({1 + len(keys)}))


def runs_sheet(sweep: Sweep) -> Sheet:
    """Each run: what was set, its plans, its front and how much of it is on the joined one."""
    keys = list(sweep.cells[0].settings)
    rows = []
    for i, cell in enumerate(sweep.cells):
        said = [str(cell.settings[key]) for key in keys]
        if i >= len(sweep.runs):
            rows.append([*said, "", "", "", "not run", cell.folder])
            continue
        run = sweep.runs[i]
        state = run.certificate["stopped"] or ("complete" if run.certificate["complete"] else "some plans failed")
        joined = sum(at == i for at, _ in sweep.front)
        rows.append([*said, f"{run.certificate['space']:,}", str(len(run.front)), str(joined), state, cell.folder])
    headings = [*keys, "plans", "front", "on the joined front", "certificate", "folder"]
    return Sheet(headings=headings, rows=rows, left=frozenset({len(keys) + 3, len(keys) + 4}))


def certificate(sweep: Sweep) -> str:
    """All certificates in one sentence."""
    c = sweep.certificate
    parts = f"{c['space']:,} plans = {sum(c['pruned'].values()):,} pruned + {c['evaluated']:,} evaluated"
    rest = f" + {c['failed']:,} failed + {c['unvisited']:,} unvisited"
    verdict = "complete" if c["complete"] else "partial"
    return f"Certificate over {len(sweep.runs)} of {len(sweep.cells)} runs: {verdict}; {parts}{rest}."
