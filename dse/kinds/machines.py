"""The machines of an experiment: devices with the networks asked for, and clusters that nobody can build."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dse.locations import Fault
from spaces.hardware import Device, cluster

if TYPE_CHECKING:
    from dse.schema.sections import Machines


def fabrics(hardware: Machines) -> tuple[Device, ...]:
    """Every device with every network asked for, as devices of their own names."""
    changes: dict[str, Any] = {}
    if hardware.devices_per_node is not None:
        changes["devices_per_node"] = hardware.devices_per_node
    if hardware.price_per_hour is not None:
        changes |= {"price_per_hour": hardware.price_per_hour, "price_range": (hardware.price_per_hour,) * 2}
    devices = [dataclasses.replace(device, **changes) if changes else device for device in hardware.device or ()]
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


def cluster_faults(hardware: Machines, at: tuple[str | int, ...] = ("hardware",)) -> Iterable[Fault]:
    """Clusters nobody can build; `at` is where the section stands."""
    how, count = hardware.devices or ("exactly", 1)
    domains: Sequence[int | None] = hardware.domain or [None]
    several = len(hardware.device or ()) > 1
    for device in hardware.device or ():
        for j, domain in enumerate(domains):
            try:
                cluster(device, count if how == "exactly" else 1, domain, hardware.devices_per_node)
            except ValueError as error:
                path = (*at, "devices") if domain is None else (*at, "domain", j)
                yield Fault(path=path, message=f"{device.name}: {error}" if several else str(error))


def capped(devices: Iterable[Device], caps: Sequence[float]) -> tuple[Device, ...]:
    """Every device under every cap, W: its power is the cap and its kernels keep the clock that leaves; no caps change nothing.

    A cap at or above a device's own power leaves it as it is. Raises ValueError for one that does not cover what it idles at.
    """
    if not caps:
        return tuple(devices)
    found: list[Device] = []
    for device in devices:
        for cap in caps:
            if cap <= device.idle_power:
                raise ValueError(f"{device.name} draws {device.idle_power:g} W when idle; a cap of {cap:g} W leaves it nothing")
            under = dataclasses.replace(device, name=f"{device.name} at {cap:g} W", aliases=(), power=cap)
            found.append(under if cap < device.power else device)
    return tuple(dict.fromkeys(found))


def named_devices(value: Mapping[str, Any], hardware: Machines) -> dict[str, Any]:
    """The section as it was written, its devices by the names that the catalogue has for them."""
    named = dict(value)
    asked = named["device"] if isinstance(named["device"], list) else [named["device"]]
    names = [device.name if isinstance(item, str) else item for item, device in zip(asked, hardware.device or (), strict=True)]
    return named | {"device": names[0] if len(names) == 1 else names}
