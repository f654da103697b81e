"""Price of an accelerator and of a cluster: dies, yield, package; hosts, switches, optics; energy, depreciation, rental."""

from __future__ import annotations

import numpy as np

from costmodels.machines.area import COMPUTE, die_areas, near_memory_area, silicon_area
from costmodels.machines.tables import constants, of_memory, of_process
from spaces.columns import FloatArray, Value
from spaces.expressions import SymbolTable

HOURS_PER_YEAR = 8766.0
GIGA = 1e9
PORT = 50e9  # bytes/s of a 400 Gb/s port


def dies_per_wafer(area: Value) -> FloatArray:
    """Whole dies of `area` mm² on a wafer: π·r²/A − π·d/√(2A) (de Vries 2005, eq. 2), the rim left out; 0 at the least."""
    cost = constants("price")
    diameter = cost["wafer_diameter"] - 2 * cost["edge"]
    size = np.maximum(np.asarray(area, np.float64), 1e-3)
    return np.asarray(np.maximum(np.pi * diameter**2 / 4 / size - np.pi * diameter / np.sqrt(2 * size), 0.0))


def die_yield(area: Value, process: Value) -> FloatArray:
    """Share of dies without a defect: (1 + A·D/α)^−α, the negative binomial of clustered defects (Stapper 1983)."""
    alpha = constants("price")["clustering"]
    defects = np.asarray(area, np.float64) / 100.0 * of_process("defects", process)
    return np.asarray((1.0 + defects / alpha) ** -alpha)


def harvested_yield(at: SymbolTable) -> FloatArray:
    """Share of compute dies that can be sold with spare cores off: the rest of the die intact, at most `spare` cores bad."""
    from scipy.special import betainc  # a quarter of a second to import, and most runs need none

    area, _ = die_areas(at)
    parts = silicon_area(at)
    cores = (at["chip.cores"] + at["chip.spare_cores"]) / at["chip.dies"]
    spare = np.floor(np.asarray(at["chip.spare_cores"] / at["chip.dies"], np.float64))
    core_area = np.asarray(sum(parts[name] for name in COMPUTE)) / at["chip.dies"]
    bad = 1.0 - die_yield(core_area / cores, at["chip.process"])
    rest = np.maximum(np.round(cores) - spare, 1.0)
    enough = betainc(rest, spare + 1.0, 1.0 - bad)  # at most `spare` of the cores bad, binomial
    return np.asarray(die_yield(np.maximum(area - core_area, 0.0), at["chip.process"]) * enough)


def manufacturing_cost(at: SymbolTable) -> dict[str, FloatArray]:
    """USD to make one packaged accelerator by part: `compute_dies`, `io_dies`, `memory`, `package`, `assembly`."""
    cost = constants("price")
    area, io_area = die_areas(at)
    infinite = np.finfo(np.float64).tiny
    compute = at["chip.dies"] * of_process("wafer_price", at["chip.process"])
    compute = compute / np.maximum(dies_per_wafer(area) * harvested_yield(at), infinite)
    good = np.maximum(dies_per_wafer(io_area) * die_yield(io_area, at["chip.io_process"]), infinite)
    other = np.where(io_area > 0, at["chip.io_dies"] * of_process("wafer_price", at["chip.io_process"]) / good, 0.0)
    stacks = at["chip.memory_stacks"]
    memory = of_memory("price", at["chip.memory_kind"]) * stacks * at["chip.stack_capacity"] / GIGA
    near = near_memory_area(at)
    wafer = np.pi * (cost["wafer_diameter"] / 2.0) ** 2
    memory = memory + near / wafer * of_process("wafer_price", at["chip.io_process"]) / die_yield(
        near / np.maximum(stacks, 1.0), at["chip.io_process"]
    )  # on the base dies that stacks have anyway
    footprint = area * at["chip.dies"] + io_area * at["chip.io_dies"] + stacks * cost["stack_footprint"]
    package = cost["interposer"] * footprint
    made = (compute + other + memory + package) / cost["memory_yield"]
    parts = {
        "compute_dies": compute,
        "io_dies": other,
        "memory": memory,
        "package": package,
        "assembly": made * (1.0 + cost["assembly"]) - (compute + other + memory + package),
    }
    return {name: np.asarray(value, np.float64) for name, value in parts.items()}


def device_price(at: SymbolTable) -> FloatArray:
    """USD an accelerator sells for: what it costs to make times the markup, shape (n,)."""
    return np.asarray(constants("price")["markup"] * sum(manufacturing_cost(at).values()), np.float64)


def network_levels(devices: Value) -> FloatArray:
    """Levels of a full fat tree that joins so many ports: one switch, leaf and spine, three, … (Al-Fares et al. 2008)."""
    half = constants("capital")["switch_radix"] / 2
    ports = np.maximum(np.asarray(devices, np.float64) / 2, 1.0)
    return np.asarray(np.maximum(np.ceil(np.log(ports) / np.log(half) - 1e-9), 1.0))


def cluster_capital(at: SymbolTable, device: Value, devices: Value) -> dict[str, FloatArray]:
    """USD of a cluster of `devices` at `device` USD each, by part; `at` binds the device's links and node.

    Nodes are whole (the last may be part empty). A fat tree of L levels has 2L − 1 switch ports and 2L transceivers a
    device's port; a cluster within one domain needs no scale-out.
    """
    cost = constants("capital")
    count = np.asarray(devices, np.float64)
    nodes = np.ceil(count / at["device.per_node"])
    ports = at["device.nic_bandwidth"] / PORT
    beyond = np.where(count > at["device.domain"], count, 0.0)
    levels = network_levels(count)
    hardware = {
        "devices": count * device,
        "hosts": nodes * cost["host"],
        "scale_up": np.where(np.asarray(at["device.domain"]) > 1, count, 0.0)
        * at["device.scale_up_bandwidth"] / GIGA * cost["scale_up_port"],
        "nics": beyond * ports * cost["nic"],
        "switches": beyond * ports * (2 * levels - 1) * cost["switch_port"],
        "optics": beyond * ports * 2 * levels * cost["transceiver"],
    }  # fmt: skip
    hardware["installation"] = cost["installation"] * sum(hardware.values())
    return {name: np.asarray(value, np.float64) for name, value in hardware.items()}


def server_power(at: SymbolTable, device_watts: Value, devices: Value) -> FloatArray:
    """Watts that servers draw from their rack for devices that draw `device_watts` each: hosts, fans and conversion added.

    Of a node that is part empty, the host counts whole.
    """
    cost = constants("operating")
    count = np.asarray(devices, np.float64)
    nodes = np.ceil(count / at["device.per_node"])
    return np.asarray(count * device_watts * (1 + cost["overhead_power"]) + nodes * cost["host_power"], np.float64)


def facility_power(at: SymbolTable, device_watts: Value, devices: Value) -> FloatArray:
    """Watts at the meter for devices that draw `device_watts` each: servers with their network, and the building's PUE."""
    cost = constants("operating")
    network = np.asarray(devices, np.float64) * cost["network_power"]
    return np.asarray((server_power(at, device_watts, devices) + network) * cost["power_usage"])


def holding(capital: Value, years: Value) -> dict[str, FloatArray]:
    """USD of holding what cost `capital` for some years, used or not, by part: `depreciation`, `interest`, `site`.

    Capital is written off evenly over the depreciation, and no further; interest is that of half of it, the mean of its life.
    """
    cost = constants("operating")
    money, time = np.asarray(capital, np.float64), np.asarray(years, np.float64)
    return {
        "depreciation": money * np.minimum(time / cost["depreciation"], 1.0),
        "interest": money * cost["interest"] / 2 * time,
        "site": money * cost["staff_and_site"] * time,
    }


def energy_per_hour(at: SymbolTable, device_watts: Value, devices: Value) -> FloatArray:
    """USD of the energy of an hour at the meter, devices drawing `device_watts` each."""
    return np.asarray(facility_power(at, device_watts, devices) / 1000.0 * constants("operating")["energy_price"])


def ownership_per_hour(at: SymbolTable, capital: Value, device_watts: Value, devices: Value) -> dict[str, FloatArray]:
    """USD of an hour of the whole cluster by part: `depreciation`, `interest`, `site`, `energy`, spread over hours used.

    Capital is written off over the depreciation; what stands idle is paid by what is used (utilisation). Energy is that
    of the hours used.
    """
    cost = constants("operating")
    used = HOURS_PER_YEAR * cost["utilisation"]
    year = {name: part / used for name, part in holding(capital, 1.0).items()}
    return {**year, "energy": energy_per_hour(at, device_watts, devices)}


def rental(price_per_hour: Value, devices: Value, hours: Value) -> FloatArray:
    """USD to rent: linear in count and in hours."""
    return np.asarray(np.asarray(price_per_hour, np.float64) * devices * hours)


def break_even_hours(capital: Value, own_per_hour: Value, rent_per_hour: Value) -> FloatArray:
    """Hours after which buying (capital at once, then `own_per_hour` to run) costs less than renting; inf where never."""
    saved = np.asarray(rent_per_hour, np.float64) - own_per_hour
    return np.asarray(np.where(saved > 0, np.asarray(capital) / np.where(saved > 0, saved, 1.0), np.inf))
