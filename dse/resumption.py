"""`resume`: go on with a run that was ended by anything, to the answer it would have had."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from costmodels.metrics import CostModel
from dse import run_folder
from dse.answers import Run
from dse.experiment import load
from dse.recording import Asked, Recording, require_same
from dse.run_folder import BadRunFolder
from dse.run_store import FILE, RunStore
from dse.runner import recorded


def resume(
    folder: str | os.PathLike[str],
    *,
    overrides: Sequence[str] = (),
    as_recorded: bool = False,
    progress: Callable[..., None] | None = None,
    cancelled: Callable[[], bool] | None = None,
    model: CostModel | None = None,
) -> Run:
    """The run in the folder, gone on with where it stopped; a run that is whole is read as it is.

    `overrides` may change who does the work (search.executor, workers, address) and nothing else; `model` is the cost model
    that the run was given, if it was given one. Raises BadRunFolder,
    RunLocked when another driver is at it, AnotherQuestion when experiment, data or program changed since.
    """
    folder = Path(folder)
    if not (folder / FILE).is_file():
        if (folder / "experiment.yaml").is_file():
            raise BadRunFolder(f"{folder} has nothing on record; {run_folder.anew(folder)}")
        raise run_folder.not_a_run(folder)
    experiment = load(folder / "experiment.yaml", overrides)
    store = RunStore(folder, [objective.metric for objective in experiment.objectives])
    recording = Recording(folder=folder, store=store)
    try:
        meta = _meta(store, folder)
        if "asked" not in meta and not store.holds():  # it ended before its question was on record: it begins here
            meta = Asked.of(experiment, model=model).on_record()
            store.note(meta)
        if "asked" not in meta:
            raise BadRunFolder(f"{folder} does not say what it was asked; {run_folder.anew(folder)}")
        if meta.get("schema") != str(run_folder.SCHEMA):
            raise BadRunFolder(f"{folder} has schema {meta.get('schema')}; this version goes on with {run_folder.SCHEMA}")
        then = Asked.from_text(meta["asked"])
        require_same(folder, then, Asked.of(experiment, model=model), as_recorded=as_recorded)
        if "certificate" in meta:
            answer = run_folder.read(folder)
            if answer.certificate["stopped"] in run_folder.WHOLE:
                whole = recording.finished(answer, experiment.seed)
                recording.close()
                return whole
    except BaseException:
        recording.close()
        raise
    return recorded(experiment, recording, progress, cancelled, model)


def _meta(store: RunStore, folder: Path) -> dict[str, str]:
    try:
        store.slices()
        return store.meta()
    except sqlite3.Error as error:
        raise BadRunFolder(f"{folder / FILE} cannot be read: {error}; {run_folder.anew(folder)}") from None
