"""Area and power of shipped parts, with the coefficients made again from the calibration parts alone."""

import pytest

from costmodels.machines.checks import fit, held_out_median, held_out_ratio, residuals, table
from costmodels.machines.power import design_power, sustained_share
from costmodels.machines.tables import constants
from spaces.hardware.accelerators import accelerator_names, find_accelerator


@pytest.mark.parametrize("figure", ["area", "power"])
def test_coefficients_come_from_the_calibration_parts(figure: str) -> None:
    for name, value in fit(figure).items():
        assert constants(figure)[name] == pytest.approx(value, rel=1e-3), name


@pytest.mark.parametrize(("figure", "limit"), [("area", 0.15), ("power", 0.10)])
def test_held_out_parts(figure: str, limit: float) -> None:
    found = residuals(figure)
    assert sum(r.held_out for r in found) >= 6
    assert sum(not r.held_out for r in found) >= 4
    assert held_out_median(figure) < limit


def test_the_large_accelerators_without_graphics_are_near_their_published_area() -> None:
    errors = {r.part: abs(r.error) for r in residuals("area")}
    for part in ("V100", "A100", "H100", "B200", "MI250X-GCD", "P100", "Ascend-910", "Dojo-D1", "GC200"):
        assert errors[part] < 0.15, part


def test_parts_that_cannot_hold_their_peak_are_known() -> None:
    """B200, MI300X and L4 ask for more than their cap at design activity: what they sustain is limited by power."""
    sustained = {name: float(sustained_share(find_accelerator(name).columns())[0]) for name in accelerator_names()}
    assert {name for name, share in sustained.items() if share < 0.9} >= {"B200", "MI300X", "L4"}
    assert sustained["H200"] == sustained["H100"] == 1.0


def test_power_is_checked_at_the_rate_that_was_measured() -> None:
    """MI300X at half its peak draws its cap, not what its whole peak would; parts without a rate are at design activity."""
    found = {r.part: r.predicted for r in residuals("power")}
    for name, published in (("MI300X", True), ("V100", False)):
        part = find_accelerator(name)
        asked = float(sum(design_power(part.columns()).values())[0])
        assert (found[name] != pytest.approx(asked)) == published == ("matrix_rate" in part.published)
    assert abs(found["MI300X"] / 750 - 1) < 0.1


def test_the_table_names_every_part() -> None:
    told = table()
    assert all(r.part in told for figure in ("area", "power") for r in residuals(figure))


@pytest.mark.parametrize("figure", ["area", "power"])
@pytest.mark.parametrize("share", [0.5, 0.8, 0.9])
def test_an_interval_holds_the_share_of_held_out_parts_that_it_says(figure: str, share: float) -> None:
    held = [r for r in residuals(figure) if r.held_out]
    ratio = held_out_ratio(figure, share)
    errors = [max(r.predicted / r.published, r.published / r.predicted) for r in held]
    assert sum(error <= ratio * (1 + 1e-9) for error in errors) >= share * len(held)
    assert ratio in [pytest.approx(error) for error in errors]
    assert held_out_ratio(figure, 0.9) >= ratio
