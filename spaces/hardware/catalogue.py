"""The catalogue of devices: one YAML file each, read when asked for; and devices that an experiment describes."""

import difflib
from collections.abc import Iterable, Mapping
from functools import cache, lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Any

from spaces.facts import facts_in
from spaces.hardware.device import FIELDS, PORTS, REQUIRED, UNITS, Device
from spaces.units import quantity


class UnknownDevice(ValueError):
    """A device name the catalogue does not have; the message lists the nearest names."""


def find_device(name: str) -> Device:
    """The catalogue's device of that name or alias; case, '-', '_', ' ' and '/' do not count.

    Raises UnknownDevice, naming the nearest, when there is none.
    """
    known = _index()
    entry = known.get(_key(name))
    if entry is None:
        near = difflib.get_close_matches(_key(name), known, n=8, cutoff=0.4)
        told = ", ".join(dict.fromkeys(known[key][0] for key in near)) or ", ".join(device_names())
        raise UnknownDevice(f"no device is called {name!r}; the nearest are {told}")
    return _read(entry[1])


def device_names() -> tuple[str, ...]:
    """Every device of the catalogue by its full name, in alphabetical order."""
    return tuple(sorted({name for name, _ in _index().values()}, key=str.casefold))


def device_from_mapping(mapping: Mapping[str, object]) -> Device:
    """The device a mapping describes: every field of `Device`, or `like: H100` and what differs from it.

    Figures are numbers in SI units or text with a unit ("4.8 TB/s"). Number formats given under `matrix_flops` replace
    those of the device it is like and leave the rest. Raises ValueError (UnknownDevice for `like`), naming the key.
    """
    unknown = [key for key in mapping if key not in (*FIELDS, "like")]
    if unknown:
        near = difflib.get_close_matches(unknown[0], (*FIELDS, "like"), n=1, cutoff=0.0)
        raise ValueError(f"a device has no {unknown[0]!r}; the nearest key is {near[0]!r}")
    given = {key: _value(key, value) for key, value in mapping.items() if key != "like"}
    values = _defaults(_like(mapping["like"], given) if "like" in mapping else given)
    missing = [field for field in REQUIRED if field not in values]
    if missing:
        raise ValueError(f"the device lacks {', '.join(missing)}; give them, or start from one with `like: H100`")
    return Device(**values)


def _like(name: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the device called `name`, with those given in their place."""
    base = find_device(str(name))
    values = {field: getattr(base, field) for field in FIELDS}
    changes = {"name": f"{base.name}, changed", "aliases": (), "source": f"like {base.name}"} | dict(given)
    changes["matrix_flops"] = dict(base.matrix_flops) | dict(given.get("matrix_flops", {}))
    if "price_per_hour" in given and "price_range" not in given:
        changes["price_range"] = (given["price_per_hour"], given["price_per_hour"])
    if "power" in given and "idle_power" not in given:
        changes["idle_power"] = base.idle_power / base.power * given["power"]
    moved = {"scale_up_topology", "scale_up_bandwidth"} & given.keys()
    stale = {"scale_up_ports"} if "scale_up_topology" in moved else set()
    stale |= {"package_bandwidth"} if moved and base.package_devices == 1 else set()
    return {field: value for field, value in values.items() if field not in stale} | changes


def _defaults(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the fields that follow from others filled in."""
    filled = dict(values)
    if "package_bandwidth" not in filled and "scale_up_bandwidth" in filled:
        filled["package_bandwidth"] = filled["scale_up_bandwidth"]
    topology, domain = filled.get("scale_up_topology"), filled.get("scale_up_domain")
    if "scale_up_ports" not in filled and isinstance(domain, int):
        filled["scale_up_ports"] = PORTS.get(str(topology), 1) or max(domain - 1, 1)
    return filled


def _value(key: str, value: object) -> Any:
    """One field as `Device` holds it. Raises ValueError, naming the key, when it cannot be read."""
    try:
        if key == "matrix_flops":
            return {str(name): quantity(rate, UNITS[key]) for name, rate in _mapping(value).items()}
        if key == "price_range":
            return tuple(quantity(price, UNITS[key]) for price in _sequence(value))
        if key in UNITS:
            return quantity(value, UNITS[key])
        return tuple(str(item) for item in _sequence(value)) if key in ("aliases", "estimated") else value
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


def _mapping(value: object) -> Mapping[object, object]:
    if not isinstance(value, Mapping):
        raise ValueError(f"expected number formats with their rates, such as {{bf16: 989 TFLOP/s}}, got {value!r}")
    return value


def _sequence(value: object) -> Iterable[object]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"expected a list, got {value!r}")
    return value


def _key(name: str) -> str:
    """A name as names are compared."""
    return "".join(letter for letter in name.casefold() if letter not in "-_ /")


@lru_cache(maxsize=1)
def _index() -> Mapping[str, tuple[str, str]]:
    """Every name and alias -> (full name, file). Reads the two first lines of each file, `name:` and `aliases:`.

    Raises ValueError when two devices share a name.
    """
    known: dict[str, tuple[str, str]] = {}
    for file in sorted(_catalogue().iterdir(), key=lambda file: file.name):
        if not file.name.endswith(".yaml"):
            continue
        with file.open(encoding="utf-8") as lines:
            head = facts_in(lines.readline() + lines.readline())
        for name in (head["name"], *head["aliases"]):
            held, _ = known.setdefault(_key(name), (head["name"], file.name))
            if held != head["name"]:
                raise ValueError(f"{name!r} is a name of both {held} and {head['name']}")
    return MappingProxyType(known)


@cache
def _read(file: str) -> Device:
    """The device a catalogue file describes."""
    return device_from_mapping(facts_in(_catalogue().joinpath(file).read_text(encoding="utf-8")))


def _catalogue() -> Traversable:
    return files("spaces").joinpath("data", "devices")
