"""Published serving results are read whole, and predicted like anybody's rows."""

from __future__ import annotations

import dataclasses

import pytest

from costmodels.comparison import Comparison, error_statistics
from costmodels.measured_serving import measured_serving, question, signed_error
from costmodels.measurements import ROOT
from costmodels.published_serving import METRICS, compare_serving, order_of_plans, order_of_replicas, read_serving_facts
from dse.prediction import predict_rows

FACTS = read_serving_facts()


def test_every_figure_is_cited_positive_and_of_a_known_split() -> None:
    assert len(FACTS) > 200
    for fact in FACTS:
        assert fact.citation
        assert fact.value > 0
        assert fact.split in ("held-out", "calibration")
        assert fact.metric in METRICS


def test_a_source_is_of_one_split() -> None:
    splits: dict[str, set[str]] = {}
    for fact in FACTS:
        splits.setdefault(fact.source, set()).add(fact.split)
    assert all(len(found) == 1 for found in splits.values())


@pytest.mark.slow
def test_no_published_row_is_refused_and_a_rate_counts_as_the_time_of_a_token() -> None:
    some = FACTS[:: max(len(FACTS) // 40, 1)]
    compared = compare_serving(some, predict_rows([dict(fact.inputs) for fact in some], "serving"))
    assert not [c.refused for c in compared if c.refused]
    for c in compared:
        seconds = 1.0 / c.fact.value if METRICS[c.fact.metric] == "tokens/s" else c.fact.value
        assert c.published == pytest.approx(seconds)
        assert c.low < c.predicted < c.high


@pytest.mark.slow
def test_measured_steps_of_plain_torch_are_predicted() -> None:
    """Steps of whole models on the device that gave the stack no constant: the gap between kernels is from the other one."""
    measured = [row for row in measured_serving(ROOT) if row["gpu"].startswith("H200")][::4]
    errors: dict[str, list[float]] = {"decode": [], "prefill": []}
    for row, answer in zip(measured, predict_rows([question(row) for row in measured], "serving"), strict=True):
        errors[row["op"]].append(abs(signed_error(row, answer)))
    for op, found in errors.items():
        assert len(found) > 20
        assert sum(found) / len(found) <= 0.10, op


@pytest.mark.slow
@pytest.mark.parametrize("name", ["serving", "serving_parallel"])
def test_measured_steps_in_fp8_are_predicted(name: str) -> None:
    """On one card and over two: they chose nothing but that each product's input is cast by a kernel of its own."""
    measured = [row for row in measured_serving(ROOT, name) if row["dtype"] == "fp8"]
    errors: dict[str, list[float]] = {"decode": [], "prefill": []}
    for row, answer in zip(measured, predict_rows([question(row) for row in measured], "serving"), strict=True):
        errors[row["op"]].append(abs(signed_error(row, answer)))
    for op, found in errors.items():
        assert len(found) >= 15
        assert sum(found) / len(found) <= 0.06, op


def test_held_out_throughput_of_large_models_is_near() -> None:
    facts = [fact for fact in FACTS if fact.source.startswith("trtllm-0.17-throughput") and "70b" in fact.inputs["model"]][::4]
    compared = compare_serving(facts, predict_rows([dict(fact.inputs) for fact in facts], "serving"))
    assert error_statistics(compared).median <= 20.0


def run(published: float, predicted: float, refused: str = "", **inputs: str) -> Comparison:
    """A run that differs from one row of the file by these inputs."""
    return Comparison(
        fact=dataclasses.replace(FACTS[0], inputs={**FACTS[0].inputs, "request_rate": "", "concurrency": "", **inputs}),
        published=published,
        predicted=predicted,
        refused=refused,
    )


def test_plans_are_ordered_among_runs_of_one_load_on_as_many_accelerators() -> None:
    one = run(1.0, 1.0, n_gpus="4", tp="4", ep="", concurrency="8")
    assert order_of_plans([one, run(1.2, 1.1, n_gpus="4", tp="4", ep="4", concurrency="8")]).share == 100.0
    assert order_of_plans([one, run(1.2, 0.9, n_gpus="4", tp="2", pp="2", concurrency="8")]).share == 0.0
    assert order_of_plans([one, run(1.2, 1.1, "too large", n_gpus="4", tp="2", pp="2", concurrency="8")]).pairs == 1
    for other in (
        run(1.04, 0.9, n_gpus="4", tp="2", pp="2", concurrency="8"),  # near enough to be equal
        run(1.2, 0.9, n_gpus="4", tp="4", ep="1", concurrency="8"),  # the same plan
        run(1.2, 0.9, n_gpus="4", tp="2", pp="2", concurrency="16"),
        run(1.2, 0.9, n_gpus="2", tp="2", concurrency="8"),
        run(1.2, 0.9, n_gpus="4", tp="2", pp="2", concurrency="8", isl="9"),
        run(1.2, 0.9, n_gpus="4", tp="2", pp="2", concurrency="8", precision="int4"),
    ):
        assert order_of_plans([one, other]).pairs == 0


def test_replicas_are_ordered_at_an_equal_share_of_the_load() -> None:
    one = run(1.0, 1.0, n_gpus="4", tp="4", concurrency="8")
    assert order_of_replicas([one, run(1.2, 1.1, n_gpus="2", tp="2", concurrency="4")]).share == 100.0
    assert order_of_replicas([one, run(1.2, 1.1, n_gpus="2", tp="2", concurrency="8")]).pairs == 0
    assert order_of_replicas([one, run(1.2, 1.1, n_gpus="4", tp="2", pp="2", concurrency="8")]).pairs == 0
    at_once = [run(1.0 + n, 1.0 - 0.1 * n, n_gpus=str(n), tp=str(n), request_rate="inf") for n in (2, 8)]
    assert (order_of_replicas(at_once).pairs, order_of_replicas(at_once).agreed) == (1, 0)
