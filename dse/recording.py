"""A run being written down: its folder, what was asked, and the store that the search fills as it goes on.

A run is asked once; going on with it later must mean the same question, the same code and the same data.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from costmodels.metrics import CostModel
from dse import run_folder
from dse.answers import Run, to_json_text
from dse.experiment import Experiment, ExperimentError, load
from dse.run_store import RunStore
from spaces.facts import facts_in

_WORKERS = ("executor", "workers", "address")
"""Search settings that change who does the work, not the answer."""


class AnotherQuestion(ValueError):
    """A run that cannot go on, because what it would answer has changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a run was asked: the resolved experiment, the file it came from with its overrides, code and data by hash, and the
    name of a cost model that is not the kind's own."""

    experiment: str
    source: str | None
    overrides: tuple[str, ...]
    code: str
    data: Mapping[str, str]
    model: str = ""

    @classmethod
    def of(
        cls,
        experiment: Experiment[Any],
        source: object = None,
        overrides: Sequence[str] = (),
        model: CostModel | None = None,
    ) -> Asked:
        """What is asked now; `source` is a path, or a mapping that nobody can look up again, `model` one of the asker's own."""
        path = os.fspath(Path(source).resolve()) if isinstance(source, str | os.PathLike) else None
        return cls(
            experiment=experiment.to_yaml(),
            source=path,
            overrides=tuple(overrides),
            code=run_folder.code_hash(),
            data=run_folder.data_hashes(),
            model="" if model is None else type(model).__qualname__,
        )

    @classmethod
    def from_text(cls, text: str) -> Asked:
        """Read back from a store."""
        held = json.loads(text)
        return cls(**(held | {"overrides": tuple(held["overrides"])}))

    def on_record(self) -> dict[str, str]:
        """What a store is told of it."""
        return {"asked": self.to_text(), "schema": to_json_text(run_folder.SCHEMA)}

    def to_text(self) -> str:
        """As a store keeps it."""
        return to_json_text(
            {
                "experiment": self.experiment,
                "source": self.source,
                "overrides": self.overrides,
                "code": self.code,
                "data": dict(self.data),
                "model": self.model,
            }
        )


def require_same(folder: Path, then: Asked, now: Asked, *, as_recorded: bool = False) -> None:
    """AnotherQuestion with the difference when a run cannot go on as it began.

    The file that the run was made from is looked at too where it still is, unless the run is to go on `as_recorded`.
    """
    anew = run_folder.anew(folder)
    changed = _difference(then.experiment, now.experiment)
    if changed:
        said = f"what is asked changed since the run began (experiment.yaml or --set):\n{changed}"
        raise AnotherQuestion(f"{folder}: {said}\ntake it back, or {anew}")
    data = sorted(name for name in {*then.data, *now.data} if then.data.get(name) != now.data.get(name))
    if data:
        raise AnotherQuestion(f"{folder}: data changed since the run began ({', '.join(data)}): {anew}")
    if then.model != now.model:
        asked, given = (f"the cost model {name}" if name else "the kind's own cost model" for name in (then.model, now.model))
        hint = f"; dse.resume({str(folder)!r}, model=…) in Python goes on with it" if then.model else ""
        raise AnotherQuestion(f"{folder} was asked of {asked}, not of {given}{hint}")
    if then.code != now.code:
        raise AnotherQuestion(f"{folder}: the program changed since the run began, so its figures cannot be joined: {anew}")
    if then.source is None or as_recorded or not Path(then.source).is_file():
        return
    try:
        changed = _difference(then.experiment, load(then.source, then.overrides).to_yaml())
    except (ExperimentError, OSError) as error:
        changed = str(error)
    if changed:
        raise AnotherQuestion(
            f"{folder}: {then.source} changed since the run began:\n{changed}\n"
            f"dse run {then.source} asks the new question; dse resume {folder} --as-recorded goes on with the old one"
        )


def _difference(then: str, now: str) -> str:
    """The lines that differ between two resolved experiments, those about workers left out; "" when none does."""
    before, after = (_without_workers(text).splitlines() for text in (then, now))
    return "\n".join(difflib.unified_diff(before, after, "as it was run", "as it is now", n=1, lineterm=""))


def _without_workers(text: str) -> str:
    held = facts_in(text)
    held["search"] = {key: value for key, value in held.get("search", {}).items() if key not in _WORKERS}
    return yaml.safe_dump(held, sort_keys=False, allow_unicode=True, width=120)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A run's folder and store, or the `trouble` that left it without."""

    folder: Path | None
    store: RunStore | None
    trouble: str = ""

    @classmethod
    def begun(cls, experiment: Experiment[Any], asked: Asked, make: Callable[[], Path], where: str) -> Recording:
        """A new folder with the experiment in it; where the disk does not take it, none. `where` is how people call it."""
        folder: Path | None = None
        try:
            folder = make()
            run_folder.write_experiment(experiment.to_yaml(), experiment.files, folder)
            store = RunStore(folder, [objective.metric for objective in experiment.objectives])
        except OSError as error:
            return cls(folder=folder, store=None, trouble=_told(folder or where, error))
        store.note(asked.on_record())
        return cls(folder=folder, store=store)

    def finished(self, answer: Run, seed: int) -> Run:
        """The answer with its folder filled, or with the trouble there was."""
        answer = dataclasses.replace(answer, folder=self.folder)
        if self.folder is None or self.store is None:
            return dataclasses.replace(answer, folder=None, trouble=self.trouble)
        self.store.flush()
        self.store.rest()
        try:
            run_folder.write(answer, self.folder, seed=seed)
        except (OSError, sqlite3.Error) as error:
            return dataclasses.replace(answer, trouble=_told(self.folder, error))
        return dataclasses.replace(answer, trouble=self.store.trouble)

    def given_up(self) -> bool:
        """After an error: whether something was on record, so that the run can go on later; else the folder is removed."""
        if self.store is None or self.folder is None:
            return False
        held = self.store.holds()
        self.close()
        if not held:
            shutil.rmtree(self.folder, ignore_errors=True)
        return held

    def close(self) -> None:
        """Let go of the folder."""
        if self.store is not None:
            self.store.close()


def _told(where: object, error: Exception) -> str:
    return f"the run could not be kept in {where}: {error}"
