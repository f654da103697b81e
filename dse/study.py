"""A run as an Optuna study, for `optuna-dashboard`: its front first, then its seeded sample of points."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dse.answers import Run
from dse.asking import problem_of
from dse.experiment import load
from dse.run_folder import read
from search.optuna_search import Studied, write_study

MOST = 5_000
"""Trials written: what a dashboard still draws quickly."""


def export_study(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None, most: int = MOST) -> str:
    """Write a run as a study into a journal file or an RDB URL (default: `trials.journal` in the run); how to open it.

    Raises ValueError when the target holds a study of the run's name already, BadRunFolder, OSError.
    """
    run = read(Path(folder))
    target = str(out) if out is not None else str(Path(folder) / "trials.journal")
    labels = problem_of(load(Path(folder) / "experiment.yaml")).labels
    written = write_study(target, run.name, run.objectives, studied(run, labels, most))
    return f"{written:,} trials of the study '{run.name}'; open it with: optuna-dashboard {target}"


def studied(run: Run, labels: Mapping[str, tuple[str, ...]], most: int = MOST) -> Studied:
    """The front and as many of the sampled points as fit, each once; words in place of codes."""
    symbols = [symbol for symbol in run.sample if symbol != "feasible" and not symbol.startswith("metric.")]
    if run.front:
        symbols = [symbol for symbol in symbols if symbol in run.front[0].plan]
    front = [
        (
            tuple(_plain(answer.plan[symbol]) for symbol in symbols),
            [answer.figures[metric].value for metric, _ in run.objectives],
            max(answer.violation.values(), default=-1.0),
        )
        for answer in run.front
    ]
    sampled = []
    if run.sample:
        columns = [[_word(labels, symbol, value) for value in run.sample[symbol].tolist()] for symbol in symbols]
        values = np.column_stack([run.sample[f"metric.{metric}"] for metric, _ in run.objectives]).tolist()
        over = np.where(np.asarray(run.sample["feasible"]) > 0, -1.0, 1.0).tolist()
        sampled = list(zip(zip(*columns, strict=True), values, over, strict=True))
    rows = list({row[0]: row for row in [*sampled, *front][::-1]}.values())[:most]
    return Studied(
        choices={symbol: [row[0][i] for row in rows] for i, symbol in enumerate(symbols)},
        values=np.array([row[1] for row in rows], np.float64).reshape(len(rows), len(run.objectives)),
        violation=np.array([row[2] for row in rows], np.float64),
    )


def _word(labels: Mapping[str, tuple[str, ...]], symbol: str, value: float) -> Any:
    """The name behind a code, or the number."""
    return labels[symbol][int(value)] if symbol in labels else _plain(value)


def _plain(value: Any) -> Any:
    """Whole numbers as such, switches as 0 and 1."""
    if isinstance(value, bool) or (isinstance(value, float) and value.is_integer()):
        return int(value)
    return value
