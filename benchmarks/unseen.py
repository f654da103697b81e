"""Errors on rows that no fit has read: `python -m benchmarks.unseen [--json] [--write]`.

`costmodels/data/unseen` holds kernels, whole training steps and steps of served models on one and two H100s and H200s, at
shapes and of architectures that `costmodels/data/measurements` lacks, drawn at random before any was predicted. Nothing may be
fitted on them; when a fit ever needs them, they move to the measurements and new ones are taken.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np

import costmodels
from costmodels.kernel_prediction import predict_kernel_rows
from costmodels.measured_serving import measured_serving, question, signed_error
from costmodels.measured_steps import measured_steps
from costmodels.measurements import rows_of
from costmodels.training import TrainingModel
from dse.prediction import predict_rows
from spaces.columns import Columns

ROOT = Path(costmodels.__file__).parent / "data" / "unseen"
PAGE = Path(__file__).parent.parent / "docs" / "unseen.md"
_READINGS = frozenset({"time_s", "spread", "sm_clock_mhz", "power_w", "repeats"})
_MIB = 2**20

Errors: TypeAlias = dict[str, list[float]]
Line: TypeAlias = dict[str, str | int | float]


def kernels() -> Errors:
    """Signed relative errors of single kernels by group."""
    errors: Errors = {}
    for family in ("gemm", "attention", "pointwise", "collectives"):
        given = rows_of(ROOT, family)
        asked = [{name: value for name, value in row.items() if name not in _READINGS} for row in given]
        for row, answer in zip(given, predict_kernel_rows(asked), strict=True):
            if not answer["error"]:
                group = f"{_group(family, row)}, {_short(row['gpu'])}"
                errors.setdefault(group, []).append(float(answer["time_s"]) / float(row["time_s"]) - 1.0)
    return errors


def _group(family: str, row: Mapping[str, str]) -> str:
    """What a kernel is counted with."""
    if family == "gemm":
        return f"{row['op']} {row['dtype']}, {row['launch']}, {row['cache']}, m {'≤' if float(row['m']) <= 64 else '>'} 64"
    if family == "attention":
        return f"{row['op'].replace('_', ' ')}, {row['implementation']}"
    if family == "collectives":
        size = float(row["bytes"]) / _MIB
        return f"{row['op']}, {row['launch']}, {'below 1 MiB' if size < 1 else '1 to 64 MiB' if size < 64 else 'from 64 MiB'}"
    return f"{row['op']}, {row['direction']}"


def _short(device: str) -> str:
    """H100 of H100-80GB-SXM."""
    return device.split("-")[0]


def training() -> tuple[Errors, Errors]:
    """Signed relative errors of whole steps by group: seconds, and peak bytes."""
    time: Errors = {}
    peak: Errors = {}
    model = TrainingModel()
    for step in measured_steps(ROOT):
        asked = Columns.from_values({"micro_batch": np.array([step.plan["micro_batch"]])})
        value = model.evaluate(step.problem(), asked).value
        parallel = "one GPU" if step.kind == "one" else f"two GPUs, {step.kind}"
        told = "" if step.usual else f", {'; '.join(step.unusual)}"
        waits = ", host-bound" if step.host_bound else ""
        card = _short(step.device)
        time.setdefault(f"step, {parallel}, {step.mode}{told}{waits}, {card}", []).append(
            float(value["step_time"][0]) / step.time - 1.0
        )
        if step.peak:
            peak.setdefault(f"peak memory, {parallel}, {card}", []).append(float(value["peak_memory"][0]) / step.peak - 1.0)
    return time, peak


def serving() -> Errors:
    """Signed relative errors of prefill and decode steps under CUDA graphs."""
    errors: Errors = {}
    for name, ranks in (("serving", "one GPU"), ("serving_parallel", "two GPUs, tensor")):
        given = measured_serving(ROOT, name)
        for row, answer in zip(given, predict_rows([question(row) for row in given], "serving"), strict=True):
            errors.setdefault(f"{row['op']} step, {ranks}, {_short(row['gpu'])}", []).append(signed_error(row, answer))
    return errors


def line(what: str, errors: Sequence[float]) -> Line:
    """One line of the table; percent. `bias` is the signed median, `lowest` the most that a prediction is too small."""
    signed = 100.0 * np.asarray(errors)
    size = np.abs(signed)
    return {
        "what": what,
        "rows": len(signed),
        "median": round(float(np.median(size)), 2),
        "mean": round(float(size.mean()), 2),
        "p90": round(float(np.quantile(size, 0.9)), 2),
        "bias": round(float(np.median(signed)), 2),
        "lowest": round(float(signed.min()), 2),
    }


def report() -> list[Line]:
    """Every group: whole steps and memory first, then steps of served models, then kernels."""
    time, peak = training()
    return [line(what, found) for part in (time, peak, serving(), kernels()) for what, found in sorted(part.items())]


def table(lines: Iterable[Line]) -> str:
    """The report as a Markdown table."""
    head = "| | rows | median % | mean % | p90 % | bias % | lowest % |\n|---|---|---|---|---|---|---|"
    return "\n".join([head, *("| " + " | ".join(str(value) for value in entry.values()) + " |" for entry in lines)])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON list")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    chosen = parser.parse_args(arguments)
    found = report()
    if chosen.write:
        _, mark, first = PAGE.read_text(encoding="utf-8").partition(_FIRST)
        PAGE.write_text(f"{_PREFACE}\n{table(found)}\n\n{mark}{first}", encoding="utf-8")
    print(json.dumps(found) if chosen.json else table(found))


_FIRST = "## First printed"  # what stands below it was written before a fit, and is kept
_PREFACE = """# Errors on rows that no fit has seen

Written by `python -m benchmarks.unseen --write`. Rows of `costmodels/data/unseen` were measured on one and two H100s
(2026-11-27 and 28) and H200s (2026-11-28), at shapes and of architectures drawn at random, which the fitted measurements lack,
after the models stood.

Products and attention of this exam are at (n, k) sites and kinds of heads (heads, KV heads, width) that no fitted row of any
device has. They are what is left of larger exams: first printed before a fit read them (below, both tables), then the rows at
sites that other rows have joined the fit, and the rest, which no fit has read, stays here. Steps stay here whole.

What the first printing taught, by the physics that was wrong:

- **Head widths other than 64 and 128** were up to 43 % off. Kernels pad: FlashAttention-2 to 64, 96, 128, 192, 256; cuDNN by
  64, and to 256 where it decodes more than 128. A scan of widths from 72 to 256 shows the steps.
- **Decoding with FlashAttention-2** cuts the keys by its own heuristic (batch × KV heads against two places on each unit,
  tiles of 256, 128 or 64 keys by width), and parts are joined one after another. Sequences left whole go through the kernel
  of prefill and multiply tiles of 128 rows that hold one query's heads, so they wait for the products, not for the memory.
- **Causal grids**: blocks are unequal; the longest takes in all keys, and some of the longest start last.
- **Backward of shared KV heads** writes gradients of keys and values for each head and sums them afterwards.
- **AdamW, foreach**: 20 reads and writes of a parameter where the fused update has 7 (15 to 17 % of a step).
- **A GPT with rotary positions** was asked for without its rotation (12 % of the time, 5 % of the memory).
- **Calls from Python** are the host's time, and hosts of one device differ by half from session to session (all-reduces of
  37 to 68 us): the middle of all of them is predicted, with an interval that says so.
- **Steps that wait for the host** (a third exam: 60 small steps on hosts of another day) were 24 % off on the H100 and 14 % on
  the H200 (medians). The host runs ahead of the device, into the update and the next step, so a step is the longer of all its
  calls and all its kernels, not a sum of the longer ones pass by pass; and rotary embedding or a norm put together from parts
  are many calls. Half of the architectures joined the fit, the other half is below. One host differs from another, and from
  itself minutes later, by a fifth.
- **A table that embedding and head share** has two gradients and their sum at the end of the backward pass: with few tokens
  the peak was 7 to 13 % too low.

What is left in products is near what repeats differ by: 28 products of more than 64 rows in both H100 sessions differ by 2.3 %
(median) and 3.9 % (mean), 27 narrower ones by 1.4 and 4.9 %, as clocks follow what ran before.

No fit has read these rows, but their table has been read: what was worked on was chosen because it was wrong there, on rows
that then joined the fit (sites and heads left out in turn). The rows here were predicted twice afterwards, the second time
with causal grids as above, which was chosen on the fitted rows alone.
"""


if __name__ == "__main__":
    main()
