"""Clusters: so many of one device, and the tiers of links that join them."""

import dataclasses
import math
from dataclasses import dataclass

from spaces.hardware.device import Device, is_count

_LARGEST_NODE = 128  # no product comes near; a larger number is a mistaken argument


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
    if not is_count(devices):
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
