"""The measurement suite without a device: what it wants, what it refuses, how it resumes, and what was measured with it."""

import csv
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

import costmodels
from costmodels.calibration import attention, collectives, gemm, host, parallel, pointwise, serving, steps
from costmodels.calibration.checks import Limits, limits_of, refusals, short_name
from costmodels.calibration.ledger import Ledger, RefusedRowError, read_rows
from costmodels.calibration.measure import SUITES, allotments, chosen_suites, left, main
from costmodels.calibration.suite import Pace, Suite, Task, interleave, row_key

MEASUREMENTS = Path(costmodels.__file__).parent / "data" / "measurements"
MODULES = (gemm, attention, pointwise, host, steps, serving, collectives, parallel)
H100 = limits_of("NVIDIA H100 80GB HBM3")
HAVE_TORCH = importlib.util.find_spec("torch") is not None


def have_gpu() -> bool:
    if not HAVE_TORCH:
        return False
    import torch

    return bool(torch.cuda.is_available())


def toy(count: int = 3) -> Suite:
    """A suite that measures nothing in particular."""
    return Suite(
        name="toy",
        key=("op", "m", "warm"),
        measured=("time_s", "flops"),
        share=1.0,
        tasks=lambda _: [Task(key={"op": "gemm", "m": m, "warm": True}, seconds=0.1) for m in range(1, count + 1)],
        measure=lambda *_: {"time_s": 1e-3},
    )


def row(**cells: object) -> dict:
    return {"op": "gemm", "m": 1, "warm": True, "gpu": "H100-80GB-SXM", "time_s": 1e-3, "flops": 1e9} | cells


# What there is to measure


def test_sites_are_many_distinct_and_multiples_of_sixteen():
    sites = gemm.sites()
    assert len(sites) >= 130
    assert len(set(sites)) == len(sites)
    assert all(n % 16 == 0 and k % 16 == 0 for n, k in sites)
    for known in ((6144, 4096), (28672, 4096), (4096, 14336), (128256, 4096), (10240, 8192), (8192, 28672)):
        assert known in sites


def test_every_site_gets_small_and_large_token_counts():
    by_site: dict[tuple, list[int]] = {}
    for task in gemm.tasks(False):
        if task.key["dtype"] == "bf16" and task.key["layout"] == "forward" and task.key["cache"] == "warm":
            by_site.setdefault((task.key["n"], task.key["k"]), []).append(int(task.key["m"]))
    plain = [by_site[site] for site in gemm.sites()]
    assert all(len(set(m)) >= 5 for m in plain)
    assert all(min(m) <= 64 and max(m) >= 1024 for m in plain)
    assert {m for tokens in plain for m in tokens} == set(gemm.TOKENS)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.SUITE.name)
@pytest.mark.parametrize("small", [True, False])
def test_tasks_have_the_columns_of_their_file_and_are_distinct(module, small):
    suite = module.SUITE
    tasks = suite.tasks(small)
    assert tasks
    assert all(set(task.key) == set(suite.key) for task in tasks)
    assert all(task.seconds > 0 for task in tasks)
    assert len(left(suite, set(), small)) >= 0.9 * len(tasks)
    assert len(set(suite.header)) == len(suite.header)
    assert "gpu" in suite.header


def test_a_run_cut_short_has_seen_every_kind():
    first = steps.tasks(False)[:30]
    assert {task.key["mode"] for task in first} == {"eager", "compile", "graph"}
    assert {task.key["recompute"] for task in first} == {"none", "full"}
    assert {task.key["dtype"] for task in gemm.tasks(False)[:50]} == {"bf16", "fp8", "fp16"}
    assert {task.key["parallel"] for task in parallel.tasks(False)[:8]} == {"ddp", "fsdp", "tensor", "pipeline"}


def test_interleaving_keeps_order_within_a_group_and_proportion_between():
    groups = [[Task(key={"g": g, "i": i}, seconds=1) for i in range(n)] for g, n in enumerate((100, 10, 1))]
    mixed = interleave(groups)
    assert len(mixed) == 111
    for g in range(3):
        order = [task.key["i"] for task in mixed if task.key["g"] == g]
        assert order == sorted(order)
    assert 4 <= sum(task.key["g"] == 1 for task in mixed[:55]) <= 6


# Time


def test_allotments_spend_no_more_than_there_is_and_hand_on_what_is_not_wanted():
    suites = [gemm.SUITE, host.SUITE, steps.SUITE]
    given = allotments(suites, {"gemm": 500.0, "host": 1.0, "steps": 20.0}, 100.0)
    assert sum(given.values()) == pytest.approx(100.0)
    assert given["host"] == pytest.approx(1.0)
    assert given["steps"] == pytest.approx(20.0)
    assert sum(allotments(suites, {"gemm": 1.0, "host": 1.0, "steps": 0.0}, 100.0).values()) == pytest.approx(2.0)
    assert sum(allotments(suites, {"gemm": 0.0, "host": 0.0, "steps": 0.0}, 100.0).values()) == 0.0


def test_the_pace_foretells_from_what_was_seen():
    pace = Pace()
    tasks = [Task(key={}, seconds=2.0)] * 5
    assert pace.foretell(tasks) == 10.0
    pace.add(1.0, 3.0)
    assert pace.foretell(tasks) == 30.0


def test_one_rank_measures_kernels_and_two_measure_what_they_do_together():
    assert {suite.name for suite in chosen_suites("", 2)} == {"collectives", "parallel", "serving_parallel"}
    assert "gemm" in {suite.name for suite in chosen_suites("", 1)}
    with pytest.raises(SystemExit, match="no suite nonsense"):
        chosen_suites("nonsense", 1)


def test_the_plan_needs_no_device(capsys, tmp_path):
    assert main(["--out", str(tmp_path), "--plan"]) == 0
    assert "gemm: " in capsys.readouterr().out


# Refusals


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"flops": 2e12, "dtype": "bf16"}, "above the peak"),
        ({"time_s": 0.0}, "time_s is 0"),
        ({"time_s": -1.0}, "time_s is -1"),
        ({"time_s": float("nan")}, "time_s is nan"),
        ({"time_s": float("inf")}, "time_s is inf"),
        ({"forward_s": 0.0}, "forward_s is 0"),
        ({"bytes": 4e9, "cache": "cold"}, "above the memory's"),
        ({"link_bytes": 1e9}, "above the link's"),
        ({"peak_allocated": 90e9}, "above the"),
    ],
)
def test_what_the_machine_cannot_do_is_refused(cells, reason):
    why = refusals(row(**cells), H100)
    assert len(why) == 1
    assert reason in why[0]


def test_what_it_can_do_is_not():
    assert refusals(row(flops=7e11, dtype="bf16"), H100) == []
    assert refusals(row(flops=1.4e12, dtype="fp8"), H100) == []
    assert refusals(row(time_s=1e-5, bytes=4e7, cache="warm"), H100) == []  # from the last cache
    assert refusals(row(flops=1e30), Limits()) == []  # nothing is known of this device
    assert short_name("NVIDIA H200") == "H200-141GB-SXM"
    assert short_name("a chip not made yet") == "a chip not made yet"


# Resuming


def test_the_ledger_resumes_and_refuses_duplicates(tmp_path):
    suite = toy()
    ledger = Ledger(tmp_path, H100)
    ledger.add(suite, row(m=2))
    with pytest.raises(RefusedRowError, match=r"toy row op=gemm m=2 warm=true: is there already"):
        ledger.add(suite, row(m=2))
    with pytest.raises(RefusedRowError, match=r"m=3 .*above the peak"):
        ledger.add(suite, row(m=3, flops=1e15))
    again = Ledger(tmp_path, H100)
    assert [task.key["m"] for task in left(suite, again.done(suite), False)] == [1, 3]
    assert len(read_rows(tmp_path / "toy.csv")) == 1


def test_a_line_cut_off_in_writing_is_measured_again(tmp_path):
    suite = toy()
    ledger = Ledger(tmp_path, H100)
    for m in (1, 2):
        ledger.add(suite, row(m=m))
    path = tmp_path / "toy.csv"
    path.write_bytes(path.read_bytes()[:-4])
    again = Ledger(tmp_path, H100)
    assert [task.key["m"] for task in left(suite, again.done(suite), False)] == [2, 3]
    again.add(suite, row(m=2))
    assert len(read_rows(path)) == 2


def test_what_failed_is_written_down_and_not_tried_again(tmp_path):
    suite = toy()
    Ledger(tmp_path, H100).fail(suite, {"op": "gemm", "m": 1, "warm": True}, "OutOfMemoryError: too\nlarge")
    again = Ledger(tmp_path, H100)
    assert [task.key["m"] for task in left(suite, again.done(suite), False)] == [2, 3]
    assert "too large" in (tmp_path / "errors.csv").read_text()


def test_a_file_of_another_version_is_not_continued(tmp_path):
    (tmp_path / "toy.csv").write_text("op,m,time_s\ngemm,1,0.001\n")
    with pytest.raises(RefusedRowError, match="other columns"):
        Ledger(tmp_path, H100).done(toy())


# What was measured


@pytest.mark.parametrize("path", sorted(MEASUREMENTS.glob("*/*.csv")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_repository_s_measurements_are_possible_distinct_and_named(path):
    suite = next(suite for suite in SUITES.values() if suite.csv == path.name)
    with path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        assert tuple(reader.fieldnames or ()) == suite.header
        rows = list(reader)
    limits = limits_of("H100 80GB HBM3" if "h100" in path.parent.name else "H200")
    assert not [(r, why) for r in rows if (why := refusals(r, limits))]
    assert len({row_key(suite.key, r) for r in rows}) == len(rows)
    assert len({r["gpu"] for r in rows}) == 1


@pytest.mark.parametrize("folder", sorted(MEASUREMENTS.iterdir()), ids=lambda folder: folder.name)
def test_measurements_say_where_they_come_from(folder):
    for session in json.loads((folder / "provenance.json").read_text())["sessions"]:
        assert {"date", "device", "driver", "torch", "cuda", "cudnn", "rows"} <= set(session)


# Running


def measure_here(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "costmodels.calibration.measure", "--out", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_small_suite_runs_and_resumes_or_says_what_it_needs(tmp_path):
    first = measure_here(tmp_path, "--small", "--suite", "gemm,attention,host,serving")
    if not HAVE_TORCH:
        assert first.returncode == 1
        assert "needs PyTorch" in first.stderr
        assert "Traceback" not in first.stderr
        return
    assert first.returncode == 0, first.stderr
    assert not (tmp_path / "errors.csv").exists()
    before = (tmp_path / "gemm.csv").read_bytes()
    again = measure_here(tmp_path, "--small", "--suite", "gemm")
    assert "gemm: 0 rows left" in again.stdout
    assert (tmp_path / "gemm.csv").read_bytes() == before


@pytest.mark.skipif(not have_gpu(), reason="needs a GPU")
def test_a_gpu_is_timed_in_graphs(tmp_path):
    assert measure_here(tmp_path, "--suite", "gemm", "--seconds", "20").returncode == 0
    rows = read_rows(tmp_path / "gemm.csv")
    assert len(rows) > 20
    assert "graph" in {row["launch"] for row in rows}
