"""Errors of joules a step on an H200 whose energy was counted: `python -m benchmarks.energy [--json] [--write] [--constants]`.

`costmodels/data/energy` holds training steps, steps of served models, kernels, an idle device and its host link, with the
watts that NVML's energy counter told. `fit` models and shapes gave the constants of costmodels/data/energy.yaml, `held` ones
none, and `new` ones were measured after those were fixed. `--constants` prints what the fit gives.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from scipy.optimize import least_squares

import costmodels
from costmodels.energy import energy, prices
from costmodels.kernel_models.operations import ELEMENT, complete, dimensions, traffic_and_work
from costmodels.kernel_models.symbols import kernel_symbols
from costmodels.kernel_prediction import predict_kernel_rows
from costmodels.measured_serving import question
from costmodels.measured_steps import MeasuredStep, measured_steps
from costmodels.measurements import rows_of
from costmodels.serving.operating_cost import active_parameters
from costmodels.training import TrainingModel
from dse.prediction import predict_rows
from dse.serving_rows import read_serving
from spaces.columns import Columns, FloatArray
from spaces.hardware import find_device

ROOT = Path(costmodels.__file__).parent / "data" / "energy"
PAGE = Path(__file__).parent.parent / "docs" / "energy.md"
_ONE = 1e-30  # joules a FLOP or byte that no cap cuts: what comes out are FLOPs and bytes
_CAPPED = 0.97  # share of its cap above which a device is held at it
_GB = 1e9
_HALVES = ("fit", "held", "new")
_PRODUCTS = ("gemm",)
Line: TypeAlias = dict[str, str | int | float]
Row: TypeAlias = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """Work of one device for `time` seconds at `watts`, and what the engine says: `flops`, bytes (`traffic`), seconds.

    `before`: joules it said before any constant was changed on these rows (NaN: not asked).
    """

    what: str
    half: str
    device: str
    time: float
    watts: float
    flops: float
    traffic: float
    predicted: float
    before: float

    def joules(self, time: float) -> float:
        """Joules that the engine's constants say for this work in so many seconds."""
        at = {**find_device(self.device).symbols(), "devices": 1.0}
        none, seconds = np.zeros(1), np.array([time])
        parts = energy(at, seconds, np.array([self.flops]), np.array([self.traffic]), none, none)
        return float(np.sum([part[0] for part in parts.values()]))

    @property
    def capped(self) -> bool:
        """Whether the device was held at its cap."""
        return self.watts > _CAPPED * find_device(self.device).power


def readings() -> list[Reading]:
    """Training steps, served steps and kernels, in the order of the files."""
    return [*steps(), *served(), *kernels()]


def steps() -> Iterator[Reading]:
    """Whole training steps."""
    for row, step in zip(rows_of(ROOT, "steps"), measured_steps(ROOT), strict=True):
        yield _step(step, row["half"], float(row["engine_j"]))


def _step(step: MeasuredStep, half: str, before: float) -> Reading:
    problem = step.problem()
    problem = dataclasses.replace(problem, scalars={**problem.scalars, "energy.flop": _ONE, "energy.memory": _ONE})
    found = TrainingModel().evaluate(problem, Columns.from_values({"micro_batch": np.array([step.plan["micro_batch"]])}))
    flops, traffic = (float(found.parts["energy"][name][0]) / _ONE for name in ("compute", "memory"))
    return Reading(
        what="training step",
        half=half,
        device=step.device,
        time=step.time,
        watts=step.watts,
        flops=flops,
        traffic=traffic,
        predicted=float(found.value["step_time"][0]),
        before=before,
    )


def served() -> Iterator[Reading]:
    """FLOPs and bytes as costmodels/serving/operating_cost.py counts them: products of all tokens, weights, caches."""
    given = rows_of(ROOT, "serving")
    asked = [question(row) for row in given]
    for row, ask, answer in zip(given, asked, predict_rows(asked, kind="serving"), strict=True):
        decode, batch, length = row["op"] == "decode", float(row["batch"]), float(row["seq"])
        parameters = active_parameters(read_serving(ask).architecture, "torch-graph")
        cached = batch * length * 2 * float(row["layers"]) * float(row["kv_heads"]) * float(row["head_dim"]) * ELEMENT["bf16"]
        yield Reading(
            what=f"{row['op']} step",
            half=row["half"],
            device=find_device(row["gpu"]).name,
            time=float(row["time_s"]),
            watts=float(row["power_w"]),
            flops=2.0 * parameters * batch * (1.0 if decode else length),
            traffic=parameters * ELEMENT[row["dtype"]] + cached * decode,
            predicted=float(answer["tpot_s" if decode else "ttft_s"]),
            before=float(row["engine_j"]),
        )


def kernels() -> Iterator[Reading]:
    """Single kernels, with the FLOPs and bytes of their operators."""
    given = rows_of(ROOT, "kernels")
    asked = [{name: value for name, value in row.items() if value} | {"launch": "graph"} for row in given]
    for row, answer in zip(given, predict_kernel_rows(asked), strict=True):
        op, device = row["op"], find_device(row["gpu"])
        shape = {name: np.array([float(row[name])]) for name in dimensions(op)}
        words = {name: np.array([row[name]]) for name in ("dtype", "causal", "cache") if row[name]}
        work = traffic_and_work(op, complete(op, {**shape, **words}), kernel_symbols(device))
        yield Reading(
            what="product" if op in _PRODUCTS else "attention" if op.startswith("attention") else "elements",
            half=row["half"],
            device=device.name,
            time=float(row["time_s"]),
            watts=float(row["power_w"]),
            flops=float(np.ravel(work.flops)[0]),
            traffic=float(np.ravel(work.traffic)[0]),
            predicted=float(answer["time_s"]),
            before=float(row["engine_j"]),
        )


def constants(some: Sequence[Reading]) -> FloatArray:
    """Joules a FLOP and a byte that fit the watts of some readings of one device best, large errors counting linearly."""
    device = find_device(some[0].device)
    held = prices()["held"] * device.power
    flops, traffic = (np.array([getattr(r, name) / r.time for r in some]) for name in ("flops", "traffic"))
    watts = np.array([r.watts for r in some])

    def error(tenths: FloatArray) -> FloatArray:
        asked = device.idle_power + 1e-12 * (tenths[0] * flops + 100.0 * tenths[1] * traffic)
        return np.asarray(np.log(np.minimum(asked, held) / watts), np.float64)

    found = least_squares(error, np.ones(2), bounds=(0.0, 10.0), loss="soft_l1", f_scale=0.03)
    return np.asarray(found.x * np.array([1e-12, 1e-10]), np.float64)


def lines(some: Iterable[Reading]) -> list[Line]:
    """One line a kind of work, whether the device was held at its cap, and half; percent."""
    groups: dict[tuple[str, str, str], list[Reading]] = {}
    for reading in some:
        key = (reading.what, "at the cap" if reading.capped else "below it", reading.half)
        groups.setdefault(key, []).append(reading)
    return [_line(key, group) for key, group in groups.items()]


def _line(key: tuple[str, str, str], group: Sequence[Reading]) -> Line:
    power = 100.0 * np.array([r.joules(r.time) / r.time / r.watts - 1.0 for r in group])
    joules = 100.0 * np.array([r.joules(r.predicted) / (r.time * r.watts) - 1.0 for r in group])
    before = 100.0 * np.array([r.before / (r.time * r.watts) - 1.0 for r in group])
    figures = {
        "watts": np.median([r.watts for r in group]),
        "joules before": np.abs(before).mean(),
        "bias before": before.mean(),
        "watts now": np.abs(power).mean(),
        "joules now": np.abs(joules).mean(),
        "p90": np.quantile(np.abs(joules), 0.9),
        "bias": joules.mean(),
    }
    named = dict(zip(("work", "power", "half"), key, strict=True))
    return {**named, "rows": len(group), **{name: round(float(value), 1) for name, value in figures.items()}}


def older() -> list[Line]:
    """Whole steps whose watts the driver averaged over their last second (costmodels/data/measurements); none was fitted."""
    groups: dict[tuple[str, str, str], list[float]] = {}
    for step in measured_steps():
        if step.mode == "graph" or not step.usual or not step.watts:
            continue
        asked = Columns.from_values({"micro_batch": np.array([step.plan["micro_batch"]])})
        value = TrainingModel().evaluate(step.problem(), asked).value
        said = float(value["energy"][0] / value["step_time"][0] / value["devices"][0])
        key = (step.device, step.kind, "processor" if step.host_bound else "device")
        groups.setdefault(key, []).append(100.0 * (said / step.watts - 1.0))
    found: list[Line] = []
    for (device, kind, what), error in sorted(groups.items()):
        named: Line = {"device": device, "parallel": kind, "waits for": what, "steps": len(error)}
        off = {"median": np.median(np.abs(error)), "mean": np.mean(np.abs(error)), "bias": np.median(error)}
        found.append({**named, **{name: _tenth(float(value)) for name, value in off.items()}})
    return found


def _tenth(value: float) -> float:
    return round(value, 1)


def link() -> list[Line]:
    """Gigabytes a second each way over the host link by size."""
    return [
        {
            "way": row["way"],
            "MiB": int(row["bytes"]) // 2**20,
            "GB/s a direction": _tenth(float(row["bytes"]) / float(row["time_s"]) / _GB),
            "GB/s of one alone": _tenth(float(row["bytes"]) / float(row["alone_s"]) / _GB),
        }
        for row in rows_of(ROOT, "link")
    ]


def table(found: Sequence[Line]) -> str:
    """Markdown."""
    names = list(found[0])
    every = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    return "\n".join([*every, *(f"| {' | '.join(str(line[name]) for name in names)} |" for line in found)]) + "\n"


HEAD = """\
# Energy, counted

Written by `python -m benchmarks.energy --write` from `costmodels/data/energy`: one H200, NVML's energy counter over 2.4 to 4 s
of the same work. Percent; means of |predicted / measured − 1|, `bias` signed. `before` is what the engine said before anything
was changed on these rows, the blind error. `watts now` are those of the work in the measured time, `joules` those of the work
in the predicted time. `fit` models gave two constants, joules a FLOP and a byte; `held` ones (other models) none, but the form
of the law was chosen with both in sight; `new` ones were measured after it and the constants were fixed, small steps chosen to
stay below the cap. Kernels gave nothing.

"""
AFTER = """
What the rows say:

- **At the cap** a device draws what the cap leaves (690 of 700 W), whatever the work: nearly every training step, every prompt
  and large batches. Its clock falls instead, to 1,455 of 1,980 MHz under large products. Joules are as good as seconds there.
- **Below it** the two constants are what counts: steps that wait for the processor, small batches that decode.
- **Elements** (norms, softmax, activations) draw more than their bytes say, and a copy that stays in the cache less: bytes
  stand for all that a kernel does. Inside a step that averages out.
- **What lasts** longer than a cap averages over is counted apart: FLOPs of a server's prompts are priced as the cap leaves
  them, and the bubbles of a pipeline are idle. Waits for collectives are not: steps of two GPUs draw the cap through them.
- **Not measured**: other generations (constants follow their cap and rate, costmodels/data/energy.yaml), clusters, hosts.
  A host link at full rate adds 10 to 20 W to an idle device.

## Watts of older steps

Steps on one and two H100s and H200s whose watts the driver averaged over the last second of about a second and a half. Nothing
here was fitted on them, nothing on any H100 and nothing on more than one device.

"""
LINK = """
## The host link

Pinned memory unless it says otherwise; `read` and `write` are a kernel's own, in place; `h2d_blocks64k` copies 64 KiB at a
time. The datasheet says 64 GB/s a direction. `costmodels/data/host_link.yaml` has the shares that the engine uses.

"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.energy", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the lines as JSON")
    parser.add_argument("--write", action="store_true", help=f"write docs/{PAGE.name}")
    parser.add_argument("--constants", action="store_true", help="print the constants that the rows of the first half give")
    chosen = parser.parse_args()
    every = readings()
    if chosen.constants:
        flop, byte = constants([r for r in every if r.half == "fit" and r.what.endswith("step")])
        device = find_device(every[0].device)
        share = flop * device.matrix_flops["bf16"] / (device.power - device.idle_power)
        print(f"{flop:.4g} J/FLOP (compute_share {share:.3g}), {byte:.4g} J/B")
        return
    found = sorted(lines(every), key=lambda line: (_order(line), str(line["power"]), _HALVES.index(str(line["half"]))))
    if chosen.write:
        PAGE.write_text(HEAD + table(found) + AFTER + table(older()) + LINK + table(link()), encoding="utf-8")
    print(json.dumps(found) if chosen.json else table(found))


def _order(line: Line) -> int:
    return ("training step", "decode step", "prefill step", "product", "attention", "elements").index(str(line["work"]))


if __name__ == "__main__":
    main()
