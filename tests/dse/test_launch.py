"""Launch files say the plan: every degree that a run chose is in the text, and nothing of theirs is overwritten."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from dse.experiment import load
from dse.launch import sglang, vllm
from dse.launch.registry import CannotLaunch, launch_text
from dse.runner import run
from tests.dse.conftest import Finished

Run = Callable[..., Finished]


def options(script: str) -> dict[str, str]:
    """Options of a shell script and their values ("" for a flag)."""
    joined = script.replace("\\\n", " ")
    return dict(re.findall(r"(--[\w-]+)(?: (?!--)([^\s\\]+))?", joined))


def test_megatron_is_told_every_choice_of_the_plan(dse: Run, small: Path, tmp_path: Path) -> None:
    answer = run(small, out=tmp_path / "a", overrides=["space={tensor: 2, pipeline: 2, virtual: 2, zero_stage: 1}"])
    done = dse("export", tmp_path / "a", "--to", "megatron")
    assert done.code == 0
    path = Path(done.out.strip())
    said, plan = options(path.read_text(encoding="utf-8")), answer.front[0].plan
    assert int(said["--tensor-model-parallel-size"]) == plan["tensor"] == 2
    assert int(said["--pipeline-model-parallel-size"]) == plan["pipeline"] == 2
    assert int(said["--num-virtual-stages-per-pipeline-rank"]) == plan["virtual"] == 2
    assert int(said["--micro-batch-size"]) == plan["micro_batch"]
    assert int(said["--global-batch-size"]) == 32
    assert "--use-distributed-optimizer" in said
    assert ("--sequence-parallel" in said) == bool(plan["sequence_parallel"])
    assert (int(said["--nnodes"]) * int(said["--nproc-per-node"])) == plan["devices"]
    assert int(said["--num-query-groups"]) == 8


def test_torchtitan_degrees_multiply_to_the_devices(dse: Run, small: Path, tmp_path: Path) -> None:
    run(small, out=tmp_path / "a", overrides=["stack=torchtitan-compile", "space={tensor: [1, 2], pipeline: 1}"])
    done = dse("export", tmp_path / "a", "--to", "torchtitan")
    assert done.code == 0
    config = tomllib.loads(Path(done.out.strip()).read_text(encoding="utf-8"))
    degrees = config["parallelism"]
    product = 1
    for name in ("data_parallel_replicate", "data_parallel_shard", "tensor_parallel", "context_parallel", "pipeline_parallel"):
        product *= degrees[f"{name}_degree"]
    assert product == 8
    assert config["training"]["global_batch_size"] == 32
    assert config["model"] == {"name": "llama3", "flavor": "8B"}


def test_a_launch_file_that_was_changed_is_not_overwritten(dse: Run, small: Path, tmp_path: Path) -> None:
    run(small, out=tmp_path / "a")
    path = Path(dse("export", tmp_path / "a", "--to", "megatron").out.strip())
    assert dse("export", tmp_path / "a", "--to", "megatron").code == 0
    path.write_text("mine", encoding="utf-8")
    done = dse("export", tmp_path / "a", "--to", "megatron")
    assert done.code == 1
    assert "not overwritten" in done.err
    assert path.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(("to", "wanted"), [("megatrn", "megatron"), ("optunna", "optuna"), ("vllm", "torchtitan")])
def test_a_framework_that_cannot_run_it_names_those_that_can(
    to: str, wanted: str, dse: Run, small: Path, tmp_path: Path
) -> None:
    run(small, out=tmp_path / "a")
    done = dse("export", tmp_path / "a", "--to", to)
    assert done.code == 1
    assert wanted in done.err


def test_a_schedule_that_megatron_lacks_is_refused(small: Path, tmp_path: Path) -> None:
    answer = run(small, out=tmp_path / "a", overrides=["space={pipeline: 2}"]).front[0]
    changed = dataclasses.replace(answer, plan={**answer.plan, "schedule": "dualpipe"})
    with pytest.raises(CannotLaunch, match="dualpipe"):
        launch_text(load(small), changed, "megatron")


SERVING = """\
kind: serving
model: llama-3.1-8b
hardware: {device: H100, devices: 2}
workload: {input_tokens: 1000, output_tokens: 100, request_rate: 6 /s}
stack: vllm
space: {speculation: [0, 3]}
draft: {model: llama-3.2-1b}
adapters: {rank: 16, count: 4}
"""
PLAN = {
    "mode": "aggregated",
    "devices": 2,
    "tensor": 2,
    "pipeline": 1,
    "data": 1,
    "attention_data": 1,
    "expert": 1,
    "expert_tensor": 1,
    "max_batch": 64,
    "token_budget": 2048,
    "kv_fraction": 0.9,
    "precision": "bf16",
    "kv_precision": "bf16",
    "cuda_graphs": 1,
}


def test_vllm_is_told_of_drafts_adapters_eager_steps_and_weights_on_the_host(tmp_path: Path) -> None:
    path = tmp_path / "asked.yaml"
    path.write_text(SERVING, encoding="utf-8")
    experiment = load(path)
    text = vllm.write(experiment, {**PLAN, "speculation": 3, "weight_offload": 0.5, "cuda_graphs": 0})
    said = options(text)
    assert "meta-llama/Llama-3.2-1B" in text
    assert '"num_speculative_tokens": 3' in text
    assert (said["--max-lora-rank"], said["--max-loras"]) == ("16", "4")
    assert "--enforce-eager" in said
    assert int(said["--cpu-offload-gb"]) == 4  # half of 7.0e9 parameters' 2 bytes over two devices, in whole GiB
    assert "--cpu-offload-gb" not in options(vllm.write(experiment, {**PLAN, "speculation": 0}))


@pytest.mark.parametrize("choice", ["expert_offload", "kv_offload", "weight_offload", "speculation"])
def test_what_a_framework_cannot_be_told_is_refused(choice: str, tmp_path: Path) -> None:
    path = tmp_path / "asked.yaml"
    path.write_text(SERVING, encoding="utf-8")
    with pytest.raises(CannotLaunch, match=f"without {choice}"):
        sglang.write(load(path), {**PLAN, choice: 1})
