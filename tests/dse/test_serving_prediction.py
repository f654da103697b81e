"""`dse predict --kind serving`: no row dropped, every clause of the columns, blanks and rules."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import pytest

from dse.prediction import RESULTS, predict, predict_rows

ROW = {"model": "llama-3.1-8b", "gpu": "H100", "n_gpus": "1", "isl": "1024", "osl": "64", "concurrency": "8"}


def answer(**changes: str) -> dict[str, str]:
    return predict_rows([{**ROW, **changes}], "serving")[0]


def number(row: dict[str, str], name: str) -> float:
    assert not row["error"], row["error"]
    return float(row[name])


def test_a_row_keeps_its_columns_and_gains_the_results() -> None:
    row = answer(remark="mine")
    assert row["remark"] == "mine"
    assert set(RESULTS["serving"]) <= set(row)
    for name in ("ttft_s", "tpot_s", "request_latency_s", "tokens_per_s_per_gpu"):
        assert number(row, f"{name}_low") < number(row, name) < number(row, f"{name}_high")
    assert number(row, "kv_capacity_tokens") > 8 * 1088
    assert number(row, "peak_memory_bytes") < 85e9
    assert row["evidence"]
    assert "vllm" in row["assumptions"]


def test_a_file_keeps_its_order_and_drops_nothing(tmp_path: Path) -> None:
    rows = [{**ROW, "model": name} for name in ("llama-3.1-8b", "no-such-model", "Qwen/Qwen3-8B")]
    points, out = tmp_path / "points.csv", tmp_path / "out.csv"
    with points.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    told = predict(points, out, "serving")
    with out.open(newline="") as file:
        answered = list(csv.DictReader(file))
    assert [row["model"] for row in answered] == [row["model"] for row in rows]
    assert (told.rows, told.predicted) == (3, 2)
    assert "no-such-model" in answered[1]["error"]


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({"n_gpus": "8", "tp": "2", "pp": "2", "dp": "2"}, True),
        ({"n_gpus": "8", "tp": "2", "pp": "2"}, True),
        ({"n_gpus": "8", "tp": "2", "pp": "2", "dp": "1"}, False),
        ({"model": "deepseek-v3", "n_gpus": "8", "tp": "1", "attention_dp": "8", "ep": "8", "gpu": "H200"}, True),
        ({"model": "deepseek-v3", "n_gpus": "8", "tp": "8", "ep": "8", "gpu": "H200"}, True),
        ({"model": "deepseek-v3", "n_gpus": "8", "tp": "8", "ep": "1", "gpu": "H200"}, True),
        ({"model": "deepseek-v3", "n_gpus": "16", "tp": "8", "ep": "16", "gpu": "H200"}, True),
        ({"model": "deepseek-v3", "n_gpus": "12", "tp": "8", "ep": "8", "gpu": "H200"}, False),
        ({"n_gpus": "8", "ep": "8"}, False),
    ],
)
def test_devices_are_pp_dp_and_the_larger_of_attention_and_experts(changes: dict[str, str], accepted: bool) -> None:
    assert (not answer(**changes)["error"]) is accepted


@pytest.mark.parametrize(
    "names", [("meta-llama/Llama-3.1-8B-Instruct", "H100-80GB-SXM"), ("Llama_3.1.8B", "h100"), ("llama-3.1-8b", "H100")]
)
def test_names_compare_without_case_separators_and_organisation(names: tuple[str, str]) -> None:
    assert answer(model=names[0], gpu=names[1])["tpot_s"] == answer()["tpot_s"]


def test_a_format_in_the_name_is_the_format_of_a_blank_precision() -> None:
    assert answer(model="Qwen/Qwen3-32B-FP8", stack="vllm")["tpot_s"] == answer(model="qwen3-32b", precision="fp8")["tpot_s"]
    assert "fp8" in answer(model="deepseek-ai/DeepSeek-R1", n_gpus="8", tp="8", ep="8", gpu="H200")["assumptions"]


def test_dimensions_stand_for_a_model_nobody_knows() -> None:
    sizes = {"layers": "32", "hidden": "4096", "heads": "32", "kv_heads": "8", "ffn": "14336", "vocab": "128256"}
    own = answer(model="mine", gated="true", **sizes)
    assert number(own, "tpot_s") == pytest.approx(number(answer(), "tpot_s"), rel=1e-6)


def test_narrow_weights_change_time_as_well_as_memory() -> None:
    wide, narrow = answer(), answer(precision="fp8")
    assert number(narrow, "tpot_s") < 0.8 * number(wide, "tpot_s")
    assert number(narrow, "kv_capacity_tokens") > number(wide, "kv_capacity_tokens")


def test_a_static_batch_is_one_prefill_and_the_steps_after_it() -> None:
    row = answer(stack="torch-graph", static_batch="true")
    latency = number(row, "ttft_s") + 63 * number(row, "tpot_s")
    assert number(row, "request_latency_s") == pytest.approx(latency, rel=1e-6)
    assert number(row, "tokens_per_s_per_gpu") == pytest.approx(8 * 64 / latency, rel=1e-6)


def test_statistics_of_a_closed_loop_hold_its_first_burst_unless_steady() -> None:
    one, many = answer(concurrency="1"), answer(concurrency="64", isl="4096")
    assert number(many, "ttft_s") > 3 * number(answer(concurrency="1", isl="4096"), "ttft_s")
    assert number(one, "ttft_s") < 0.1


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"isl": ""}, "isl"),
        ({"osl": "0"}, "osl"),
        ({"gpu": "H1000"}, "H100"),
        ({"stack": "vlm"}, "vllm"),
        ({"precision": "fp9"}, "fp8"),
        ({"tp": "5", "n_gpus": "5"}, "heads"),
        ({"kv_fraction": "1.5"}, "kv_fraction"),
        ({"concurrency": "-1"}, "concurrency"),
        ({"sampling": "warm"}, "top_p"),
    ],
)
def test_what_cannot_be_is_told_in_the_row(changes: dict[str, str], word: str) -> None:
    assert word in answer(**changes)["error"]


def test_a_model_that_fits_nowhere_is_still_predicted_and_says_so() -> None:
    row = answer(model="llama-3.1-405b")
    assert number(row, "kv_capacity_tokens") == 0
    assert "does not fit" in row["assumptions"]


def test_a_steady_part_that_is_empty_gives_way_to_the_whole_run() -> None:
    """Short prompts with one output token, all at once, end in one step: dropping the first and last leaves no time between."""
    burst = {"isl": "4", "osl": "1", "concurrency": "256", "num_requests": "256"}
    assert number(answer(**burst, steady="true"), "ttft_s") == number(answer(**burst), "ttft_s")


def test_a_long_closed_loop_goes_on_as_its_last_rounds_did(monkeypatch: pytest.MonkeyPatch) -> None:
    long = {"osl": "200", "isl": "300", "concurrency": "64", "max_num_seqs": "16", "num_requests": "1280"}
    whole = answer(**long)
    monkeypatch.setattr("costmodels.serving.replay.STEPS", 100)
    short = answer(**long)
    assert "requests simulated" in short["assumptions"]
    assert "requests simulated" not in whole["assumptions"]
    for name in ("ttft_s", "tpot_s", "request_latency_s", "tokens_per_s_per_gpu"):
        assert number(short, name) == pytest.approx(number(whole, name), rel=0.02)


def test_a_run_of_too_many_steps_says_what_would_do() -> None:
    row = answer(osl="20000000", concurrency="1", num_requests="5")
    assert "num_requests of 1" in row["error"]
    assert not row["tpot_s"]


def test_more_requests_at_once_make_no_token_quicker_and_no_device_slower() -> None:
    rows = predict_rows([{**ROW, "osl": "128", "concurrency": str(2**k)} for k in range(9)], "serving")
    tpot, rate = ([number(row, name) for row in rows] for name in ("tpot_s", "tokens_per_s_per_gpu"))
    assert all(later >= 0.99 * earlier for earlier, later in itertools.pairwise(tpot))
    assert all(later >= 0.99 * earlier for earlier, later in itertools.pairwise(rate))


def test_lengths_that_vary_spread_a_closed_loop_over_time() -> None:
    equal, spread = (answer(concurrency="32", osl="256", steady="true", length_ratio=ratio) for ratio in ("1", "0.8"))
    assert number(spread, "ttft_s") < 0.7 * number(equal, "ttft_s")


def test_longer_prompts_and_answers_take_longer() -> None:
    prompts = predict_rows([{**ROW, "isl": str(2**k), "concurrency": "4"} for k in range(0, 15, 2)], "serving")
    answers = predict_rows([{**ROW, "osl": str(2**k), "concurrency": "4"} for k in range(0, 12, 2)], "serving")
    for rows, name in ((prompts, "ttft_s"), (prompts, "tpot_s"), (answers, "request_latency_s")):
        times = [number(row, name) for row in rows]
        assert all(later >= 0.99 * earlier for earlier, later in itertools.pairwise(times)), name


def test_a_benchmark_that_calls_the_engine_waits_for_no_server() -> None:
    many = {"stack": "tensorrt-llm", "concurrency": "", "request_rate": "inf", "num_requests": "2000", "isl": "32", "osl": "32"}
    alone, served, blank = (answer(**many, served=word) for word in ("false", "true", ""))
    assert number(alone, "tokens_per_s_per_gpu") > number(served, "tokens_per_s_per_gpu")
    assert number(alone, "tpot_s") < number(served, "tpot_s")
    assert number(blank, "tpot_s") == number(alone, "tpot_s")
    assert "no server in front" in blank["assumptions"]
    assert number(answer(static_batch="true", served="false"), "ttft_s") < number(answer(static_batch="true"), "ttft_s")
    loop = answer(stack="tensorrt-llm")
    assert number(loop, "tpot_s") == number(answer(stack="tensorrt-llm", served="true"), "tpot_s")


def test_a_lone_prompt_is_tokenised_before_it_runs() -> None:
    def way(prompt: int) -> float:
        through, past = (answer(stack="vllm", static_batch="true", isl=str(prompt), served=word) for word in ("true", "false"))
        return number(through, "ttft_s") - number(past, "ttft_s")

    assert way(4096) > way(2048) > 0
    assert way(4096) - way(2048) == pytest.approx((way(2048) - way(1024)) * 2, rel=1e-6)


def test_keeping_the_likeliest_tokens_takes_a_kernel_a_step() -> None:
    def longer(stack: str, together: int) -> float:
        load = {"stack": stack, "static_batch": "true", "concurrency": str(together), "isl": "64", "osl": "8"}
        kept, plain = (answer(**load, sampling=word) for word in ("top_p", "plain"))
        return number(kept, "tpot_s") - number(plain, "tpot_s")

    few, wave, two = (longer("vllm", together) for together in (1, 64, 200))
    assert 0 < few < wave  # a sort of one row, one processor a row
    assert wave == pytest.approx(longer("vllm", 16), rel=0.1)
    assert wave < two < 2 * wave  # more rows than processors, and a host that hides some
    assert 0 < longer("sglang", 64) < wave
    assert number(answer(sampling=""), "tpot_s") == number(answer(sampling="plain"), "tpot_s")


def test_the_longest_answers_of_conversations_decide_when_a_burst_ends() -> None:
    burst = {"concurrency": "", "request_rate": "inf", "num_requests": "200", "isl": "200", "osl": "200"}
    equal, varied = answer(**burst), answer(**burst, lengths="exponential")
    assert number(varied, "tokens_per_s_per_gpu") < 0.8 * number(equal, "tokens_per_s_per_gpu")
    assert number(varied, "request_latency_s") < number(equal, "request_latency_s")
    assert number(answer(**burst, lengths="even"), "tpot_s") == number(equal, "tpot_s")
    assert "exponential" in answer(lengths="lognormal")["error"]


@pytest.mark.parametrize("requests", [50, 300])
def test_requests_come_at_the_rate_that_is_asked_for(requests: int) -> None:
    """Lightly loaded, what comes out in a run is what went in, however few the random gaps."""
    row = answer(concurrency="", request_rate="2", num_requests=str(requests), osl="16")
    assert number(row, "tokens_per_s_per_gpu") == pytest.approx(2 * 16, rel=0.03)


def test_a_row_beyond_the_models_context_says_so() -> None:
    assert "longer than the context of llama-3.1-8b, 131,072 tokens" in answer(isl="131072", concurrency="1")["assumptions"]
    assert "context" not in answer()["assumptions"]


def test_a_cache_left_blank_is_narrow_where_a_checkpoint_brings_scales_for_it() -> None:
    job = {"gpu": "H200", "n_gpus": "1", "isl": "64", "osl": "8", "concurrency": "1"}
    rows = [
        job | {"model": model, "stack": stack, "precision": form}
        for model, stack, form in (
            ("llama-3.1-8b", "trt", "fp8"),
            ("llama-3.1-8b", "vllm", "fp8"),
            ("openai/gpt-oss-20b", "trtllm", "mxfp4"),
        )
    ]
    found = [answer["assumptions"] for answer in predict_rows(rows, "serving")]
    assert ["kv_precision fp8" in one for one in found] == [True, False, False]


def test_seldom_columns_are_read() -> None:
    """Each changes the time per token as it would a plan's."""
    lone = {"concurrency": "1", "osl": "128"}
    plain = number(answer(**lone), "tpot_s")
    drafted = number(answer(**lone, speculation="3", acceptance="0.8", draft_share="0.05"), "tpot_s")
    accepted = (1 - 0.8**4) / (1 - 0.8)
    assert drafted == pytest.approx(plain * (1 + 3 * 0.05) / accepted, rel=0.1)
    assert number(answer(**lone, speculation="3", acceptance="0", draft_share="0.05"), "tpot_s") > plain
    assert number(answer(**lone, lora_rank="16"), "tpot_s") > plain
    assert number(answer(**lone, cuda_graphs="false"), "tpot_s") > 1.5 * plain
    assert number(answer(**lone, weight_offload="0.5"), "tpot_s") > 5 * plain


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"speculation": "-1"}, "speculation"),
        ({"speculation": "2", "acceptance": "70"}, "acceptance"),
        ({"speculation": "2", "static_batch": "true"}, "static batch"),
        ({"expert_offload": "true"}, "no experts"),
    ],
)
def test_seldom_columns_that_cannot_be_are_told(changes: dict[str, str], word: str) -> None:
    assert word in answer(**changes)["error"]
