"""Accelerators by their parameters."""

import numpy as np
import pytest

from spaces.hardware import UnknownAccelerator, accelerator_names, find_accelerator, find_device
from spaces.hardware.accelerators import parameter_value, parameters

SOLD = [name for name in accelerator_names() if name not in ("Dojo-D1", "GC200", "TPU-v4i", "P100", "Ascend-910")]


@pytest.mark.parametrize("name", SOLD)
def test_derived_figures_are_the_catalogues(name: str) -> None:
    """What cores, clock and stacks multiply to is the datasheet's rate."""
    part = find_accelerator(name)
    device, symbols = find_device(part.device).symbols(), part.columns()
    sixteen = max(device["device.matrix_flops.bf16"], device["device.matrix_flops.fp16"])
    assert symbols["device.matrix_flops.bf16"][0] == pytest.approx(sixteen, rel=0.02)
    for figure in ("memory_bandwidth", "memory_capacity"):
        assert symbols[f"device.{figure}"][0] == pytest.approx(device[f"device.{figure}"], rel=0.05), figure
    if name != "MI250X-GCD":  # its links, for their area, are more than what one neighbour of the catalogue's topology gets
        assert symbols["device.scale_up_bandwidth"][0] == pytest.approx(device["device.scale_up_bandwidth"], rel=0.2)
    assert symbols["device.power"][0] == device["device.power"]


def test_columns_bind_every_device_symbol_or_leave_it_to_the_base() -> None:
    derived = {name for name in find_accelerator("H100").columns() if name.startswith("device.")}
    near = {name for name in derived if name.startswith("device.near_memory_")}  # no catalogue device has such units
    assert derived - near <= {*find_device("H100").symbols(), "device.matrix_flops.tf32"}


def test_many_designs_at_once() -> None:
    base = find_accelerator("H100")
    designs = base.columns({"memory_stacks": np.array([4, 6, 8]), "clock": 1.5e9, "memory_kind": ["HBM3", "HBM3e", "HBM4"]})
    for row, (stacks, kind, bandwidth) in enumerate([(4, "HBM3", 670e9), (6, "HBM3e", 1e12), (8, "HBM4", 2e12)]):
        one = base.columns({"memory_stacks": stacks, "clock": 1.5e9, "memory_kind": [kind]})
        for symbol, values in designs.items():
            assert values[row] == one[symbol][0], symbol
        assert one["device.memory_bandwidth"][0] == stacks * bandwidth


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory_stacks": 2.5}, "memory_stacks.*whole number from 0, got 2.5"),
        ({"clock": -1e9}, "clock.*from 1e.08"),
        ({"clock": float("nan")}, "clock"),
        ({"memory_stack": 2}, "nearest are memory_stacks"),
        ({"process": ["N1"]}, "process: there is no 'N1'"),
        ({"scale_up_topology": ["torus"], "scale_up_domain": 13}, "torus cannot connect 13"),
        ({"l2_bytes": -1.0}, "l2_bytes"),
    ],
)
def test_impossible_designs_are_refused_in_words(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        find_accelerator("H100").columns(changes)


def test_an_unknown_accelerator_lists_the_nearest() -> None:
    with pytest.raises(UnknownAccelerator, match="H100"):
        find_accelerator("H1OO")


@pytest.mark.parametrize("name", list(parameters()))
def test_every_parameter_has_a_floor_below_every_part(name: str) -> None:
    parameter = parameters()[name]
    assert parameter.means
    assert all(find_accelerator(part).values[name] >= parameter.least for part in accelerator_names())
    with pytest.raises(ValueError, match=name):
        parameter_value(name, parameter.least - 1)
