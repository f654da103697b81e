"""A run end to end: the front, the folder, and what happens when the disk does not take it."""

from __future__ import annotations

import csv
import errno
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from dse import run_folder
from dse.answers import PlanAnswer
from dse.asking import space_of
from dse.experiment import load
from dse.runner import run
from dse.tables import plan_texts
from tests.dse.conftest import Finished

Run = Callable[..., Finished]


def test_a_saved_experiment_runs_again_to_the_same_front(small: Path, tmp_path: Path) -> None:
    first = run(small, out=tmp_path / "a")
    again = run(tmp_path / "a" / "experiment.yaml", out=tmp_path / "b")
    assert first.front
    assert [a.to_json() for a in again.front] == [a.to_json() for a in first.front]
    assert (tmp_path / "a" / "front.csv").read_bytes() == (tmp_path / "b" / "front.csv").read_bytes()
    assert (tmp_path / "a" / "experiment.yaml").read_bytes() == (tmp_path / "b" / "experiment.yaml").read_bytes()


def test_a_model_read_from_a_file_travels_with_the_run(small: Path, tmp_path: Path) -> None:
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "hidden_act": "silu",
        "attention_bias": False, "mlp_bias": False,
    }  # fmt: skip
    (tmp_path / "mine.json").write_text(json.dumps(config), encoding="utf-8")
    first = run(small, out=tmp_path / "a", overrides=["model={config: mine.json}"])
    assert not first.trouble
    (tmp_path / "mine.json").unlink()
    again = run(tmp_path / "a" / "experiment.yaml", out=tmp_path / "b")
    assert [a.figures for a in again.front] == [a.figures for a in first.front]


def test_nothing_is_ever_overwritten(dse: Run, small: Path, tmp_path: Path) -> None:
    for _ in range(3):
        assert dse("run", small).code == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["small-1", "small-2", "small-3"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("keep", encoding="utf-8")
    assert dse("run", small, "--out", "mine").code == 0
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["precious"]
    assert (tmp_path / "mine-1" / "report.html").is_file()


def test_the_folder_holds_what_repeats_and_proves_the_run(small: Path, tmp_path: Path) -> None:
    answer = run(small, out=tmp_path / "a")
    folder = answer.folder
    assert folder is not None
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["schema"] == run_folder.SCHEMA
    assert manifest["seed"] == 0
    assert "numpy" in manifest["versions"]
    assert any(name.startswith("spaces/data/devices/") for name in manifest["data_sha256"])
    c = manifest["certificate"]
    assert c["complete"]
    assert c["space"] == sum(c["pruned"].values()) + c["evaluated"] + c["failed"] + c["unvisited"]
    with closing(sqlite3.connect(folder / "run.sqlite")) as store:
        (mode,) = store.execute("PRAGMA journal_mode").fetchone()
        (front,) = store.execute("SELECT count(*) FROM plan WHERE list = 'front'").fetchone()
        (sample,) = store.execute("SELECT count(*) FROM sample").fetchone()
    store.close()
    assert (mode, front) == ("wal", len(answer.front))
    assert not list(folder.glob("slices*"))  # a whole run needs them no more
    assert sample == min(200, c["evaluated"])
    with (folder / "front.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["step_time"]) for row in rows] == [a.figures["step_time"].value for a in answer.front]


def test_a_run_read_back_is_the_run_written(small: Path, tmp_path: Path) -> None:
    written = run(small, out=tmp_path / "a", overrides=["baseline={tensor: 8}"])
    back = run_folder.read(tmp_path / "a")
    assert str(back) == str(written)
    assert back.to_json() == written.to_json()
    assert set(back.sample) == set(written.sample)


def test_report_writes_the_same_reports_again(dse: Run, small: Path, tmp_path: Path) -> None:
    run(small, out=tmp_path / "a")
    before = {name: (tmp_path / "a" / name).read_bytes() for name in ("report.md", "report.html")}
    for name in before:
        (tmp_path / "a" / name).unlink()
    assert dse("report", tmp_path / "a").code == 0
    assert {name: (tmp_path / "a" / name).read_bytes() for name in before} == before


def test_a_folder_that_is_no_run_is_refused(dse: Run, tmp_path: Path) -> None:
    done = dse("report", tmp_path)
    assert done.code == 1
    assert "is not a run folder" in done.err


def test_a_full_disk_is_told_and_the_table_is_printed_all_the_same(
    dse: Run, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder, "_write_csv", full)
    done = dse("run", small)
    assert done.code == 1
    assert "Front: " in done.out
    assert "Certificate: complete" in done.out
    assert "No space left on device" in done.err
    assert "Traceback" not in done.err


def test_a_folder_that_cannot_be_made_is_told_and_the_table_is_printed(dse: Run, small: Path, tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file", encoding="utf-8")
    done = dse("run", small, "--out", "occupied/inside")
    assert done.code == 1
    assert "Front: " in done.out
    assert "could not be kept" in done.err


def test_json_ends_with_one_object_of_the_agreed_shape(dse: Run, small: Path) -> None:
    done = dse("run", small, "--json")
    data = json.loads(done.out.strip().splitlines()[-1])
    assert {"run", "certificate", "front", "wall_s", "cpu_s"} <= data.keys()
    assert set(data["certificate"]) == {"space", "pruned", "evaluated", "failed", "unvisited", "complete"}
    assert Path(data["run"]).is_dir()
    best = data["front"][0]
    assert best["plan"]["devices"] == 8
    figure = best["metrics"]["step_time"]
    assert figure["low"] <= figure["value"] <= figure["high"]


def test_parts_sum_to_what_they_are_parts_of(small: Path, tmp_path: Path) -> None:
    for answer in run(small, out=tmp_path / "a").front:
        for metric, parts in answer.parts.items():
            assert sum(parts.values()) == pytest.approx(answer.figures[metric].value, rel=1e-9)


def test_the_global_batch_is_never_changed(small: Path) -> None:
    experiment = load(small, ["space={}"])
    for batch in space_of(experiment).batches():
        assert np.all(experiment.job.global_batch % (batch["data"] * batch["micro_batch"]) == 0)
        microbatches = experiment.job.global_batch // (batch["data"] * batch["micro_batch"])
        assert np.all(microbatches * batch["data"] * batch["micro_batch"] == experiment.job.global_batch)
        assert "global_batch" not in batch


def test_devices_that_are_asked_for_are_all_used(small: Path, tmp_path: Path) -> None:
    for answer in run(small, out=tmp_path / "a").front:
        plan = answer.plan
        assert plan["tensor"] * plan["context"] * plan["pipeline"] * plan["data"] == 8


def test_the_objective_searched_is_the_figure_reported(small: Path, tmp_path: Path) -> None:
    answer = run(small, out=tmp_path / "a", overrides=["objectives=[step_time]"])
    assert len(answer.front) == 1
    assert answer.top["step_time"][0].figures["step_time"] == answer.front[0].figures["step_time"]
    sampled = answer.sample["metric.step_time"][answer.sample["feasible"] > 0]
    assert answer.front[0].figures["step_time"].value <= sampled.min()


def test_devices_stand_before_plans_only_where_they_tell_plans_apart() -> None:
    def plan(devices: int) -> PlanAnswer:
        place = {"device": "H100-80GB-SXM", "devices": devices, "tensor": devices}
        return PlanAnswer(kind="training", plan=place, figures={}, parts={}, violation={}, evidence="measured")

    assert plan_texts([]) == []
    assert plan_texts([plan(8), plan(8)]) == [plan(8).text] * 2
    assert plan_texts([plan(8), plan(16)]) == [f"{n} × H100-80GB-SXM: {plan(n).text}" for n in (8, 16)]


def test_a_baseline_is_compared_with_the_front(dse: Run, small: Path) -> None:
    done = dse("run", small, "--set", "baseline={tensor: 8}")
    assert "Baseline: 8 × H100-80GB-SXM: tp8" in done.out
    assert "#1 against it: step time" in done.out


def test_the_report_is_offline_and_well_formed(small: Path, tmp_path: Path) -> None:
    from xml.etree import ElementTree

    run(small, out=tmp_path / "a", overrides=["baseline={tensor: 8}"])
    page = (tmp_path / "a" / "report.html").read_text(encoding="utf-8")
    assert "http://" not in page
    assert "<script" not in page
    assert "device memory, GiB" in page
    for drawing in page.split("<figure>")[1:]:
        ElementTree.fromstring(drawing.split("</figure>")[0])


def test_a_mapping_runs_like_a_file(small: Path, tmp_path: Path) -> None:
    import yaml

    mapping = yaml.safe_load(small.read_text(encoding="utf-8"))
    a, b = run(mapping, out=tmp_path / "a"), run(small, out=tmp_path / "b")
    assert [x.figures for x in a.front] == [x.figures for x in b.front]


@pytest.mark.parametrize("who", ["local", "ray"])
def test_the_front_is_the_same_whoever_does_the_work(
    small: Path, tmp_path: Path, who: str, request: pytest.FixtureRequest
) -> None:
    if who == "ray":
        request.getfixturevalue("ray_once")
    run(small, out=tmp_path / "a")
    there = run(small, out=tmp_path / "b", overrides=[f"search.executor={who}", "search.workers=2"])
    assert not there.trouble
    for name in ("front.csv", "top.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    a, b = run_folder.read(tmp_path / "a"), run_folder.read(tmp_path / "b")
    assert a.certificate == b.certificate
    assert {name: column.tobytes() for name, column in a.sample.items()} == {
        name: column.tobytes() for name, column in b.sample.items()
    }


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("search={executor: cluster}", "executor"),
        ("search={workers: 2}", "executor: local or ray"),
        ("search={executor: local, address: auto}", "needs executor: ray"),
        ("search={executor: ray, address: nowhere}", "host:port"),
        ("search={executor: ray, address: 'here:99999'}", "host:port"),
        ("search={executor: ray, address: '127.0.0.1:1'}", "no Ray cluster answers at 127.0.0.1:1"),
        ("search={executor: ray, address: '127.0.0.1:1'}", "leave search.address out for a Ray of its own"),
    ],
)
def test_executors_that_cannot_be_had_are_told(dse: Run, small: Path, setting: str, told: str) -> None:
    done = dse("run", small, "--set", setting)
    assert done.code == 1
    assert told in done.err
    assert "Traceback" not in done.err
