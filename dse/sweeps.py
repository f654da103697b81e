"""`sweep`: one experiment under a grid of overrides, each combination a run, their fronts joined into one.

A sweep folder holds `sweep.json` (the grid), a run folder for each combination, `front.csv` (the joined front with the
overrides as columns) and `report.md`. Runs that are whole are not run again.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dse import run_folder
from dse.answers import PlanAnswer, Run, row, with_ties
from dse.experiment import Experiment, ExperimentError, load
from dse.recording import Asked, Recording
from dse.report.sweep import page
from dse.resumption import resume
from dse.run_store import FILE, lock
from dse.runner import RUNS, Source, recorded
from dse.swept import Cell, Sweep, flow
from search.executors import shared
from search.front import non_dominated
from spaces.facts import facts_in

GRID = run_folder.GRID
_SCHEMA = 1


def sweep(
    source: Source,
    settings: Sequence[str],
    out: str | os.PathLike[str] | None = None,
    progress: Callable[..., None] | None = None,
) -> Sweep:
    """Run the experiment under every combination of the settings: KEY=[A,B] is an axis of the grid, KEY=VALUE holds in all.

    Every combination is checked before the first is run. Raises ExperimentError, OSError and what `run` raises.
    """
    grid, fixed = _grid(settings)
    combinations = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    width = len(str(len(combinations)))
    cells, experiments = [], []
    for i, combination in enumerate(combinations, 1):
        cell = Cell(folder=f"{i:0{width}d}-{_slug(combination)}", settings=combination)
        try:
            experiments.append(load(source, _overrides(fixed, combination)))
        except ExperimentError as error:
            raise ExperimentError(f"with {cell.text}:\n{error}") from None
        cells.append(cell)
    if len({tuple(map(str, experiment.objectives)) for experiment in experiments}) > 1:
        raise ExperimentError("the objectives are swept, so that the fronts cannot be joined: sweep something else")
    name = f"{experiments[0].name}-sweep"
    folder = run_folder.create(RUNS, name) if out is None else run_folder.create_at(Path(out))
    for cell, experiment in zip(cells, experiments, strict=True):
        (folder / cell.folder).mkdir()
        run_folder.write_experiment(experiment.to_yaml(), experiment.files, folder / cell.folder)
    held = {
        "schema": _SCHEMA,
        "name": name,
        "source": os.fspath(Path(source).resolve()) if isinstance(source, str | os.PathLike) else None,
        "fixed": fixed,
        "cells": [dataclasses.asdict(cell) for cell in cells],
    }
    (folder / GRID).write_text(json.dumps(held, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return resume_sweep(folder, progress=progress)


def resume_sweep(
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    as_recorded: bool = False,
    progress: Callable[..., None] | None = None,
) -> Sweep:
    """The runs of the sweep that are not whole, run or gone on with, and the fronts of all joined.

    Raises what `dse.resumption.resume` raises; RunLocked when another driver is at the sweep.
    """
    held = json.loads((folder / GRID).read_text(encoding="utf-8"))
    if held["schema"] != _SCHEMA:
        raise run_folder.BadRunFolder(f"{folder} is a sweep of schema {held['schema']}; this version reads {_SCHEMA}")
    cells = tuple(Cell(**cell) for cell in held["cells"])
    descriptor = lock(folder)
    try:
        runs: list[Run] = []
        for cell in cells:
            _restored(folder / cell.folder, held["source"], _overrides(held["fixed"], cell.settings))
        with _hands([load(at / "experiment.yaml", overrides) for at in _unmade(folder, cells)]):
            for cell in cells:
                at = folder / cell.folder
                if (at / FILE).is_file():
                    runs.append(resume(at, overrides=overrides, as_recorded=as_recorded, progress=progress))
                else:
                    experiment = load(at / "experiment.yaml", overrides)
                    settings = _overrides(held["fixed"], cell.settings)
                    runs.append(_begun(experiment, Asked.of(experiment, held["source"], settings), at, progress))
                if runs[-1].certificate["stopped"] in ("interrupted", "cancelled"):
                    break
        answer = Sweep(name=held["name"], folder=folder, cells=cells, runs=tuple(runs), front=_joined(runs))
        _write(answer)
    finally:
        os.close(descriptor)
    return answer


def _restored(at: Path, source: str | None, settings: Sequence[str]) -> None:
    """A folder of a run that somebody removed, made again from the file that was swept."""
    if (at / "experiment.yaml").is_file():
        return
    if source is None or not Path(source).is_file():
        raise run_folder.BadRunFolder(f"{at} is gone, and so is the file that was swept: dse sweep begins anew")
    experiment = load(source, settings)
    at.mkdir(exist_ok=True)
    run_folder.write_experiment(experiment.to_yaml(), experiment.files, at)


def _unmade(folder: Path, cells: Sequence[Cell]) -> list[Path]:
    """Folders of runs that are not whole."""
    return [folder / cell.folder for cell in cells if not (folder / cell.folder / "manifest.json").is_file()]


def _hands(experiments: Sequence[Experiment[Any]]) -> AbstractContextManager[None]:
    """One Ray for all runs to make, where all ask for the same."""
    asked = {(experiment.executor, experiment.workers, experiment.address) for experiment in experiments}
    return shared(*asked.pop()) if len(asked) == 1 else nullcontext()


def _begun(experiment: Experiment[Any], asked: Asked, folder: Path, progress: Callable[..., None] | None) -> Run:
    recording = Recording.begun(experiment, asked, lambda: folder, str(folder))
    return recorded(experiment, recording, progress)


def _grid(settings: Sequence[str]) -> tuple[dict[str, list[Any]], list[str]]:
    """The axes of the grid, and the settings that hold in all of it."""
    grid: dict[str, list[Any]] = {}
    fixed = []
    for setting in settings:
        key, _, text = setting.partition("=")
        try:
            value = facts_in(text)
        except yaml.YAMLError:
            value = None
        if isinstance(value, list) and value:
            twice = next((one for i, one in enumerate(value) if one in value[:i]), None)
            if twice is not None:
                raise ExperimentError(f"--set {setting}: {flow(twice)} is there twice, and would be run twice")
            grid[key.strip()] = value
        else:
            fixed.append(setting)
    if not grid:
        raise ExperimentError("a sweep needs at least one --set KEY=[A,B,…], such as --set hardware.devices=[8,16,32]")
    return grid, fixed


def _overrides(fixed: Sequence[str], combination: Mapping[str, Any]) -> list[str]:
    return [*fixed, *(f"{key}={flow(value)}" for key, value in combination.items())]


def _slug(combination: Mapping[str, Any]) -> str:
    """The combination as part of a folder's name."""
    said = ",".join(f"{key.rpartition('.')[2]}={flow(value)}" for key, value in combination.items())
    return re.sub(r"[^\w.,=+-]+", "_", said)[:80]


def _joined(runs: Sequence[Run]) -> tuple[tuple[int, PlanAnswer], ...]:
    """Members of any front that no member of another dominates; of plans alike in every objective the first run's."""
    members = [(i, answer) for i, run in enumerate(runs) for answer in run.front]
    if not members:
        return ()
    objectives = runs[0].objectives
    signs = np.array([-1.0 if maximise else 1.0 for _, maximise in objectives])
    costs = np.array([[answer.figures[metric].value for metric, _ in objectives] for _, answer in members]) * signs
    kept = np.flatnonzero(non_dominated(costs))
    kept = kept[np.lexsort(costs[kept].T[::-1])]
    told = with_ties([members[i][1] for i in kept], objectives)
    return tuple((members[i][0], answer) for i, answer in zip(kept.tolist(), told, strict=True))


def _write(answer: Sweep) -> None:
    rows = [{"rank": r} | dict(answer.cells[i].settings) | row(plan) for r, (i, plan) in enumerate(answer.front, 1)]
    with (answer.folder / "front.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for entry in rows for key in entry)))
        writer.writeheader()
        writer.writerows(rows)
    (answer.folder / "report.md").write_text(page(answer), encoding="utf-8")
