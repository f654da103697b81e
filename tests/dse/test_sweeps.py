"""Sweeps: every combination a run, fronts joined as brute force joins them, and going on after an end."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from dse import sweeps
from dse.run_folder import BadRunFolder
from dse.runner import run
from dse.sweeps import resume_sweep, sweep
from tests.dse.conftest import Finished

Run = Callable[..., Finished]
GRID = ["hardware.devices=[4,8]", "workload.global_batch=[16,32]", "search.top=2"]


def test_the_joined_front_is_that_of_the_runs_by_themselves(small: Path, tmp_path: Path) -> None:
    answer = sweep(small, GRID, out=tmp_path / "sweep")
    every = []
    for devices in (4, 8):
        for batch in (16, 32):
            alone = run(small, overrides=[f"hardware.devices={devices}", f"workload.global_batch={batch}"], out=tmp_path / "a")
            every += [(devices, batch, a.figures["step_time"].value, a.figures["memory"].value) for a in alone.front]
    expected = [
        (devices, batch, time, memory)
        for devices, batch, time, memory in every
        if not any(t <= time and m <= memory and (t, m) != (time, memory) for _, _, t, m in every)
    ]
    found = [
        (*answer.cells[i].settings.values(), a.figures["step_time"].value, a.figures["memory"].value) for i, a in answer.front
    ]
    assert len({row[2:] for row in found}) == len(found)
    assert set(found) <= set(expected)
    assert {row[2:] for row in found} == {row[2:] for row in expected}
    assert answer.certificate["complete"]
    assert answer.certificate["space"] == sum(run.certificate["space"] for run in answer.runs)
    with (tmp_path / "sweep" / "front.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(int(r["hardware.devices"]), float(r["step_time"])) for r in rows] == [(row[0], row[2]) for row in found]
    assert "hardware.devices" in (tmp_path / "sweep" / "report.md").read_text(encoding="utf-8")


def test_a_sweep_goes_on_with_what_is_missing(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dse: Run
) -> None:
    whole = sweep(small, GRID, out=tmp_path / "whole")
    begun: list[Path] = []
    original = sweeps._begun

    def third_time(*arguments: object) -> object:
        begun.append(arguments[2])  # type: ignore[arg-type]
        if len(begun) == 3:
            raise RuntimeError("struck")
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(sweeps, "_begun", third_time)
    with pytest.raises(RuntimeError, match="struck"):
        sweep(small, GRID, out=tmp_path / "cut")
    done = dse("resume", tmp_path / "cut", "--json")
    assert done.code == 0, done.err
    assert len(begun) == 5  # two whole ones are not run again
    said = json.loads(done.out.strip().splitlines()[-1])
    assert [plan["set"] for plan in said["front"]] == [plan["set"] for plan in whole.to_json()["front"]]
    assert (tmp_path / "cut" / "front.csv").read_bytes() == (tmp_path / "whole" / "front.csv").read_bytes()
    assert resume_sweep(tmp_path / "cut").to_json()["certificate"] == whole.to_json()["certificate"]


def test_a_sweep_says_what_is_wrong_before_it_runs(dse: Run, small: Path, tmp_path: Path) -> None:
    for settings, told in (
        ([], "--set KEY=[A,B,…]"),
        (["hardware.devices=8"], "--set KEY=[A,B,…]"),
        (["hardware.devices=[8,-1]"], "with hardware.devices = -1"),
        (["hardware.devices=[4,8,4]"], "4 is there twice"),
        (["objectives=[step_time,memory]"], "objectives are swept"),
    ):
        done = dse("sweep", small, *(part for setting in settings for part in ("--set", setting)))
        assert done.code == 1
        assert told in done.err
    assert not (tmp_path / "runs").exists()


def test_nodes_are_so_many_whole_machines_and_take_the_place_of_devices(small: Path) -> None:
    from dse.asking import space_of
    from dse.experiment import ExperimentError, load

    asked, expected = load(small, ["hardware.nodes=3"]), load(small, ["hardware.devices=24"])  # eight to a node
    assert space_of(asked).size() == space_of(expected).size()
    assert asked.job.count == expected.job.count == 24
    again = load(dict(asked.resolved))
    assert again.to_yaml() == asked.to_yaml()
    assert load(dict(asked.resolved), ["hardware.devices=24"]).to_yaml() == expected.to_yaml()
    with pytest.raises(ExperimentError, match="leave one out"):
        load({**asked.resolved, "hardware": {"device": "H100", "nodes": 3, "devices": 24}})
    with pytest.raises(ExperimentError, match="nodes: expected a whole number"):
        load(small, ["hardware.nodes=many"])


def test_a_run_whose_folder_was_removed_is_made_again(small: Path, tmp_path: Path) -> None:
    whole = sweep(small, ["hardware.devices=[4,8]", "search.top=2"], out=tmp_path / "sweep")
    shutil.rmtree(tmp_path / "sweep" / whole.cells[1].folder)
    assert resume_sweep(tmp_path / "sweep").front == whole.front
    shutil.rmtree(tmp_path / "sweep" / whole.cells[1].folder)
    small.unlink()
    with pytest.raises(BadRunFolder, match="is gone, and so is the file"):
        resume_sweep(tmp_path / "sweep")


def test_runs_of_a_sweep_share_what_takes_long_to_start(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(sweeps, "shared", lambda *who: asked.append(who) or nullcontext())
    sweep(small, ["hardware.devices=[4,8]"], out=tmp_path / "one")
    assert asked == [("serial", None, None)]
    resume_sweep(tmp_path / "one")
    assert len(asked) == 1


def test_a_sweep_says_what_is_swept_and_that_other_work_is_not_the_same(small: Path, tmp_path: Path, dse: Run) -> None:
    answer = sweep(small, ["hardware.devices=[2,4]", "search.top=2"], out=tmp_path / "devices")
    assert "2 runs over hardware.devices. The first: llama-3.1-8b on 2 ×" in str(answer)
    assert "different work" not in str(answer)
    answer = sweep(small, ["workload.global_batch=[8,16]", "hardware.devices=2"], out=tmp_path / "batches")
    report = (tmp_path / "batches" / "report.md").read_text(encoding="utf-8")
    for page in (str(answer), report):
        assert "Runs that differ in workload.global_batch do different work" in page
    done = dse("report", tmp_path / "batches")
    assert done.code == 1
    assert f"is a sweep, not a run; its runs are {answer.runs[0].folder}" in done.err
