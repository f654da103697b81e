"""Quality of fronts by method, on spaces whose exact front is known, with a budget of 2 % of the points.

`python -m benchmarks.fronts --json` gives a list of `space, method, seed, evaluated_share, hypervolume_share, cpu_s`. The
spaces are the experiments in benchmarks/spaces (docs/search.md says which of them changed after methods were compared).
Hypervolume is taken against the exact front's nadir plus 10 % of its range, logarithmic where an objective's ratio exceeds 10.
Every evaluation of the model that is scored counts; what every method may use for nothing is the model's bound (memory, before
any time is computed), and all use it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dse.asking import problem_of, space_of
from dse.experiment import load
from search.budget import Budget
from search.constraint import Constraint
from search.exact import search
from search.front import Objective, hypervolume_share
from search.methods import method
from search.sampled import sampled_search

SPACES = Path(__file__).parent / "spaces"
METHODS = ("auto", "evolutionary", "random", "qmc", "nsga2", "nsga3", "tpe")
"""Compared unless told otherwise. `gp` needs torch; `cmaes` takes one objective, and no space here has one."""
COLOURS = {
    "auto": "#0b6e4f", "evolutionary": "#5aa98a", "nsga2": "#c1440e", "nsga3": "#e39b2d", "tpe": "#8e44ad",
    "qmc": "#3b6fb6", "random": "#7a7a7a",
}  # fmt: skip
"""Of the methods in the figure."""
SHARE = 0.02
SEEDS = 10


def compare(path: Path, methods: Sequence[str], seeds: Sequence[int], share: float = SHARE) -> Iterator[dict[str, Any]]:
    """One row per method and seed on the space of one experiment."""
    from costmodels.training import TrainingModel

    experiment = load(path)
    space, problem, model = space_of(experiment), problem_of(experiment), TrainingModel()
    objectives = [Objective(name=o.metric, metric=o.metric, maximize=o.maximise) for o in experiment.objectives]
    limits = [Constraint(metric=limit.metric, limit=limit.value, upper=limit.at_most) for limit in experiment.limits]
    exact = search(space, model, problem, objectives, limits).front.points.values(objectives)
    for name in methods:
        for seed in seeds:
            started = time.process_time()
            found = sampled_search(
                space, model, problem, objectives, limits, method=method(name), budget=Budget(share=share), seed=seed
            )
            values = found.front.points.values(objectives)
            yield {
                "space": path.stem,
                "method": name,
                "seed": seed,
                "evaluated_share": (found.certificate.evaluated + found.certificate.failed) / found.certificate.space,
                "hypervolume_share": hypervolume_share(values, exact, objectives) if len(found.front) else 0.0,
                "cpu_s": time.process_time() - started,
                "points": found.certificate.space,
            }


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Median hypervolume share in percent by space (down) and method (across), with the CPU-seconds of a search."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = ["| space | points | " + " | ".join(methods) + " |", "|---" * (len(methods) + 2) + "|"]
    for space in dict.fromkeys(row["space"] for row in rows):
        own = [row for row in rows if row["space"] == space]
        cells = []
        for name in methods:
            found = [row for row in own if row["method"] == name]
            shares, seconds = [row["hypervolume_share"] for row in found], [row["cpu_s"] for row in found]
            cells.append(f"{100 * median(shares):.2f} ({median(seconds):.1f} s, {len(found)} seeds)" if found else "")
        lines.append(f"| {space} | {own[0]['points']:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def figure(rows: Sequence[dict[str, Any]]) -> str:
    """An SVG of the share of the exact hypervolume that each method misses, median over seeds, on a logarithmic scale."""
    spaces = list(dict.fromkeys(row["space"] for row in rows))
    methods = [name for name in COLOURS if any(row["method"] == name for row in rows)]
    height, step = 34 + 46 * len(spaces), 110.0

    def x(missed: float) -> float:
        """0.001 % stands at 190 and everything less beside it; a decade is `step` wide."""
        return 190 + step * math.log10(max(missed, 1e-5) / 1e-5)

    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 {height + 50}" font-family="sans-serif" font-size="12">',
        "<title>Share of the exact hypervolume missed with 2 % of the points; further left is better</title>",
    ]
    for k, label in enumerate(("0.001 % or less", "0.01 %", "0.1 %", "1 %", "10 %", "100 %")):
        at = x(10.0 ** (k - 5))
        dashes = ' stroke-dasharray="4 3"' if label == "1 %" else ""
        lines.append(f'<line x1="{at:g}" y1="24" x2="{at:g}" y2="{height}" stroke="#bbb"{dashes}/>')
        lines.append(f'<text x="{at:g}" y="{height + 16}" text-anchor="middle">{label}</text>')
    for row, space in enumerate(spaces):
        top = 36 + 46 * row
        lines.append(f'<text x="180" y="{top + 16}" text-anchor="end">{space}</text>')
        for k, name in enumerate(methods):
            shares = [r["hypervolume_share"] for r in rows if r["space"] == space and r["method"] == name]
            if shares:
                told = f"{name}: {100 * median(shares):.2f} %, {len(shares)} seeds"
                place = f'cx="{x(1.0 - median(shares)):.1f}" cy="{top + 6 * k}"'
                lines.append(f'<circle {place} r="4.5" fill="{COLOURS[name]}"><title>{told}</title></circle>')
    for k, name in enumerate(methods):
        lines.append(f'<circle cx="{196 + 80 * k}" cy="{height + 38}" r="4.5" fill="{COLOURS[name]}"/>')
        lines.append(f'<text x="{206 + 80 * k}" y="{height + 42}">{name}</text>')
    return "\n".join([*lines, "</svg>", ""])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, nargs="*", help="files that --json wrote: tell and draw them, search nothing")
    parser.add_argument("--figure", type=Path, help="where to draw what came out, as SVG")
    parser.add_argument("--spaces", nargs="*", default=sorted(path.stem for path in SPACES.glob("*.yaml")))
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--share", type=float, default=SHARE)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for path in arguments.rows or ():
        rows += json.loads(path.read_text(encoding="utf-8"))
    for name in () if arguments.rows else arguments.spaces:
        for row in compare(SPACES / f"{name}.yaml", arguments.methods, range(arguments.seeds), arguments.share):
            print(json.dumps(row), file=sys.stderr)
            rows.append(row)
    if arguments.figure is not None:
        arguments.figure.write_text(figure(rows), encoding="utf-8")
    print(json.dumps(rows) if arguments.json else table(rows))


if __name__ == "__main__":
    main()
