"""Every bad serving input is told with its place and what would work."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from dse.asking import models_of, problem_of
from dse.experiment import ExperimentError, load
from dse.runner import run
from dse.sizing import CannotSize, size
from spaces.traces import BadTrace, read_trace
from tests.dse.conftest import Finished

GOOD = """\
kind: serving
model: llama-3.1-8b
hardware: {device: H100, devices: 8}
workload: {input_tokens: 1000, output_tokens: 100, request_rate: 6 /s}
stack: vllm
objectives: [ttft_p95, tpot]
"""
LENGTHS = "input_tokens: 1000, output_tokens: 100"

CASES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "unknown kind": ("kind: serving", "kind: servng", ("kind: ", "serving")),
    "unknown stack": ("stack: vllm", "stack: vlm", ("stack: ", "vllm")),
    "training's objective": ("[ttft_p95, tpot]", "[step_time]", ("objectives.0: ", "no metric is called 'step_time'")),
    "misspelt percentile": ("[ttft_p95, tpot]", "[ttft_95]", ("objectives.0: ", "ttft_p95")),
    "percentile of no latency": ("[ttft_p95, tpot]", "[memory_p95]", ("objectives.0: ", "memory_p95")),
    "percentile beyond": ("[ttft_p95, tpot]", "[ttft_p101]", ("objectives.0: ", "ttft_p101")),
    "objective without slo": ("[ttft_p95, tpot]", "[slo_attainment]", ("objectives.0: ", "needs slo")),
    "goodput without slo": ("[ttft_p95, tpot]", "[goodput_per_device]", ("objectives.0: ", "needs slo")),
    "no lengths": (LENGTHS, "prefix_hit: 0.1", ("workload: ", "nothing says how long")),
    "two lengths": (LENGTHS, f"{LENGTHS}, lengths: azure-conversation", ("workload: ", "several things say how long")),
    "unknown lengths": (LENGTHS, "lengths: azure-conversatio", ("workload.lengths: ", "azure-conversation")),
    "zero tokens": (LENGTHS, "input_tokens: 0, output_tokens: 100", ("workload.input_tokens: ", "from 1")),
    "negative tokens": (LENGTHS, "input_tokens: 10, output_tokens: -1", ("workload.output_tokens: ", "-1")),
    "uniform upside down": (
        LENGTHS,
        "input_tokens: {uniform: [9, 3]}, output_tokens: 1",
        ("workload.input_tokens: ", "9 is more"),
    ),
    "unknown shape": (LENGTHS, "input_tokens: {lognorml: 3}, output_tokens: 1", ("workload.input_tokens: ", "lognormal")),
    "longer than the context": (
        LENGTHS,
        "input_tokens: 200000, output_tokens: 100",
        ("every request is longer than the context",),
    ),
    "no arrivals": (", request_rate: 6 /s", "", ("workload: ", "nothing says when requests come")),
    "two arrivals": ("6 /s", "6 /s, concurrency: 8", ("workload.concurrency: ", "not both")),
    "negative rate": ("6 /s", "-6 /s", ("workload.request_rate: ", "positive")),
    "burstiness of nothing": ("6 /s", "6 /s, burstiness: 2", ("workload.burstiness: ", "arrivals: gamma")),
    "missing devices": (", devices: 8", "", ("hardware.devices: is missing",)),
    "pools and devices": (
        "devices: 8}",
        "devices: 8, pools: {prefill: {device: H100, devices: 4}, decode: {device: A100, devices: 4}}}",
        ("hardware.pools: ", "of their own"),
    ),
    "pool without device": (
        "{device: H100, devices: 8}",
        "{pools: {prefill: {devices: 4}, decode: {device: H100, devices: 4}}}",
        ("hardware.pools.prefill.device: is missing",),
    ),
    "two pools on one device": (
        "devices: 8}",
        "devices: 1}\nspace: {mode: disaggregated}",
        ("hardware.devices: a pool for prefill and one for decode take a device each",),
    ),
    "unknown mode": ("stack: vllm", "stack: vllm\nspace: {mode: apart}", ("space.mode: ", "aggregated")),
    "unknown axis": ("stack: vllm", "stack: vllm\nspace: {tensr: 2}", ("space.tensr: unknown key", "tensor")),
    "unknown axis of a pool": (
        "stack: vllm",
        "stack: vllm\nspace: {prefill: {tensr: 2}}",
        ("space.prefill.tensr: unknown key", "tensor"),
    ),
    "unknown format": ("stack: vllm", "stack: vllm\nprecision: fp9", ("precision: ", "fp8")),
    "share above one": ("stack: vllm", "stack: vllm\nspace: {kv_fraction: 1.5}", ("space.kv_fraction: ", "at most 1")),
    "draft of nothing": ("stack: vllm", "stack: vllm\ndraft: {acceptance: 0.8}", ("draft: ", "speculation: [0, 3]")),
    "draft said twice": (
        "stack: vllm",
        "stack: vllm\nspace: {speculation: 3}\ndraft: {model: llama-3.2-1b, share: 0.1}",
        ("draft: ", "not by model and share"),
    ),
    "acceptance above one": (
        "stack: vllm",
        "stack: vllm\nspace: {speculation: 3}\ndraft: {acceptance: 70}",
        ("draft.acceptance: ", "at most 1"),
    ),
    "adapters without rank": ("stack: vllm", "stack: vllm\nadapters: {count: 3}", ("adapters.rank: is missing",)),
    "unknown router": ("stack: vllm", "stack: vllm\nrouter: round_robin", ("router: ", "round-robin")),
    "prefixes said twice": (
        "6 /s",
        "6 /s, prefix_hit: 0.5, shared_prefix: {tokens: 100}",
        ("workload.prefix_hit: ", "leave out"),
    ),
    "no such trace": (
        f"{LENGTHS}, request_rate: 6 /s",
        "trace: nowhere.csv",
        ("workload.trace: ", "nowhere.csv", "No such file"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_told_with_its_place_and_what_would_work(case: str, tmp_path: Path) -> None:
    good, bad, wanted = CASES[case]
    assert good in GOOD
    path = tmp_path / "experiment.yaml"
    path.write_text(GOOD.replace(good, bad, 1), encoding="utf-8")
    with pytest.raises(ExperimentError) as told:
        load(path)
    for text in wanted:
        assert text in str(told.value)


TRACES: dict[str, tuple[str, tuple[str, ...]]] = {
    "missing column": ("arrival,input_tokens,answer\n0,10,10\n", ("no column output", "arrival, input_tokens, answer")),
    "unsorted": ("arrival,input_tokens,output_tokens\n0,10,10\n5,10,10\n3,10,10\n", ("t.csv:4", "sort the trace")),
    "negative time": ("arrival,input_tokens,output_tokens\n-1,10,10\n", ("t.csv:2", "not negative")),
    "no time": ("arrival,input_tokens,output_tokens\nsoon,10,10\n", ("t.csv:2", "neither seconds nor a date")),
    "zero length": ("arrival,input_tokens,output_tokens\n0,0,10\n", ("t.csv:2", "0 prompt", "at least 1")),
    "not a number": ("arrival,input_tokens,output_tokens\n0,many,10\n", ("t.csv:2", "not a number")),
    "empty": ("arrival,input_tokens,output_tokens\n", ("holds no requests",)),
}


@pytest.mark.parametrize("case", TRACES)
def test_a_bad_trace_names_its_line(case: str, tmp_path: Path) -> None:
    text, wanted = TRACES[case]
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    path = tmp_path / "experiment.yaml"
    path.write_text(GOOD.replace(f"{LENGTHS}, request_rate: 6 /s", "trace: t.csv"), encoding="utf-8")
    with pytest.raises(ExperimentError) as told:
        load(path)
    assert "workload.trace: " in str(told.value)
    for part in wanted:
        assert part in str(told.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
                  "2023-11-16 18:15:50.9951690,396,109\n"),
        ("b.csv", "arrival,input_tokens,output_tokens\n100,374,44\n104.314579,396,109\n"),
        ("c.jsonl", '{"arrival": 0, "input_tokens": 374, "output_tokens": 44}\n'
                    '{"arrival": 4.314579, "input_tokens": 396, "output_tokens": 109}\n'),
    ],
)  # fmt: skip
def test_a_trace_is_read_from_its_first_arrival(name: str, text: str, tmp_path: Path) -> None:
    from spaces.traces import read_trace

    (tmp_path / name).write_text(text, encoding="utf-8")
    found = read_trace(tmp_path / name).requests
    assert found.arrival.tolist() == pytest.approx([0.0, 4.314579], abs=1e-6)
    assert found.prompt.tolist() == [374, 396]
    assert found.output.tolist() == [44, 109]


def with_trace(tmp_path: Path, lines: list[str], more: str = "") -> Path:
    """The good experiment on one H100, with a trace."""
    (tmp_path / "t.csv").write_text("\n".join(["arrival,input_tokens,output_tokens", *lines]), encoding="utf-8")
    path = tmp_path / "experiment.yaml"
    path.write_text(GOOD.replace(f"{LENGTHS}, request_rate: 6 /s", "trace: t.csv").replace("devices: 8", "devices: 1") + more)
    return path


def test_requests_longer_than_the_context_are_counted_and_told(tmp_path: Path) -> None:
    lines = [f"{0.5 * i},{200_000 if i % 10 == 0 else 500},20" for i in range(60)]
    found = run(with_trace(tmp_path, lines, "space: {max_batch: 64, token_budget: 2048}\n"), out=tmp_path / "run")
    assert "6 of them longer than the context: refused" in found.title
    assert "500 tokens in" in found.title
    told = "6 of the trace's 60 requests are longer than the context of 131,072 tokens"
    assert any(told in said for said in found.assumptions)
    assert found.front[0].figures["refused"].value == 6
    assert "#1 refuses 6 of the requests" in str(found)
    with pytest.raises(ExperimentError, match="every request is longer than the context of 131,072 tokens"):
        load(with_trace(tmp_path, lines[:1]))


def test_a_trace_that_comes_at_once_costs_what_it_takes(tmp_path: Path) -> None:
    path = with_trace(tmp_path, ["0,500,20"] * 8, "space: {max_batch: 64, token_budget: 2048}\n")
    best = run(path, out=tmp_path / "run").front[0]
    per_second = best.figures["price_per_million_tokens"].value * best.figures["tokens_per_second"].value / 1e6
    assert per_second * 3600 == pytest.approx(load(path).job.devices[0].price_per_hour)
    assert 0 < best.figures["energy_per_token"].value < 10
    with pytest.raises(CannotSize, match="come at once"):
        size(path, overrides=["slo={ttft: 1 s}"])


def test_a_rate_that_no_plan_carries_is_told_with_what_is_reached_and_why(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(GOOD.replace("devices: 8", "devices: 1").replace("6 /s", "900 /s") + "slo: {ttft: 1 s, tpot: 50 ms}\n")
    found = run(path, out=tmp_path / "run")
    assert found.closest is not None
    assert found.exit_code == 2
    carried = found.closest.figures["highest_rate"].value
    assert f"rate: 900 requests/s asked, {carried:,.4g} carried at most: its" in str(found)
    assert "the time per token goes to" in str(found)
    sizing = size(path)
    assert sizing.exit_code == 2
    assert sizing.reachable is not None
    assert 0 < sizing.reachable <= carried * 1.01
    assert "Just above it, the nearest plan: " in str(sizing)
    assert sizing.beyond in str(sizing)
    assert "at least 95.00 % asked" in str(sizing)


def test_a_model_that_fits_nowhere_is_told_by_its_memory_alone(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    changed = GOOD.replace("devices: 8", "devices: 1").replace("llama-3.1-8b", "llama-3.1-70b")
    path.write_text(changed + "slo: {ttft: 1 s}\n")
    said = str(run(path, out=tmp_path / "run"))
    assert "device memory: " in said
    assert "needed" in said
    assert "rate:" not in said
    sizing = size(path)
    assert sizing.reachable is None
    assert "none fits in the devices' memory" in str(sizing)


def test_a_size_says_what_it_did_not_look_at(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(GOOD.replace("6 /s", "30 /s") + "slo: {ttft: 44 ms, tpot: 9 ms}\nsearch: {simulate: 1}\n")
    sizing = size(path)
    assert sizing.answer is None
    assert sizing.simulated == 1
    assert sizing.left > 0
    assert f"{sizing.left:,} more may in closed form" in str(sizing)
    assert "No plan carries" not in str(sizing)


def test_a_size_needs_limits_and_an_open_loop(tmp_path: Path) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(GOOD, encoding="utf-8")
    with pytest.raises(CannotSize, match="slo"):
        size(path)
    with pytest.raises(CannotSize, match="closed loop"):
        size(path, overrides=[f"workload={{{LENGTHS}, concurrency: 4}}"])
    with pytest.raises(CannotSize, match="devices"):
        size(path, objective="device")
    for rate in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(CannotSize, match="above 0"):
            size(path, rate=rate)


def test_sizing_a_training_experiment_is_refused(dse: Callable[..., Finished], small: Path) -> None:
    done = dse("size", small)
    assert done.code == 1
    assert "only serving has a size" in done.err


@pytest.mark.parametrize("metric", ["ttft_p0", "inter_token_p99.9", "request_latency_p100"])
def test_any_percentile_may_be_an_objective_and_a_limit(metric: str, tmp_path: Path) -> None:
    text = GOOD.replace("[ttft_p95, tpot]", f"[{metric}]") + f'constraints: ["{metric} <= 1 s"]\n'
    path = tmp_path / "any.yaml"
    path.write_text(text, encoding="utf-8")
    experiment = load(path)
    assert [limit.metric for limit in experiment.limits] == [metric]
    assert [choice.metric for choice in experiment.objectives] == [metric]


def test_what_drafts_adapts_and_routes_reaches_the_model(tmp_path: Path) -> None:
    path = tmp_path / "asked.yaml"
    said = "space: {speculation: [0, 3]}\ndraft: {model: llama-3.2-1b, acceptance: 0.8}\nadapters: {rank: 16, count: 4}\n"
    path.write_text(GOOD + said + "router: prefix-aware\n", encoding="utf-8")
    experiment = load(path)
    scalars = problem_of(experiment).scalars
    assert (scalars["acceptance"], scalars["lora_rank"], scalars["adapters"]) == (0.8, 16, 4)
    assert 0.1 < scalars["draft_share"] < 0.2
    assert models_of(experiment)[-1].model.router == "prefix-aware"


def test_a_trace_may_say_who_goes_first(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("arrival,input_tokens,output_tokens,priority\n0,5,5,1\n1,5,5,0\n", encoding="utf-8")
    requests = read_trace(path).requests
    assert requests.priority is not None
    assert requests.priority.tolist() == [1, 0]
    path.write_text("arrival,input_tokens,output_tokens,priority\n0,5,5,high\n", encoding="utf-8")
    with pytest.raises(BadTrace, match=r"trace\.csv:2: priority is 'high', not a whole number"):
        read_trace(path)


def test_a_trace_that_is_no_text_is_told_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(b"\x9b\x00\xff" * 30)
    with pytest.raises(BadTrace, match=r"trace\.csv is no text"):
        read_trace(path)
