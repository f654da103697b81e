"""Quantities in files: every unit means one number, and a mistake names what was expected."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.units import quantity


@pytest.mark.parametrize(
    ("text", "unit", "expected"),
    [
        ("900 GB/s", "B/s", 9e11),
        ("900GB/s", "B/s", 9e11),
        ("400 Gb/s", "B/s", 50e9),
        ("400 Gbps", "B/s", 50e9),
        ("80 GiB", "B", 80 * 2**30),
        ("80 GB", "B", 80e9),
        ("989.4 TFLOP/s", "FLOP/s", 989.4e12),
        ("1979 TOPS", "FLOP/s", 1979e12),
        ("2.5 us", "s", 2.5e-6),
        ("15 ms", "s", 0.015),
        ("0.7 kW", "W", 700.0),
        ("1 kWh", "J", 3.6e6),
        ("2.5 USD/h", "USD/h", 2.5),
        ("$", "USD", None),
        ("1e9", "B", 1e9),
        ("1_000", "B", 1000.0),
        ("15 %", "", 0.15),
        (42, "B", 42.0),
        (1.5e12, "B/s", 1.5e12),
    ],
)
def test_quantities_are_read_in_si(text: object, unit: str, expected: float | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match="expected a quantity"):
            quantity(text, unit)
        return
    assert quantity(text, unit) == pytest.approx(expected, rel=1e-12)


@given(st.floats(min_value=1e-3, max_value=1e6), st.sampled_from(["GB/s", "GiB/s", "Gb/s", "MB/s", "TB/s"]))
def test_a_written_number_scales_with_its_unit(number: float, unit: str) -> None:
    assert quantity(f"{number!r} {unit}", "B/s") == pytest.approx(number * quantity(f"1 {unit}", "B/s"), rel=1e-12)


@pytest.mark.parametrize(
    ("text", "unit", "words"),
    [
        ("900 GB", "B/s", ["quantity in B/s", "GB is a unit of B"]),
        ("900 gb/s", "B/s", ["no unit 'gb/s'", "nearest is G"]),
        ("900 GBs", "B/s", ["no unit 'GBs'", "nearest is GB/s"]),
        ("fast", "B/s", ["expected a quantity in B/s"]),
        (True, "W", ["expected a quantity in W", "True"]),
        (None, "W", ["expected a quantity in W", "None"]),
        ("1 W", "m", ["no such dimension"]),
    ],
)
def test_a_mistaken_unit_says_what_was_expected(text: object, unit: str, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        quantity(text, unit)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_gigabytes_are_not_gibibytes() -> None:
    assert quantity("80 GiB", "B") / quantity("80 GB", "B") == pytest.approx(1.073741824)
