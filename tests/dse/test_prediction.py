"""Batch prediction: rows in, the same rows out with results; what cannot be predicted says why."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from dse.prediction import RESULTS, predict_rows
from tests.dse.conftest import Finished

ROW = {
    "model": "meta-llama/Llama-3.1-70B-Instruct", "seq": "8192", "gpu": "H100", "n_gpus": "64", "tp": "4", "pp": "4",
    "dp": "4", "micro_batch": "1", "global_batch": "128", "recompute": "none", "precision": "bf16", "stack": "megatron",
}  # fmt: skip


def one(**changes: str) -> dict[str, str]:
    """The results of ROW with some cells changed."""
    return predict_rows([{**ROW, **changes}])[0]


def test_a_complete_row_has_every_result() -> None:
    row = one()
    assert row["error"] == ""
    assert 0 < float(row["step_time_s_low"]) <= float(row["step_time_s"]) <= float(row["step_time_s_high"])
    tokens = 128 * 8192 / (float(row["step_time_s"]) * 64)
    assert float(row["tokens_per_s_per_gpu"]) == pytest.approx(tokens, rel=1e-6)
    assert row["fits"] in ("true", "false")
    assert set(RESULTS["training"]) <= row.keys()


def test_rows_columns_and_order_are_kept(dse: Callable[..., Finished], tmp_path: Path) -> None:
    rows = [{"note": str(i), **ROW, "tp": tp} for i, tp in enumerate(["4", "three", "8", "-1", "4"])]
    with (tmp_path / "points.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    done = dse("predict", "points.csv", "-o", "out.csv")
    assert done.code == 0
    with (tmp_path / "out.csv").open(encoding="utf-8") as file:
        reader = csv.DictReader(file)
        answered = list(reader)
    assert list(reader.fieldnames or ()) == [*rows[0], *RESULTS["training"]]
    assert [row["note"] for row in answered] == ["0", "1", "2", "3", "4"]
    assert [bool(row["error"]) for row in answered] == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_gpus": "48"}, "n_gpus = 48 is not tp·pp·dp·cp = 64"),
        ({"dp": "", "n_gpus": "40"}, "not a multiple of tp·pp·cp"),
        ({"gpu": "H101"}, "H100-80GB-SXM"),
        ({"model": "lama"}, "no model is called 'lama'"),
        ({"stack": "megatorn"}, "megatron"),
        ({"global_batch": ""}, "global_batch is blank"),
        ({"global_batch": "126"}, "not a multiple of dp·micro_batch"),
        ({"seq": "nan"}, "seq: expected a finite number"),
        ({"tp": "-4"}, "tp: expected a finite number that is not negative"),
        ({"precision": "bf8"}, "precision: no such value 'bf8'"),
        ({"recompute": "ful"}, "recompute: no such value 'ful'; the nearest is full"),
        ({"ep": "4"}, "has no experts"),
        ({"optimizer": "sgd"}, "optimizer: no such value 'sgd'"),
        ({"vpp": "40"}, "160 chunks"),
    ],
)
def test_a_row_that_cannot_be_predicted_says_why(changes: dict[str, str], said: str) -> None:
    row = one(**changes)
    assert said in row["error"]
    assert row["step_time_s"] == ""


def test_blanks_take_the_values_of_the_contract_and_are_named() -> None:
    row = one(dp="", recompute="", stack="", precision="", micro_batch="", cp="", ep="", vpp="")
    assert row["error"] == ""
    for said in ("dp 4", "stack megatron", "precision bf16", "the lightest that fits"):
        assert said in row["assumptions"]
    assert "stack torchtitan-compile" in one(tp="1", pp="1", dp="", stack="")["assumptions"]


def test_blank_recompute_is_the_lightest_that_fits() -> None:
    small = {"tp": "8", "pp": "8", "dp": "1", "seq": "2048"}
    light = one(recompute="", **small)
    assert (light["fits"], one(recompute="none", **small)["fits"]) == ("true", "true")
    assert "recompute none" in light["assumptions"]
    assert one()["fits"] == "false"
    assert "recompute full" in one(recompute="")["assumptions"]


def test_a_plan_that_does_not_fit_is_still_predicted() -> None:
    row = one(n_gpus="8", tp="1", pp="1", dp="8", zero_stage="0")
    assert (row["error"], row["fits"]) == ("", "false")
    assert float(row["step_time_s"]) > 0


def test_given_dimensions_win_over_the_presets() -> None:
    half = one(layers="40")
    assert float(half["step_time_s"]) < 0.6 * float(one()["step_time_s"])


def test_an_unknown_model_with_complete_dimensions_is_no_error() -> None:
    row = one(model="mine", layers="80", hidden="8192", heads="64", kv_heads="8", ffn="28672", vocab="128256")
    assert row["error"] == ""
    assert float(row["step_time_s"]) == pytest.approx(float(one()["step_time_s"]), rel=1e-6)


def test_a_mixture_of_experts_preset_keeps_its_experts() -> None:
    plan = {"model": "mixtral-8x7b", "seq": "4096", "tp": "2", "pp": "4", "dp": "8", "ep": "8"}
    assert float(one(**plan, ffn="14336")["step_time_s"]) == float(one(**plan)["step_time_s"])


def test_sequence_parallel_suffix_saves_memory() -> None:
    plain, sharded = one(sequence_parallel="false"), one(recompute="none+sp")
    assert float(sharded["peak_memory_bytes"]) < float(plain["peak_memory_bytes"])


def test_expert_parallel_never_enters_the_number_of_devices() -> None:
    row = one(model="mixtral-8x7b", seq="4096", tp="1", pp="1", dp="64", ep="8")
    assert row["error"] == ""


def test_node_and_network_overrides_count() -> None:
    slow, fast = one(nic_GBps="5"), one(nic_GBps="100")
    assert float(slow["step_time_s"]) > float(fast["step_time_s"])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ({"recompute": "Selective +SP"}, {"recompute": "selective+sp"}),
        ({"precision": "BF16"}, {"precision": "bf16"}),
        ({"stack": "Megatron_LM"}, {"stack": "megatron"}),
        ({"optimizer": "AdamW_bf16"}, {"optimizer": "adamw-bf16"}),
        ({"schedule": "ZB-H1"}, {"schedule": "zero_bubble"}),
        ({"tp": "4.0"}, {"tp": "4"}),
        ({"zero_stage": ""}, {"zero_stage": "1"}),
        ({"model": "meta-llama/Llama-3.1-70B-Instruct"}, {"model": "llama-3.1-70b"}),
        ({"gpu": "H100"}, {"gpu": "H100-80GB-SXM"}),
        ({"colour": "green"}, {}),
    ],
    ids=lambda cells: "-".join(cells.values()) or "nothing",
)
def test_spellings_of_one_plan_get_one_answer(written: dict[str, str], meant: dict[str, str]) -> None:
    found, wanted = one(**written), one(**meant)
    assert found["error"] == ""
    assert (found["step_time_s"], found["peak_memory_bytes"]) == (wanted["step_time_s"], wanted["peak_memory_bytes"])


def test_blank_zero_stage_is_the_stacks_own() -> None:
    whole = {"tp": "1", "pp": "1", "dp": ""}
    for stack, stage in (("megatron", "1"), ("torchtitan-compile", "3"), ("llm-foundry", "3")):
        row = one(stack=stack, **whole)
        assert row["peak_memory_bytes"] == one(stack=stack, zero_stage=stage, **whole)["peak_memory_bytes"]


def test_fewer_shards_hold_more_state() -> None:
    plan = {"tp": "1", "pp": "1", "dp": "64", "stack": "torchtitan-compile"}
    held = [float(one(**plan, shard_degree=degree)["peak_memory_bytes"]) for degree in ("8", "16", "64")]
    assert held[0] > held[1] > held[2]


def test_adapters_hold_no_state_of_the_frozen_weights() -> None:
    full, adapters = one(), one(trainable="lora")
    assert float(adapters["peak_memory_bytes"]) < float(full["peak_memory_bytes"])
    assert float(adapters["step_time_s"]) < float(full["step_time_s"])


def test_sixteen_bit_state_is_less_than_fp32_state() -> None:
    """Weights, gradients and moments: 8 bytes a parameter in bf16, 16 in fp32 (one device, no sharding)."""
    plan = {"model": "llama-3.2-1b", "n_gpus": "1", "tp": "1", "pp": "1", "dp": "1", "global_batch": "1", "seq": "128"}
    narrow, wide = (
        float(one(**plan, stack="torch-eager", optimizer=kind)["peak_memory_bytes"]) for kind in ("adamw-bf16", "adamw")
    )
    assert 1.8 < wide / narrow < 2.3


def test_a_graph_of_the_step_waits_for_no_host() -> None:
    plan = {"model": "llama-3.2-1b", "n_gpus": "1", "tp": "1", "pp": "1", "dp": "1", "global_batch": "1", "seq": "128"}
    eager, graph = one(**plan, stack="torch-eager"), one(**plan, stack="torch-graph")
    assert float(graph["step_time_s"]) < float(eager["step_time_s"])
    assert graph["peak_memory_bytes"] == eager["peak_memory_bytes"]
    said = one(**plan, stack="torch-eager", cuda_graph="true")
    assert [said[name] for name in ("step_time_s", "error")] == [graph["step_time_s"], ""]
    assert "cuda_graph" in one(cuda_graph="perhaps")["error"]


def test_embedding_and_head_may_have_chunks_of_their_own() -> None:
    """126 layers in 128 chunks: the first holds the embedding and the last the head, as with --account-for-loss-in-pipeline."""
    plan = {"model": "llama-3.1-405b", "n_gpus": "64", "tp": "4", "pp": "16", "dp": "1", "global_batch": "64", "seq": "8192"}
    plan |= dict.fromkeys(("layers", "hidden", "heads", "kv_heads", "ffn", "vocab"), "")
    apart, together = one(**plan, vpp="8"), one(**plan, vpp="4")
    assert apart["error"] == together["error"] == ""
    assert float(apart["step_time_s"]) == pytest.approx(float(together["step_time_s"]), rel=0.1)
    assert "chunks" in one(**plan, vpp="9")["error"]


def test_rows_alone_and_together_agree() -> None:
    rows = [{**ROW, "micro_batch": m, "stack": s} for m in ("1", "2", "4") for s in ("megatron", "deepspeed")]
    assert predict_rows(rows) == [predict_rows([row])[0] for row in rows]


def test_no_rows_are_no_rows() -> None:
    assert predict_rows([]) == []


KERNELS = [
    {"id": "a", "op": "gemm", "gpu": "H100", "dtype": "bf16", "m": "4096", "n": "8192", "k": "8192"},
    {"id": "b", "op": "gem", "gpu": "H100", "dtype": "bf16", "m": "4096", "n": "8192", "k": "8192"},
    {"id": "c", "op": "all_reduce", "gpu": "H200", "dtype": "bf16", "bytes": "1e9", "ranks": "8", "ranks_per_node": "8"},
    {"id": "d", "op": "gemm", "gpu": "H100", "dtype": "bf16", "m": "", "n": "8192", "k": "8192"},
]


def test_kernels_get_a_time_with_its_interval() -> None:
    rows = predict_rows(KERNELS, "kernel")
    assert [row["id"] for row in rows] == ["a", "b", "c", "d"]
    for row in (rows[0], rows[2]):
        assert row["error"] == ""
        assert 0 < float(row["time_s_low"]) <= float(row["time_s"]) <= float(row["time_s_high"])
        assert row["evidence"]
    assert 2 * 4096 * 8192 * 8192 / float(rows[0]["time_s"]) < 989.4e12
    for row, said in ((rows[1], "gem"), (rows[3], "m is missing")):
        assert said in row["error"]
        assert (row["time_s"], row["evidence"]) == ("", "")


def test_a_file_of_kernels_keeps_its_columns_and_order(dse: Callable[..., Finished], tmp_path: Path) -> None:
    headings = list(dict.fromkeys(name for row in KERNELS for name in row))
    with (tmp_path / "points.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, headings, restval="")
        writer.writeheader()
        writer.writerows(KERNELS)
    done = dse("predict", "points.csv", "-o", "out.csv", "--kind", "kernel")
    assert (done.code, "2 of 4 rows predicted" in done.out) == (0, True)
    with (tmp_path / "out.csv").open(encoding="utf-8") as file:
        reader = csv.DictReader(file)
        answered = list(reader)
    assert list(reader.fieldnames or ()) == [*headings, *RESULTS["kernel"]]
    assert [row["id"] for row in answered] == ["a", "b", "c", "d"]
    assert [row["m"] for row in answered] == ["4096", "4096", "", ""]


def test_no_kernels_are_no_rows() -> None:
    assert predict_rows([], "kernel") == []


def test_an_unknown_kind_is_refused(dse: Callable[..., Finished], tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("model\nx\n", encoding="utf-8")
    done = dse("predict", "points.csv", "-o", "out.csv", "--kind", "trainin")
    assert done.code == 1
    assert "choose one of training, serving, kernel" in done.err


def test_a_file_that_is_no_text_is_named(dse: Callable[..., Finished], tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_bytes(bytes(range(256)))
    done = dse("predict", tmp_path / "points.csv", "-o", tmp_path / "out.csv")
    assert done.code == 1
    assert "points.csv: not a text file" in done.err
    assert not (tmp_path / "out.csv").exists()


def test_the_file_of_points_is_not_overwritten(dse: Callable[..., Finished], tmp_path: Path) -> None:
    points = tmp_path / "points.csv"
    points.write_text("model,seq\nllama-3.1-8b,8192\n", encoding="utf-8")
    before = points.read_bytes()
    done = dse("predict", points, "-o", tmp_path / "." / "points.csv")
    assert done.code == 1
    assert "give another one" in done.err
    assert points.read_bytes() == before


def test_a_column_nearly_named_as_one_that_is_sought_is_pointed_out(dse: Callable[..., Finished], tmp_path: Path) -> None:
    row = "model,gpu,n_gpu,note,seq,micro_batch\nllama-3.1-8b,H100,8,mine,4096,1\n"
    (tmp_path / "points.csv").write_text(row, encoding="utf-8")
    said = dse("predict", "points.csv", "-o", "out.csv").out
    assert "column 'n_gpu' was not read: did you mean 'n_gpus'?" in said
    assert "'note'" not in said


def test_results_need_a_folder_before_anything_is_computed(dse: Callable[..., Finished], tmp_path: Path) -> None:
    (tmp_path / "points.csv").write_text("model\nllama-3.1-8b\n", encoding="utf-8")
    answer = dse("predict", "points.csv", "-o", "nowhere/out.csv")
    assert (answer.code, "no folder nowhere" in answer.err) == (1, True)
