"""Predictions beside the published training results: `python -m benchmarks.accuracy [--json] [--write]`.

The figures are those of `dse validate`; here they become a page. `--json` prints one object as the last line; `--write` writes
docs/accuracy.md, and points to it from benchmarks/accuracy.md.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from costmodels import intervals, measurements
from costmodels.comparison import Comparison, RankAgreement, error_statistics, rank_agreement
from costmodels.constants import find_stack, stack_names
from costmodels.published import DIMENSIONS, JUDGED_GENERATIONS
from dse.answers import to_json_text
from dse.validation import Validation, bars, memory_by_source, percent, validate

PAGE = Path(__file__).parent.parent / "docs" / "accuracy.md"
BESIDE = Path(__file__).with_name("accuracy.md")
FIGURES = ("rows", "predicted", "refused", "median", "mean", "p90", "bias", "within_10", "coverage", "width")


def report(found: Validation) -> dict[str, Any]:
    """Every table of the page as plain data; errors, coverage and widths in percent."""
    return {
        "bars": [{"name": b.name, "value": b.value, "asked": b.asked, "met": b.met} for b in bars(found)],
        "sources": [
            {"source": s.source, "split": s.split, "generation": s.generation} | asdict(s.errors) | {"reasons": dict(s.reasons)}
            for s in found.sources
        ],
        "overall": [
            {"split": g.split, "generation": g.generation, "sources": g.sources}
            | asdict(g.errors)
            | {"median_of_source_medians": g.median_of_medians}
            for g in found.groups
        ],
        "rank_agreement": [{"rows": name} | asdict(order) | {"share": order.share} for name, order in orders(found)],
        "memory": [asdict(row) for row in memory_by_source(found)],
        "left_out": [asdict(row) for row in found.left_out],
        "refused": [{"id": c.fact.id, "source": c.fact.source, "reason": c.refused} for c in found.refused],
        "rows": [
            {
                "id": c.fact.id,
                "metric": c.fact.printed_metric,
                "published_s": c.published,
                "predicted_s": c.predicted,
                "error": 100.0 * c.error,
            }
            for c in found.compared
        ],
    }


def orders(found: Validation) -> tuple[tuple[str, RankAgreement], ...]:
    """Order of plans over all rows, and over the held-out rows of the judged generations."""
    return ("all", found.agreement), ("held-out", rank_agreement(found.judged))


# --- the page ---------------------------------------------------------------------------------------------------------

INTRODUCTION = """\
# Accuracy on published training results

Written by `python -m benchmarks.accuracy --write`; `dse validate` prints the same figures.

Errors are relative errors in step time, percent. One configuration counts once, under its best-defined metric (a measured
time, then a token rate, then a FLOP rate). A refused row counts as an error of 100 %. `bias` is signed: positive predicts too
slow. `within_10` is the share of rows within 10 %, `coverage` the share of published times inside the 90 % interval, `width`
the median width of that interval (high − low) relative to the prediction.
"""

FITTED = """\
## What was fitted on what

The published rows have a fixed split. *Calibration* rows gave constants of the stacks and intervals of step times; *held-out*
rows gave neither. A source added later is held out. There is one set of constants a stack and device generation, none a source
or a model.
"""

INTERVALS = """\
Intervals are factors around the predicted time. A pair known from one source alone is doubled, because nothing says how it
would do on a second one; a stack and generation with no result takes the default.
"""

MEASURED = """\
Measured on real machines by the project's own suite (`dse calibrate`), which gave kernel rates, host cost and the constants of
the plain PyTorch stacks:
"""


def page(found: Validation) -> str:
    """The whole page as Markdown."""
    return "\n".join([INTRODUCTION, *_bars(found), FITTED, *_fitted(found), *_errors(found), *_refused(found)])


def _bars(found: Validation) -> list[str]:
    """Figures that CI holds, and whether each is met."""
    rows = ([bar.name, percent(bar.value), bar.asked, "yes" if bar.met else "**no**"] for bar in bars(found))
    return [
        "## What it is held to",
        "",
        "Held-out rows on Ampere and Hopper; other generations are reported below and not judged.",
        "",
        *table(("figure", "%", "asked", "met"), rows),
        "",
    ]


def _fitted(found: Validation) -> list[str]:
    """Splits, constants, intervals and measurements, each with its source."""
    splits = ([split, ", ".join(s.source for s in found.sources if s.split == split)] for split in ("calibration", "held-out"))
    stacks = ([name, find_stack(name).source] for name in stack_names())
    pairs = (
        [stack, generation, f"{entry['low']:g}–{entry['high']:g}", entry["source"]]
        for stack, generations in intervals.table()["time"].items()
        if stack != "default"
        for generation, entry in generations.items()
    )
    memory = intervals.table()["memory"]
    return [
        *table(("split", "sources"), splits),
        "",
        *table(("stack", "constants from"), stacks),
        "",
        INTERVALS,
        *table(("stack", "generation", "factors", "from"), pairs),
        "",
        f"Memory: factors {memory['low']:g}–{memory['high']:g}; {memory['source']}.",
        "",
        MEASURED,
        *table(("machine", "date", "driver", "PyTorch", "rows"), _machines()),
        "",
    ]


def _machines() -> Iterable[Sequence[str]]:
    """One row a folder of measurements: the last session's software, and how many rows its files hold."""
    for folder, record in measurements.provenance().items():
        last = record["sessions"][-1]  # type: ignore[index]
        rows = sum(
            len(path.read_text(encoding="utf-8").splitlines()) - 1 for path in (measurements.ROOT / folder).glob("*.csv")
        )
        yield [folder, last["date"], last["driver"], last["torch"], f"{rows:,}"]


def _errors(found: Validation) -> list[str]:
    """Errors in time by group and source, order of plans, memory."""
    groups = ([g.split, g.generation, str(g.sources), *_cells(g.errors), percent(g.median_of_medians)] for g in found.groups)
    sources = ([s.source, s.split, s.generation, *_cells(s.errors)] for s in found.sources)
    order = ([name, str(o.pairs), str(o.agreed), percent(o.share)] for name, o in orders(found))
    memory = (
        [m.source, m.split, m.published, m.predicted, str(m.rows), str(m.refused), percent(m.median), percent(m.worst)]
        for m in memory_by_source(found)
    )
    return [
        "## Step time by source",
        "",
        *table(("source", "split", "generation", *FIGURES), sources),
        "",
        "## Step time by split and device generation",
        "",
        *table(("split", "generation", "sources", *FIGURES, "median of medians"), groups),
        "",
        *_reported(found),
        "## Order of plans",
        "",
        "Pairs of plans for one job whose published times differ by more than 5 %, and how many are put in the right order.",
        "",
        *table(("rows", "pairs", "agreed", "share, %"), order),
        "",
        "## Peak memory",
        "",
        "Errors in bytes, percent; `worst` is signed, positive predicts too much. What an allocator *reserved* is set beside",
        "`device_memory_bytes`; *analytical* figures of a paper beside `peak_memory_bytes`.",
        "",
        *table(("source", "split", "published", "predicted", "rows", "refused", "median", "worst"), memory),
        "",
    ]


def _reported(found: Validation) -> list[str]:
    """Rows on generations that are not judged, by device and by whether the model has experts."""
    groups: dict[tuple[str, str], list[Comparison]] = defaultdict(list)
    for one in found.compared:
        if one.fact.split == "held-out" and one.fact.generation not in JUDGED_GENERATIONS:
            dense = all(one.fact.inputs[name] for name in DIMENSIONS)
            groups[one.fact.inputs["gpu"], "dense" if dense else "experts"].append(one)
    lines = ([device, kind, *_cells(error_statistics(rows))] for (device, kind), rows in sorted(groups.items()))
    return [
        "## Devices known by datasheet alone",
        "",
        "Held-out rows on generations that no kernel was measured on: the shares of Hopper on their datasheets. Not judged.",
        "",
        *table(("device", "model", *FIGURES), lines),
        "",
    ]


def _refused(found: Validation) -> list[str]:
    """Rows the engine did not predict, and configurations that no prediction can be held to."""
    left_out = ([row.source, str(row.configurations), row.why] for row in found.left_out)
    return [
        "## Refused",
        "",
        *([f"- {c.fact.id}: {c.refused}" for c in found.refused] or ["No row is refused."]),
        "",
        "## Left out",
        "",
        "Published configurations that a row of `dse predict` cannot state, or that say nothing a prediction could be held to.",
        "",
        *table(("source", "configurations", "why"), left_out),
        "",
    ]


def _cells(errors: object) -> list[str]:
    values = (getattr(errors, name) for name in FIGURES)
    return [str(value) if isinstance(value, int) else percent(value) for value in values]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    parser.add_argument("--write", action="store_true", help=f"write docs/{PAGE.name} and benchmarks/{BESIDE.name}")
    chosen = parser.parse_args()
    found = validate("all")
    if chosen.write:
        for target in (PAGE, BESIDE):
            target.write_text(page(found), encoding="utf-8")
    print(to_json_text(report(found)) if chosen.json else page(found))


if __name__ == "__main__":
    main()
