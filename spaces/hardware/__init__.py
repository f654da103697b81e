"""Hardware: devices and clusters as they are sold, and accelerators as their parameters describe them.

Facts are data files with a source each (spaces/data/devices, spaces/data/accelerators); what a device achieves, draws and
costs is for `costmodels`.
"""

from spaces.hardware.accelerators import (
    Accelerator,
    UnknownAccelerator,
    accelerator_names,
    find_accelerator,
)
from spaces.hardware.catalogue import UnknownDevice, device_from_mapping, device_names, find_device
from spaces.hardware.clusters import Cluster, Tier, cluster
from spaces.hardware.device import FORMATS, TOPOLOGIES, Device

__all__ = [
    "FORMATS",
    "TOPOLOGIES",
    "Accelerator",
    "Cluster",
    "Device",
    "Tier",
    "UnknownAccelerator",
    "UnknownDevice",
    "accelerator_names",
    "cluster",
    "device_from_mapping",
    "device_names",
    "find_accelerator",
    "find_device",
]
