"""The command line starts fast, lists what can be named, and takes a plan apart."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dse import command_line
from dse.explanation import explain
from dse.tables import limit_text
from search.execution import THREADS
from tests.dse.conftest import Finished

Run = Callable[..., Finished]

_LIGHT = """
import sys
from dse.command_line import execute
assert execute(["--help"]) == 0
heavy = {"numpy", "pydantic", "yaml", "scipy", "networkx", "rich", "moocore"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""


def test_help_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", _LIGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_models_and_hardware_are_listed(dse: Run) -> None:
    models, devices = dse("models"), dse("hardware")
    assert "llama-3.1-405b" in models.out
    assert "H100-80GB-SXM" in devices.out
    assert "memory, GiB" in devices.out
    assert dse("hardware", "H100").code == 0
    assert dse("models", "llama-3.1-8b").code == 0
    assert "llama-3.1-8b" in dse("models", "llama-3.1-9b").err


def test_explain_takes_a_given_plan_apart(dse: Run, small: Path) -> None:
    done = dse("explain", small, "--plan", "tensor=8,recompute=full")
    assert done.code == 0
    for said in ("tp8", "step time", "device memory", "What would relieve it, on the machine", "in the plan"):
        assert said in done.out


def test_explain_takes_a_front_member_of_a_run(dse: Run, small: Path) -> None:
    assert dse("run", small, "--out", "a").code == 0
    assert dse("explain", "a", "--rank", 2).code == 0
    done = dse("explain", "a", "--rank", 99)
    assert done.code == 1
    assert "there is no number 99" in done.err


def test_explain_names_what_is_wrong_with_a_plan(dse: Run, small: Path) -> None:
    done = dse("explain", small, "--plan", "tensr=8")
    assert done.code == 1
    assert "tensor" in done.err
    assert "no legal plan" in dse("explain", small, "--plan", "tensor=8,pipeline=8").err


def test_moves_are_better_than_the_plan_they_start_from(small: Path) -> None:
    told = explain(small, plan="tensor=8,recompute=full,micro_batch=1")
    step = told.answer.figures["step_time"].value
    assert told.moves
    assert all(move.figures["step_time"].value < step for _, move in told.moves)


@pytest.mark.parametrize(("verb", "theirs", "left"), [("models", None, "1"), ("models", "4", "4"), ("calibrate", None, None)])
def test_linear_algebra_keeps_to_one_thread_unless_told(
    monkeypatch: pytest.MonkeyPatch, verb: str, theirs: str | None, left: str | None
) -> None:
    for name in THREADS:
        monkeypatch.setenv(name, "0")  # so that what is set is taken back
        monkeypatch.delenv(name) if theirs is None else monkeypatch.setenv(name, theirs)
    monkeypatch.setattr(command_line, "execute", lambda _: 0)
    with pytest.raises(SystemExit):
        command_line.main([verb])
    assert {os.environ.get(name) for name in THREADS} == {left}


def test_every_verb_is_told_whole_in_a_narrow_terminal(dse: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = dse("--help").out
    assert "sweep" in said
    assert "..." not in said.partition("Commands:")[2]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("memory <= 7.51619e+10", "memory <= 70.00 GiB"),
        ("mfu >= 0.4", "mfu >= 40.00 %"),
        ("memory", "memory"),
        ("slots", "slots"),
        ("of mine <= 3", "of mine <= 3"),
    ],
)
def test_a_constraint_is_told_in_the_unit_that_is_shown(name: str, said: str) -> None:
    assert limit_text(name) == said
