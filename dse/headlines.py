"""`dse validate --headlines`: what papers claim, held against the engine, with the reason where a claim does not come out."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dse.measures import significant
from dse.reproduction.claim import read
from dse.reproduction.verdict import REPRODUCED, Verdict, judge, to_json

_BESIDE = Path(__file__).parent / "experiments"
FOLDER = (_BESIDE if _BESIDE.is_dir() else Path(__file__).parents[1] / "experiments") / "reproductions"
"""Where the claims are: beside the package when it is installed, at the top of a checkout otherwise."""

_WIDTH = 150


@dataclass(frozen=True, slots=True)
class Headlines:
    """The verdicts, in the order of the files; printing it gives the table."""

    verdicts: tuple[Verdict, ...]

    @property
    def reproduced(self) -> int:
        """How many claims come out."""
        return sum(verdict.reproduced for verdict in self.verdicts)

    def to_json(self) -> list[dict[str, Any]]:
        """One object a claim: `claim, published, predicted, verdict`, and more."""
        return [dict(to_json(verdict)) for verdict in self.verdicts]

    def __str__(self) -> str:
        missed = [f"not reproduced: {v.claim.paper}: {v.claim.claim}: {v.reason}" for v in self.verdicts if not v.reproduced]
        count = f"{self.reproduced} of {len(self.verdicts)} claims are reproduced within the tolerance that their files fixed."
        return "\n\n".join(filter(None, (_table(self.verdicts), "\n".join(missed), count)))


def headlines(files: Sequence[Path] | None = None, progress: Callable[[str], None] | None = None) -> Headlines:
    """Every claim of experiments/reproductions, or of the files given, judged. Raises ClaimError, BadFormulas, OSError."""
    chosen = sorted(FOLDER.glob("*.yaml")) if files is None else list(files)
    verdicts = []
    for file in chosen:
        if progress is not None:
            progress(file.stem)
        verdicts.append(judge(file.stem, read(file)))
    return Headlines(tuple(verdicts))


def _table(verdicts: Iterable[Verdict]) -> str:
    """A row a figure, the claim on its first."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    for heading in ("claim", "figure", "published", "predicted", "off by", "tolerance", "verdict"):
        table.add_column(heading, justify="right" if heading in ("published", "predicted", "off by", "tolerance") else "left")
    for verdict in verdicts:
        table.add_section()
        said = REPRODUCED if verdict.reproduced else f"not {REPRODUCED}"
        head = f"{verdict.claim.paper}: {verdict.claim.claim}"
        if not verdict.figures:
            table.add_row(head, "–", "–", "–", "–", "–", said)
        for place, figure in enumerate(verdict.figures):
            near = {"near": f"{figure.tolerance:.3g}", "at_least": "≥", "at_most": "≤"}[figure.holds]
            wanted = f"± {float(near):.1%}" if figure.holds == "near" else near
            unit = f" {figure.unit}".rstrip()
            cells = (
                f"{significant(figure.published)}{unit}",
                f"{significant(figure.predicted)}{unit}",
                f"{figure.difference:+.1%}",
            )
            table.add_row("" if place else head, figure.name, *cells, wanted, "" if place else said)
    text = io.StringIO()
    Console(file=text, width=_WIDTH, highlight=False, markup=False).print(table)
    return "\n".join(line.rstrip() for line in text.getvalue().rstrip().splitlines())
