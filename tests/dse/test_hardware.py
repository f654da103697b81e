"""Hardware experiments from the file to the answer, and what is wrong with bad ones."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import dse
from dse.experiment import ExperimentError, load
from dse.kinds.hardware.explanation import Explanation, sentence
from dse.runner import answer_to
from search.sensitivity import BreakEven

WORK = {
    "name": "train", "kind": "training", "model": "llama-3.2-1b", "devices": 16, "stack": "megatron",
    "workload": {"sequence": 2048, "global_batch": 32},
    "space": {"zero_stage": 1, "micro_batch": 1, "context": 1, "recompute": "none", "offload": "none", "pipeline": 1,
              "tensor": [1, 2]},
}  # fmt: skip
SERVE = {
    "name": "serve", "kind": "serving", "model": "llama-3.2-1b", "devices": 1, "stack": "vllm",
    "workload": {"input_tokens": 500, "output_tokens": 100, "concurrency": 16},
    "space": {"max_batch": 16, "token_budget": 2048},
}  # fmt: skip
QUESTION: dict[str, Any] = {
    "kind": "hardware",
    "base": "H100",
    "design": {"memory_stacks": [4, 6], "clock": {"from": "1.4 GHz", "to": "1.8 GHz", "steps": 2}, "process": ["N4", "N3"]},
    "workloads": [WORK],
    "objectives": ["performance_per_dollar", "performance_per_watt", "capital"],
}


def asked(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(QUESTION), **changes}


def test_every_design_is_accounted_for_and_its_parts_add_up() -> None:
    run = answer_to(load(asked()))
    assert run.certificate["space"] == 8
    assert run.certificate["complete"]
    for answer in run.front:
        for metric in ("capital", "die_area", "design_power", "hourly_price"):
            assert sum(answer.parts[metric].values()) == pytest.approx(answer.figures[metric].value), metric


def test_the_base_scores_one_against_itself() -> None:
    run = answer_to(load(asked(design={"memory_stacks": [5]})))
    scores = run.front[0].figures
    for name in ("performance", "performance_per_dollar", "performance_per_watt", "latency"):
        assert scores[name].value == pytest.approx(1.0), name


def test_training_and_serving_together_weigh_as_their_geometric_mean() -> None:
    design = {"stack_bandwidth": ["500 GB/s", "1 TB/s"]}
    both, train, serve = (
        answer_to(load(asked(design=design, workloads=work, objectives=["performance"]))).front[0].figures["performance"].value
        for work in ([WORK, SERVE], [WORK], [SERVE])
    )
    assert both == pytest.approx(np.sqrt(train * serve))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base": "H1OO"}, "base: no accelerator is called 'H1OO'"),
        ({"design": {"memory_stack": 4}}, "no parameter 'memory_stack'.*memory_stacks"),
        ({"design": {"l2_bytes": "-3 MB"}}, "l2_bytes.*must be a number from 0"),
        ({"design": {"process": ["N1"]}}, "there is no 'N1'"),
        ({"design": {"clock": {"from": "2 GHz", "to": "1 GHz", "steps": 3}}}, "a range goes up"),
        ({"design": {"scale_up_topology": "torus", "scale_up_domain": [8, 13]}}, "torus cannot connect 13 devices"),
        ({"formulas": {"a": {"formula": "b", "unit": ""}, "b": {"formula": "a", "unit": ""}}}, "in a circle: a -> b -> a"),
        ({"formulas": {"device.memory_bandwidth": {"formula": "stack_bandwidth * memory_stacks"}}}, "has no unit"),
        ({"formulas": {"spare": {"formula": "memory_stacks * clock", "unit": "B/s"}}}, "declared in B/s"),
        ({"formulas": {"device.memory_bandwith": {"formula": "memory_stacks * stack_bandwidth", "unit": "B/s"}}},
         "formulas.device.memory_bandwith: is read by no model .*nearest are device.memory_bandwidth"),
        ({"formulas": {"memory_stacks": {"formula": "cores / 20", "unit": ""}}}, "formulas.memory_stacks: is a parameter"),
        ({"formulas": {"device.power": {"formula": "power * 9 ** 9 ** 9", "unit": "W"}}}, "formulas.device.power: .*gives inf"),
        ({"formulas": {"device.power": "power / 2"}}, "formulas.device.power: expected a mapping of formula, unit"),
        ({"formulas": {"device.memory_bandwidth": {"formula": "stack_bandwidth * 0", "unit": "B/s"}}},
         "formulas.device.memory_bandwidth: memory_bandwidth comes out at 0"),
        ({"formulas": {"device.domain": {"formula": "scale_up_domain / 3", "unit": ""}}},
         "formulas.device.domain: domain comes out at 2.66667 .*whole number"),
        ({"design": {"memory_stacks": [0, 5]}}, "memory_capacity comes out at 0 .*memory_stacks 0"),
        ({"design": {"power": ["20 W", "30 W"]}}, "design.power: the power caps leave no clock: the silicon draws 8"),
        ({"design": {"cores": 400}}, "no design can be made: its dies are 2,.* mm² or more, and a reticle exposes 858"),
        ({"design": {"scale_up_topology": "none"}}, "design.scale_up_topology: none cannot connect 8 .*1 would do"),
        ({"design": {"clock": {"from": "1 GHz", "to": "2 GHz", "steps": 10**8}}}, "100,000,000 steps .* too many"),
        ({"design": {"memory_stacks": "six"}}, "memory_stacks: expected a plain number, got 'six'"),
        ({"constraints": ["die_area <= 700 W"]}, "die_area: expected a number of mm², such as '100 mm2', got '700 W'"),
        ({"constraints": ["capital <= 7 kW"]}, "capital: '7 kW': expected a quantity in USD, but kW"),
        ({"workloads": [{**SERVE, "space": {"max_batchs": 16}}]}, "space.max_batchs: no axis .*nearest is max_batch"),
        ({"workloads": [{**SERVE, "space": {"max_batch": -16}}]}, "space.max_batch: expected a whole number from 1"),
        ({"workloads": [{**SERVE, "space": {"max_batch": []}}]}, "workloads.0.space.max_batch: an empty list leaves nothing"),
        ({"workloads": [{**SERVE, "limits": {"tpot": "-5 ms"}}]}, "workloads.0.limits.tpot: a limit must be a positive"),
        ({"formulas": {"device.memory_bandwidth": {"formula": "(memory_stacks - 5) * stack_bandwidth", "unit": "B/s"}}},
         "formula of device.memory_bandwidth gives -6.7e.11 for clock 1.4e.09, memory_stacks 4"),
        ({"workloads": []}, "workloads: expected a list of at least one, got an empty list; for example workloads"),
        ({"workloads": [{**WORK, "kind": "tranning"}]}, "workloads.0.kind: there is no kind 'tranning'; .*training"),
        ({"workloads": [{k: v for k, v in WORK.items() if k != "kind"}]}, "workloads.0.kind: is missing; for example kind:"),
        ({"workloads": [{**WORK, "devices": -8}]}, "workloads.0.devices: expected a whole number"),
        ({"workloads": [{**WORK, "devices": 7}]}, "workloads.0: no legal plan; devices not divisible by"),
        ({"objectives": []}, "objectives: an empty list asks for nothing"),
        ({"design": {}}, "expected parameters with their values, got an empty mapping"),
        ({"workloads": [WORK, WORK]}, "train is a workload already"),
        ({"workloads": [{**SERVE, "limits": {"tpott": 1}}]}, "no limit is called 'tpott'"),
        ({"constraints": ["die_area <= 100"]}, "is met by no design; designs range from"),
    ],
)  # fmt: skip
def test_bad_files_are_told_in_words(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ExperimentError, match=words):
        load(asked(**changes))


def test_a_limit_may_be_written_in_the_unit_that_the_report_shows() -> None:
    held = load(asked(constraints=["die_area <= 1700 mm2", "die_area <= 1700 mm²", "embodied_carbon <= 900 kg CO2e"]))
    assert [limit.value for limit in held.limits] == [1700, 1700, 900]


def test_a_design_whose_cap_leaves_no_clock_is_ruled_out_and_others_are_not() -> None:
    run = answer_to(load(asked(design={"power": ["20 W", "700 W"]}, objectives=["capital"])))
    assert run.certificate["pruned"] == {"static_power": 1}
    assert [answer.plan["power"] for answer in run.front] == [700]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"limits": {"tpot": "1 ns"}}, "None keeps serve: tpot."),
        ({"model": "llama-3.1-70b"}, "None keeps serve: memory."),
        ({"models": 10**6}, "None keeps serve: far_memory."),
    ],
)
def test_what_a_workload_cannot_keep_is_named(changes: dict[str, Any], told: str) -> None:
    run = answer_to(load(asked(design={"memory_stacks": [4, 5]}, workloads=[{**SERVE, **changes}])))
    assert told in str(run)


def test_the_smallest_conflicting_set_is_named() -> None:
    """Area wants N3, the price of a device wants N4 or few stacks: either alone holds somewhere, together nowhere."""
    free = dse.run(asked(design={"cores": [80, 132], "memory_stacks": [3, 6]}, objectives=["capital", "die_area"]))
    areas = [a.figures["die_area"].value for a in free.front]
    with pytest.raises(ExperimentError, match=r"die_area <= .* and die_area >= .* are met together by no design"):
        load(asked(design={"cores": [80, 132]}, constraints=[
            f"die_area <= {min(areas) * 1.2:.0f}", "capital <= 1000000 USD", f"die_area >= {min(areas) * 1.21:.0f}",
        ]))  # fmt: skip


def test_constraints_on_what_only_plans_tell_are_named_when_nothing_fits() -> None:
    """Either limit is kept by some design; both by none, and a third that all keep is not blamed."""
    design = {"stack_bandwidth": ["400 GB/s", "670 GB/s"], "memory_stacks": [4, 5]}
    free = answer_to(load(asked(design=design, objectives=["performance", "capital"])))
    figures = [(a.figures["performance"].value, a.figures["capital"].value) for a in free.front]
    best, least = max(p for p, _ in figures), min(c for _, c in figures)
    limits = [f"performance >= {best * 0.999}", "die_area <= 2000", f"capital <= {least * 1.001} USD"]
    told = answer_to(load(asked(design=design, constraints=limits)))
    assert not told.front
    conflict = told.certificate["conflict"]
    assert len(conflict) == 2
    assert "performance >=" in conflict[0]
    assert "capital <=" in conflict[1]
    assert "together; without any one of them some do" in str(told)
    alone = answer_to(load(asked(design=design, constraints=["performance >= 50"])))
    assert "None keeps performance >= 50" in str(alone)


def test_a_formula_of_the_file_changes_the_machine() -> None:
    halved = {"device.memory_bandwidth": {"formula": "memory_stacks * stack_bandwidth / 2", "unit": "B/s"}}
    run = dse.run(asked(design={"memory_stacks": [5]}, formulas=halved))
    assert run.front[0].figures["performance"].value < 0.99


def test_explain_says_what_the_answer_leans_on() -> None:
    question = asked(design={"memory_stacks": [5, 6]})
    told = dse.explain(question, plan="memory_stacks=5")
    text = str(told)
    assert "Next bottleneck of performance: " in text
    for label in (r"performance +1\.000 .* × base", r"train: throughput a device .* tokens/s", r"train: energy a token .* J"):
        assert re.search(label, text), label
    assert re.search(r"cores cannot grow to \d+: such a package cannot be made or powered", text)
    assert "tp" in text
    by = {(e.parameter, e.metric): e for e in told.elasticities}  # type: ignore[attr-defined]
    assert by["clock", "performance"].up >= -1e-9
    assert by["memory_stacks", "capital"].up > 0


def test_a_break_even_reads_as_a_sentence() -> None:
    even = BreakEven(parameter="stack_bandwidth", metric="performance", value=6.1e12, other="scale_up_domain", at=16.0)
    assert sentence(even) == "stack_bandwidth beyond 6.10 TB/s buys nothing until scale_up_domain grows to 16"


def test_what_every_front_member_leans_on_is_in_the_folder_and_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dse.kinds.hardware.explanation.RESOURCES", ("nic_bandwidth",))  # fewer neighbours, sooner done
    question = asked(design={"memory_stacks": [4, 6]}, objectives=["performance", "capital"])
    run = dse.run(question, tmp_path / "run")
    held = json.loads((tmp_path / "run" / "sensitivity.json").read_text())
    assert held["front"] == held["with_elasticities"] == len(held["members"]) == len(run.front)
    assert held["with_break_evens"] >= 1
    page = (tmp_path / "run" / "report.html").read_text()
    told, last = dse.explain(tmp_path / "run", rank=len(run.front)), held["members"][-1]
    assert isinstance(told, Explanation)
    for e in told.elasticities:
        assert last["elasticities"][e.metric][e.parameter] == pytest.approx({"up": e.up, "down": e.down})
    assert last["next_bottleneck"]["performance"] == told.bottleneck
    assert [even["said"] for even in last["break_evens"]] == [sentence(even) for even in told.break_evens]
    assert all(even["said"] in page for member in held["members"] for even in member["break_evens"])
    assert dse.read(tmp_path / "run").sensitivity == held


def test_one_of_many_models_waits_for_the_tier_that_holds_them() -> None:
    links = {"host_link_bandwidth": ["16 GB/s", "64 GB/s"], "host_memory": "2 TB"}
    serve = [{**SERVE, "models": 200}]
    latencies = {
        name: [a.figures["latency"].value for a in answer_to(load(asked(design=links, workloads=work))).top["capital"]]
        for name, work in (("one", [SERVE]), ("many", serve))
    }
    assert max(latencies["one"]) == pytest.approx(min(latencies["one"]), rel=1e-3)  # a wider link takes a little power
    assert max(latencies["many"]) > 1.2 * min(latencies["many"])


def test_a_setting_reaches_into_lists_by_place() -> None:
    held = load(asked(), ["workloads.0.model=llama-3.1-8b", "objectives.2=die_area", "workloads.0.workload.sequence=4096"])
    assert held.job.workloads[0].architecture.name == "llama-3.1-8b"
    assert held.job.workloads[0].fixed["sequence"] == 4096
    assert [objective.metric for objective in held.objectives] == ["performance_per_dollar", "performance_per_watt", "die_area"]


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("design.clock.0=3", "from --set design.clock.0=3: design.clock.0: clock .*must be a number from"),
        ("design.clock.1=fast", "from --set design.clock.1=fast: design.clock.1: clock"),
        ("design.clocks=3", "from --set design.clocks=3: design.clocks: an accelerator has no parameter 'clocks'"),
        ("model.x.y=3", "from --set model.x.y=3: model: a hardware experiment has no model of its own"),
        ("workloads.0.devices=7", "with --set workloads.0.devices=7: workloads.0: no legal plan"),
        ("formulas.device.power.formula=clock", "formula=clock: formulas.device.power: is declared in W"),
        ('formulas."device.new".formula=clock', "from --set .*formula=clock: formulas.device.new: .*no unit"),
    ],
)  # fmt: skip
def test_a_fault_that_a_setting_brought_names_the_setting(setting: str, told: str, tmp_path: Path) -> None:
    file = tmp_path / "asked.yaml"
    power = {"device.power": {"formula": "power", "unit": "W"}}
    file.write_text(yaml.safe_dump(asked(design={"clock": ["1.4 GHz", "1.8 GHz"]}, formulas=power)))
    with pytest.raises(ExperimentError, match=told):
        load(file, [setting])


def test_a_setting_finds_a_key_that_has_dots() -> None:
    power = {"device.power": {"formula": "power", "unit": "W"}}
    halved = load(asked(formulas=power), ["formulas.device.power.formula=power / 2"]).job
    assert halved.base.columns({}, halved.formulas)["device.power"] == halved.base.values["power"] / 2


@pytest.mark.parametrize("key", ["workloads.1.devices", "workloads.train.devices", "workloads.-1.devices"])
def test_a_setting_beyond_a_list_is_told_which_places_there_are(key: str) -> None:
    told = rf"from --set {key}=8: {key}: workloads is a list of 1: .*workloads.0 to workloads.0"
    with pytest.raises(ExperimentError, match=told):
        load(asked(), [f"{key}=8"])
