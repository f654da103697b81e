"""`calibrate`: measure this machine, all of it or just what one experiment's answer hangs on.

Measuring is the work of `costmodels.calibration.measure`, run as a process of its own: it restarts itself when a device fails.
"""

from __future__ import annotations

import csv
import importlib.util
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from costmodels.calibration.measure import SUITES, chosen_suites, plan
from costmodels.calibration.suite import Suite
from costmodels.kernel_prediction import predict_kernel_rows
from costmodels.kernel_shapes import KernelShape, kernel_shapes
from dse import run_folder
from dse.asking import plan_codes
from dse.experiment import load
from dse.kinds.training.plans import one_device, point, problem_of
from dse.kinds.training.words import title
from dse.measures import nearest, significant
from dse.runner import answer_to
from dse.tables import table
from spaces.columns import Columns
from spaces.problem import Problem

OUT = Path("calibration")
"""Where measurements go unless told otherwise."""

SECONDS = 480.0
"""How long a whole suite is given."""

_COLUMNS = (
    *("op", "dtype", "layout", "m", "n", "k", "groups"),
    *("batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim", "causal", "implementation"),
)
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class CannotMeasure(ValueError):
    """The machine lacks what measuring needs; the message says what to install."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UncertainShape:
    """A kernel that a plan runs: seconds of one call with their interval, and what it rests on; NaN where not predictable.

    `doubt` is the width of the interval over all calls of a step, seconds.
    """

    shape: KernelShape
    time: float
    low: float
    high: float
    evidence: str

    @property
    def doubt(self) -> float:
        """Seconds a step; infinite where nothing is known."""
        width = self.shape.calls * (self.high - self.low)
        return width if math.isfinite(width) else math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class UncertainShapes:
    """The kernels of an experiment's best plan, most uncertain first; `asked` of them are worth measuring."""

    title: str
    shapes: tuple[UncertainShape, ...]
    asked: int

    @property
    def chosen(self) -> tuple[UncertainShape, ...]:
        """The shapes to measure."""
        return self.shapes[: self.asked]

    def share(self, shapes: Sequence[UncertainShape]) -> float:
        """Percent of the doubt of all shapes that these hold; NaN when there is none, or no end to it."""
        total = sum(shape.doubt for shape in self.shapes)
        return 100.0 * sum(shape.doubt for shape in shapes) / total if 0 < total < math.inf else math.nan

    def __str__(self) -> str:
        count = len(self.chosen)
        if not count:
            return f"{self.title}\nIt runs no matrix product and no attention call that the suite can measure."
        number = _NUMBERS[count - 1] if count <= len(_NUMBERS) else str(count)
        share = self.share(self.chosen)
        whole = f"what is uncertain in its {len(self.shapes)} matrix and attention kernels"
        held = f": {share:.0f} % of {whole}" if share >= 0 else ""
        said = "this shape" if count == 1 else f"these {number} shapes"
        headings = ["#", "kernel", "for", "calls", "time, ms", "interval, ms", "evidence", "% of doubt"]
        rows = [[str(i), *self._cells(shape)] for i, shape in enumerate(self.chosen, 1)]
        return f"{self.title}\n\nMeasure {said}{held}.\n{table(headings, rows, left=frozenset({1, 2, 6}))}"

    def _cells(self, one: UncertainShape) -> list[str]:
        known = math.isfinite(one.time)
        times = [_ms(one.time), f"{_ms(one.low)}–{_ms(one.high)}"] if known else ["?", "?"]
        share = self.share([one])
        shown = f"{share:.0f}" if share >= 0 else "?"
        return [_shape_text(one.shape), ", ".join(one.shape.operators), f"{one.shape.calls:,.0f}", *times, one.evidence, shown]


def uncertain_shapes(source: str | os.PathLike[str], most: int = 5) -> UncertainShapes:
    """Kernels of the first front member of an experiment file or a run folder, the most uncertain first.

    Raises ExperimentError, BadRunFolder, OSError, and ValueError when no plan is feasible.
    """
    folder = Path(source) if Path(source).is_dir() else None
    experiment = load(source if folder is None else folder / "experiment.yaml")
    if experiment.kind != "training":
        raise ValueError(f"{source} is a {experiment.kind} experiment; --for takes a training experiment")
    run = answer_to(experiment) if folder is None else run_folder.read(folder)
    if not run.front:
        raise ValueError(f"no plan of {source} is feasible, so there is no plan to measure for")
    best = run.front[0]
    codes = plan_codes(experiment, best.plan)
    single = one_device(experiment.job, codes.get("device"))
    found = doubts(problem_of(single), point(single, codes), single.devices[0].name)
    return UncertainShapes(title=f"{title(single)}\n#1: {best.text}", shapes=found, asked=most)


def doubts(problem: Problem, plan: Columns, device: str) -> tuple[UncertainShape, ...]:
    """Kernels of a plan (a batch of one) on a device of the catalogue, the most uncertain first."""
    shapes = kernel_shapes(problem, plan)
    rows = [{**shape.row, "gpu": device} for shape in shapes]
    own = problem.labels.get("calibration", ("",))[0]
    found = [_uncertain(shape, row) for shape, row in zip(shapes, predict_kernel_rows(rows, calibration=own), strict=True)]
    return tuple(sorted(found, key=lambda shape: -shape.doubt))


def _uncertain(shape: KernelShape, answer: dict[str, float | str]) -> UncertainShape:
    time, low, high = (float(answer[name] or math.nan) for name in ("time_s", "time_s_low", "time_s_high"))
    return UncertainShape(shape=shape, time=time, low=low, high=high, evidence=str(answer["evidence"] or answer["error"]))


def _ms(seconds: float) -> str:
    return significant(seconds * 1e3, 3)


def _shape_text(shape: KernelShape) -> str:
    """`gemm bf16 wgrad 4096×2048×16384`, `attention_prefill bf16 cudnn batch 2, heads 16/4, 8192×8192, 128 wide`."""
    row = shape.row
    if row["op"] == "gemm":
        groups = f"{row['groups']} × " if row["groups"] != "1" else ""
        return f"gemm {row['dtype']} {row['layout']} {groups}{row['m']}×{row['n']}×{row['k']}"
    lengths = f"{row['q_len']}×{row['kv_len']}"
    heads = f"heads {row['heads']}/{row['kv_heads']}"
    named = f"{row['op']} {row['dtype']} {row['implementation']}"
    return f"{named} batch {row['batch']}, {heads}, {lengths}, {row['head_dim']} wide"


def write_shapes(shapes: Sequence[UncertainShape], path: Path) -> None:
    """The shapes as the measurement suite's `--shapes` reads them, in order. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, _COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(shape.shape.row for shape in shapes)


def calibrate(
    out: str | os.PathLike[str] = OUT,
    *,
    suite: str = "",
    seconds: float = SECONDS,
    small: bool = False,
    shapes: str | os.PathLike[str] | None = None,
) -> int:
    """Measure this machine into the folder `out`, which is resumed when it holds rows; the suite's exit code.

    `suite` names some of the suites, separated by commas; `shapes` is a CSV file of kernels to measure instead. Raises
    CannotMeasure without PyTorch or numpy, ValueError for an unknown suite.
    """
    _suites(suite)
    command = ["-m", "costmodels.calibration.measure", "--out", str(out), "--seconds", f"{seconds:g}"]
    command += ["--suite", suite] if suite else []
    command += ["--small"] if small else []
    command += ["--shapes", str(shapes)] if shapes is not None else []
    missing = [name for name in ("torch", "numpy") if not installed(name)]
    if missing:
        raise CannotMeasure(
            f"measuring needs PyTorch and numpy on the machine that is measured, and {' and '.join(missing)} cannot be "
            "imported here. Install a PyTorch that matches the machine's driver (pip install torch numpy; see pytorch.org) and "
            "give the same command again. On a machine without frontplan's other dependencies, "
            f"python {' '.join(command)} does the same."
        )
    return subprocess.call([sys.executable, *command])


def _suites(names: str) -> list[Suite]:
    """Suites by name, or those that one device needs. Raises ValueError."""
    for name in filter(None, names.split(",")):
        if name not in SUITES:
            raise ValueError(f"--suite: no such suite {name!r}{nearest(name, list(SUITES))}")
    return chosen_suites(names, 1)


def listed(suite: str = "", *, small: bool = False) -> str:
    """What a whole measurement comes to: rows and seconds of each suite. Raises ValueError for an unknown suite."""
    lines: list[str] = []
    plan(_suites(suite), small, lines.append)
    return "\n".join(lines)


def installed(name: str) -> bool:
    """Whether a library can be imported; it is not."""
    return importlib.util.find_spec(name) is not None
