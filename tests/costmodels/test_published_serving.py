"""Published serving results are read whole, and predicted like anybody's rows."""

from __future__ import annotations

import pytest

from costmodels.measured_serving import measured_serving, question, signed_error
from costmodels.measurements import ROOT
from costmodels.published import error_statistics
from costmodels.published_serving import METRICS, compare_serving, read_serving_facts
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


def test_no_published_row_is_refused_and_a_rate_counts_as_the_time_of_a_token() -> None:
    some = FACTS[:: max(len(FACTS) // 40, 1)]
    compared = compare_serving(some, predict_rows([dict(fact.inputs) for fact in some], "serving"))
    assert not [c.refused for c in compared if c.refused]
    for c in compared:
        seconds = 1.0 / c.fact.value if METRICS[c.fact.metric] == "tokens/s" else c.fact.value
        assert c.published == pytest.approx(seconds)
        assert c.low < c.predicted < c.high


def test_measured_steps_of_plain_torch_are_predicted() -> None:
    """Steps of whole models on the device that gave the stack no constant: the gap between kernels is from the other one."""
    measured = [row for row in measured_serving(ROOT) if row["gpu"].startswith("H200")]
    errors: dict[str, list[float]] = {"decode": [], "prefill": []}
    for row, answer in zip(measured, predict_rows([question(row) for row in measured], "serving"), strict=True):
        errors[row["op"]].append(abs(signed_error(row, answer)))
    for op, found in errors.items():
        assert len(found) > 40
        assert sum(found) / len(found) <= 0.10, op


def test_held_out_throughput_of_large_models_is_near() -> None:
    facts = [fact for fact in FACTS if fact.source.startswith("trtllm-0.17-throughput") and "70b" in fact.inputs["model"]][::4]
    compared = compare_serving(facts, predict_rows([dict(fact.inputs) for fact in facts], "serving"))
    assert error_statistics(compared).median <= 20.0
