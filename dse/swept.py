"""What a sweep answers: the runs of its grid and the front over all of them. It prints itself."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dse.answers import PlanAnswer, Run
from dse.report.words import LISTED, Sheet, objectives_text
from dse.tables import interval, plan_texts, shown_metrics, table


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination of overrides, {key: value}, and the folder of its run within the sweep's."""

    folder: str
    settings: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The combination in one line."""
        return ", ".join(f"{key} = {flow(value)}" for key, value in self.settings.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """Runs of a grid, in its order, and the front over all of them: (which run, plan) from the first objective's best."""

    name: str
    folder: Path
    cells: tuple[Cell, ...]
    runs: tuple[Run, ...]
    front: tuple[tuple[int, PlanAnswer], ...]

    @property
    def certificate(self) -> dict[str, Any]:
        """The certificates of all runs added up; whole when every run was made and every one is."""
        pruned: dict[str, int] = {}
        for run in self.runs:
            for reason, count in run.certificate["pruned"].items():
                pruned[reason] = pruned.get(reason, 0) + count
        sums = {key: sum(run.certificate[key] for run in self.runs) for key in ("space", "evaluated", "failed", "unvisited")}
        whole = len(self.runs) == len(self.cells) and all(run.certificate["complete"] for run in self.runs)
        return sums | {"pruned": pruned, "complete": whole}

    @property
    def stopped(self) -> str:
        """Why runs are missing; "" when none is."""
        return next((run.certificate["stopped"] for run in self.runs if run.certificate["stopped"]), "")

    @property
    def trouble(self) -> str:
        """What could not be kept."""
        return next((run.trouble for run in self.runs if run.trouble), "")

    @property
    def exit_code(self) -> int:
        """0; 2 when nothing is feasible in any run; 1 when a run could not be kept."""
        return 1 if self.trouble else 0 if self.front else 2

    def to_json(self) -> dict[str, Any]:
        """The object `dse sweep --json` prints last."""
        return {
            "run": str(self.folder),
            "certificate": self.certificate,
            "front": [{"set": dict(self.cells[i].settings)} | answer.to_json() for i, answer in self.front],
            "runs": [
                {"run": str(run.folder), "set": dict(cell.settings), "front": len(run.front)}
                | {"certificate": run.to_json()["certificate"]}
                for cell, run in zip(self.cells, self.runs, strict=False)
            ],
            "wall_s": sum(run.wall_s for run in self.runs),
            "cpu_s": sum(run.cpu_s for run in self.runs),
        }

    def __str__(self) -> str:
        return text(self)


def flow(value: Any) -> str:
    """A value as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True).removesuffix("...\n").strip()


def text(sweep: Sweep) -> str:
    """For the terminal."""
    front, runs = front_sheet(sweep, 20), runs_sheet(sweep)
    blocks = [f"{sweep.name}\n{heading(sweep)}"]
    if sweep.front:
        blocks.append(f"Front over all runs: {objectives_text(sweep.runs[0].objectives)}")
        blocks.append(table(front.headings, front.rows, left=front.left))
    else:
        blocks.append("Nothing is feasible in any run.")
    blocks += [table(runs.headings, runs.rows, left=runs.left), certificate(sweep), str(sweep.folder / "report.md")]
    return "\n\n".join(blocks)


def heading(sweep: Sweep) -> str:
    """What is swept, over which question; and whether runs do other work than each other: a step of one is none of another."""
    keys = list(sweep.cells[0].settings)
    said = f"{len(sweep.cells)} runs over {' and '.join(keys)}. The first: {sweep.runs[0].title}."
    work = [key for key in keys if re.match(r"(model|workloads?)\b", key)]
    if work:
        said += f" Runs that differ in {' and '.join(work)} do different work, and the joined front compares them as they are."
    return said


def front_sheet(sweep: Sweep, most: int = LISTED) -> Sheet:
    """The joined front, with what was set."""
    metrics = shown_metrics(sweep.runs[0])
    keys = list(sweep.cells[0].settings)
    plans = plan_texts([answer for _, answer in sweep.front[:most]])
    rows = [
        [str(rank), *(str(sweep.cells[i].settings[key]) for key in keys), plan]
        + [interval(a.figures[m.name], m) for m in metrics]
        for rank, ((i, a), plan) in enumerate(zip(sweep.front[:most], plans, strict=True), 1)
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
