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
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import yaml

from dse.experiment_schema import Limit, ObjectiveChoice, check
from dse.locations import Fault, Located, locate, override
from dse.measures import NEED_RELIABILITY, NEED_TOKENS
from spaces.architecture import Architecture
from spaces.hardware import Device, cluster
from spaces.plan import spell

if TYPE_CHECKING:
    from dse.experiment_schema import File


class ExperimentError(ValueError):
    """Everything wrong with an experiment, one line each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """How often devices fail (1/h each), how fast the job writes a checkpoint (bytes/s), and what a restart costs (s)."""

    per_device_hour: float
    checkpoint_bandwidth: float
    restart_time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What is asked, checked. Codes are those of `spaces.plan`; `options` restricts axes, an absent axis is open;
    `optimizer` None is the stack's own.

    `count` is the number of devices, exactly, or with `at_most` (the same number) the most there may be. `resolved` is the
    file as it can be run again from anywhere; `model_file` the config.json it refers to, if any.
    """

    name: str
    description: str
    architecture: Architecture
    devices: tuple[Device, ...]
    count: int
    at_most: int | None
    domains: tuple[int, ...]
    sequence: int
    global_batch: int
    tokens: float | None
    stack: str
    precisions: tuple[int, ...]
    optimizer: str | None
    options: Mapping[str, tuple[int, ...]]
    objectives: tuple[ObjectiveChoice, ...]
    limits: tuple[Limit, ...]
    baseline: Mapping[str, Any] | None
    failures: Failures | None
    method: str
    top: int
    seed: int
    sample: int
    resolved: Mapping[str, Any]
    model_file: Path | None

    def to_yaml(self) -> str:
        """The resolved experiment as a file."""
        return yaml.safe_dump(dict(self.resolved), sort_keys=False, allow_unicode=True, width=120)


def load(source: str | os.PathLike[str] | Mapping[str, Any], overrides: Sequence[str] = ()) -> Experiment:
    """The experiment in a YAML file or a mapping of the same shape, with `KEY=VALUE` overrides put in.

    Raises ExperimentError with every fault, OSError when the file cannot be read.
    """
    if isinstance(source, Mapping):
        document, folder = Located(name="<mapping>", value=dict(source)), Path()
    else:
        path = Path(source)
        document, folder = locate(_read(path), os.fspath(source)), path.parent
    syntax = document.value is None and document.faults
    document = document if syntax else override(document, tuple(overrides))
    file, faults = (None, ()) if syntax else check(document.value, folder)
    faults = (*document.faults, *_fresh(faults, document.faults))
    if file is None or faults:
        raise _error(document, faults)
    faults = tuple(_cross_faults(file))
    if faults:
        raise _error(document, faults)
    return _experiment(file, document, folder)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
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


# --- what no section can see alone ------------------------------------------------------------------------------------------


def _cross_faults(file: File) -> Iterable[Fault]:
    yield from _cluster_faults(file)
    yield from _batch_faults(file)
    yield from _metric_faults(file)
    if file.baseline is not None:
        yield from _baseline_faults(file, file.baseline.given())


def _cluster_faults(file: File) -> Iterable[Fault]:
    """Clusters nobody can build."""
    hardware = file.hardware
    how, count = hardware.devices
    domains: Sequence[int | None] = hardware.domain or [None]
    several = len(hardware.device) > 1
    for device in hardware.device:
        for j, domain in enumerate(domains):
            try:
                cluster(device, count if how == "exactly" else 1, domain, hardware.devices_per_node)
            except ValueError as error:
                path = ("hardware", "devices") if domain is None else ("hardware", "domain", j)
                yield Fault(path=path, message=f"{device.name}: {error}" if several else str(error))


def _batch_faults(file: File) -> Iterable[Fault]:
    """A sequence longer than learned positions reach."""
    model, sequence = file.model, file.workload.sequence
    if model.max_positions and sequence > model.max_positions:
        yield Fault(
            path=("workload", "sequence"),
            message=f"{model.name} has learned positions for {model.max_positions} tokens, not {sequence}",
        )
    if file.workload.tokens is not None and file.workload.tokens < sequence * file.workload.global_batch:
        yield Fault(path=("workload", "tokens"), message="fewer tokens than one step holds (sequence · global_batch)")


def _metric_faults(file: File) -> Iterable[Fault]:
    """Objectives and constraints on figures that this experiment cannot have."""
    named = [(("objectives", i), choice.metric) for i, choice in enumerate(file.objectives or ())]
    named += [(("constraints", i), limit.metric) for i, limit in enumerate(file.constraints)]
    seen: set[str] = set()
    for path, metric in named:
        if metric in NEED_TOKENS and file.workload.tokens is None:
            yield Fault(path=path, message=f"{metric} needs workload.tokens, the tokens of the whole run")
        if metric in NEED_RELIABILITY and file.reliability is None:
            yield Fault(path=path, message=f"{metric} needs reliability, how often devices fail")
        if path[0] == "objectives" and metric in seen:
            yield Fault(path=path, message=f"{metric} is an objective already")
        seen |= {metric} if path[0] == "objectives" else set()


def _baseline_faults(file: File, given: Mapping[str, Any]) -> Iterable[Fault]:
    """A plan run today that does not multiply out."""
    how, count = file.hardware.devices
    product = mesh(given)
    devices = given.get("devices", count if how == "exactly" else product * given.get("data", 1))
    if devices % product:
        yield Fault(path=("baseline",), message=f"tensor · context · pipeline = {product} does not divide {devices} devices")
        return
    data = given.get("data", devices // product)
    if data * product != devices:
        yield Fault(
            path=("baseline",),
            message=f"tensor · context · pipeline · data = {data * product}, but it runs on {devices} devices",
        )
    elif how == "exactly" and devices != count:
        yield Fault(path=("baseline", "devices"), message=f"{devices} devices, but the experiment has {count}")
    elif file.workload.global_batch % (data * given.get("micro_batch", 1)):
        yield Fault(
            path=("baseline",),
            message=f"a global batch of {file.workload.global_batch} does not divide over data = {data} "
            f"with micro_batch = {given.get('micro_batch', 1)}",
        )


def mesh(plan: Mapping[str, Any]) -> int:
    """Devices of one data-parallel replica."""
    return int(plan.get("tensor", 1) * plan.get("context", 1) * plan.get("pipeline", 1))


# --- from checked sections to the engine's terms ------------------------------------------------------------------------------


def _experiment(file: File, document: Located, folder: Path) -> Experiment:
    how, count = file.hardware.devices
    name = file.name or (Path(document.name).stem if document.lines else "experiment")
    model_file = _model_file(document.value, folder)
    space = {} if file.space is None else file.space.given()
    reliability = file.reliability
    failures = None if reliability is None else Failures(
        per_device_hour=reliability.failures_per_device_hour,
        checkpoint_bandwidth=reliability.checkpoint_bandwidth,
        restart_time=reliability.restart_time,
    )
    objectives = file.objectives or [
        ObjectiveChoice(metric="step_time", maximise=False),
        ObjectiveChoice(metric="memory", maximise=False),
    ]
    if file.objectives is None and how == "at_most":
        objectives = [*objectives, ObjectiveChoice(metric="devices", maximise=False)]
    return Experiment(
        name=name,
        description=file.description or "",
        architecture=file.model,
        devices=_fabrics(file),
        count=count,
        at_most=count if how == "at_most" else None,
        domains=tuple(file.hardware.domain or ()),
        sequence=file.workload.sequence,
        global_batch=file.workload.global_batch,
        tokens=file.workload.tokens,
        stack=file.stack,
        precisions=tuple(dict.fromkeys(file.precision)),
        optimizer=file.optimizer,
        options=MappingProxyType({axis: tuple(dict.fromkeys(values)) for axis, values in space.items()}),
        objectives=tuple(objectives),
        limits=tuple(file.constraints),
        baseline=_baseline(file),
        failures=failures,
        method=file.search.method,
        top=file.search.top,
        seed=file.search.seed,
        sample=file.search.sample,
        resolved=_resolved(document.value, name, file, objectives, model_file),
        model_file=model_file,
    )


def _fabrics(file: File) -> tuple[Device, ...]:
    """Every device with every network asked for, as devices of their own names."""
    hardware = file.hardware
    changes: dict[str, Any] = {}
    if hardware.devices_per_node is not None:
        changes["devices_per_node"] = hardware.devices_per_node
    if hardware.price_per_hour is not None:
        changes |= {"price_per_hour": hardware.price_per_hour, "price_range": (hardware.price_per_hour,) * 2}
    devices = [dataclasses.replace(device, **changes) if changes else device for device in hardware.device]
    if hardware.nic is None:
        return tuple(devices)
    several = len(hardware.nic) > 1
    return tuple(
        dataclasses.replace(
            device,
            nic_bandwidth=rate,
            name=f"{device.name}, NIC {rate * 8 / 1e9:g} Gb/s" if several else device.name,
        )
        for device in devices
        for rate in hardware.nic
    )


def _baseline(file: File) -> Mapping[str, Any] | None:
    """The plan run today as it was given; `device` is a name."""
    if file.baseline is None:
        return None
    given = file.baseline.given()
    device = given.pop("device", None)
    return MappingProxyType(given if device is None else given | {"device": device.name})


def _model_file(value: Mapping[str, Any], folder: Path) -> Path | None:
    model = value.get("model")
    return folder / str(model["config"]) if isinstance(model, Mapping) and "config" in model else None


def _resolved(
    value: Mapping[str, Any], name: str, file: File, objectives: Sequence[ObjectiveChoice], model_file: Path | None
) -> dict[str, Any]:
    """The file with names as the catalogue has them, defaults spelled out and no path that leads outside."""
    resolved: dict[str, Any] = {"kind": file.kind, "name": name} | dict(value)
    resolved["name"] = name
    if isinstance(value["model"], str):
        resolved["model"] = file.model.name
    elif model_file is not None:
        resolved["model"] = {**value["model"], "config": "config.json"}
    hardware = dict(value["hardware"])
    asked = hardware["device"] if isinstance(hardware["device"], list) else [hardware["device"]]
    named = [device.name if isinstance(item, str) else item for item, device in zip(asked, file.hardware.device, strict=True)]
    hardware["device"] = named[0] if len(named) == 1 else named
    resolved["hardware"] = hardware
    resolved["precision"] = [spell("precision", code) for code in file.precision]
    resolved["objectives"] = [str(choice) for choice in objectives]
    resolved["search"] = file.search.model_dump()
    return resolved
