"""The shape of an experiment file, checked by pydantic: the only module that imports it.

Every field turns what YAML gave into what the engine wants, and says in words what would have worked. Nothing here looks
across sections; `dse.experiment` does that once every section stands.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, InstanceOf, ValidationError, ValidationInfo, create_model

from costmodels.constants import stack_names
from costmodels.model_state import state_widths
from dse.locations import Fault
from dse.measures import limit, nearest, require
from spaces import architecture as architectures
from spaces.architecture import Architecture
from spaces.hardware import Device, device_from_mapping, find_device
from spaces.plan import NAMES, PLAN_SYMBOLS, Precision
from spaces.units import quantity

KINDS = ("training",)
METHODS = ("exact",)
_LARGEST = 10**9


# --- fields: what YAML gave -> what the engine wants --------------------------------------------------------------------


def read_count(value: object) -> int:
    """A whole number from 1."""
    return _whole(value, 1)


def read_degree(value: object) -> int:
    """A whole number from 0."""
    return _whole(value, 0)


def _whole(value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a whole number from {least}, got {_said(value)}")
    if not math.isfinite(value) or value != int(value) or value < least:
        raise ValueError(f"expected a whole number from {least}, got {value}")
    if value > _LARGEST:
        raise ValueError(f"{value} is more than anybody has; at most {_LARGEST:,}")
    return int(value)


def _said(value: object) -> str:
    """What was given, as people name it."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "nothing" if value is None else f"the text {value!r}" if isinstance(value, str) else str(value).lower()


def positive(unit: str) -> Callable[[object], float]:
    """A finite quantity above 0 in the given SI unit."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(f"expected a positive quantity in {unit or 'plain numbers'}, got {_said(value)}")
        number = quantity(value, unit)
        if not math.isfinite(number) or number <= 0:
            raise ValueError(f"expected a positive, finite quantity, got {value}")
        return number

    return read


def one_of(what: str, known: Callable[[], tuple[str, ...]]) -> Callable[[object], str]:
    """One of the known words."""

    def read(value: object) -> str:
        names = known()
        if not isinstance(value, str) or value not in names:
            raise ValueError(f"no {what} is called {value!r}{nearest(value, names)}")
        return value

    return read


def as_list(value: object) -> object:
    """A single value stands for a list of one."""
    if isinstance(value, list):
        if not value:
            raise ValueError("an empty list leaves nothing to choose from; leave the key out to open every legal value")
        return value
    return [value]


def read_model(value: object, info: ValidationInfo) -> Architecture:
    """A preset's name, `{config: path}` to a Hugging Face config.json, or `{preset: name, layers: 4, …}`."""
    if isinstance(value, str):
        return architectures.find(value)
    if not isinstance(value, Mapping) or ("config" in value) == ("preset" in value):
        raise ValueError("expected a preset's name, {config: path/to/config.json} or {preset: name, layers: 4, …}")
    changes = {key: item for key, item in value.items() if key not in ("config", "preset")}
    if "config" in value:
        folder = cast(Path, (info.context or {}).get("folder", Path()))
        base = architectures.from_config(folder / str(value["config"]))
    else:
        base = architectures.find(str(value["preset"]))
    return base.with_dimensions(**changes) if changes else base


def read_device(value: object) -> Device:
    """A catalogue name, or a mapping of the device's fields with an optional `like`."""
    if isinstance(value, str):
        return find_device(value)
    if isinstance(value, Mapping):
        return device_from_mapping(value)
    raise ValueError(f"expected a device's name or a mapping such as {{like: H100, power: 500 W}}, got {_said(value)}")


def read_device_count(value: object) -> tuple[str, int]:
    """`64` (exactly) or `{at_most: 64}`."""
    if isinstance(value, Mapping):
        if set(value) != {"at_most"}:
            raise ValueError("expected a number of devices or {at_most: N}")
        return "at_most", read_count(value["at_most"])
    return "exactly", read_count(value)


def coded(symbol: str) -> Callable[[object], int]:
    """A value of a plan's choice: its code for a categorical one, a flag, a ZeRO stage or a degree."""

    def read(value: object) -> int:
        if symbol in NAMES:
            if not isinstance(value, str) or value not in NAMES[symbol]:
                raise ValueError(f"{symbol} {value!r} does not exist{nearest(value, NAMES[symbol])}")
            return NAMES[symbol].index(value)
        if symbol == "sequence_parallel":
            if value not in (0, 1):
                raise ValueError(f"expected true or false, got {_said(value)}")
            return 1 if value else 0
        if symbol == "zero_stage" and (isinstance(value, bool) or value not in (0, 1, 2, 3)):
            raise ValueError(f"a ZeRO stage is 0, 1, 2 or 3, got {_said(value)}")
        return read_degree(value) if symbol in ("zero_stage", "recompute_layers") else read_count(value)

    return read


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ObjectiveChoice:
    """A metric and which way is better."""

    metric: str
    maximise: bool

    def __str__(self) -> str:
        return f"{'max' if self.maximise else 'min'}: {self.metric}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A bound on a metric, in SI: at most, or at least."""

    metric: str
    at_most: bool
    value: float

    def __str__(self) -> str:
        return f"{self.metric} {'<=' if self.at_most else '>='} {require(self.metric).show(self.value, with_unit=True)}"


def read_objective(value: object) -> ObjectiveChoice:
    """`step_time`, or `max: mfu` / `min: price` (as text or as a mapping of one)."""
    if isinstance(value, Mapping) and len(value) == 1:
        value = ": ".join(str(part) for part in next(iter(value.items())))
    if not isinstance(value, str):
        raise ValueError(f"expected a metric's name or 'max: metric', got {_said(value)}")
    way, colon, name = value.rpartition(":")
    if colon and way.strip() not in ("min", "max"):
        raise ValueError(f"expected 'min: {name.strip()}' or 'max: {name.strip()}', got {value!r}")
    chosen = require(name.strip())
    return ObjectiveChoice(metric=chosen.name, maximise=way.strip() == "max" if colon else chosen.maximise)


_LIMIT = re.compile(r"\s*(\w+)\s*(<=|>=|≤|≥|<|>|==?)\s*(.+?)\s*")


def read_constraints(value: object) -> tuple[Limit, ...]:
    """A list of texts ("devices <= 4096"), or a mapping {metric: limit}, read as the side that hurts."""
    if isinstance(value, Mapping):
        return tuple(_limit(*_suffixed(str(name), text)) for name, text in value.items())
    return tuple(_limit_text(text) for text in cast(list[object], as_list(value)))


def _suffixed(name: str, text: object) -> tuple[str, bool, object]:
    """`memory_GiB: 70` is `memory: 70 GiB`."""
    stem, _, unit = name.rpartition("_")
    if unit in ("GiB", "GB", "s", "ms", "USD", "days") and stem and isinstance(text, int | float) and name != "training_days":
        name, text = stem, f"{text} {unit}"
    return name, not require(name).maximise, text


def _limit_text(text: object) -> Limit:
    found = _LIMIT.fullmatch(text) if isinstance(text, str) else None
    if found is None or found[2] in ("=", "=="):
        raise ValueError(f"expected text like 'devices <= 4096' or 'mfu >= 40 %', got {text!r}")
    return _limit(found[1], found[2] in ("<=", "≤", "<"), found[3])


def _limit(name: str, at_most: bool, text: object) -> Limit:
    value = limit(name, text)
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"a limit on {name} must be a positive, finite number, got {text}")
    return Limit(metric=name, at_most=at_most, value=value)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected text, got {_said(value)}")
    return value


# --- sections -------------------------------------------------------------------------------------------------------------

Count: TypeAlias = Annotated[int, BeforeValidator(read_count)]
Counts: TypeAlias = Annotated[list[Count], BeforeValidator(as_list)]
Natural: TypeAlias = Annotated[int, BeforeValidator(read_degree)]
Devices: TypeAlias = Annotated[list[Annotated[InstanceOf[Device], BeforeValidator(read_device)]], BeforeValidator(as_list)]
Number: TypeAlias = Annotated[float, BeforeValidator(positive(""))]
Rate: TypeAlias = Annotated[float, BeforeValidator(positive("B/s"))]
Rates: TypeAlias = Annotated[list[Rate], BeforeValidator(as_list)]
Seconds: TypeAlias = Annotated[float, BeforeValidator(positive("s"))]
Price: TypeAlias = Annotated[float, BeforeValidator(positive("USD/h"))]
Text: TypeAlias = Annotated[str, BeforeValidator(_text)]
Precisions: TypeAlias = Annotated[list[Annotated[int, BeforeValidator(coded("precision"))]], BeforeValidator(as_list)]
Objective: TypeAlias = Annotated[InstanceOf[ObjectiveChoice], BeforeValidator(read_objective)]
Objectives: TypeAlias = Annotated[list[Objective], BeforeValidator(as_list)]


class Section(BaseModel):
    """A mapping whose keys are all known."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    def given(self) -> dict[str, Any]:
        """The keys that were given, with what became of them."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}


class Hardware(Section):
    """What it runs on; `device`, `domain` and `nic` may be lists, and are axes then."""

    device: Devices
    devices: Annotated[tuple[str, int], BeforeValidator(read_device_count)]
    domain: Counts | None = None
    devices_per_node: Count | None = None
    nic: Rates | None = None
    price_per_hour: Price | None = None


class Workload(Section):
    """Tokens a sequence, sequences a step, and tokens of the whole run."""

    sequence: Count
    global_batch: Count
    tokens: Number | None = None


class Reliability(Section):
    """How often devices fail and what a failure costs: 1/h, bytes/s for the whole job, seconds."""

    failures_per_device_hour: Number
    checkpoint_bandwidth: Rate
    restart_time: Seconds


class Search(Section):
    """How to look."""

    method: Annotated[str, BeforeValidator(one_of("search method", lambda: METHODS))] = "exact"
    top: Count = 10
    seed: Natural = 0
    sample: Natural = 100_000


AXES = tuple(symbol for symbol in PLAN_SYMBOLS if symbol not in ("devices", "precision"))
"""What `space` may restrict; `devices` and `precision` have sections of their own."""


def _values_of(symbol: str) -> Any:
    """Annotation of an axis: one value or a list of them."""
    return Annotated[list[Annotated[int, BeforeValidator(coded(symbol))]], BeforeValidator(as_list)]


if TYPE_CHECKING:

    class Space(Section):
        """Axes with the values they are restricted to."""

    class Baseline(Section):
        """A plan that is run today."""
else:
    Space = create_model("Space", __base__=Section, **{name: (_values_of(name) | None, None) for name in AXES})
    Baseline = create_model(
        "Baseline",
        __base__=Section,
        device=(Annotated[InstanceOf[Device] | None, BeforeValidator(read_device)], None),
        **{name: (Annotated[int | None, BeforeValidator(coded(name))], None) for name in PLAN_SYMBOLS},
    )


class File(Section):
    """An experiment file."""

    kind: Annotated[str, BeforeValidator(one_of("kind of experiment", lambda: KINDS))]
    name: Text | None = None
    description: Text | None = None
    model: Annotated[InstanceOf[Architecture], BeforeValidator(read_model)]
    hardware: Hardware
    workload: Workload
    stack: Annotated[str, BeforeValidator(one_of("stack", stack_names))]
    precision: Precisions = [Precision.BF16]
    optimizer: Annotated[str | None, BeforeValidator(one_of("optimizer", lambda: tuple(state_widths())))] = None
    space: Space | None = None
    objectives: Objectives | None = None
    constraints: Annotated[tuple[InstanceOf[Limit], ...], BeforeValidator(read_constraints)] = ()
    baseline: Baseline | None = None
    reliability: Reliability | None = None
    search: Search = Search()


# --- checking ---------------------------------------------------------------------------------------------------------------


def check(value: object, folder: Path) -> tuple[File | None, tuple[Fault, ...]]:
    """The file's sections, or everything wrong with them. Relative paths start at `folder`."""
    if not isinstance(value, Mapping):
        what = "an empty file" if value is None else _said(value)
        return None, (Fault(path=(), message=f"expected a mapping of keys such as kind, model and hardware, got {what}"),)
    try:
        return File.model_validate(value, context={"folder": folder}), ()
    except ValidationError as error:
        return None, tuple(_fault(entry) for entry in error.errors(include_url=False))


def _fault(entry: Any) -> Fault:
    """One of pydantic's errors in our words."""
    path = tuple(entry["loc"])
    kind, message = entry["type"], str(entry["msg"]).removeprefix("Value error, ")
    if kind == "missing":
        message = "is missing" + _example(path)
    elif kind == "extra_forbidden":
        message = f"unknown key{nearest(path[-1], keys(path[:-1]))}"
    elif kind.startswith(("model_type", "model_attributes", "dict")):
        message = f"expected a mapping of {', '.join(keys(path))}, got {_said(entry['input'])}"
    return Fault(path=path, message=message)


def keys(path: tuple[str | int, ...]) -> tuple[str, ...]:
    """Keys a section may have."""
    sections: Mapping[str, type[BaseModel]] = {
        "hardware": Hardware,
        "workload": Workload,
        "reliability": Reliability,
        "search": Search,
        "space": Space,
        "baseline": Baseline,
    }
    section = sections.get(str(path[0])) if path else File
    return tuple(section.model_fields) if section is not None else ()


_EXAMPLES: Mapping[tuple[str, ...], str] = {
    ("kind",): "kind: training",
    ("model",): "model: llama-3.1-8b",
    ("hardware",): "hardware: {device: H100, devices: 8}",
    ("hardware", "device"): "device: H100",
    ("hardware", "devices"): "devices: 8",
    ("workload",): "workload: {sequence: 8192, global_batch: 128}",
    ("workload", "sequence"): "sequence: 8192",
    ("workload", "global_batch"): "global_batch: 128",
    ("stack",): "stack: megatron",
}


def _example(path: tuple[Any, ...]) -> str:
    example = _EXAMPLES.get(path)
    return f"; for example {example}" if example else ""
