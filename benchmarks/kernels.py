"""Errors of the kernel models on kernels they were not fitted on: `python -m benchmarks.kernels [--json] [--write]`.

GEMM sites (n, k), kinds of attention heads, operand sizes and message sizes are left out in turn; then whole devices. Each
line has the number of rows, and in percent the median, mean and 90th percentile of |predicted / measured − 1| for each model,
with the coverage and median half width of `learned`'s 90 % interval, whose quantile comes from the other folds' rows.

`roofline` is not held out on Hopper: its shares (costmodels/data/kernels/hopper.yaml) were found on the same rows, as was the
α–β of collectives. The interval of a device left out has no coverage: two devices are too few to test it on a third.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

import costmodels
from costmodels.kernel_models import network
from costmodels.kernel_models.groups import quantiles
from costmodels.kernel_models.heldout import FOLDS, HeldOut, carry_over, leave_device_out, leave_groups_out
from costmodels.kernel_models.operations import TEXT, complete, dimensions
from costmodels.kernel_models.registry import find_kernel_model
from costmodels.kernel_models.samples import Sample, folds, samples
from costmodels.kernel_models.symbols import kernel_symbols
from costmodels.measurements import Measurements, read
from spaces.columns import FloatArray
from spaces.hardware import find_device

PAGE = Path(__file__).parent.parent / "docs" / "kernels.md"
PUBLISHED = Path(costmodels.__file__).parent / "data" / "published" / "kernels"
A100, H100 = "A100-80GB-SXM", "H100-80GB-SXM"
ACROSS = """
## From one generation to another

No A100 was measured for this project. These kernels were, by NVIDIA for aiconfigurator (costmodels/data/published/kernels:
an A100, and an H100 at the same shapes), in short runs in which neither is as warm as in training. The shipped model has
seen none of the H100's, nor any attention; an A100's ramp, overhead and bandwidth of products were fitted on its products here
(half of the sites leaves 6 or 9 % mean on the other half up to m = 64 and 10 or 12 % above; 60 % before; its first two lines
below hold fitted rows), its rate of large ones
on published training runs. The other lines carry one
device's rows over to the other's datasheet, as no shipped model does: its rates held, then with the residual learned on them.

"""
Line: TypeAlias = dict[str, str | int | float]
Mask: TypeAlias = NDArray[np.bool_]


def summary(
    what: str, kind: str, time: FloatArray, seconds: Mapping[str, FloatArray], half_width: FloatArray | None = None
) -> Line:
    """One line of the table; percent. `half_width` (n,) is the interval's in log time, for the last model."""
    line: Line = {"what": what, "left_out": kind, "rows": len(time)}
    for model, predicted in seconds.items():
        error = 100.0 * np.abs(predicted / time - 1.0)
        line |= {f"{model}_median": _round(np.median(error)), f"{model}_mean": _round(error.mean())}
        line |= {f"{model}_p90": _round(np.quantile(error, 0.9))}
    if half_width is not None:
        within = np.abs(np.log(list(seconds.values())[-1] / time)) <= half_width
        line |= {"coverage": _round(100.0 * within.mean()), "half_width": _round(100.0 * np.median(np.expm1(half_width)))}
    return line


def _round(value: object) -> float:
    return round(float(np.asarray(value)), 2)


def widths(held: Sequence[HeldOut]) -> list[FloatArray]:
    """Half width of the interval of every held-out row, from the errors of the other folds alone; shape (n,) each."""
    fold = folds([rows.sample for rows in held], FOLDS)
    error = [np.abs(rows.error("learned")) for rows in held]
    half = [np.zeros(len(rows.sample)) for rows in held]
    for turn in range(FOLDS):
        known = quantiles(
            np.concatenate([e[f != turn] for e, f in zip(error, fold, strict=True)]),
            np.concatenate([rows.group[f != turn] for rows, f in zip(held, fold, strict=True)]),
        )
        for rows, f, own in zip(held, fold, half, strict=True):
            own[f == turn] = [known.get(name, known[""]) for name in rows.group[f == turn].tolist()]
    return half


def gemm_parts(sample: Sample) -> Iterable[tuple[str, Mask]]:
    """The rows of a GEMM sample by what the targets name."""
    at = sample.at
    plain = (at["layout"] == "forward") & (at["cache"] == "warm") & (at["groups"] == 1)
    for dtype in ("bf16", "fp16", "fp8"):
        own = plain & (at["dtype"] == dtype)
        yield f"gemm {dtype}", own
        yield f"gemm {dtype}, m ≤ 64", own & (at["m"] <= 64)
        yield f"gemm {dtype}, m > 64", own & (at["m"] > 64)
    yield "gemm cold cache", at["cache"] == "cold"
    yield "gemm input gradient", at["layout"] == "dgrad"
    yield "gemm weight gradient", at["layout"] == "wgrad"
    yield "gemm grouped", at["groups"] > 1


def variant_parts(sample: Sample) -> Iterable[tuple[str, Mask]]:
    """The rows of a sample by operator variant."""
    for kind in np.unique(sample.variant).tolist():
        yield kind.replace(".", " "), sample.variant == kind


def family_lines(data: Measurements, family: str) -> list[Line]:
    """Groups left out, then devices left out, for one family."""
    many = samples(data, family)
    if not many:
        return []
    lines = []
    held = leave_groups_out(many)
    left = {"gemm": "(n, k) sites", "attention": "kinds of heads", "pointwise": "sizes"}[family]
    for rows, half in zip(held, widths(held), strict=True):
        lines += _parts(rows, left, half)
    for device in data.devices:
        for rows in leave_device_out(many, device):
            lines += _parts(rows, "the device", None)
    return lines


def _parts(rows: HeldOut, left: str, half: FloatArray | None) -> list[Line]:
    parts = gemm_parts if rows.sample.op == "gemm" else variant_parts
    lines = []
    for what, mask in parts(rows.sample):
        if mask.any():
            seconds = {model: values[mask] for model, values in rows.seconds.items()}
            title = f"{rows.sample.device}: {what}"
            lines.append(summary(title, left, rows.sample.time[mask], seconds, None if half is None else half[mask]))
    return lines


# ---- what others measured on an A100 ---------------------------------------------------------------------------------


def published_lines(data: Measurements, others: Measurements) -> list[Line]:
    """Kernels of an A100 and an H100 that others measured: by the shipped model, and each device from the other's rows."""
    lines = []
    for family in ("gemm", "attention"):
        theirs = {sample.device: sample for sample in samples(others, family)}
        ours = [sample for sample in samples(data, family) if sample.device == H100 and sample.op == theirs[A100].op]
        lines += [line for sample in theirs.values() for line in _shipped(sample)]
        for known, taught, asked in (
            (f"{H100}, measured here", ours, [theirs[A100]]),
            (f"{A100}, published", [theirs[A100]], [theirs[H100]] if H100 in theirs else ours),
        ):
            for held in carry_over(taught, asked):
                for what, mask in _sizes(held.sample):
                    seconds = {model: held.seconds[model][mask] for model in ("calibrated", "learned")}
                    lines.append(summary(what, known, held.sample.time[mask], seconds))
    return lines


def _sizes(sample: Sample) -> Iterable[tuple[str, Mask]]:
    """The rows of a sample: products of few and of many tokens, attention by kernel."""
    if sample.op == "gemm":
        few = sample.at["m"] <= 64
        parts: Iterable[tuple[str, Mask]] = (("gemm bf16, m ≤ 64", few), ("gemm bf16, m > 64", ~few))
    else:
        parts = variant_parts(sample)
    for what, mask in parts:
        if mask.any():
            yield f"{sample.device}: {what}", mask


def _shipped(sample: Sample) -> Iterable[Line]:
    """Errors and coverage of the shipped model, which has seen none of these rows."""
    shapes = {name: values for name, values in sample.at.items() if name in (*dimensions(sample.op), *TEXT, "groups")}
    answer = find_kernel_model().predict(sample.op, complete(sample.op, shapes), kernel_symbols(find_device(sample.device)))
    within = (answer.low <= sample.time) & (sample.time <= answer.high)
    half = (answer.high - answer.low) / (2.0 * answer.value)
    for what, mask in _sizes(sample):
        line = summary(what, "the shipped model", sample.time[mask], {"learned": answer.value[mask]})
        coverage, width = 100.0 * within[mask].mean(), 100.0 * np.median(half[mask])
        yield line | {"coverage": _round(coverage), "half_width": _round(width)}


def collective_lines(data: Measurements) -> list[Line]:
    """Message sizes left out, in a graph from 1 MiB and from Python from 64 MiB."""
    many = network.two_ranks(samples(data, "collectives"))
    eager = network.two_ranks(samples(data, "collectives", "eager"))
    lines = []
    for sample, prior, curve in network.leave_sizes_out(many) if many else []:
        mask = sample.at["bytes"] >= 2**20
        seconds = {"roofline": prior[mask], "learned": curve[mask]}
        lines.append(summary(f"{sample.device}: {sample.op} in a graph, ≥ 1 MiB", "sizes", sample.time[mask], seconds))
    for sample in eager:
        large = sample.take(sample.at["bytes"] >= 2**26)
        curves = network.fit_curves([own for own in many if own.op == sample.op])
        if len(large) and sample.op in curves:
            seconds = {"learned": network.curve_time(large, curves)}
            lines.append(summary(f"{sample.device}: {sample.op} from Python, ≥ 64 MiB", "all eager rows", large.time, seconds))
    return lines


def report(data: Measurements) -> list[Line]:
    """Every line of the table."""
    lines = [line for family in ("gemm", "attention", "pointwise") for line in family_lines(data, family)]
    return lines + collective_lines(data)


def table(lines: Sequence[Line]) -> str:
    """Markdown: one line a row, three models of median / mean / p90."""
    text = ["| kernels | left out | rows | roofline | calibrated | learned | 90 % interval |", "|---|---|---|---|---|---|---|"]
    for line in lines:
        cells = [str(line[name]) for name in ("what", "left_out", "rows")]
        for model in ("roofline", "calibrated", "learned"):
            figures = [line.get(f"{model}_{part}") for part in ("median", "mean", "p90")]
            cells.append("" if figures[0] is None else " / ".join(f"{float(figure or 0.0):.1f}" for figure in figures))
        cells.append(f"{line['coverage']} % in ± {line['half_width']} %" if "coverage" in line else "")
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


def published_table(lines: Sequence[Line]) -> str:
    """Markdown: what is known of the device, and the errors of holding another's rates without and with its residual."""
    text = ["| kernels | known | rows | rates held | and residual | 90 % interval |", "|---|---|---|---|---|---|"]
    for line in lines:
        cells = [str(line[name]) for name in ("what", "left_out", "rows")]
        for model in ("calibrated", "learned"):
            figures = [line.get(f"{model}_{part}") for part in ("median", "mean", "p90")]
            cells.append("" if figures[0] is None else " / ".join(f"{float(figure or 0.0):.1f}" for figure in figures))
        cells.append(f"{line['coverage']} % in ± {line['half_width']} %" if "coverage" in line else "")
        text.append("| " + " | ".join(cells) + " |")
    return "\n".join(text) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Held-out errors of the kernel models.")
    parser.add_argument("--json", action="store_true", help="print the lines as JSON")
    parser.add_argument("--write", action="store_true", help=f"write the table to {PAGE.name} in docs")
    chosen = parser.parse_args(arguments)
    data = read()
    lines, published = report(data), published_lines(data, read(PUBLISHED))
    if chosen.write:
        head = "# Kernel models on kernels they have not seen\n\n"
        head += "Percent of |predicted / measured − 1|: median / mean / 90th percentile. "
        head += "The roofline's shares and the link's α–β were found on these rows, so those columns are not held out.\n\n"
        PAGE.write_text(head + table(lines) + ACROSS + published_table(published), encoding="utf-8")
    print(json.dumps([*lines, *published]) if chosen.json else table(lines) + ACROSS + published_table(published))


if __name__ == "__main__":
    main()
