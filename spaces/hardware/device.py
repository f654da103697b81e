"""An accelerator as datasheet and driver describe it: facts in SI units, with their source.

A `Device` holds no achieved rates; those belong to `costmodels`.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

FORMATS = ("fp32", "tf32", "bf16", "fp16", "fp8", "int8", "fp4")

# ports a device's scale-up bandwidth is split over, by topology; None: one for each other device of the domain
PORTS: Mapping[str, int | None] = {
    "nvswitch": 1,
    "switch": 1,
    "pcie": 1,
    "none": 1,
    "nvlink-bridge": None,
    "all-to-all": None,
    "package-mesh": 1,
    "hybrid-cube-mesh": 6,
    "torus": 6,
    "ring": 2,
    "dragonfly": None,
    "rail-optimised": 1,
}
TOPOLOGIES = tuple(PORTS)


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
    host_memory: float  # bytes of the host's memory, a device's share
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
        return _device_of, ({field: _plain(getattr(self, field)) for field in FIELDS},)

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


FIELDS = tuple(field.name for field in dataclasses.fields(Device))
REQUIRED = tuple(field.name for field in dataclasses.fields(Device) if field.default is dataclasses.MISSING)
UNITS: Mapping[str, str] = {
    "matrix_flops": "FLOP/s",
    "vector_flops": "FLOP/s",
    "memory_capacity": "B",
    "memory_bandwidth": "B/s",
    "cache_bytes": "B",
    "scale_up_bandwidth": "B/s",
    "scale_up_latency": "s",
    "package_bandwidth": "B/s",
    "host_link_bandwidth": "B/s",
    "host_memory": "B",
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
    "host_memory",
    "power",
    "idle_power",
    "price_per_hour",
)


def _check(device: Device) -> None:
    """Raise ValueError for a figure that is not finite and positive, or a word that is not one of those known."""
    for field in UNITS:
        value = getattr(device, field)
        figures = value.values() if field == "matrix_flops" else value if field == "price_range" else (value,)
        if not all(math.isfinite(figure) and figure > 0 for figure in figures):
            raise ValueError(f"{device.name}: {field} must be finite and positive, got {_plain(value)!r}")
    for field in _COUNTS:
        if not is_count(getattr(device, field)):
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


def is_count(value: object) -> bool:
    """A whole number from 1 (True is not one)."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else value


def _device_of(values: dict[str, Any]) -> Device:
    """Rebuild a device from its fields (pickle's way in)."""
    return Device(**values)
