"""Serving experiments end to end: screened, simulated, reported, sized, taken apart, and run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dse import run_folder
from dse.asking import models_of, problem_of, space_of
from dse.experiment import load
from dse.proof import judged, proven
from dse.runner import run
from dse.sizing import _sizable, size
from tests.dse.conftest import Finished

Run = Callable[..., Finished]

SERVING = """\
kind: serving
name: chat
model: llama-3.1-8b
hardware: {device: H100, devices: 2}
workload: {input_tokens: 1000, output_tokens: 100, request_rate: 6 /s, requests: 200}
slo: {ttft: 1 s, tpot: 50 ms}
stack: vllm
space: {max_batch: [32, 128], token_budget: [2048, 8192], mode: [aggregated, disaggregated]}
objectives: [ttft_p95, tpot_p95]
search: {top: 3, sample: 200, simulate: 24}
"""


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small serving experiment."""
    path = tmp_path_factory.mktemp("serving") / "chat.yaml"
    path.write_text(SERVING, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def folder(chat: Path) -> Path:
    """Its run."""
    done = run(chat, out=chat.parent / "run")
    assert done.folder is not None
    return done.folder


def test_both_stages_say_how_many_plans_they_saw(folder: Path) -> None:
    answer = run_folder.read(folder)
    stages = answer.to_json()["stages"]
    assert stages["closed form"] == answer.certificate["space"]
    assert 0 < stages["simulated"] <= 24
    c = answer.certificate
    assert c["space"] == sum(c["pruned"].values()) + c["evaluated"] + c["failed"] + c["unvisited"]
    assert "simulated" in str(answer)


def test_every_figure_has_an_interval_and_parts_that_sum(folder: Path) -> None:
    for answer in run_folder.read(folder).front:
        for name in ("ttft", "tpot", "ttft_p95", "tpot_p95", "tokens_per_second", "slo_attainment"):
            figure = answer.figures[name]
            assert figure.low <= figure.value <= figure.high
        for metric in ("tpot", "memory"):
            assert sum(answer.parts[metric].values()) == pytest.approx(answer.figures[metric].value, rel=1e-6)
            assert min(answer.parts[metric].values()) >= 0


def test_percentiles_are_ordered_and_users_wait_in_the_mean_no_less_than_alone(folder: Path) -> None:
    for answer in run_folder.read(folder).front:
        assert answer.figures["ttft_p95"].value >= answer.figures["ttft"].value * 0.5
        assert answer.figures["request_latency"].value == pytest.approx(
            answer.figures["ttft"].value + 99 * answer.figures["tpot"].value, rel=0.05
        )


def test_a_saved_serving_experiment_runs_again_to_the_same_front(folder: Path, tmp_path: Path) -> None:
    again = run(folder / "experiment.yaml", out=tmp_path / "again")
    assert [a.to_json() for a in again.front] == [a.to_json() for a in run_folder.read(folder).front]


def test_reports_have_the_serving_columns(folder: Path) -> None:
    page = (folder / "report.md").read_text(encoding="utf-8")
    for text in ("TTFT p95, ms", "TPOT p95, ms", "Where the time per token goes", "Stages: closed form"):
        assert text in page
    html = (folder / "report.html").read_text(encoding="utf-8")
    assert "TTFT p95" in html
    assert "http://" not in html


def test_explain_splits_both_steps_by_operator_family(dse: Run, folder: Path) -> None:
    done = dse("explain", folder, "--rank", 1)
    assert done.code == 0
    for text in ("A step of prefill", "A step of decode", "decode attention", "memory bandwidth twice as fast", "kv cache"):
        assert text in done.out


def test_more_devices_at_most_never_cost_more(chat: Path) -> None:
    few = size(chat, overrides=["hardware.devices=2", "space.mode=aggregated"])
    more = size(chat, overrides=["hardware.devices=4", "space.mode=aggregated"])
    assert few.answer is not None
    assert more.answer is not None
    assert more.answer.figures["devices"].value <= few.answer.figures["devices"].value
    assert few.answer.figures["slo_attainment"].value >= 0.95


def test_what_is_least_is_proven_and_a_larger_answer_is_mended(chat: Path) -> None:
    """Every plan with less is counted once, by memory, time or simulation; begun from too large, it ends the same."""
    opened = ["hardware.devices=3", "space.mode=aggregated", "workload.request_rate=24 /s"]
    found = size(chat, overrides=opened)
    assert found.answer is not None
    assert found.proof is not None
    assert found.proof.left == 0
    assert found.proof.memory + found.proof.time + found.proof.simulated == found.proof.less
    assert "Proven: " in str(found)
    experiment = _sizable(load(chat, opened), None)
    problem = problem_of(experiment)
    every = next(space_of(experiment).batches())
    largest = every.take(np.flatnonzero(problem.at(every)["devices"] == 3)[:1])
    most = judged(models_of(experiment)[0].model, problem, largest, [])[0]
    mended, proof = proven(experiment, problem, most, largest, "devices")
    assert mended.figures["devices"].value == found.answer.figures["devices"].value
    assert proof is not None
    assert proof.left == 0


def test_a_rate_that_no_plan_carries_ends_with_the_best_reachable_one(dse: Run, chat: Path) -> None:
    done = dse("size", chat, "--rate", 500, "--set", "space.mode=aggregated", "--json")
    assert done.code == 2
    assert "No plan carries 500 requests/s" in done.out
    data = json.loads(done.out.strip().splitlines()[-1])
    assert data["answer"] is None
    assert 0 < data["reachable_rate"] < 500
    carried = size(chat, rate=data["reachable_rate"] * 0.5, overrides=["space.mode=aggregated"])
    assert carried.answer is not None


def test_a_model_that_fits_nowhere_names_the_closest_and_what_it_lacks(dse: Run, chat: Path) -> None:
    done = dse("run", chat, "--set", "model=llama-3.1-405b", "--set", "space.mode=aggregated")
    assert done.code == 2
    assert "No plan is feasible" in done.out
    assert "device memory" in done.out


def test_requests_longer_than_the_context_are_counted(chat: Path, tmp_path: Path) -> None:
    lengths = "workload.input_tokens={uniform: [100, 4000]}"
    answer = run(chat, out=tmp_path / "a", overrides=[lengths, "workload.context=2000", "space.mode=aggregated"])
    refused = answer.front[0].figures["refused"].value
    assert 0 < refused < 200
    assert answer.front[0].figures["slo_attainment"].value <= 1 - refused / 200 + 0.15


@pytest.mark.parametrize("to", ["vllm", "sglang", "trtllm"])
def test_launch_files_name_every_degree(to: str, dse: Run, folder: Path) -> None:
    done = dse("export", folder, "--to", to)
    assert done.code == 0
    text = Path(done.out.strip()).read_text(encoding="utf-8")
    plan = run_folder.read(folder).front[0].plan
    assert "meta-llama/Llama-3.1-8B" in text
    assert str(plan["max_batch"]) in text
    if plan["mode"] == "disaggregated":
        assert "prefill" in text
        assert "decode" in text


def test_a_trace_travels_with_the_run(chat: Path, tmp_path: Path) -> None:
    rows = "".join(f"{i * 0.2:.1f},{500 + i},{20 + i % 7}\n" for i in range(40))
    (chat.parent / "mine.csv").write_text(f"arrival,input_tokens,output_tokens\n{rows}", encoding="utf-8")
    first = run(chat, out=tmp_path / "a", overrides=["workload={trace: mine.csv}", "space.mode=aggregated"])
    assert not first.trouble
    (chat.parent / "mine.csv").unlink()
    again = run(tmp_path / "a" / "experiment.yaml", out=tmp_path / "b")
    assert [a.to_json() for a in again.front] == [a.to_json() for a in first.front]
