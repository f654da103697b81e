"""Serving predictions beside published runs: `python -m benchmarks.serving_accuracy [--json] [--write]`.

The figures are those of `dse validate --split all`; `--json` prints every group as the last line, `--write` writes
docs/serving-accuracy.md.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.accuracy import table
from costmodels.comparison import Comparison, error_statistics
from costmodels.published_serving import NAMES
from dse.answers import to_json_text
from dse.validation import percent, validate
from spaces.architecture import find
from spaces.hardware import find_device

PAGE = Path(__file__).parent.parent / "docs" / "serving-accuracy.md"
SATURATED = ("krai-mlperf", "mlperf-4.0", "mlperf-4.1")
"""Sources whose servers are sent all that they can take: a time per token says how near its limit a server was."""
OLD = ("trtllm-0.14-online",)
"""Sources of servers of 2024, which nothing here describes (docs/serving.md)."""
ORDER = {metric: place for place, metric in enumerate(("tpot_s", "ttft_s", "tokens_per_s_per_gpu"))}

INTRODUCTION = """\
# Accuracy on published serving runs

Written by `python -m benchmarks.serving_accuracy --write` from `costmodels/data/published/serving.csv`, which cites every row;
`dse validate --split all` prints the same errors. What is behind a source, how rows were split and what is known to be off:
[serving.md](serving.md).

Errors are relative, in percent; a rate counts as the time of a token, and a refused row as an error of 100 %. `bias` is signed:
positive predicts too slow. `coverage` is the share of published figures inside the 90 % interval. *Calibration* rows gave
constants of their server, *held-out* rows none.
"""

GROUPS = f"""\
## By kind of model and card

`saturated` are {", ".join(SATURATED)}: runs tuned to send all that a machine can take. `2024` is {", ".join(OLD)}.
"""


def kind_of(compared: Comparison) -> tuple[str, ...]:
    """(split, kind of server run, dense or experts, generation of the card, figure)."""
    fact = compared.fact
    when = "saturated" if _source(compared) in SATURATED else "2024" if _source(compared) in OLD else "servers of 2025 and 2026"
    built = "experts" if find(fact.inputs["model"]).experts else "dense"
    return fact.split, when, built, find_device(fact.inputs["gpu"]).generation, fact.metric


def source_of(compared: Comparison) -> tuple[str, ...]:
    """(split, source, server, figure)."""
    return compared.fact.split, _source(compared), compared.fact.inputs["stack"], compared.fact.metric


def _source(compared: Comparison) -> str:
    return compared.fact.source.removesuffix(f" {NAMES[compared.fact.metric]}")


def groups(
    compared: Sequence[Comparison], by: Callable[[Comparison], tuple[str, ...]]
) -> list[tuple[tuple[str, ...], list[Comparison]]]:
    """The comparisons by a key that ends with the figure; held-out ones first."""
    found: dict[tuple[str, ...], list[Comparison]] = defaultdict(list)
    for one in compared:
        found[by(one)].append(one)
    return sorted(found.items(), key=lambda item: (item[0][0] != "held-out", item[0][1:-1], ORDER[item[0][-1]]))


def page(compared: Sequence[Comparison]) -> str:
    """The whole page as Markdown."""
    kinds = (
        [*key[:-1], NAMES[key[-1]], str(len({_source(one) for one in group})), *_figures(group)]
        for key, group in groups(compared, kind_of)
    )
    sources = (
        [*key[:-1], _words(group, "model"), _words(group, "gpu"), NAMES[key[-1]], *_figures(group)]
        for key, group in groups(compared, source_of)
    )
    figures = ("rows", "median", "mean", "bias", "coverage")
    return "\n".join(
        [
            INTRODUCTION,
            GROUPS,
            *table(("split", "runs", "model", "card", "figure", "sources", *figures), kinds),
            "",
            "## By source",
            "",
            *table(("split", "source", "server", "models", "cards", "figure", *figures), sources),
            "",
        ]
    )


def _figures(group: Sequence[Comparison]) -> list[str]:
    errors = error_statistics(group)
    return [str(errors.rows), *(percent(value) for value in (errors.median, errors.mean, errors.bias, errors.coverage))]


def _words(group: Sequence[Comparison], name: str) -> str:
    return ", ".join(sorted({one.fact.inputs[name] for one in group}))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="one line of JSON at the end")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    given = parser.parse_args()
    compared = validate("all").serving
    text = page(compared)
    if given.write:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text)
    if given.json:
        kinds = [{"group": list(key)} | asdict(error_statistics(group)) for key, group in groups(compared, kind_of)]
        print(to_json_text(kinds))


if __name__ == "__main__":
    main()
