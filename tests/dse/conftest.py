"""Small experiments and a command line to run them with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from dse.command_line import execute

SMALL = """\
kind: training
name: small
model: llama-3.1-8b
hardware: {device: H100, devices: 8}
workload: {sequence: 4096, global_batch: 32}
stack: megatron
space: {context: 1, offload: none, recompute: [none, full], micro_batch: [1, 2]}
objectives: [step_time, memory]
search: {top: 3, sample: 200}
"""


@dataclass(frozen=True, slots=True)
class Finished:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def dse(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Finished]:
    """Runs `dse` with some arguments in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> Finished:
        capsys.readouterr()
        code = execute([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return call


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A small experiment file."""
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Writes an experiment file, `SMALL` with some lines replaced when given as a mapping."""

    def file(text: str) -> Path:
        path = tmp_path / "experiment.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return file
