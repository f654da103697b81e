"""Published serving results: rows that `dse predict --kind serving` takes, each with the figures somebody printed.

`costmodels/data/published/serving.csv`: rows of the split `calibration` gave constants of stacks, those of `held-out` nothing.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from costmodels.comparison import Comparison, RankAgreement, rank_agreement
from costmodels.published import Fact

METRICS: Mapping[str, str] = {"ttft_s": "s", "tpot_s": "s", "tokens_per_s_per_gpu": "tokens/s"}
"""Figures a row may print, and their units."""
ABOUT = frozenset({"split", "source", "citation", "notes", *METRICS})
"""Columns that are no input."""
NAMES: Mapping[str, str] = {"ttft_s": "ttft", "tpot_s": "tpot", "tokens_per_s_per_gpu": "tokens/s"}
"""What a figure is called beside its source."""

WORK = (
    *("model", "gpu", "stack", "precision", "kv_precision", "isl", "osl", "length_ratio", "lengths", "prefix_hit"),
    *("static_batch", "served", "sampling"),
)
"""What two runs must share to do the same work in the same formats."""
PLAN = ("tp", "pp", "dp", "ep", "attention_dp", "max_batch")
"""What may differ between two ways of doing it."""

Answer = Mapping[str, Any]


def read_serving_facts() -> list[Fact]:
    """One fact for every figure of every row, in the order of the file; its source is named with the figure."""
    text = files("costmodels").joinpath("data", "published", "serving.csv").read_text(encoding="utf-8")
    found = []
    for number, row in enumerate(csv.DictReader(text.splitlines(), restval="")):
        inputs = {name: value for name, value in row.items() if name not in ABOUT}
        for metric, unit in METRICS.items():
            if not row[metric]:
                continue
            found.append(
                Fact(
                    split=row["split"],
                    source=f"{row['source']} {NAMES[metric]}",
                    id=f"serving-{number}",
                    citation=row["citation"],
                    inputs=inputs,
                    parameters=math.nan,
                    metric=metric,
                    value=float(row[metric]),
                    unit=unit,
                    peak_tflops=math.nan,
                    trained_tokens=math.nan,
                    printed_metric=metric,
                    printed_value=row[metric],
                    printed_unit=unit,
                    confidence="high",
                    usable=True,
                    why="",
                    notes=row["notes"],
                )
            )
    return found


def compare_serving(facts: Sequence[Fact], answers: Sequence[Answer]) -> list[Comparison]:
    """Each figure beside its prediction as seconds: of a request's part, or for a token where a rate is printed.

    Raises ValueError on unequal lengths.
    """
    compared = []
    for fact, row in zip(facts, answers, strict=True):
        if row["error"]:
            compared.append(Comparison(fact=fact, published=_seconds(fact.metric, fact.value), refused=str(row["error"])))
            continue
        value, low, high = (_seconds(fact.metric, float(row[f"{fact.metric}{side}"])) for side in ("", "_low", "_high"))
        low, high = min(low, high), max(low, high)
        compared.append(Comparison(fact=fact, published=_seconds(fact.metric, fact.value), predicted=value, low=low, high=high))
    return compared


def _seconds(metric: str, value: float) -> float:
    return 1.0 / value if METRICS[metric] == "tokens/s" else value


# --- order of plans ---------------------------------------------------------------------------------------------------


def order_of_plans(compared: Sequence[Comparison]) -> RankAgreement:
    """Order of different plans on as many accelerators, under one load of one source, figure by figure."""
    return rank_agreement(compared, job=_run, differ=lambda a, b: _plan(a) != _plan(b))


def order_of_replicas(compared: Sequence[Comparison]) -> RankAgreement:
    """Order of plans of different sizes, figure by figure, each as replicas that fill as many accelerators.

    Two replicas of two stand against one of four: what a run shows at its share of the load is what each replica shows,
    so runs compare where requests, or their rate, are as many an accelerator, or all come at once.
    """
    return rank_agreement(compared, job=_share_of_run, differ=lambda a, b: a.inputs["n_gpus"] != b.inputs["n_gpus"])


def _plan(fact: Fact) -> tuple[str, ...]:
    """A blank degree is one."""
    return tuple(fact.inputs[name] or "1" for name in PLAN)


def _work(fact: Fact) -> tuple[str, ...]:
    return (fact.source, *(fact.inputs[name] for name in WORK))


def _run(fact: Fact) -> tuple[str, ...]:
    return (*_work(fact), *(fact.inputs[name] for name in ("n_gpus", "concurrency", "request_rate", "num_requests")))


def _share_of_run(fact: Fact) -> tuple[str, ...]:
    loads = (fact.inputs[name] for name in ("concurrency", "request_rate"))
    return (*_work(fact), *(f"{float(load) / float(fact.inputs['n_gpus']):.9g}" if load else "" for load in loads))
