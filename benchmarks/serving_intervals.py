"""Intervals of serving figures from published results: `python -m benchmarks.serving_intervals [--write]`.

For each stack, device generation and kind of figure (time per token and request, time to first token, rate), the 90 % quantile
of |log(published / predicted)| over the calibration rows; where a pair has fewer than TEN of a kind, over those of its stack,
and where that has fewer, over all. Each is multiplied by one factor: the least with which the quantile of the other sources
holds 90 % of each left-out source's rows, over all pairs with several sources. Where that is not enough, since constants of the
stacks were chosen on the same rows (nearly all of them on times and rates, one a stack on first tokens), or one source is all
there is, the quantile is doubled instead.
`--write` writes costmodels/data/serving_intervals.yaml. Held-out rows are never looked at here.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.intervals import entry_text, quantile
from costmodels import published_serving
from costmodels.constants import DATA
from costmodels.serving import intervals
from dse.prediction import predict_rows
from spaces.hardware import find_device

TEN = 10
"""Rows of a kind that a pair needs for a quantile of its own."""
DOUBLED = 2.0
"""Factor on the quantile of figures that gave constants, or that one source alone covers."""
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


def factor(found: Iterable[Residual]) -> float:
    """The least factor, at least 1, with which other sources' quantiles hold 90 % of every left-out source's rows."""
    pairs: dict[tuple[str, str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for one in found:
        pairs[one.stack, one.generation, one.kind][one.source].append(one.value)
    needed = []
    for by_source in pairs.values():
        for left, values in by_source.items():
            others = [value for source, own in by_source.items() if source != left for value in own]
            if others:
                needed += [abs(value) / quantile(others) for value in values]
    return max(quantile(needed), 1.0) if needed else DOUBLED


def width(found: list[Residual], stack: str, generation: str, kind: str, more: float) -> tuple[float, str]:
    """(half width in log, what it rests on) of one pair's figures of a kind; `more` is the factor of unknown sources."""
    of_kind = [one for one in found if one.kind == kind]
    own = [one for one in of_kind if (one.stack, one.generation) == (stack, generation)]
    of_stack = [one for one in of_kind if one.stack == stack]
    rows = next((some for some in (own, of_stack) if len(some) >= TEN), of_kind)
    sources = {one.source for one in rows}
    where = "" if rows is own else f" of {stack}" if rows is of_stack else " of all servers"
    wider = more if len(sources) > 1 and kind not in CHOSEN_ON else max(more, DOUBLED)
    return quantile(one.value for one in rows) * wider, f"{len(rows)}{where}"


def page() -> str:
    """The data file."""
    found, kept = residuals(), intervals.table()
    more = factor(found)
    lines = [
        "# Factors (low, high) around predicted times of serving that hold about 90 % of results, by stack and generation;",
        "# `first_` those of the time to first token, `rate_` those of one over the rate. Written by",
        "# `python -m benchmarks.serving_intervals` from calibration rows alone;",
        f"# a source left out missed {more:.2f} times as far.",
        f"default: {entry_text(kept['default'])}",
    ]
    for stack in KEPT:
        lines += [f"{stack}:", *(f"  {generation}: {entry_text(entry)}" for generation, entry in kept[stack].items())]
    pairs = sorted({(one.stack, one.generation) for one in found})
    for stack in sorted({stack for stack, _ in pairs}):
        lines.append(f"{stack}:")
        for generation in sorted(generation for name, generation in pairs if name == stack):
            sides: dict[str, float] = {}
            rests: list[str] = []
            for prefix in KINDS.values():
                half, rows = width(found, stack, generation, prefix, more)
                sides |= {f"{prefix}low": math.exp(-half), f"{prefix}high": math.exp(half)}
                rests.append(rows)
            source = f"calibration rows of times, first tokens and rates: {', '.join(rests)}"
            told = ", ".join(f"{name}: {value:.3f}" for name, value in sides.items())
            lines.append(f'  {generation}: {{{told}, evidence: extrapolated, source: "{source}"}}')
    return "\n".join(lines) + "\n"


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
