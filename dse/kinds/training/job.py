"""What a training experiment asks, checked: model, machines, workload, stack, and the restrictions on its axes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from dse.kinds.machines import cluster_faults, fabrics, named_devices
from dse.locations import Fault
from dse.measures import NEED_FINANCE, NEED_RELIABILITY, NEED_TOKENS
from spaces.architecture import Architecture
from spaces.hardware import Device
from spaces.plan import spell

if TYPE_CHECKING:
    from dse.kinds.training.schema import File, Finance


@dataclass(frozen=True, slots=True, kw_only=True)
class Failures:
    """How often devices fail (1/h each), how fast the job writes a checkpoint (bytes/s), and what a restart costs (s)."""

    per_device_hour: float
    checkpoint_bandwidth: float
    restart_time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Purchase:
    """Machines bought for some years; USD of a device by kind, in the job's order."""

    years: float
    device_prices: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """A job to train. Codes are those of `spaces.plan`; `options` restricts axes, an absent axis is open.

    `optimizer` None is the stack's own, `calibration` a folder of own measurements or ''. `count` is the number of devices,
    exactly, or with `at_most` (the same number) the most there may be.
    """

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
    calibration: str
    options: Mapping[str, tuple[int, ...]]
    failures: Failures | None
    purchase: Purchase | None = None


def job_of(file: File) -> TrainingJob:
    """The job that checked sections describe."""
    how, count = file.hardware.devices
    space = {} if file.space is None else file.space.given()
    reliability = file.reliability
    failures = (
        None
        if reliability is None
        else Failures(
            per_device_hour=reliability.failures_per_device_hour,
            checkpoint_bandwidth=reliability.checkpoint_bandwidth,
            restart_time=reliability.restart_time,
        )
    )
    return TrainingJob(
        architecture=file.model,
        devices=fabrics(file.hardware),
        count=count,
        at_most=count if how == "at_most" else None,
        domains=tuple(file.hardware.domain or ()),
        sequence=file.workload.sequence,
        global_batch=file.workload.global_batch,
        tokens=file.workload.tokens,
        stack=file.stack,
        precisions=tuple(dict.fromkeys(file.precision)),
        optimizer=file.optimizer,
        calibration=file.calibration,
        options=MappingProxyType({axis: tuple(dict.fromkeys(values)) for axis, values in space.items()}),
        failures=failures,
        purchase=_purchase(file),
    )


def _purchase(file: File) -> Purchase | None:
    if file.finance is None:
        return None
    prices = [file.finance.device_price or part_price(device) for device in fabrics(file.hardware)]
    return Purchase(years=file.finance.years, device_prices=tuple(price for price in prices if price is not None))


def part_price(device: Device) -> float | None:
    """USD that the described part of a device sells for, by its silicon and memory; None where no part describes it."""
    from costmodels.machines.price import device_price
    from spaces.hardware import UnknownDevice, accelerator_names, find_accelerator, find_device

    for name in accelerator_names():
        try:
            if find_device(name).name == device.name:
                return float(device_price(find_accelerator(name).columns())[0])
        except UnknownDevice:
            continue
    return None


def default_objectives(file: File) -> tuple[str, ...]:
    """What is looked for when the file does not say."""
    return ("step_time", "memory", "devices") if file.hardware.devices[0] == "at_most" else ("step_time", "memory")


def resolved(file: File, value: Mapping[str, Any]) -> dict[str, Any]:
    """The sections that a resolved file spells out: devices by their catalogue names, precisions as a list."""
    precision = [spell("precision", code) for code in file.precision]
    return {"hardware": named_devices(value["hardware"], file.hardware), "precision": precision}


def baseline(file: File) -> Mapping[str, Any] | None:
    """The plan run today as it was given; `device` is a name."""
    if file.baseline is None:
        return None
    given = file.baseline.given()
    device = given.pop("device", None)
    return MappingProxyType(given if device is None else given | {"device": device.name})


# --- what no section can see alone ------------------------------------------------------------------------------------------


def faults(file: File) -> Iterable[Fault]:
    """What no section can see alone."""
    yield from cluster_faults(file.hardware)
    yield from _batch_faults(file)
    yield from _metric_faults(file)
    if file.baseline is not None:
        yield from _baseline_faults(file, file.baseline.given())


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
    for path, metric in named:
        if metric in NEED_TOKENS and file.workload.tokens is None:
            yield Fault(path=path, message=f"{metric} needs workload.tokens, the tokens of the whole run")
        if metric in NEED_RELIABILITY and file.reliability is None:
            yield Fault(path=path, message=f"{metric} needs reliability, how often devices fail")
        if metric in NEED_FINANCE and file.finance is None:
            yield Fault(path=path, message=f"{metric} needs finance, how long machines are bought for: finance: {{years: 1}}")
    if file.finance is not None:
        yield from _finance_faults(file, file.finance)


def _finance_faults(file: File, finance: Finance) -> Iterable[Fault]:
    """Purchases of unknown length or price."""
    if file.workload.tokens is None:
        yield Fault(path=("finance",), message="needs workload.tokens: what a run costs depends on how long it is")
    if finance.device_price is None:
        for device in fabrics(file.hardware):
            if part_price(device) is None:
                yield Fault(path=("finance",), message=f"nothing says what {device.name} sells for: give device_price, in USD")


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
