"""Every bad input is told in one paragraph with its place, its key and what would work; nothing raises through."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.dse.conftest import SMALL, Finished

Run = Callable[..., Finished]
Write = Callable[[str], Path]

CASES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "unknown model": ("model: llama-3.1-8b", "model: llama-3.1-9b", ("yaml:3: model: ", "llama-3.1-8b")),
    "unknown device": ("device: H100", "device: H101", ("yaml:4: hardware.device: ", "H100-80GB-SXM")),
    "unknown stack": ("stack: megatron", "stack: megatorn", ("yaml:6: stack: ", "megatron")),
    "unknown objective": ("[step_time, memory]", "[step_time, memry]", ("yaml:8: objectives.1: ", "memory")),
    "unknown key": ("stack: megatron", "stack: megatron\nsearhc: {}", ("yaml:7: searhc: unknown key", "search")),
    "unknown axis": ("context: 1", "contxt: 1", ("space.contxt: unknown key", "context")),
    "unknown axis value": ("[none, full]", "[none, ful]", ("space.recompute.1: ", "full")),
    "unknown precision": ("stack: megatron", "stack: megatron\nprecision: bf8", ("yaml:7: precision: ", "bf16")),
    "unknown kind": ("kind: training", "kind: trainin", ("yaml:1: kind: ", "training")),
    "not a number": ("devices: 8", "devices: .nan", ("yaml:4: hardware.devices: ", "nan")),
    "infinite": ("global_batch: 32", "global_batch: .inf", ("yaml:5: workload.global_batch: ", "inf")),
    "negative": ("sequence: 4096", "sequence: -4096", ("yaml:5: workload.sequence: ", "-4096")),
    "zero devices": ("devices: 8", "devices: 0", ("yaml:4: hardware.devices: expected a whole number from 1", "0")),
    "fraction": ("global_batch: 32", "global_batch: 1.5", ("yaml:5: workload.global_batch: ", "1.5")),
    "negative quantity": ("devices: 8}", "devices: 8, nic: -5 GB/s}", ("hardware.nic: ", "positive")),
    "wrong unit": ("devices: 8}", "devices: 8, nic: 5 GiB}", ("hardware.nic: ", "GiB")),
    "impossible cluster": ("devices: 8", "devices: 12", ("yaml:4: hardware.devices: ", "12 devices do not fill", "8")),
    "duplicate key": ("stack: megatron", "stack: megatron\nstack: deepspeed", ("yaml:7: stack: duplicate key", "line 6")),
    "exponent read as text": ("global_batch: 32", "global_batch: 1e3", ("yaml:5: ", "reads 1e3 as text", "write 1000")),
    "no read as false": ("[none, full]", "[no, full]", ("space.recompute.0: ", "reads no as false")),
    "base sixty": ("sequence: 4096", "sequence: 12:30", ("yaml:5: workload.sequence: ", "base 60", "quote it")),
    "empty list": ("context: 1", "context: []", ("space.context: an empty list",)),
    "missing key": ("stack: megatron\n", "", ("stack: is missing", "stack: megatron")),
    "constraint on nothing": ("stack: megatron", 'stack: megatron\nconstraints: ["speed <= 3"]', ("constraints: ", "speed")),
    "tokens needed": ("[step_time, memory]", "[training_days]", ("objectives.0: ", "workload.tokens")),
    "reliability needed": ("[step_time, memory]", "[effective_tokens_per_second]", ("objectives.0: ", "reliability")),
    "baseline that does not multiply": ("stack: megatron", "stack: megatron\nbaseline: {tensor: 3}", ("baseline: ", "3", "8")),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_told_with_its_place_and_what_would_work(case: str, dse: Run, write: Write) -> None:
    good, bad, wanted = CASES[case]
    assert good in SMALL
    done = dse("run", write(SMALL.replace(good, bad, 1)))
    assert done.code == 1
    assert done.out == ""
    for text in wanted:
        assert text in done.err
    assert "Traceback" not in done.err
    assert "\n\n" not in done.err.strip()


def test_every_fault_is_told_at_once(dse: Run, write: Write) -> None:
    text = SMALL.replace("llama-3.1-8b", "lama").replace("H100", "H101").replace("memory]", "memry]").replace("4096", "-1")
    done = dse("run", write(text), "--set", "stack=megatorn")
    keys = ("model:", "hardware.device:", "workload.sequence:", "stack:", "objectives.1:")
    assert [key for key in keys if key not in done.err] == []
    assert "from --set stack=megatorn: stack:" in done.err


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words\n", "", "42\n"])
def test_yaml_that_is_not_a_mapping(text: str, dse: Run, write: Write) -> None:
    done = dse("run", write(text))
    assert done.code == 1
    assert "expected a mapping" in done.err


def test_yaml_that_is_not_yaml_names_the_line(dse: Run, write: Write) -> None:
    done = dse("run", write("kind: training\nmodel: [a\n"))
    assert done.code == 1
    assert "experiment.yaml:3: not valid YAML" in done.err


def test_an_alias_that_contains_itself_is_told(dse: Run, write: Write) -> None:
    done = dse("run", write("kind: &a {model: *a}\n"))
    assert done.code == 1
    assert "contains itself" in done.err


def test_a_file_that_does_not_exist(dse: Run) -> None:
    done = dse("run", "nowhere.yaml")
    assert (done.code, done.err) == (1, "dse: nowhere.yaml: No such file or directory\n")


@pytest.mark.parametrize("arguments", [["rum"], ["run"], ["run", "x.yaml", "--nonsense"], ["predict", "x.csv"], ["explain"]])
def test_usage_errors_exit_with_one(arguments: list[str], dse: Run) -> None:
    done = dse(*arguments)
    assert done.code == 1
    assert done.err.startswith("dse: ")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("setting", ["hardware.devices", "=3", "hardware.devices=[1", "kind.deeper=3"])
def test_a_setting_that_cannot_be_applied_says_it_came_from_set(setting: str, dse: Run, small: Path) -> None:
    done = dse("run", small, "--set", setting)
    assert done.code == 1
    assert f"from --set {setting}" in done.err


def test_debug_shows_the_traceback(dse: Run) -> None:
    assert "Traceback" in dse("run", "nowhere.yaml", "--debug").err


def test_a_space_with_no_feasible_plan_names_the_closest_and_what_it_lacks(dse: Run, small: Path) -> None:
    done = dse("run", small, "--set", "hardware.device={like: H100, memory_capacity: 8 GB, name: tiny}")
    assert done.code == 2
    assert "No plan is feasible. None keeps memory. The closest:" in done.out
    assert "GiB needed, 7.451 GiB allowed" in done.out
    assert "% over" in done.out


def test_a_constraint_nothing_meets_names_it(dse: Run, small: Path) -> None:
    done = dse("run", small, "--set", "constraints={step_time: 1 ms}")
    assert done.code == 2
    assert "step time: " in done.out
    assert "0.001000 s allowed" in done.out


def test_a_baseline_that_structure_rules_out_says_which_rule(dse: Run, small: Path) -> None:
    done = dse("run", small, "--set", "baseline={tensor: 1, pipeline: 8, virtual: 3}")
    assert done.code == 1
    assert "baseline: no legal plan" in done.err
