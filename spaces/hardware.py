"""Accelerators and the clusters built from them: a catalogue of facts, one YAML file a device, read when asked for.

A `Device` is what a datasheet and its driver say, with the source; it holds no achieved rates (those belong to
`costmodels`). A `Cluster` is so many of one device, and the tiers of links that join them.
"""

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import MappingProxyType
from typing import Any

import yaml

from spaces.units import quantity

FORMATS = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4")

# ports a device's scale-up bandwidth is split over, by topology; None: one for each other device of the domain
_PORTS: Mapping[str, int | None] = {
    "nvswitch": 1,
    "switch": 1,
    "pcie": 1,
    "none": 1,
    "nvlink-bridge": None,
    "all-to-all": None,
    "package-mesh": 1,
    "hybrid-cube-mesh": 6,
    "torus": 6,
}
TOPOLOGIES = tuple(_PORTS)

_LARGEST_NODE = 128  # no product comes near; a larger number is a mistaken argument


class UnknownDevice(ValueError):
    """A device name the catalogue does not have; the message lists the nearest names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator as the allocator of ranks sees it (a GPU, a GCD, a chip), in SI units.

    Rates are dense datasheet peaks, bandwidths are one direction, capacity is what the driver reports (it may be an
    eighth away from the nameplate). `estimated` names the fields that no source states. Raises ValueError when a
    figure is not finite and positive or a name is not one of those known.
    """

    name: str
    aliases: tuple[str, ...] = ()
    vendor: str
    architecture: str
    generation: str  # volta, ampere, hopper, blackwell, ada, pascal, cdna2, cdna3, cdna4, tpu, gaudi, ascend
    year: int
    matrix_flops: Mapping[str, float]  # FLOP/s by number format; a format the device lacks is absent
    vector_flops: float  # fp32 FLOP/s outside the matrix units
    memory_capacity: float  # bytes
    memory_bandwidth: float  # bytes/s
    cache_bytes: float  # last-level cache, bytes
    compute_units: int  # streaming multiprocessors, compute units, cores
    scale_up_bandwidth: float  # bytes/s a direction, all ports together
    scale_up_domain: int  # devices
    scale_up_topology: str
    scale_up_ports: int  # one peer is reached through one of them
    scale_up_latency: float  # s a hop
    package_devices: int = 1  # devices that share a package with faster links (the two GCDs of an MI250X)
    package_bandwidth: float  # bytes/s a direction between them; scale_up_bandwidth where there is one a package
    devices_per_node: int
    host_link_bandwidth: float  # bytes/s a direction
    nic_bandwidth: float  # bytes/s a device a direction
    nic_latency: float  # s a hop
    power: float  # W, the thermal design power or the cap
    idle_power: float  # W
    price_per_hour: float  # USD a device-hour: midpoint of the low end of the market
    price_range: tuple[float, float]  # USD a device-hour, cheapest to dearest offer
    source: str
    confidence: str  # high, medium, low
    estimated: tuple[str, ...] = ()
    notes: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix_flops", MappingProxyType(dict(self.matrix_flops)))
        _check(self)

    def __hash__(self) -> int:
        return hash((self.name, self.memory_capacity, self.memory_bandwidth, tuple(self.matrix_flops.items())))

    def __reduce__(self) -> tuple[Any, ...]:
        # a read-only mapping does not pickle; workers receive devices
        return _device_of, ({field: _plain(getattr(self, field)) for field in _FIELDS},)

    @property
    def peer_bandwidth(self) -> float:
        """Bytes/s one direction to a single peer of the domain: all of it through a switch, one port otherwise."""
        return self.scale_up_bandwidth / self.scale_up_ports

    def symbols(self) -> dict[str, float]:
        """The flat names cost models read, in SI units; a number format the device lacks is 0."""
        rates = {f"device.matrix_flops.{name}": self.matrix_flops.get(name, 0.0) for name in FORMATS}
        figures = {f"device.{name}": float(getattr(self, name)) for name in _SYMBOLS}
        domain = {"device.domain": float(self.scale_up_domain), "device.per_node": float(self.devices_per_node)}
        return rates | figures | domain


@dataclass(frozen=True, slots=True, kw_only=True)
class Tier:
    """One level of links: it joins `size` devices, each at `bandwidth` bytes/s a direction, `latency` s a hop."""

    name: str
    size: int
    bandwidth: float
    latency: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """`devices` accelerators of one kind, joined by `tiers`, innermost first; the last tier joins all of them.

    The fabric's tier carries a device's NIC rate divided by `oversubscription`.
    """

    device: Device
    devices: int
    tiers: tuple[Tier, ...]
    oversubscription: float
    devices_per_node: int

    def symbols(self) -> dict[str, float]:
        """The device's symbols with this cluster's fabric in place of the device's own NIC rate."""
        return self.device.symbols() | {"device.nic_bandwidth": self.device.nic_bandwidth / self.oversubscription}


_FIELDS = tuple(field.name for field in dataclasses.fields(Device))
_REQUIRED = tuple(field.name for field in dataclasses.fields(Device) if field.default is dataclasses.MISSING)
_UNITS: Mapping[str, str] = {
    "matrix_flops": "FLOP/s",
    "vector_flops": "FLOP/s",
    "memory_capacity": "B",
    "memory_bandwidth": "B/s",
    "cache_bytes": "B",
    "scale_up_bandwidth": "B/s",
    "scale_up_latency": "s",
    "package_bandwidth": "B/s",
    "host_link_bandwidth": "B/s",
    "nic_bandwidth": "B/s",
    "nic_latency": "s",
    "power": "W",
    "idle_power": "W",
    "price_per_hour": "USD/h",
    "price_range": "USD/h",
}
_COUNTS = ("compute_units", "scale_up_domain", "scale_up_ports", "package_devices", "devices_per_node", "year")
_SYMBOLS = (
    "vector_flops",
    "memory_capacity",
    "memory_bandwidth",
    "cache_bytes",
    "compute_units",
    "scale_up_bandwidth",
    "peer_bandwidth",
    "scale_up_latency",
    "package_devices",
    "package_bandwidth",
    "nic_bandwidth",
    "nic_latency",
    "host_link_bandwidth",
    "power",
    "idle_power",
    "price_per_hour",
)


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
    unknown = [key for key in mapping if key not in (*_FIELDS, "like")]
    if unknown:
        near = difflib.get_close_matches(unknown[0], (*_FIELDS, "like"), n=1, cutoff=0.0)
        raise ValueError(f"a device has no {unknown[0]!r}; the nearest key is {near[0]!r}")
    given = {key: _value(key, value) for key, value in mapping.items() if key != "like"}
    values = _defaults(_like(mapping["like"], given) if "like" in mapping else given)
    missing = [field for field in _REQUIRED if field not in values]
    if missing:
        raise ValueError(f"the device lacks {', '.join(missing)}; give them, or start from one with `like: H100`")
    return Device(**values)


def cluster(
    device: Device,
    devices: int,
    domain: int | None = None,
    devices_per_node: int | None = None,
    nic_bandwidth: float | None = None,
    latency: float | None = None,
    oversubscription: float = 1.0,
) -> Cluster:
    """`devices` of one kind with the device's own domain, node and NIC, or those given (bytes/s, s a hop).

    A cluster smaller than a domain lies within it; a larger one consists of whole domains. Raises ValueError in words
    for a cluster nobody can build.
    """
    changed = dataclasses.replace(
        device,
        scale_up_domain=device.scale_up_domain if domain is None else domain,
        devices_per_node=device.devices_per_node if devices_per_node is None else devices_per_node,
        nic_bandwidth=device.nic_bandwidth if nic_bandwidth is None else nic_bandwidth,
        nic_latency=device.nic_latency if latency is None else latency,
    )
    _check_cluster(device, changed, devices, oversubscription)
    return Cluster(
        device=changed,
        devices=devices,
        tiers=_tiers(changed, devices, oversubscription),
        oversubscription=oversubscription,
        devices_per_node=changed.devices_per_node,
    )


def _tiers(device: Device, devices: int, oversubscription: float) -> tuple[Tier, ...]:
    """The levels of links, innermost first; one that would join no more devices than the one within is left out."""
    fabric = device.nic_bandwidth / oversubscription
    ladder = (
        Tier(name="package", size=device.package_devices, bandwidth=device.package_bandwidth,
             latency=device.scale_up_latency),
        Tier(name=_domain_name(device), size=device.scale_up_domain, bandwidth=device.scale_up_bandwidth,
             latency=device.scale_up_latency),
        Tier(name="pcie", size=device.devices_per_node, bandwidth=device.host_link_bandwidth,
             latency=device.scale_up_latency),
        Tier(name="fabric", size=devices, bandwidth=fabric, latency=device.nic_latency),
    )  # fmt: skip
    tiers: list[Tier] = []
    for tier in ladder:
        within = tiers[-1].size if tiers else 1
        if min(tier.size, devices) > within:
            tiers.append(dataclasses.replace(tier, size=min(tier.size, devices)))
    return tuple(tiers)


def _domain_name(device: Device) -> str:
    """What people call the links within a domain."""
    if device.scale_up_topology in ("pcie", "torus"):
        return {"pcie": "pcie", "torus": "ici"}[device.scale_up_topology]
    return "nvlink" if device.vendor == "NVIDIA" else "scale-up"


def _check_cluster(device: Device, changed: Device, devices: int, oversubscription: float) -> None:
    """Raise ValueError for a cluster nobody can build."""
    domain, node = changed.scale_up_domain, changed.devices_per_node
    if not _is_count(devices):
        raise ValueError(f"a cluster has at least one device, got {devices!r}")
    if node > _LARGEST_NODE:
        raise ValueError(f"{node} devices per node is more than any node holds ({_LARGEST_NODE})")
    if domain > device.scale_up_domain and device.scale_up_topology == "none":
        raise ValueError(f"{device.name} has no links to other devices, so its domain cannot be {domain}")
    if domain % node and node % domain:
        raise ValueError(f"a domain of {domain} and nodes of {node} devices do not nest: one must divide the other")
    for size, what in ((domain, "domain"), (node, "node")):
        if devices > size and devices % size:
            raise ValueError(
                f"{devices} devices do not fill whole {what}s of {size}; use a multiple of {size}, "
                f"or say how many devices of each {what} you use"
            )
    if not (math.isfinite(oversubscription) and oversubscription >= 1.0):
        raise ValueError(f"oversubscription is 1 (none) or more, got {oversubscription!r}")


def _check(device: Device) -> None:
    """Raise ValueError for a figure that is not finite and positive, or a word that is not one of those known."""
    for field in _UNITS:
        value = getattr(device, field)
        figures = value.values() if field == "matrix_flops" else value if field == "price_range" else (value,)
        if not all(math.isfinite(figure) and figure > 0 for figure in figures):
            raise ValueError(f"{device.name}: {field} must be finite and positive, got {_plain(value)!r}")
    for field in _COUNTS:
        if not _is_count(getattr(device, field)):
            raise ValueError(f"{device.name}: {field} must be a whole number from 1, got {getattr(device, field)!r}")
    _check_words(device)


def _check_words(device: Device) -> None:
    """Raise ValueError for an unknown topology or number format, or a range that runs backwards."""
    if device.scale_up_topology not in TOPOLOGIES:
        raise ValueError(f"{device.name}: scale_up_topology {device.scale_up_topology!r} is none of {TOPOLOGIES}")
    strange = [name for name in device.matrix_flops if name not in FORMATS]
    if strange or not device.matrix_flops:
        raise ValueError(f"{device.name}: matrix_flops needs formats out of {FORMATS}, got {list(device.matrix_flops)}")
    if len(device.price_range) != 2 or device.price_range[0] > device.price_range[1]:
        raise ValueError(f"{device.name}: price_range is (cheapest, dearest), got {device.price_range!r}")
    if device.idle_power > device.power:
        raise ValueError(f"{device.name}: idle_power {device.idle_power} W is above power {device.power} W")


def _is_count(value: object) -> bool:
    """A whole number from 1 (True is not one)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _like(name: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of the device called `name`, with those given in their place."""
    base = find_device(str(name))
    values = {field: getattr(base, field) for field in _FIELDS}
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
        filled["scale_up_ports"] = _PORTS.get(str(topology), 1) or max(domain - 1, 1)
    return filled


def _value(key: str, value: object) -> Any:
    """One field as `Device` holds it. Raises ValueError, naming the key, when it cannot be read."""
    try:
        if key == "matrix_flops":
            return {str(name): quantity(rate, _UNITS[key]) for name, rate in _mapping(value).items()}
        if key == "price_range":
            return tuple(quantity(price, _UNITS[key]) for price in _sequence(value))
        if key in _UNITS:
            return quantity(value, _UNITS[key])
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


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else value


def _device_of(values: dict[str, Any]) -> Device:
    """Rebuild a device from its fields (pickle's way in)."""
    return Device(**values)


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
            head = yaml.safe_load(lines.readline() + lines.readline())
        for name in (head["name"], *head["aliases"]):
            held, _ = known.setdefault(_key(name), (head["name"], file.name))
            if held != head["name"]:
                raise ValueError(f"{name!r} is a name of both {held} and {head['name']}")
    return MappingProxyType(known)


@cache
def _read(file: str) -> Device:
    """The device a catalogue file describes."""
    return device_from_mapping(yaml.safe_load(_catalogue().joinpath(file).read_text(encoding="utf-8")))


def _catalogue() -> Traversable:
    return files("spaces").joinpath("data", "devices")
