"""Cost models, spaces and methods that are not ours: from Python and from the file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dse as face
from costmodels.metrics import Metrics
from costmodels.training import TrainingModel
from dse.recording import AnotherQuestion
from search.archive import Archive
from spaces.columns import Columns
from spaces.problem import Problem

DOCS = Path(__file__).resolve().parents[2] / "docs" / "cost-model.md"


class Slower:
    """Ours, on a machine that loses a tenth."""

    def __init__(self) -> None:
        self._own = TrainingModel()

    @property
    def reads(self) -> frozenset[str]:
        return self._own.reads

    def bound(self, problem: Problem, points: Columns) -> Metrics:
        return dataclasses.replace(self._own.bound(problem, points), value={})

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:
        metrics = self._own.evaluate(problem, points)
        return dataclasses.replace(metrics, value={**metrics.value, "step_time": 1.1 * metrics.value["step_time"]})


def downwards(archive: Archive, random: np.random.Generator) -> None:  # noqa: ARG001
    """From the last point on."""
    archive.evaluate(np.arange(archive.ranking.size)[::-1])


def test_a_model_of_ones_own_stands_in_for_the_kinds(small: Path, tmp_path: Path) -> None:
    ours = face.run(small, out=tmp_path / "ours")
    theirs = face.run(small, out=tmp_path / "theirs", model=Slower())
    fastest = [run.front[0].figures["step_time"].value for run in (ours, theirs)]
    assert fastest[1] == pytest.approx(1.1 * fastest[0])
    assert theirs.certificate["space"] == ours.certificate["space"]
    again = face.resume(str(tmp_path / "theirs"), model=Slower())
    assert again.front == face.read(str(tmp_path / "theirs")).front
    with pytest.raises(AnotherQuestion, match="asked of the cost model Slower, not of the kind's own"):
        face.resume(tmp_path / "theirs")
    with pytest.raises(AnotherQuestion, match="asked of the kind's own cost model, not of the cost model Slower"):
        face.resume(tmp_path / "ours", model=Slower())


def test_a_method_of_ones_own_is_asked_for_by_module(dse: Callable[..., Any], small: Path, tmp_path: Path) -> None:
    settings = [f"search.method={__name__}:downwards", "search.budget.points=5"]
    done = dse("run", small, "--out", tmp_path / "a", "--set", settings[0], "--set", settings[1])
    assert done.code in (0, 2)
    assert face.read(tmp_path / "a").certificate["evaluated"] == 5
    done = dse("run", small, "--set", f"search.method={__name__}:upwards")
    assert done.code == 1
    assert "cannot be imported" in done.err
    assert "Traceback" not in done.err


def test_what_the_documentation_plugs_in_runs(capsys: pytest.CaptureFixture[str]) -> None:
    found = re.search(r"<!-- own.*?```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    exec(compile(found.group(1), str(DOCS), "exec"), {"__name__": "documentation"})
    said = capsys.readouterr().out
    assert "Certificate: complete; 248 points = 0 pruned + 248 evaluated" in said
    assert "0 pruned + 50 evaluated" in said


class Broken:
    """Ours, that raises where there is one point, or knows no time of it."""

    def __init__(self, finite: bool) -> None:
        self._own, self._finite = TrainingModel(), finite

    @property
    def reads(self) -> frozenset[str]:
        return self._own.reads

    def bound(self, problem: Problem, points: Columns) -> Metrics:
        return self._own.bound(problem, points)

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:
        metrics = self._own.evaluate(problem, points)
        if self._finite and points.n == 1:
            raise RuntimeError("not this one")
        time = np.where(np.asarray(points["tensor"]) == 8, np.nan, metrics.value["step_time"])
        return metrics if self._finite else dataclasses.replace(metrics, value={**metrics.value, "step_time": time})


@pytest.mark.parametrize(
    ("finite", "reason"), [(True, "RuntimeError: not this one"), (False, "not a finite number: step_time")]
)
def test_a_baseline_that_cannot_be_predicted_ends_no_search(small: Path, tmp_path: Path, finite: bool, reason: str) -> None:
    run = face.run(small, out=tmp_path / "run", overrides=["baseline={tensor: 8}"], model=Broken(finite))
    assert run.front
    assert run.baseline is None
    said = f"Baseline: the model could not predict it: {reason}"
    for page in (str(run), str(face.read(tmp_path / "run")), *map(Path.read_text, (tmp_path / "run").glob("report.*"))):
        assert said in page


def stumbling(archive: Archive, random: np.random.Generator) -> None:  # noqa: ARG001
    """A method with a mistake in it."""
    archive.evaluate(None)  # type: ignore[arg-type]


def test_a_mistake_in_a_method_of_ones_own_is_told_as_its_own(dse: Callable[..., Any], small: Path) -> None:
    done = dse("run", small, "--set", f"search.method={__name__}:stumbling", "--set", "search.budget.points=5")
    assert done.code == 1
    assert f"the search method '{__name__}:stumbling' (archive, generator) -> None raised TypeError" in done.err
    assert "error of this program" not in done.err
