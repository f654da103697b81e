"""Going on with a run: what is refused and how it is told, and points that a model cannot predict."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from costmodels.metrics import CostModel, Metrics
from dse import run_folder, runner
from dse.experiment import load
from dse.resumption import resume
from dse.run_folder import BadRunFolder
from dse.run_store import RunStore
from dse.runner import run
from search import nested, spreading
from search.screening import Fidelity
from spaces.columns import Columns
from spaces.problem import Problem
from tests.dse.conftest import Finished

Run = Callable[..., Finished]


@pytest.fixture
def half(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run that was cancelled after its first slices."""
    monkeypatch.setattr(spreading, "_chunk", lambda _: 100)
    seen: list[Any] = []
    answer = run(small, out=tmp_path / "half", progress=seen.append, cancelled=lambda: len(seen) == 3)
    assert answer.certificate["unvisited"] == answer.certificate["space"] - 300
    return tmp_path / "half"


def test_a_cancelled_run_ends_as_if_it_had_not_been(half: Path, small: Path, tmp_path: Path) -> None:
    seen: list[Any] = []
    answer = resume(half, progress=seen.append)
    whole = run(small, out=tmp_path / "whole")
    assert answer.certificate == whole.certificate
    assert (half / "front.csv").read_bytes() == (tmp_path / "whole" / "front.csv").read_bytes()
    assert seen[0].visited == 400
    again = resume(half, progress=seen.append)
    assert len(seen) == len(range(300, whole.certificate["space"], 100))  # a whole run is not searched again
    assert again.to_json() == answer.to_json()


def test_a_cancelled_nested_run_looks_at_no_machine_twice(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = small.read_text(encoding="utf-8").replace("device: H100", "device: [H100, H200, A100-80GB]")
    small.write_text(text.replace("search: {", "search: {method: nested, "), encoding="utf-8")
    monkeypatch.setattr(nested, "_TOGETHER", 1)
    seen: list[Any] = []
    answer = run(small, out=tmp_path / "half", progress=seen.append, cancelled=lambda: len(seen) == 1)
    assert answer.certificate["stopped"] == "cancelled"
    asked: list[int] = []
    original = nested._Folded._inner
    monkeypatch.setattr(nested._Folded, "_inner", lambda *given: asked.append(len(given[1])) or original(*given))
    answer, whole = resume(tmp_path / "half"), run(small, out=tmp_path / "whole")
    assert asked == [1] * 5
    assert answer.certificate == whole.certificate
    assert (tmp_path / "half" / "front.csv").read_bytes() == (tmp_path / "whole" / "front.csv").read_bytes()


def test_who_does_the_work_may_change(half: Path) -> None:
    assert resume(half, overrides=["search.executor=local", "search.workers=1"]).certificate["complete"]


def test_another_question_is_refused_with_the_difference(dse: Run, half: Path) -> None:
    done = dse("resume", half, "--set", "workload.global_batch=64")
    assert done.code == 1
    assert "-  global_batch: 32" in done.err
    assert "+  global_batch: 64" in done.err
    saved = half / "experiment.yaml"
    saved.write_text(saved.read_text(encoding="utf-8").replace("step_time", "mfu"), encoding="utf-8")
    done = dse("resume", half)
    assert done.code == 1
    assert re.search(r"^\+- .*mfu", done.err, re.MULTILINE)
    assert "begins it anew" in done.err


def test_a_file_that_changed_is_told_and_may_be_passed_over(dse: Run, half: Path, small: Path) -> None:
    small.write_text(small.read_text(encoding="utf-8").replace("sequence: 4096", "sequence: 8192"), encoding="utf-8")
    done = dse("resume", half)
    assert done.code == 1
    assert "+  sequence: 8192" in done.err
    assert "--as-recorded" in done.err
    assert dse("resume", half, "--as-recorded").code == 0


@pytest.mark.parametrize("what", ["code_hash", "data_hashes"])
def test_another_program_or_data_is_refused(half: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    monkeypatch.setattr(run_folder, what, lambda: "another" if what == "code_hash" else {"spaces/data/x": "another"})
    with pytest.raises(ValueError, match="changed since the run began"):
        resume(half)


def test_a_second_driver_is_refused(dse: Run, half: Path) -> None:
    store = RunStore(half, ["step_time", "memory"])
    done = dse("resume", half)
    assert done.code == 1
    assert "is being written by process" in done.err
    store.close()
    assert dse("resume", half).code == 0


def test_what_is_no_run_is_refused(dse: Run, half: Path, tmp_path: Path) -> None:
    done = dse("resume", tmp_path / "nowhere")
    assert done.code == 1
    assert "there is no run folder" in done.err
    assert not (tmp_path / "nowhere").exists()
    for name in ("slices.sqlite", "run.sqlite"):
        (half / name).write_bytes(b"not a database, but long enough to be looked at as if it were one" * 20)
        for rest in half.glob(f"{name}-*"):
            rest.unlink()
        done = dse("resume", half)
        assert done.code == 1
        assert "cannot be read" in done.err


@pytest.mark.parametrize("found", [True, False])
def test_a_run_whose_question_is_not_on_record_begins_unless_something_was_found(
    half: Path, small: Path, tmp_path: Path, found: bool
) -> None:
    """As a disk leaves it that was full when the run began."""
    with closing(sqlite3.connect(half / "run.sqlite")) as store, store:
        store.execute("DELETE FROM meta")
    if not found:
        with closing(sqlite3.connect(half / "slices.sqlite")) as store, store:
            store.execute("DELETE FROM slice")
    if found:
        with pytest.raises(BadRunFolder, match="does not say what it was asked"):
            resume(half)
    else:
        assert resume(half).certificate == run(small, out=tmp_path / "whole").certificate


def test_an_error_before_anything_is_found_leaves_no_folder(dse: Run, small: Path, tmp_path: Path) -> None:
    assert dse("run", small, "--set", "search={executor: ray, address: '127.0.0.1:1'}").code == 1
    assert not any((tmp_path / "runs").iterdir())


@dataclass(frozen=True, slots=True)
class Shaky:
    """A model that raises for some plans and does not know others."""

    model: CostModel

    @property
    def reads(self) -> frozenset[str]:
        return self.model.reads

    def bound(self, problem: Problem, points: Columns) -> Metrics:
        return self.model.bound(problem, points)

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:
        if np.any((points["tensor"] == 2) & (points["pipeline"] == 2) & (points["micro_batch"] == 1)):
            raise ZeroDivisionError("no time for tensor 2, pipeline 2")
        metrics = self.model.evaluate(problem, points)
        time = np.where(points["tensor"] == 4, np.nan, metrics.value["step_time"])
        return Metrics(n=metrics.n, value={**metrics.value, "step_time": time}, violation=metrics.violation)


def test_points_that_cannot_be_predicted_are_failed_with_the_reason(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = runner.models_of
    shaky = Fidelity(name="shaky", model=Shaky(original(load(small))[-1].model))
    monkeypatch.setattr(runner, "models_of", lambda _: (shaky,))
    answer = run(small, out=tmp_path / "a")
    c = answer.certificate
    assert answer.front
    assert answer.exit_code == 0
    assert not c["complete"]
    assert c["failed"] > 0
    assert c["space"] == sum(c["pruned"].values()) + c["evaluated"] + c["failed"] + c["unvisited"]
    reasons = c["failed_by_reason"]
    assert sum(reasons.values()) == c["failed"]
    assert set(reasons) == {"ZeroDivisionError: no time for tensor 2, pipeline 2", "not a finite number: step_time"}
    assert all(plan.plan["tensor"] != 4 for plan in answer.front)
    assert run_folder.read(tmp_path / "a").certificate == c


def test_what_is_no_run_is_told_with_the_runs_nearby(dse: Run, half: Path) -> None:
    folder = half.parent
    for name, said in (
        (folder, f"is not a run folder: it has no run.sqlite; those in it are {half}"),
        (folder / "none", f"there is no run folder {folder / 'none'}; those beside it are {half}"),
        (half / "experiment.yaml", "is a file, not the folder that a run wrote"),
    ):
        for verb in ("resume", "report"):
            done = dse(verb, name)
            assert done.code == 1
            assert said in done.err
    done = dse("run", half)
    assert done.code == 1
    assert f"dse resume {half} goes on with its run" in done.err


def test_a_record_that_cannot_be_read_is_told_with_what_to_do(dse: Run, half: Path) -> None:
    (half / "run.sqlite").write_bytes(b"no database at all")
    for verb in ("resume", "report"):
        done = dse(verb, half)
        assert done.code == 1
        assert f"dse run {half / 'experiment.yaml'} begins it anew" in done.err


@pytest.mark.parametrize("kept", [True, False])
def test_ctrl_c_outside_of_a_search_says_what_is_left(
    dse: Run, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    def struck(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dse.runner.with_sensitivity" if kept else "dse.runner.look", struck)
    done = dse("run", small, "--out", tmp_path / "run")
    assert done.code == 1
    folder = tmp_path / "run"
    assert done.err == f"dse: interrupted: {f'dse resume {folder} goes on' if kept else 'nothing was on record yet'}\n"
    assert folder.is_dir() == kept
