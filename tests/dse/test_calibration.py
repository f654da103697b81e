"""`dse calibrate`: says what it needs, and which kernels an experiment's answer hangs on."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from costmodels.calibration import measure, shapes
from costmodels.calibration.suite import row_key
from dse import calibration
from tests.dse.conftest import Finished

Run = Callable[..., Finished]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without PyTorch."""
    monkeypatch.setattr(calibration, "installed", lambda name: name != "torch")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have measured, on a machine with PyTorch."""
    commands: list[list[str]] = []
    monkeypatch.setattr(calibration, "installed", lambda _: True)
    monkeypatch.setattr(calibration.subprocess, "call", lambda command: commands.append(command[1:]) or 0)
    return commands


@pytest.mark.usefixtures("bare")
def test_without_pytorch_it_says_what_to_install(dse: Run) -> None:
    done = dse("calibrate")
    assert (done.code, done.out) == (1, "")
    assert "pip install torch numpy" in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_what_there_is_to_measure_is_listed_without_a_device(dse: Run) -> None:
    done = dse("calibrate", "--list", "--suite", "gemm,attention")
    assert done.code == 0
    assert [line.split(":")[0] for line in done.out.splitlines()] == ["gemm", "attention"]


def test_an_unknown_suite_is_refused(dse: Run) -> None:
    done = dse("calibrate", "--suite", "gem")
    assert (done.code, "the nearest is gemm" in done.err) == (1, True)


def test_options_reach_the_suite(dse: Run, started: list[list[str]]) -> None:
    assert dse("calibrate", "--out", "here", "--suite", "gemm", "--seconds", 30, "--small").code == 0
    module, *rest = started[0][1:]
    assert module == "costmodels.calibration.measure"
    chosen = measure.arguments(rest)
    assert (chosen.out, chosen.suite, chosen.seconds, chosen.small, chosen.shapes) == (Path("here"), "gemm", 30.0, True, None)


def test_for_an_experiment_the_most_uncertain_kernels_come_first(small: Path) -> None:
    found = calibration.uncertain_shapes(small, 5)
    doubts = [shape.doubt for shape in found.shapes]
    assert doubts == sorted(doubts, reverse=True)
    assert len(found.chosen) == 5
    assert {"qkv", "attention", "lm_head"} <= {name for shape in found.shapes for name in shape.shape.operators}
    assert "Measure these five shapes" in str(found)
    assert sum(found.share([shape]) for shape in found.shapes) == pytest.approx(100.0)


def test_the_kernels_of_an_experiment_are_those_the_suite_measures(dse: Run, small: Path, started: list[list[str]]) -> None:
    done = dse("calibrate", "--for", small, "--out", "here", "--most", 4)
    assert done.code == 0
    assert started[0][-2:] == ["--shapes", "here/shapes.csv"]
    suites = shapes.read_shapes(Path("here/shapes.csv"))
    tasks = [(suite, task) for suite in suites for task in suite.tasks(False)]
    assert len(tasks) == 4
    for suite, task in tasks:
        assert tuple(task.key) == suite.key
        assert task.seconds > 0
        assert row_key(suite.key, task.key)


@pytest.mark.usefixtures("bare")
def test_for_an_experiment_the_list_is_there_without_pytorch(dse: Run, small: Path) -> None:
    assert dse("calibrate", "--for", small, "--list").code == 0
    done = dse("calibrate", "--for", small, "--out", "here")
    assert done.code == 1
    assert "Measure these five shapes" in done.out
    assert "--shapes here/shapes.csv" in done.err
    with Path("here/shapes.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 5


def test_for_a_run_folder_it_takes_the_front_that_is_there(dse: Run, small: Path) -> None:
    assert dse("run", small, "--out", "a").code == 0
    assert dse("calibrate", "--for", "a", "--list").out == dse("calibrate", "--for", small, "--list").out


def test_for_an_experiment_a_suite_makes_no_sense(dse: Run, small: Path) -> None:
    done = dse("calibrate", "--for", small, "--suite", "gemm")
    assert (done.code, "leave --suite" in done.err) == (1, True)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("op,m,n,k\ngem,1,2,3\n", "line 2: op 'gem'"),
        ("op,m,n,k\ngemm,1,2,3\ngemm,1,,3\n", "line 3: n is missing"),
        ("op,m,n,k\ngemm,1,2.5,3\n", "n is '2.5', not a whole number"),
        ("op,m,n,k,fast_accumulate\ngemm,1,2,3,maybe\n", "not true or false"),
        ("op,m,n,k\n", "no shapes in it"),
    ],
)
def test_shapes_that_cannot_be_measured_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    path = tmp_path / "shapes.csv"
    path.write_text(text, encoding="utf-8")
    assert measure.main(["--out", str(tmp_path), "--shapes", str(path), "--plan"]) == 1
    assert said in capsys.readouterr().err


def test_shapes_take_their_defaults_and_count_once(tmp_path: Path) -> None:
    path = tmp_path / "shapes.csv"
    path.write_text("op,dtype,m,n,k\ngemm,fp8,8,64,32\ngemm,,8,64,32\ngemm,bf16,8,64,32\n", encoding="utf-8")
    (suite,) = shapes.read_shapes(path)
    keys = [dict(task.key) for task in suite.tasks(True)]
    assert [(key["dtype"], key["fast_accumulate"], key["layout"]) for key in keys] == [
        ("fp8", True, "forward"),
        ("bf16", False, "forward"),
    ]
