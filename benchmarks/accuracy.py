"""Predictions beside the published training results: `python -m benchmarks.accuracy [--json] [--write]`.

One configuration counts once, under its best-defined metric, by its relative error in step time; a refused row counts as an
error over 10 %. `--json` prints one object as the last line; `--write` writes `benchmarks/accuracy.md`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from costmodels.published import (
    JUDGED_GENERATIONS,
    Comparison,
    Fact,
    MemoryFact,
    Prediction,
    best_rows,
    by_source,
    compare,
    error_statistics,
    median_of_source_medians,
    memory_errors,
    memory_rows,
    rank_agreement,
    read_facts,
)

PAGE = Path(__file__).with_name("accuracy.md")
Predictor: TypeAlias = Callable[[list[dict[str, str]]], Sequence[Prediction]]
Report: TypeAlias = dict[str, Any]


def predict(rows: list[dict[str, str]]) -> Sequence[Prediction]:
    """The engine's own batch prediction of training rows."""
    from dse.predict import predict_rows

    return predict_rows(rows, kind="training")


def report(facts: Sequence[Fact], predictor: Predictor = predict) -> Report:
    """Every table of the page as plain data; errors, coverage and widths in percent, NaN where there is nothing."""
    best, memory = best_rows(facts), memory_rows(facts)
    answers = predictor([dict(fact.inputs) for fact in [*best, *(row.fact for row in memory)]])
    compared = compare(best, answers[: len(best)])
    judged = [c for c in compared if c.fact.split == "held-out" and c.fact.generation in JUDGED_GENERATIONS]
    ranking = {name: rank_agreement(group) for name, group in (("all", compared), ("held-out", judged))}
    return {
        "sources": _sources(compared),
        "overall": [
            {"split": split, "generation": generation, "sources": len(by_source(group))}
            | asdict(error_statistics(group))
            | {"median_of_source_medians": median_of_source_medians(group)}
            for (split, generation), group in _splits(compared).items()
        ],
        "rank_agreement": [
            {"rows": name, "pairs": found.pairs, "agreed": found.agreed, "share": found.share}
            for name, found in ranking.items()
        ],
        "memory": _memory(memory, answers[len(best) :]),
        "left_out": _left_out(facts),
        "refused": [
            {"id": c.fact.id, "source": c.fact.source, "reason": c.refused} for c in compared if c.refused
        ],
        "rows": [
            {
                "id": c.fact.id,
                "metric": c.fact.printed_metric,
                "published_s": c.published,
                "predicted_s": c.predicted,
                "error": 100.0 * c.error,
            }
            for c in compared
        ],
    }


def _sources(compared: Sequence[Comparison]) -> list[Report]:
    rows: list[Report] = []
    for source, group in by_source(compared).items():
        generations = sorted({c.fact.generation for c in group})
        reasons = Counter(c.refused for c in group if c.refused)
        rows.append(
            {"source": source, "split": group[0].fact.split, "generation": "+".join(generations)}
            | asdict(error_statistics(group))
            | {"reasons": dict(reasons.most_common())}
        )
    return rows


def _left_out(facts: Sequence[Fact]) -> list[Report]:
    """Configurations without any usable row, by source and reason."""
    used = {fact.id for fact in facts if fact.usable}
    reasons: dict[str, tuple[str, str]] = {}
    for fact in facts:
        if fact.id not in used:
            reasons.setdefault(fact.id, (fact.source, fact.why))
    return [
        {"source": source, "configurations": count, "why": why} for (source, why), count in Counter(reasons.values()).items()
    ]


def _splits(compared: Sequence[Comparison]) -> dict[tuple[str, str], list[Comparison]]:
    """Groups by split and device generation, the judged generations together first."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for split in ("held-out", "calibration"):
        group = [c for c in compared if c.fact.split == split]
        groups[split, "judged"] = [c for c in group if c.fact.generation in JUDGED_GENERATIONS]
        for generation in sorted({c.fact.generation for c in group}):
            groups[split, generation] = [c for c in group if c.fact.generation == generation]
    return groups


def _memory(rows: Sequence[MemoryFact], answers: Sequence[Prediction]) -> list[Report]:
    errors: dict[tuple[str, str, str], list[float]] = {}
    for row, error in zip(rows, memory_errors(rows, answers), strict=True):
        errors.setdefault((row.fact.source, row.kind, row.column), []).append(error)
    table: list[Report] = []
    for (source, kind, column), group in errors.items():
        known = [error for error in group if math.isfinite(error)]
        table.append(
            {
                "source": source,
                "published": kind,
                "predicted": column,
                "rows": len(group),
                "refused": len(group) - len(known),
                "median": 100.0 * median(map(abs, known)) if known else math.nan,
                "worst": 100.0 * max(known, key=abs) if known else math.nan,
            }
        )
    return table


# --- as text ---------------------------------------------------------------------------------------------------------

STATISTICS = ("rows", "predicted", "refused", "median", "mean", "p90", "bias", "within_10", "coverage", "width")


def page(results: Report) -> str:
    """The report as Markdown."""
    memory = ("source", "published", "predicted", "rows", "refused", "median", "worst")
    overall = ("split", "generation", "sources", *STATISTICS, "median_of_source_medians")
    reasons = [f"- {row['id']}: {row['reason']}" for row in results["refused"]] or ["None."]
    return "\n".join(
        [
            "# Accuracy on published training results",
            "",
            "Errors are relative errors in step time, percent; one configuration counts once, under its best-defined metric.",
            "A refused row counts as 100 %. `bias` is signed, positive predicts too slow; `within_10` is the share of rows",
            "within 10 %; `coverage` the share of published times inside the 90 % interval and `width` the interval's median",
            "width relative to the prediction. Constants were fitted to calibration rows only. Written by",
            "`python -m benchmarks.accuracy --write`.",
            "",
            "## By split and device generation",
            "",
            "Ampere and Hopper are judged, together in the rows `judged`; the others are reported.",
            "",
            *_table(overall, results["overall"]),
            "",
            "## By source",
            "",
            *_table(("source", "split", "generation", *STATISTICS), results["sources"]),
            "",
            "## Order of plans",
            "",
            "Pairs of plans for one job whose published times differ by more than 5 %, and the share put in the right order.",
            "",
            *_table(("rows", "pairs", "agreed", "share"), results["rank_agreement"]),
            "",
            "## Peak memory",
            "",
            *_table(memory, results["memory"]),
            "",
            "## Refused",
            "",
            *reasons,
            "",
            "## Left out",
            "",
            "Published configurations that the batch contract cannot state, or that say nothing a prediction could be held to.",
            "",
            *_table(("source", "configurations", "why"), results["left_out"]),
            "",
        ]
    )


def _table(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return lines + [f"| {' | '.join(_cell(row[column]) for column in columns)} |" for row in rows]


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}" if math.isfinite(value) else "–"
    return str(value)


def _without_nan(value: Any) -> Any:
    """NaN has no place in JSON: null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} beside this module")
    chosen = parser.parse_args()
    results = report(read_facts())
    if chosen.write:
        PAGE.write_text(page(results), encoding="utf-8")
    print(json.dumps(_without_nan(results), allow_nan=False) if chosen.json else page(results))


if __name__ == "__main__":
    main()
