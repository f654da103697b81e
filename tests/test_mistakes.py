"""Mistakes seen in tools nearby, one test each, and the proof that each test fails when its mistake is put back.

Every check is a plain function, so that `mutations.py` can run it with the mistake in place. Where the same mistake is also
held off closer to the code, the tests are:

    pipeline bubble                    costmodels/test_schedule.py
    tensor parallelism across nodes    costmodels/test_collectives.py: test_tensor_parallel_across_nodes_is_not_charged_as…
    latency by group size              costmodels/test_collectives.py: test_latency_grows_with_the_group
    optimizer sharding                 costmodels/test_model_state.py: test_optimizer_sharding_follows_the_data_ranks
    memory first, one bad point,       search/test_exact.py: test_memory_is_tested_before_any_time_is_computed,
    no point twice, objectives         test_one_bad_point_does_not_end_the_search, test_no_point_is_evaluated_twice, …
    global batch, all the chips        spaces/test_training_space.py, dse/test_runs.py
    gigabytes and gibibytes            spaces/test_units.py, spaces/test_hardware.py
    a saved experiment re-runs         dse/test_runs.py: test_a_saved_experiment_runs_again_to_the_same_front
    calibration and held-out rows      costmodels/test_published.py
"""

from __future__ import annotations

import csv
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mutations import MUTATIONS
from training_points import OLD, TINY, evaluate, one, plans, problem, step

from costmodels import block_table, training
from costmodels.calibration import checks
from costmodels.comparison import error_statistics, median_of_source_medians
from costmodels.constants import find_stack
from costmodels.data_parallel import data_parallel_time
from costmodels.measurements import BadMeasurements
from costmodels.measurements import read as read_measurements
from costmodels.metrics import Metrics
from costmodels.published import best_rows, read_facts
from costmodels.training import TrainingModel
from search.exact import search
from search.front import Objective
from spaces.architecture import find
from spaces.columns import Columns
from spaces.hardware import find_device
from spaces.plan import Recompute
from spaces.problem import Problem
from spaces.space import Axis, Space
from spaces.training import training_space
from spaces.units import quantity

TIME = Objective(name="step_time", metric="step_time")
MEMORY = Objective(name="memory", metric="memory")


# ---- training -----------------------------------------------------------------------------------------------------------


def check_embedding_and_head_are_counted() -> None:
    """Twice the vocabulary of an 8B model: another 1.05 billion parameters and another head's FLOPs."""
    model = find("llama-3.1-8b")
    wider = model.with_dimensions(vocab=2 * model.vocab)
    small, large = (evaluate(problem(a, optimizer="adamw-bf16"), {}) for a in (model, wider))
    table = model.vocab * model.hidden
    assert large.parts["memory"]["weights"] - small.parts["memory"]["weights"] == pytest.approx(2 * 2 * table)
    flops = [one(m, "model_flops_per_device") * one(m, "step_time") for m in (small, large)]
    assert flops[1] - flops[0] == pytest.approx(3 * 2 * table * 64 * 2048)
    assert flops[0] > 3 * 2 * find("llama-3.1-8b").layers * 64 * 2048 * model.hidden * 3 * model.ffn
    assert one(large, "step_time") > 1.05 * one(small, "step_time")


def check_a_pipeline_fills_and_drains() -> None:
    """One microbatch passes the stages one after the other, so eight of them are no faster than one device."""
    asked = problem(TINY, global_batch=1, device__domain=64)
    alone, piped = evaluate(asked, {}), evaluate(asked, {"pipeline": 8})
    busy = ("gemm", "attention", "pointwise")
    assert sum(one_part(alone, name) for name in busy) <= pipeline_seconds(piped)
    few, many = (evaluate(problem(TINY, global_batch=b), {"pipeline": 8}) for b in (8, 64))
    assert one_part(few, "bubble") / one(few, "step_time") > 3 * one_part(many, "bubble") / one(many, "step_time")


def one_part(metrics: Metrics, name: str, of: str = "step_time") -> float:
    return float(metrics.parts[of][name][0])


def pipeline_seconds(metrics: Metrics) -> float:
    late = ("data_parallel_communication", "accumulation", "optimizer", "step_overhead")
    return one(metrics, "step_time") - sum(one_part(metrics, name) for name in late)


def check_tensor_parallelism_across_nodes_pays_the_network() -> None:
    """Two tensor ranks on two nodes against two in one domain, and sixteen on two nodes against sixteen in one."""
    for tensor, domains, least in ((2, (8, 1), 4.0), (16, (16, 8), 1.05)):
        within, across = (
            one_part(evaluate(problem(OLD, device__domain=domain), {"tensor": tensor}), "tensor_communication")
            for domain in domains
        )
        assert across > least * within


def check_latency_grows_with_the_group() -> None:
    """Reducing next to nothing: sixty-four ranks of one domain take far longer than four."""
    seconds = []
    for ranks in (4, 64):
        asked = problem(TINY, device__domain=64)
        at = asked.at(plans({"data": ranks}))
        seconds.append(float(data_parallel_time(at, np.array([1e3]), np.array([0.0]), 1.0).reduce[0]))
    assert seconds[1] > 2 * seconds[0]


def check_recomputation_is_one_more_forward_pass() -> None:
    """Full recomputation adds one forward pass of the layers: FLOPs at most 4/3, time at most that much more."""
    none, full = (evaluate(problem(OLD, stack="megatron-2022"), {"recompute": r}) for r in (Recompute.NONE, Recompute.FULL))
    ratio = one(full, "hfu") / one(full, "mfu")
    assert 1.2 < ratio <= 4 / 3
    assert one(none, "hfu") == one(none, "mfu")
    spent = pipeline_seconds(full) - pipeline_seconds(none)
    assert 0.15 * pipeline_seconds(none) < spent < 0.5 * pipeline_seconds(none)
    assert spent == pytest.approx(one_part(full, "recompute"), rel=0.05)


def check_parameters_are_gathered_under_zero_alone() -> None:
    """The width of a gathered parameter means nothing where none is gathered."""
    for zero, matters in ((0, False), (1, True), (3, True)):
        plan = {"data": 16, "zero_stage": zero}
        widths = [step(problem(TINY, stack__parameter_bytes=width), **plan) for width in (2.0, 64.0)]
        assert (widths[0] != widths[1]) == matters, f"ZeRO stage {zero}"


def check_optimizer_state_is_split_by_tensor_and_data_ranks_alike() -> None:
    """Four tensor ranks or four data ranks under ZeRO-1: a quarter of the moments each (norms are on every tensor rank)."""
    whole, *quarters = (
        one_part(evaluate(problem(TINY), plan), "optimizer", "memory")
        for plan in ({}, {"tensor": 4}, {"data": 4, "zero_stage": 1}, {"tensor": 2, "data": 2, "zero_stage": 1})
    )
    for part in quarters:
        assert part == pytest.approx(whole / 4, rel=0.01)


# ---- memory and units ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False)
class Watched:
    """The training model, writing down every point it evaluates; raises at the points of tensor degree `bad`."""

    bad: int = 0
    seen: list[tuple[Any, ...]] = field(default_factory=list)
    inner: TrainingModel = field(default_factory=TrainingModel)

    @property
    def reads(self) -> frozenset[str]:
        return self.inner.reads

    def bound(self, problem: Problem, points: Columns) -> Metrics:
        return self.inner.bound(problem, points)

    def evaluate(self, problem: Problem, points: Columns) -> Metrics:
        if points.n and (points["tensor"] == self.bad).any():
            raise ZeroDivisionError("no prediction")
        self.seen.extend(tuple(points.row(i).values()) for i in range(points.n))
        return self.inner.evaluate(problem, points)


def small_space(**more: Any) -> Space:
    given = {"context": [1], "offload": [0], "micro_batch": [1, 2], "recompute": [0, 2]} | more
    return training_space(
        architecture=TINY, devices=(find_device("H100"),), count=8, global_batch=64, sequence=2048, options=given
    )


def everything(space: Space) -> Columns:
    return next(space.batches(1 << 16))


def tight() -> Problem:
    """A device that some plans of `small_space` fit on and others do not."""
    needs = TrainingModel().evaluate(problem(TINY), everything(small_space())).value["memory"]
    return problem(TINY, device__memory_capacity=float(np.median(needs)))


def check_what_does_not_fit_is_never_timed() -> None:
    model = Watched()
    space, asked = small_space(), tight()
    result = search(space, model, asked, [TIME, MEMORY])
    fits = TrainingModel().evaluate(asked, everything(space)).violation["memory"] <= 0
    assert 0 < fits.sum() < len(fits)
    assert len(model.seen) == fits.sum()
    assert result.certificate.pruned == {"memory": int((~fits).sum())}


def check_a_device_is_never_filled_to_the_brim() -> None:
    """An allocator's peak of 99.5 % of the memory does not fit: context, buffers and fragmentation want theirs."""
    peak = one(evaluate(problem("llama-3.1-8b"), {"data": 8, "zero_stage": 1}), "peak_memory")
    full = evaluate(problem("llama-3.1-8b", device__memory_capacity=peak / 0.995), {"data": 8, "zero_stage": 1})
    assert full.violation["memory"][0] > 0


def check_every_plan_trains_the_batch_that_was_asked() -> None:
    space = small_space(micro_batch=[])
    points = everything(space)
    assert (64 % (points["data"] * points["micro_batch"]) == 0).all()
    metrics = TrainingModel().evaluate(problem(TINY), points)
    np.testing.assert_allclose(metrics.value["tokens_per_second"] * metrics.value["step_time"], 64 * 2048)


def check_power_lies_between_idle_and_the_cap() -> None:
    device = find_device("H100")
    for plan in ({}, {"tensor": 8}, {"data": 8, "zero_stage": 3}):
        metrics = evaluate(problem("llama-3.1-8b"), plan)
        watts = one(metrics, "energy") / one(metrics, "step_time") / one(metrics, "devices")
        assert 1.5 * device.idle_power < watts <= device.power * (1 + 1e-9)


def check_a_gigabyte_is_not_a_gibibyte() -> None:
    assert quantity("80 GB", "B") == 80e9
    assert quantity("80 GiB", "B") == 80 * 2**30
    assert quantity("400 Gb/s", "B/s") == 50e9
    assert quantity("3.35 TB/s", "B/s") == 3.35e12
    assert 79 * 2**30 < find_device("H100-80GB-SXM").memory_capacity < 80 * 2**30


# ---- search -------------------------------------------------------------------------------------------------------------


def check_the_objective_searched_is_the_one_reported() -> None:
    """The reported front is the best of all plans by the reported figures themselves."""
    space, asked = small_space(), problem(TINY)
    result = search(space, TrainingModel(), asked, [TIME])
    every = TrainingModel().evaluate(asked, everything(space))
    again = TrainingModel().evaluate(asked, result.front.points.columns)
    np.testing.assert_allclose(result.front.points.values(result.objectives)[:, 0], again.value["step_time"])
    assert again.value["step_time"].min() == every.value["step_time"][every.violation["memory"] <= 0].min()


def check_all_the_chips_are_tried() -> None:
    for count in (24, 56, 8):
        space = training_space(
            architecture=TINY, devices=(find_device("H100"),), count=count, at_most=True, global_batch=168, sequence=2048,
            options={"context": [1], "tensor": [1, 2], "micro_batch": [1], "recompute": [0], "offload": [0]},
        )  # fmt: skip
        assert everything(space)["devices"].max() == count
    assert set(everything(small_space())["devices"].tolist()) == {8}


def check_a_saved_experiment_runs_again() -> None:
    import dse

    asked = {
        "kind": "training", "name": "again", "model": "llama-3.1-8b", "hardware": {"device": "H100", "devices": 8},
        "workload": {"sequence": 4096, "global_batch": 32}, "stack": "megatron",
        "space": {"context": 1, "offload": "none", "recompute": "full", "micro_batch": [1, 2]},
        "objectives": ["step_time", "memory"], "search": {"top": 2, "sample": 20},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        first = dse.run(asked, out=Path(folder) / "a")
        second = dse.run(Path(folder) / "a" / "experiment.yaml", out=Path(folder) / "b")
        assert first.front
        assert [answer.to_json() for answer in first.front] == [answer.to_json() for answer in second.front]
        assert first.certificate == second.certificate


def check_one_bad_point_does_not_end_the_search() -> None:
    space = small_space()
    bad = int((everything(space)["tensor"] == 4).sum())
    result = search(space, Watched(bad=4), problem(TINY), [TIME])
    assert bad > 0
    assert result.certificate.failed == bad
    assert result.certificate.unvisited == 0
    assert len(result.front.points)


def check_each_point_is_evaluated_once() -> None:
    model = Watched()
    result = search(small_space(), model, problem(TINY), [TIME, MEMORY])
    assert set(Counter(model.seen).values()) == {1}
    assert len(model.seen) == result.certificate.evaluated


# ---- learning and running -----------------------------------------------------------------------------------------------


def check_errors_are_reported_on_rows_nothing_was_fitted_on() -> None:
    """A predictor that is perfect on the calibration rows and a third off elsewhere is a third off."""
    from dse import validation

    facts = [fact for fact in best_rows(read_facts()) if fact.metric == "step_time"]
    times = {tuple(sorted(fact.inputs.items())): fact for fact in facts}

    def memorised(rows: list[dict[str, str]]) -> list[dict[str, float | str]]:
        answers: list[dict[str, float | str]] = []
        for row in rows:
            fact = times.get(tuple(sorted(row.items())))
            if fact is None:
                answers.append({"error": "unseen"})
                continue
            seconds = fact.value * (1.0 if fact.split == "calibration" else 1.5)
            answers.append({"error": "", "step_time_s": seconds, "step_time_s_low": seconds, "step_time_s_high": seconds,
                            "model_tflops_per_gpu": 1.0, "hw_tflops_per_gpu": 1.0, "mfu": 0.1, "mfu_causal": 0.1})  # fmt: skip
        return answers

    told = validation.validate(facts=facts, predictor=memorised)
    assert median_of_source_medians(told.judged) > 25
    assert error_statistics(told.compared).median > 25
    assert {c.fact.split for c in told.compared} == {"held-out"}
    everything_told = validation.validate("all", facts=facts, predictor=memorised)
    assert {c.fact.split for c in everything_told.judged} == {"held-out"}
    fitted = validation.validate("calibration", facts=facts, predictor=memorised)
    assert error_statistics(fitted.compared).median < 1e-6
    shown = {bar.name: bar.value for bar in validation.bars(everything_told)}
    assert shown == {bar.name: bar.value for bar in validation.bars(told)}


def check_what_is_remembered_is_keyed_by_what_it_was_made_from() -> None:
    """Two models of one name, and one model under two stacks, are four different answers, asked in any order."""
    wide = replace(TINY, ffn=2 * TINY.ffn)
    for _ in range(2):
        for stack in ("megatron", "torch-eager"):
            traits = find_stack(stack).traits
            narrow, broad = (block_table.graphs(a, traits).parameters() for a in (TINY, wide))
            assert broad - narrow == 3 * TINY.layers * TINY.hidden * TINY.ffn
        assert step(problem(TINY)) < step(problem(wide))
        fused, eager = (
            len(block_table.graphs(TINY, find_stack(stack).traits).layers["dense"].operators)
            for stack in ("megatron", "torch-eager")
        )
        assert fused < eager


def check_impossible_and_copied_measurements_are_refused() -> None:
    limits = checks.limits_of("NVIDIA H100 80GB HBM3")
    true = {"time_s": "1e-3", "dtype": "bf16", "flops": "5e11", "bytes": "1e9"}
    assert checks.refusals(true, limits) == []
    for wrong in ({"flops": "1.2e12"}, {"bytes": "9e9"}, {"time_s": "0"}, {"time_s": "nan"}, {"link_bytes": "1e9"}):
        assert checks.refusals({**true, **wrong}, limits), wrong
    shipped = Path(training.__file__).parent / "data" / "measurements" / "h100-80gb-sxm" / "gemm.csv"
    with tempfile.TemporaryDirectory() as folder, shipped.open(newline="") as source:
        header, *rows = list(csv.reader(source))[:60]
        for name, gpu in (("h100-80gb-sxm", "H100-80GB-SXM"), ("h200-141gb-sxm", "H200-141GB-SXM")):
            place = Path(folder) / name / "gemm.csv"
            place.parent.mkdir()
            with place.open("w", newline="") as target:
                named = [[gpu if cell == "H100-80GB-SXM" else cell for cell in row] for row in rows]
                csv.writer(target).writerows([header, *named])
        with pytest.raises(BadMeasurements):
            read_measurements(Path(folder))


CHECKS: dict[str, Callable[[], None]] = {
    name.removeprefix("check_"): value for name, value in list(globals().items()) if name.startswith("check_")
}


ERRORS: dict[str, tuple[type[Exception], ...]] = {
    "dies": (ZeroDivisionError,),
    "drawn twice": (ValueError,),  # the certificate does not add up
}
"""Mistakes that show as an error rather than as a wrong figure."""


@pytest.mark.parametrize("mistake", CHECKS)
def test_the_mistake_is_not_made(mistake: str) -> None:
    CHECKS[mistake]()


@pytest.mark.parametrize(("check", "name"), [(check, name) for check, ways in MUTATIONS.items() for name in ways])
def test_every_mistake_is_caught(check: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the mistake in place its check fails: by a figure, or where the mistake is an error, by that error."""
    MUTATIONS[check][name](monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception, *ERRORS.get(name, ()))):
        CHECKS[check]()


def test_every_check_has_its_mistake() -> None:
    assert set(MUTATIONS) == set(CHECKS)
    assert all(MUTATIONS.values())


def test_rules_of_an_axis_are_plain_data_that_can_be_taken_away() -> None:
    """What the mutations lean on: an axis without its rule is an axis that allows everything."""
    odd = Axis(name="a", symbols={"a": np.arange(4)}, rules=(("even", lambda _, v: v % 2 == 1),))
    assert Space((odd,)).size() == 2
    assert Space((replace(odd, rules=()),)).size() == 4
