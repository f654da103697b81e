"""`explain`: one plan of an experiment or of a run taken apart, as its kind does it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dse import run_folder
from dse.asking import plan_codes
from dse.experiment import load
from dse.kinds.registry import Explained, find
from dse.runner import answer_to


def explain(
    source: str | os.PathLike[str] | Mapping[str, Any],
    plan: str | Mapping[str, Any] | None = None,
    rank: int | None = None,
    overrides: Sequence[str] = (),
) -> Explained:
    """Take apart a plan of an experiment file, or a front member (from 1, default 1) of a file or a run folder.

    Raises ExperimentError, BadRunFolder, ImpossiblePlan (a plan that structure rules out), ValueError for a rank too high.
    """
    folder = None if isinstance(source, Mapping) or not Path(source).is_dir() else Path(source)
    experiment = load(source if folder is None else folder / "experiment.yaml", overrides)
    if plan is not None and rank is not None:
        raise ValueError("give a plan or a rank, not both")
    if plan is None:
        run = answer_to(experiment) if folder is None else run_folder.read(folder)
        if not 1 <= (rank or 1) <= len(run.front):
            raise ValueError(f"the front has {len(run.front)} plans; there is no number {rank or 1}")
        plan = run.front[(rank or 1) - 1].plan
    return find(experiment.kind).explained(experiment.job, plan_codes(experiment, plan))
