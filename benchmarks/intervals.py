"""Intervals of step times from published and measured results: `python -m benchmarks.intervals [--write]`.

For each stack and device generation, the 90 % quantile of |log(predicted / published)| over the calibration rows (one row a
configuration; finite-sample corrected). A pair known from one source alone has its quantile doubled: nothing says how it would
do on a second one. Stacks of plain PyTorch have measured steps instead, enough of them for each side to have its own quantile
(5 % beyond each); torchtitan, which runs on the same kernels and has no result of its own, takes theirs about the same middle,
twice as wide. A stack and generation with neither takes the default.
`--write` writes costmodels/data/intervals.yaml. Held-out rows are never looked at here.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from costmodels import comparison, intervals, published
from costmodels.measured_steps import measured_steps
from costmodels.training import TrainingModel
from dse.prediction import predict_rows
from spaces.columns import Columns
from spaces.hardware import find_device

LEVEL = 0.9
SINGLE_SOURCE = 2.0
"""Factor on the quantile of a pair that only one source covers."""
TARGET = Path(intervals.__file__).parent / "data" / "intervals.yaml"


def residuals() -> dict[tuple[str, str], dict[str, list[float]]]:
    """log(predicted / published) step time by (stack, generation) and source, calibration rows alone."""
    facts = [fact for fact in published.best_rows(published.read_facts()) if fact.split == "calibration"]
    compared = comparison.compare(facts, predict_rows([dict(fact.inputs) for fact in facts]))
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for fact, one in zip(facts, compared, strict=True):
        if not one.refused:
            found[fact.inputs["stack"], fact.generation.lower()][fact.source].append(math.log1p(one.error))
    return found


def quantile(values: Iterable[float]) -> float:
    """Conformal quantile of |residual|: rank ⌈(n + 1)·0.9⌉, the largest where n is too small for it."""
    ordered = np.sort(np.abs(list(values)))
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


def measured() -> dict[tuple[str, str], tuple[float, float, int]]:
    """(low, high, rows): logarithms of the factors around a time, by stack and generation, from measured whole steps."""
    bare = Columns(n=1, codes={}, levels={})
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for step in measured_steps():
        if step.usual:
            predicted = float(TrainingModel().evaluate(step.problem(), bare).value["step_time"][0])
            found[step.stack, find_device(step.device).generation].append(math.log(step.time / predicted))
    return {key: (*sides(values), len(values)) for key, values in found.items()}


def sides(values: list[float]) -> tuple[float, float]:
    """Conformal quantiles of log(true / predicted) with half of what is left out on each side; they hold the prediction."""
    ordered = np.sort(values)
    beyond = math.floor((len(ordered) + 1) * (1.0 - LEVEL) / 2.0)
    least = max(beyond - 1, 0)
    return min(float(ordered[least]), 0.0), max(float(ordered[len(ordered) - 1 - least]), 0.0)


def widened(low: float, high: float) -> tuple[float, float]:
    """The same about its middle, as wide again as a pair that only one source covers."""
    middle, half = (low + high) / 2.0, SINGLE_SOURCE * (high - low) / 2.0
    return min(middle - half, 0.0), max(middle + half, 0.0)


def page() -> str:
    """The data file."""
    kept = intervals.table()
    lines = [
        "# Factors (low, high) around a predicted time that hold 90 % of results; written by `python -m benchmarks.intervals`."
    ]
    lines += ["time:", f"  default: {entry_text(kept['time']['default'])}"]
    stacks: dict[str, list[str]] = defaultdict(list)
    for (stack, generation), (width, rows, sources) in sorted(pairs().items()):
        doubled = "" if len(sources) > 1 else ", doubled: one source"
        source = f"{rows} calibration rows of {', '.join(sources)}{doubled}"
        stacks[stack].append(_line(generation, -width, width, "extrapolated", source))
    for (stack, generation), (low, high, rows) in sorted(measured().items()):
        own = f"{rows} measured whole steps on one and two devices (data/measurements)"
        stacks[stack].append(_line(generation, low, high, "interpolated", own))
        far = f"{stack} on {generation}, twice as wide about the same middle: no result of its own"
        stacks[stack.replace("torch-", "torchtitan-")].append(_line(generation, *widened(low, high), "extrapolated", far))
    for stack, entries in sorted(stacks.items()):
        lines += [f"  {stack}:", *entries]
    lines.append(f"memory: {entry_text(kept['memory'])}")
    return "\n".join(lines) + "\n"


def _line(generation: str, low: float, high: float, evidence: str, source: str) -> str:
    """One pair, from the logarithms of its factors."""
    low, high = math.exp(low), math.exp(high)
    return f'    {generation}: {{low: {low:.3f}, high: {high:.3f}, evidence: {evidence}, source: "{source}"}}'


def entry_text(entry: Mapping[str, object]) -> str:
    """An entry of a data file of intervals, on one line."""
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
