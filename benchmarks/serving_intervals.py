"""Intervals of serving figures from published results: `python -m benchmarks.serving_intervals [--write]`.

A source is one server on one machine driven in one way, and its rows miss together: what a new one will miss by is told by
other sources, not by more rows of the same. For each kind of figure (time per token and request, time to first token, rate) the
half width is the conformal 90 % quantile of |log(published / predicted)| over calibration rows for a row of a source not seen
before: every source of a stack and generation (THREE rows at least) weighs the same, and the level is raised by one part in as
many as there are sources (Dunn, Wasserman and Ramdas 2022, two-layer hierarchies). It is taken over a stack and generation with
NINE sources, over a stack, or over all servers. Figures that gave the stacks their constants are doubled, for their
errors are less than a new source's. A stack and generation that one source alone covers, or none, is wider again by as much as
the source that misses farthest does over the quantile of the others. What nothing covers takes the widest.
`--write` writes costmodels/data/serving_intervals.yaml. Held-out rows are never looked at here.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.intervals import LEVEL, entry_text, quantile
from costmodels import published_serving
from costmodels.constants import DATA
from costmodels.serving import intervals
from dse.prediction import predict_rows
from spaces.hardware import find_device

THREE = 3
"""Rows of a kind that a source needs to be counted."""
NINE = 9
"""Sources that a 90 % quantile over sources needs."""
DOUBLED = 2.0
"""Factor on the errors of figures that gave constants."""
CHOSEN_ON = frozenset({"", "rate_"})
"""Kinds of figures that gave the stacks their constants."""
KINDS: Mapping[str, str] = {"tpot_s": "", "ttft_s": "first_", "tokens_per_s_per_gpu": "rate_"}
"""A printed figure, and the beginning of the names of its factors."""
KEPT = ("torch-graph",)
"""Stacks whose factors come from measured steps (data/measurements), not from published rows."""
TARGET = DATA / "serving_intervals.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """A row's log(published / predicted), in seconds, and what it is of."""

    stack: str
    generation: str
    kind: str
    source: str
    value: float


def residuals() -> list[Residual]:
    """Of the calibration rows that are predicted."""
    facts = [fact for fact in published_serving.read_serving_facts() if fact.split == "calibration"]
    compared = published_serving.compare_serving(facts, predict_rows([dict(fact.inputs) for fact in facts], "serving"))
    return [
        Residual(
            stack=one.fact.inputs["stack"],
            generation=find_device(one.fact.inputs["gpu"]).generation,
            kind=KINDS[one.fact.metric],
            source=one.fact.source.rsplit(" ", 1)[0],
            value=math.log(one.published / one.predicted),
        )
        for one in compared
        if not one.refused
    ]


Errors: TypeAlias = Mapping[tuple[str, str, str], list[float]]
"""|log(published / predicted)| of rows, by stack, generation and source."""


def errors(found: Iterable[Residual], kind: str) -> Errors:
    """Each source's errors of a kind, of those that have THREE."""
    rows: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for one in found:
        if one.kind == kind:
            rows[one.stack, one.generation, one.source].append(abs(one.value))
    return {key: values for key, values in rows.items() if len(values) >= THREE}


def of_a_new_source(sources: Iterable[list[float]]) -> float:
    """What a row of one more source stays within in 90 % of cases: a quantile in which every source weighs the same."""
    known = list(sources)
    weighed = sorted((error, 1.0 / len(rows)) for rows in known for error in rows)
    level = LEVEL * (len(known) + 1)  # of as many as there are sources
    below = 0.0
    for error, weight in weighed:
        below += weight
        if below >= level - 1e-9:
            return error
    return weighed[-1][0]


def farther(known: Errors) -> float:
    """How many times as far as what holds for a new source the source that is left out misses at most; DOUBLED of one alone."""
    if len(known) < 2:
        return DOUBLED
    left = [
        quantile(rows) / of_a_new_source(others for name, others in known.items() if name != source)
        for source, rows in known.items()
    ]
    return max(*left, 1.0)


def width(found: list[Residual], stack: str, generation: str, kind: str) -> tuple[float, str]:
    """(half width in log, what it rests on) of one pair's figures of a kind."""
    known = errors(found, kind)
    own = [rows for (name, where, _), rows in known.items() if (name, where) == (stack, generation)]
    of_stack = [rows for (name, _, _), rows in known.items() if name == stack]
    taken = next((some for some in (own, of_stack) if len(some) >= NINE), list(known.values()))
    where = "" if taken is own else f" of {stack}" if taken is of_stack else " of all servers"
    sources = len({one.source for one in found if (one.stack, one.generation, one.kind) == (stack, generation, kind)})
    half = of_a_new_source(taken) * (DOUBLED if kind in CHOSEN_ON else 1.0) * (farther(known) if sources < 2 else 1.0)
    return half, f"{len(taken)}{where}{', wider: one or none is its own' if sources < 2 else ''}"


def page() -> str:
    """The data file."""
    found, kept = residuals(), intervals.table()
    lines = [
        "# Factors (low, high) around predicted times of serving that hold about 90 % of results, by stack and generation;",
        "# `first_` those of the time to first token, `rate_` those of one over the rate. Written by",
        "# `python -m benchmarks.serving_intervals` from calibration rows alone, source by source.",
    ]
    pairs = sorted({(one.stack, one.generation) for one in found})
    halves = {(pair, prefix): width(found, *pair, prefix) for pair in pairs for prefix in KINDS.values()}
    widest = {prefix: max(halves[pair, prefix][0] for pair in pairs) for prefix in KINDS.values()}
    why = "no result for this stack and generation: the widest"
    lines.append(f'default: {{{_factors(widest)}, evidence: first_principles, source: "{why}"}}')
    for stack in KEPT:
        lines += [f"{stack}:", *(f"  {generation}: {entry_text(entry)}" for generation, entry in kept[stack].items())]
    for stack in sorted({stack for stack, _ in pairs}):
        lines.append(f"{stack}:")
        for generation in sorted(generation for name, generation in pairs if name == stack):
            own = {prefix: halves[(stack, generation), prefix] for prefix in KINDS.values()}
            rests = "; ".join(rest for _, rest in own.values())
            source = f"sources of times; first tokens; rates: {rests}"
            told = _factors({prefix: half for prefix, (half, _) in own.items()})
            lines.append(f'  {generation}: {{{told}, evidence: extrapolated, source: "{source}"}}')
    return "\n".join(lines) + "\n"


def _factors(halves: Mapping[str, float]) -> str:
    """Half widths as the names and factors of the data file."""
    return ", ".join(f"{name}low: {math.exp(-half):.3f}, {name}high: {math.exp(half):.3f}" for name, half in halves.items())


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
