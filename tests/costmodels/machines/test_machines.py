"""Area, power, price and carbon: what must hold whatever the constants are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import nbinom

from costmodels.machines.area import PARTS, die_areas, reticle_violation, silicon_area, total_area
from costmodels.machines.carbon import embodied_carbon, operational_carbon
from costmodels.machines.power import capped_power, clock_share, design_power, energy_per_flop, sustained_share
from costmodels.machines.price import (
    break_even_hours,
    cluster_capital,
    device_price,
    die_yield,
    dies_per_wafer,
    facility_power,
    harvested_yield,
    manufacturing_cost,
    network_levels,
    ownership_per_hour,
    rental,
)
from costmodels.machines.tables import constants, memories, processes
from spaces.hardware import accelerator_names, find_accelerator
from spaces.hardware.accelerators import PROCESSES, memory_kinds

PARTS_WITH_MEMORY = [name for name in accelerator_names() if find_accelerator(name).values["memory_stacks"] > 0]
parts = st.sampled_from(PARTS_WITH_MEMORY)
watts = st.floats(min_value=1.0, max_value=5000.0)


def test_every_process_and_memory_has_every_constant() -> None:
    assert all(len(values) == len(PROCESSES) and (values > 0).all() for values in processes().values())
    assert all(len(values) == len(memory_kinds()) and (values > 0).all() for values in memories().values())


@pytest.mark.parametrize("name", accelerator_names())
def test_parts_of_the_area_add_up_to_the_dies(name: str) -> None:
    at = find_accelerator(name).columns()
    area, io_area = die_areas(at)
    assert set(silicon_area(at)) == set(PARTS)
    assert area * at["chip.dies"] + io_area * at["chip.io_dies"] == pytest.approx(total_area(at))


@given(parts, st.sampled_from(["cores", "l2_bytes", "l1_bytes", "memory_stacks", "scale_up_bandwidth", "matrix_fma"]))
def test_more_of_anything_takes_more_silicon_power_and_money(name: str, parameter: str) -> None:
    part = find_accelerator(name)
    value = part.values[parameter]
    at = part.columns({parameter: np.array([value, 2 * value + (value == 0)])})
    for figure in (total_area(at), sum(design_power(at).values()), sum(manufacturing_cost(at).values())):
        assert np.diff(figure)[0] >= 0


@given(parts)
def test_a_finer_process_is_smaller_and_cooler(name: str) -> None:
    ladder = find_accelerator(name).columns({"process": ["N16", "N7", "N5", "N3"], "io_process": ["N16", "N7", "N5", "N3"]})
    assert (np.diff(total_area(ladder)) <= 0).all()
    assert (np.diff(energy_per_flop(ladder)) < 0).all()


@given(watts, watts, watts)
def test_power_never_exceeds_the_cap(static: float, dynamic: float, cap: float) -> None:
    drawn = capped_power(static, dynamic, cap)
    assert drawn <= max(cap, static) * (1 + 1e-12)
    assert drawn <= (static + dynamic) * (1 + 1e-12)
    assert 0 <= clock_share(static, dynamic, cap) <= 1
    assert clock_share(static, dynamic, static + dynamic) == pytest.approx(1.0)
    assert clock_share(static, dynamic, cap + 1) >= clock_share(static, dynamic, cap)


@given(parts)
def test_design_power_adds_up_and_the_cap_lowers_the_clock_only_when_passed(name: str) -> None:
    at = find_accelerator(name).columns()
    asked = sum(design_power(at).values())
    assert (sustained_share(at) < 1) == (asked > at["device.power"])


def test_yield_is_the_negative_binomial() -> None:
    """No defect on a die: the negative binomial with mean A·D and clustering alpha at 0."""
    area, alpha = np.array([50.0, 400.0, 826.0]), constants("price")["clustering"]
    mean = area / 100 * processes()["defects"][2]
    np.testing.assert_allclose(die_yield(area, 2), nbinom.pmf(0, alpha, alpha / (alpha + mean)))


def test_spare_cores_rescue_dies() -> None:
    at = find_accelerator("H100").columns({"cores": np.array([144, 140, 132]), "spare_cores": np.array([0, 4, 12])})
    assert (np.diff(harvested_yield(at)) > 0).all()
    whole = die_yield(total_area(at), at["chip.process"])[0]
    assert harvested_yield(at)[0] == pytest.approx(whole, rel=0.12)  # defects cluster within cores, not across them


def test_dies_per_wafer_is_near_the_published_count() -> None:
    """About 60 to 65 GH100 or GA100 dies come from a 300 mm wafer; small dies fill it by area."""
    assert 58 <= dies_per_wafer(814.0) <= 68
    assert dies_per_wafer(10.0) == pytest.approx(np.pi * 147**2 / 10.0, rel=0.05)
    assert dies_per_wafer(1e6) == 0


def test_a_die_beyond_the_reticle_is_a_violation() -> None:
    at = find_accelerator("H100").columns({"cores": np.array([132, 264])})
    assert reticle_violation(at)[0] <= 0 < reticle_violation(at)[1]


@pytest.mark.parametrize(("name", "low", "high"), [("A100", 8e3, 18e3), ("H100", 17e3, 33e3), ("B200", 30e3, 50e3)])
def test_prices_are_near_the_markets(name: str, low: float, high: float) -> None:
    assert low < device_price(find_accelerator(name).columns())[0] < high


@given(parts, st.integers(min_value=1, max_value=100_000), st.integers(min_value=1, max_value=5000))
def test_capital_never_falls_with_the_count(name: str, devices: int, more: int) -> None:
    at = find_accelerator(name).columns()
    few, many = (cluster_capital(at, 2e4, count) for count in (devices, devices + more))
    assert sum(many.values()) >= sum(few.values())
    assert all(many[part] >= few[part] for part in few)


@given(watts, st.integers(min_value=1, max_value=10_000), st.floats(min_value=0, max_value=1e4))
def test_rental_is_linear_in_count_and_hours(price: float, devices: int, hours: float) -> None:
    assert rental(price, 3 * devices, hours) == pytest.approx(3 * rental(price, devices, hours))
    assert rental(price, devices, 2 * hours) == pytest.approx(2 * rental(price, devices, hours))
    assert rental(price, 0, hours) == 0


def test_levels_of_a_fat_tree() -> None:
    """A radix-64 tree joins 64, 2,048 and 65,536 ports with one, two and three levels."""
    assert network_levels(np.array([1, 64, 65, 2048, 2049, 65536])).tolist() == [1, 1, 2, 2, 3, 3]


def test_buying_pays_after_the_break_even() -> None:
    hours = break_even_hours(1000.0, 1.0, 3.0)
    assert 1000.0 + 1.0 * hours == pytest.approx(3.0 * hours)
    assert break_even_hours(1000.0, 3.0, 3.0) == np.inf


def test_an_hour_of_ownership_adds_up_over_the_life() -> None:
    """Depreciation over all used hours of the life returns the capital."""
    at, cost = find_accelerator("H100").columns(), constants("operating")
    hour = ownership_per_hour(at, 1e6, 700.0, 8)
    assert hour["depreciation"] * 8766 * cost["utilisation"] * cost["depreciation"] == pytest.approx(1e6)
    assert hour["energy"] == pytest.approx(facility_power(at, 700.0, 8) / 1e3 * cost["energy_price"])


def test_carbon_grows_with_silicon_and_the_grid() -> None:
    at = find_accelerator("H100").columns({"l2_bytes": np.array([60e6, 120e6])})
    assert np.diff(sum(embodied_carbon(at).values()))[0] > 0
    assert operational_carbon(3.6e6, "india") > operational_carbon(3.6e6, "sweden")
    with pytest.raises(ValueError, match="france"):
        operational_carbon(1.0, "franc")
