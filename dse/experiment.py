"""Experiment files: what is asked, read from YAML and checked whole, with every fault at once.

`load(file)` gives an `Experiment` or raises `ExperimentError`, whose text holds one line per fault:
`file:line: key.path: what was wrong; what would work`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import yaml

from dse.locations import Fault, Located, locate, override
from dse.measures import measure
from dse.schema.fields import Limit, ObjectiveChoice
from search.budget import Budget

if TYPE_CHECKING:
    from dse.kinds.registry import Kind

Job = TypeVar("Job")


class ExperimentError(ValueError):
    """Everything wrong with an experiment, one line each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment(Generic[Job]):
    """What is asked, checked: what all kinds share, and the `job` as its kind reads it.

    `baseline` is the plan run today, as its kind codes plans. `resolved` is the file as it can be run again from anywhere;
    `files` are those it refers to, by the names that a run folder has for them.
    """

    kind: str
    name: str
    description: str
    job: Job
    objectives: tuple[ObjectiveChoice, ...]
    limits: tuple[Limit, ...]
    baseline: Mapping[str, Any] | None
    method: str
    budget: Budget
    mirror: str | None
    outer: tuple[str, ...]
    top: int
    seed: int
    sample: int
    executor: str
    workers: int | None
    address: str | None
    resolved: Mapping[str, Any]
    files: Mapping[str, Path]

    def to_yaml(self) -> str:
        """The resolved experiment as a file."""
        return yaml.safe_dump(dict(self.resolved), sort_keys=False, allow_unicode=True, width=120)


def load(source: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = ()) -> Experiment[Any]:
    """The experiment in a YAML file or a mapping of the same shape, with `KEY=VALUE` overrides put in.

    Raises ExperimentError with every fault, OSError when the file cannot be read.
    """
    from dse.kinds.registry import KINDS, find
    from dse.schema.checking import check, kind_of

    if isinstance(source, Mapping):
        document, folder = Located(name="<mapping>", value=dict(source)), Path()
    else:
        path = Path(source)
        document, folder = locate(_read(path), os.fspath(source)), path.parent
    if document.value is None and document.faults:
        raise _error(document, document.faults)
    document = override(_without_the_other_count(document, overrides), tuple(overrides))
    name, faults = kind_of(document.value, KINDS)
    if name is None:
        raise _error(document, (*document.faults, *_fresh(faults, document.faults)))
    kind = find(name)
    file, faults = check(document.value, kind.file, kind.metrics, kind.examples, folder)
    faults = (*document.faults, *_fresh(faults, document.faults))
    if file is None or faults:
        raise _error(document, faults)
    faults = (*_repeated(file.objectives or ()), *kind.faults(file))
    if faults:
        raise _error(document, faults)
    return _experiment(kind, file, document, folder)


def _without_the_other_count(document: Located, overrides: Sequence[str]) -> Located:
    """The document without its `devices` where --set gives `nodes`, and the other way round: the two are one choice."""
    keys = {setting.partition("=")[0].strip() for setting in overrides}
    hardware = document.value.get("hardware") if isinstance(document.value, Mapping) else None
    if not isinstance(hardware, Mapping) or len(keys & {"hardware.nodes", "hardware.devices"}) != 1:
        return document
    other = "devices" if "hardware.nodes" in keys else "nodes"
    kept = {key: value for key, value in hardware.items() if key != other}
    return dataclasses.replace(document, value={**document.value, "hardware": kept})


def _experiment(kind: Kind[Any], file: Any, document: Located, folder: Path) -> Experiment[Any]:
    name = file.name or (Path(document.name).stem if document.lines else "experiment")
    files = _files(document.value, folder)
    objectives = file.objectives or [
        ObjectiveChoice(metric=metric, maximise=measure(metric).maximise) for metric in kind.default_objectives(file)
    ]
    resolved: dict[str, Any] = {"kind": file.kind, "name": name} | dict(document.value) | {"name": name}
    if isinstance(document.value.get("model"), str):
        resolved["model"] = file.model.name
    elif "config.json" in files:
        resolved["model"] = {**document.value["model"], "config": "config.json"}
    if getattr(file, "calibration", ""):
        resolved["calibration"] = file.calibration
    resolved |= kind.resolved(file, document.value)
    resolved |= {"objectives": [str(choice) for choice in objectives], "search": file.search.model_dump(exclude_none=True)}
    return Experiment(
        kind=kind.name,
        name=name,
        description=file.description or "",
        job=kind.job(file),
        objectives=tuple(objectives),
        limits=tuple(file.constraints),
        baseline=kind.baseline(file),
        method=file.search.method,
        budget=Budget(**file.search.budget.given()) if file.search.budget is not None else Budget(),
        mirror=file.search.mirror,
        outer=tuple(file.search.outer or ()),
        top=file.search.top,
        seed=file.search.seed,
        sample=file.search.sample,
        executor=file.search.executor,
        workers=file.search.workers,
        address=file.search.address,
        resolved=resolved,
        files=files,
    )


def _repeated(objectives: Iterable[ObjectiveChoice]) -> Iterable[Fault]:
    """Objectives named twice."""
    seen: set[str] = set()
    for i, choice in enumerate(objectives):
        if choice.metric in seen:
            yield Fault(path=("objectives", i), message=f"{choice.metric} is an objective already")
        seen.add(choice.metric)


def _files(value: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """Files that the experiment refers to, by the names that a run folder has for them: a model's configuration, a trace."""
    files = {}
    model, workload = value.get("model"), value.get("workload")
    if isinstance(model, Mapping) and "config" in model:
        files["config.json"] = folder / str(model["config"])
    if isinstance(workload, Mapping) and "trace" in workload:
        files[trace_name(workload)] = folder / str(workload["trace"])
    return files


def trace_name(workload: Mapping[str, Any]) -> str:
    """What a run folder calls the trace of a workload."""
    return f"trace{Path(str(workload['trace'])).suffix}"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except IsADirectoryError:
        inside = path / "experiment.yaml"
        hint = f"dse resume {path} goes on with its run, {inside} asks it anew" if inside.is_file() else "name a file in it"
        raise ExperimentError(f"{path} is a folder, and an experiment is a file: {hint}") from None
    except UnicodeDecodeError as error:
        raise ExperimentError(f"{path}: not a text file in UTF-8: {error.reason} at byte {error.start}") from None


def _fresh(faults: Iterable[Fault], known: Iterable[Fault]) -> Iterable[Fault]:
    """The faults at places where reading found none."""
    places = {fault.path for fault in known if fault.path}
    return [fault for fault in faults if fault.path not in places]


def _error(document: Located, faults: Iterable[Fault]) -> ExperimentError:
    """All faults in the order of the file."""

    def line(fault: Fault) -> int:
        prefixes = (fault.path[:stop] for stop in range(len(fault.path), -1, -1))
        return fault.line or next((document.lines[prefix] for prefix in prefixes if prefix in document.lines), 0)

    return ExperimentError("\n".join(document.describe(fault) for fault in sorted(faults, key=line)))
