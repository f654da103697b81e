"""Single values of an experiment file: what YAML gave turned into what the engine wants.

Every reader says in words what would have worked. Readers of one kind of experiment alone live with that kind.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dse.measures import limit, measure, nearest, require
from spaces import architecture as architectures
from spaces.architecture import Architecture
from spaces.configurations import from_config
from spaces.hardware import Device, device_from_mapping, find_device
from spaces.units import quantity

if TYPE_CHECKING:
    from pydantic import ValidationInfo

_LARGEST = 10**9


def read_count(value: object) -> int:
    """A whole number from 1."""
    return _whole(value, 1)


def read_degree(value: object) -> int:
    """A whole number from 0."""
    return _whole(value, 0)


def _whole(value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"expected a whole number from {least}, got {said(value)}")
    if not math.isfinite(value) or value != int(value) or value < least:
        raise ValueError(f"expected a whole number from {least}, got {value}")
    if value > _LARGEST:
        raise ValueError(f"{value} is more than anybody has; at most {_LARGEST:,}")
    return int(value)


def said(value: object) -> str:
    """What was given, as people name it."""
    if isinstance(value, Mapping | list):
        return f"{'a' if value else 'an empty'} {'mapping' if isinstance(value, Mapping) else 'list'}"
    return "nothing" if value is None else f"the text {value!r}" if isinstance(value, str) else str(value).lower()


def positive(unit: str) -> Callable[[object], float]:
    """A finite quantity above 0 in the given SI unit."""

    def read(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError(f"expected a positive quantity in {unit or 'plain numbers'}, got {said(value)}")
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


def as_objectives(value: object) -> object:
    """Objectives as a list; one stands for a list of one."""
    if value == []:
        raise ValueError("an empty list asks for nothing; name one, or leave the key out for those that are usual")
    return as_list(value)


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
        base = from_config(folder / str(value["config"]))
    else:
        base = architectures.find(str(value["preset"]))
    return base.with_dimensions(**changes) if changes else base


def read_calibration(value: object, info: ValidationInfo) -> str:
    """A folder that `dse calibrate` wrote, whole; its measurements are checked."""
    if not isinstance(value, str):
        raise ValueError(f"expected the folder of a calibration, got {said(value)}")
    folder = cast(Path, (info.context or {}).get("folder", Path()))
    return checked_calibration(folder / value)


def checked_calibration(folder: Path) -> str:
    """The folder's whole path. Raises ValueError where it holds no measurements, or some that cannot be true (named)."""
    from costmodels.kernel_models.own import checked_measurements
    from costmodels.measurements import data_files

    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; dse calibrate --out {folder} makes one")
    if not data_files(folder):
        raise ValueError(f"{folder} holds no measurements of kernels; dse calibrate --out {folder} makes them")
    checked_measurements(folder)
    return str(folder.resolve())


def read_device(value: object) -> Device:
    """A catalogue name, or a mapping of the device's fields with an optional `like`."""
    if isinstance(value, str):
        return find_device(value)
    if isinstance(value, Mapping):
        return device_from_mapping(value)
    raise ValueError(f"expected a device's name or a mapping such as {{like: H100, power: 500 W}}, got {said(value)}")


def read_device_count(value: object) -> tuple[str, int]:
    """`64` (exactly) or `{at_most: 64}`."""
    if isinstance(value, Mapping):
        if set(value) != {"at_most"}:
            raise ValueError("expected a number of devices or {at_most: N}")
        return "at_most", read_count(value["at_most"])
    return "exactly", read_count(value)


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
        return f"{self.metric} {'<=' if self.at_most else '>='} {measure(self.metric).show(self.value, with_unit=True)}"


def read_objective(value: object, info: ValidationInfo) -> ObjectiveChoice:
    """`step_time`, or `max: mfu` / `min: price` (as text or as a mapping of one)."""
    if isinstance(value, Mapping) and len(value) == 1:
        value = ": ".join(str(part) for part in next(iter(value.items())))
    if not isinstance(value, str):
        raise ValueError(f"expected a metric's name or 'max: metric', got {said(value)}")
    way, colon, name = value.rpartition(":")
    if colon and way.strip() not in ("min", "max"):
        raise ValueError(f"expected 'min: {name.strip()}' or 'max: {name.strip()}', got {value!r}")
    chosen = require(name.strip(), _metrics(info))
    return ObjectiveChoice(metric=chosen.name, maximise=way.strip() == "max" if colon else chosen.maximise)


_LIMIT = re.compile(r"\s*([\w.]+)\s*(<=|>=|≤|≥|<|>|==?)\s*(.+?)\s*")


def _metrics(info: ValidationInfo) -> frozenset[str]:
    """The metrics that this kind of experiment has."""
    return cast(frozenset[str], (info.context or {})["metrics"])


def read_constraints(value: object, info: ValidationInfo) -> tuple[Limit, ...]:
    """A list of texts ("devices <= 4096"), or a mapping {metric: limit}, read as the side that hurts."""
    known = _metrics(info)
    if isinstance(value, Mapping):
        return tuple(_limit(known, *_suffixed(known, str(name), text)) for name, text in value.items())
    return tuple(_limit_text(known, text) for text in cast(list[object], as_list(value)))


def _suffixed(known: frozenset[str], name: str, text: object) -> tuple[str, bool, object]:
    """`memory_GiB: 70` is `memory: 70 GiB`."""
    stem, _, unit = name.rpartition("_")
    if unit in ("GiB", "GB", "s", "ms", "USD", "days") and stem and isinstance(text, int | float) and name != "training_days":
        name, text = stem, f"{text} {unit}"
    return name, not require(name, known).maximise, text


def _limit_text(known: frozenset[str], text: object) -> Limit:
    found = _LIMIT.fullmatch(text) if isinstance(text, str) else None
    if found is None or found[2] in ("=", "=="):
        raise ValueError(f"expected text like 'devices <= 4096' or 'mfu >= 40 %', got {text!r}")
    return _limit(known, found[1], found[2] in ("<=", "≤", "<"), found[3])


def _limit(known: frozenset[str], name: str, at_most: bool, text: object) -> Limit:
    require(name, known)
    value = limit(name, text)
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"a limit on {name} must be a positive, finite number, got {text}")
    return Limit(metric=name, at_most=at_most, value=value)


def read_text(value: object) -> str:
    """Text that is not blank."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"expected text, got {said(value)}")
    return value


def read_method(value: object) -> str:
    """A search method by name, or one of the asker's as `module:function`."""
    from search.methods import NAMES, require_name

    if isinstance(value, str) and ":" in value:
        return require_name(value)
    return str(one_of("search method", lambda: NAMES)(value))


def read_address(value: object) -> str:
    """Where a Ray cluster is: host:port, or auto for the one that this machine belongs to."""
    found = re.fullmatch(r"[\w.\-]+:(\d{1,5})", value) if isinstance(value, str) else None
    if value == "auto" or (found is not None and 0 < int(found[1]) < 1 << 16):
        return str(value)
    raise ValueError(f"expected host:port, such as 10.0.0.5:6379, or auto, got {said(value)}")
