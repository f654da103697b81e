"""Intervals of step times from published results: `python -m benchmarks.intervals [--write]`.

For each stack and device generation, the 90 % quantile of |log(predicted / published)| over the calibration rows (one row a
configuration; finite-sample corrected). A pair known from one source alone has its quantile doubled: nothing says how it would
do on a second one. A pair with no source takes that of its stack on the nearest generation, doubled, else the default.
`--write` writes costmodels/data/intervals.yaml. Held-out rows are never looked at here.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from pathlib import Path

import numpy as np

from costmodels import intervals, published
from dse.prediction import predict_rows

LEVEL = 0.9
SINGLE_SOURCE = 2.0
"""Factor on the quantile of a pair that only one source covers."""
TARGET = Path(intervals.__file__).parent / "data" / "intervals.yaml"


def residuals() -> dict[tuple[str, str], dict[str, list[float]]]:
    """log(predicted / published) step time by (stack, generation) and source, calibration rows alone."""
    facts = [fact for fact in published.best_rows(published.read_facts()) if fact.split == "calibration"]
    compared = published.compare(facts, predict_rows([dict(fact.inputs) for fact in facts]))
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for fact, one in zip(facts, compared, strict=True):
        if not one.refused:
            found[fact.inputs["stack"], fact.generation.lower()][fact.source].append(math.log1p(one.error))
    return found


def quantile(values: list[float]) -> float:
    """Conformal quantile of |residual|: rank ⌈(n + 1)·0.9⌉, the largest where n is too small for it."""
    ordered = np.sort(np.abs(values))
    rank = min(math.ceil((len(ordered) + 1) * LEVEL), len(ordered))
    return float(ordered[rank - 1])


def pairs() -> dict[tuple[str, str], tuple[float, int, tuple[str, ...]]]:
    """(half width in log, rows, sources) of every stack and generation that has calibration rows."""
    found = {}
    for key, by_source in residuals().items():
        pooled = [value for values in by_source.values() for value in values]
        width = quantile(pooled) * (1.0 if len(by_source) > 1 else SINGLE_SOURCE)
        found[key] = (width, len(pooled), tuple(sorted(by_source)))
    return found


def page() -> str:
    """The data file."""
    kept = intervals.table()
    lines = [
        "# Factors (low, high) around a predicted time that hold 90 % of results; written by `python -m benchmarks.intervals`."
    ]
    lines += ["time:", f"  default: {_entry(kept['time']['default'])}"]
    stacks: dict[str, list[str]] = defaultdict(list)
    for (stack, generation), (width, rows, sources) in sorted(pairs().items()):
        doubled = "" if len(sources) > 1 else ", doubled: one source"
        stacks[stack].append(
            f"    {generation}: {{low: {math.exp(-width):.3f}, high: {math.exp(width):.3f}, evidence: extrapolated, "
            f'source: "{rows} calibration rows of {", ".join(sources)}{doubled}"}}'
        )
    for stack, generations in kept["time"].items():
        if stack != "default" and isinstance(generations, dict):
            for generation, entry in generations.items():
                if "calibration rows" not in entry["source"]:  # measured elsewhere: kept as it is
                    stacks[stack].append(f"    {generation}: {_entry(entry)}")
    for stack, entries in sorted(stacks.items()):
        lines += [f"  {stack}:", *entries]
    lines.append(f"memory: {_entry(kept['memory'])}")
    return "\n".join(lines) + "\n"


def _entry(entry: dict[str, object]) -> str:
    return "{" + ", ".join(f'{key}: "{value}"' if key == "source" else f"{key}: {value}" for key, value in entry.items()) + "}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"write {TARGET.name}")
    text = page()
    if parser.parse_args().write:
        TARGET.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    main()
