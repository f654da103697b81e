"""What a run answers: plans with their figures and intervals, and the run that holds them. They print themselves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.metrics import Evidence, Metrics
from dse.kinds.registry import Kind, find
from dse.measures import measure
from spaces.columns import Columns
from spaces.problem import Problem

TIE = 0.02
"""Plans whose intervals overlap and whose values differ by no more than this share, on every objective, are called a tie."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A prediction in SI, with the interval it should lie in."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAnswer:
    """One plan of a kind of experiment: its choices by name, its figures, and the parts that sum to them.

    `parts[metric][name]` sum to `figures[metric].value`; `violation[constraint]` is use / limit − 1, at most 0 when kept;
    `stages` is the memory of each distinct pipeline stage in bytes by part; `ties` are ranks (from 1) of plans it ties with.
    """

    kind: str
    plan: Mapping[str, Any]
    figures: Mapping[str, Figure]
    parts: Mapping[str, Mapping[str, float]]
    violation: Mapping[str, float]
    evidence: str
    stages: tuple[tuple[str, Mapping[str, float]], ...] = ()
    ties: tuple[int, ...] = ()

    @property
    def feasible(self) -> bool:
        """Whether every constraint is kept."""
        return all(value <= 0 for value in self.violation.values())

    @property
    def text(self) -> str:
        """The plan in one line, choices that rest left out."""
        return find(self.kind).text(self.plan)

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values."""
        return {
            "kind": self.kind,
            "plan": dict(self.plan),
            "metrics": {name: dataclasses.asdict(figure) for name, figure in self.figures.items()},
            "parts": {name: dict(parts) for name, parts in self.parts.items()},
            "violation": dict(self.violation),
            "evidence": self.evidence,
            "stages": [[name, dict(parts)] for name, parts in self.stages],
            "ties": list(self.ties),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> PlanAnswer:
        """The inverse of `to_json`."""
        return cls(
            kind=data["kind"],
            plan=data["plan"],
            figures={name: Figure(**figure) for name, figure in data["metrics"].items()},
            parts=data["parts"],
            violation=data["violation"],
            evidence=data["evidence"],
            stages=tuple((name, parts) for name, parts in data["stages"]),
            ties=tuple(data["ties"]),
        )

    def __str__(self) -> str:
        from dse.tables import plan_page

        return plan_page(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The answer to an experiment. `folder` is None when nothing could be written, and `trouble` says why.

    `objectives` are (metric, maximise); `top[metric]` holds the best plans by each; `removed` is (axis, reason, count) of
    partial choices that structure ruled out; `sample[name]` are columns of a seeded sample of the space, shape (n,);
    `certificate` is space = Σ pruned + evaluated + failed + unvisited; `sensitivity` is what front members lean on, where the
    kind says so, and is found when the run is written down.
    """

    kind: str
    name: str
    folder: Path | None
    experiment: str
    title: str
    objectives: tuple[tuple[str, bool], ...]
    front: tuple[PlanAnswer, ...]
    top: Mapping[str, tuple[PlanAnswer, ...]]
    baseline: PlanAnswer | None
    closest: PlanAnswer | None
    certificate: Mapping[str, Any]
    removed: tuple[tuple[str, str, int], ...]
    assumptions: tuple[str, ...]
    wall_s: float
    cpu_s: float
    sample: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    trouble: str = ""
    sensitivity: Mapping[str, Any] | None = None

    @property
    def stopped(self) -> str:
        """Why plans are unvisited; "" when none is."""
        return str(self.certificate["stopped"])

    @property
    def exit_code(self) -> int:
        """0; 2 when nothing is feasible; 1 when the run could not be kept."""
        return 1 if self.trouble else 0 if self.front else 2

    def to_json(self) -> dict[str, Any]:
        """The object `dse run --json` prints last."""
        keys = ["space", "pruned", "evaluated", "failed", "unvisited", "complete"]
        keys += [key for key in ("contenders_left", "front_proven", "front_unchallenged") if key in self.certificate]
        return {
            "run": None if self.folder is None else str(self.folder),
            "certificate": {key: self.certificate[key] for key in keys},
            "stages": dict(self.certificate.get("stages", ())),
            "front": [answer.to_json() for answer in self.front],
            "closest": None if self.closest is None else self.closest.to_json(),
            "baseline": None if self.baseline is None else self.baseline.to_json(),
            "wall_s": self.wall_s,
            "cpu_s": self.cpu_s,
        }

    def to_pandas(self) -> Any:
        """The front as a pandas DataFrame, where pandas is installed."""
        import pandas  # type: ignore[import-untyped, import-not-found, unused-ignore]

        return pandas.DataFrame([row(answer) for answer in self.front])

    def to_polars(self) -> Any:
        """The front as a polars DataFrame, where polars is installed."""
        import polars  # type: ignore[import-not-found, unused-ignore]

        return polars.DataFrame([row(answer) for answer in self.front])

    def __str__(self) -> str:
        from dse.tables import run_page

        return run_page(self)


def row(answer: PlanAnswer) -> dict[str, Any]:
    """One flat row: the plan's choices, then every metric with `_low` and `_high`, in SI."""
    flat = dict(answer.plan)
    for name, figure in answer.figures.items():
        flat |= {name: figure.value, f"{name}_low": figure.low, f"{name}_high": figure.high}
    return flat | {"evidence": answer.evidence}


def answers(kind: Kind[Any], problem: Problem, points: Columns, metrics: Metrics) -> tuple[PlanAnswer, ...]:
    """Plans and figures of n design points, in order."""
    return tuple(_answer(kind, problem, points, metrics, i) for i in range(points.n))


def _answer(kind: Kind[Any], problem: Problem, points: Columns, metrics: Metrics, i: int) -> PlanAnswer:
    figures = {}
    for name, values in metrics.value.items():
        low, high = metrics.low.get(name, values), metrics.high.get(name, values)
        figures[name] = Figure(float(values[i]), float(low[i]), float(high[i]))
    evidence = Evidence.FIRST_PRINCIPLES if metrics.evidence is None else Evidence(int(metrics.evidence[i]))
    return PlanAnswer(
        kind=kind.name,
        plan=kind.spelled(problem, points.row(i)),
        figures=figures,
        parts={m: {name: float(v[i]) for name, v in parts.items()} for m, parts in metrics.parts.items()},
        violation={name: float(v[i]) for name, v in metrics.violation.items()},
        evidence=evidence.name.lower().replace("_", "-"),
    )


def with_ties(front: Sequence[PlanAnswer], objectives: Iterable[tuple[str, bool]]) -> tuple[PlanAnswer, ...]:
    """The plans, each told which others it ties with on every objective."""
    metrics = [metric for metric, _ in objectives]
    if not front:
        return ()
    alike = np.ones((len(front), len(front)), np.bool_)
    for metric in metrics:
        value, low, high = (np.array([getattr(a.figures[metric], f) for a in front]) for f in ("value", "low", "high"))
        scale = np.maximum(np.abs(value)[:, None], np.abs(value)[None, :])
        alike &= np.abs(value[:, None] - value[None, :]) <= TIE * scale
        alike &= (low[:, None] <= high[None, :]) & (low[None, :] <= high[:, None])
    np.fill_diagonal(alike, False)
    return tuple(
        dataclasses.replace(answer, ties=tuple(int(j) + 1 for j in np.flatnonzero(alike[i]))) for i, answer in enumerate(front)
    )


def compared(answer: PlanAnswer, other: PlanAnswer, objectives: Iterable[tuple[str, bool]]) -> str:
    """How `answer` differs from `other` in words: "step time −12.0 %, device memory +3.1 %"."""
    said = []
    for metric, _ in objectives:
        mine, theirs = answer.figures[metric].value, other.figures[metric].value
        if theirs:
            said.append(f"{measure(metric).title} {(mine / theirs - 1) * 100:+.1f} %".replace("-", "−"))
    return ", ".join(said)


def to_json_text(data: Any) -> str:
    """JSON on one line; numbers that are not finite become null."""
    return json.dumps(_finite(data), ensure_ascii=False, allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, Mapping):
        return {str(key): _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    if isinstance(data, float) and not np.isfinite(data):
        return None
    return data.item() if isinstance(data, np.generic) else data
