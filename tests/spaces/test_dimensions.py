"""Units as products of powers of base units."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.dimensions import NONE, Dimension, dimension, unit
from spaces.units import quantity

UNITS = ("B", "GB/s", "TFLOP/s", "s", "W", "kWh", "GHz", "USD", "mm2", "kg", "")


@pytest.mark.parametrize(
    ("written", "scale", "same"),
    [
        ("GB/s", 1e9, "B/s"),
        ("USD/mm2", 1e6, "USD/m2"),
        ("pJ/B", 1e-12, "J/B"),
        ("kg/kWh", 1 / 3.6e6, "kg/J"),
        ("W", 1.0, "J/s"),
        ("MHz", 1e6, "1/s"),
        ("", 1.0, ""),
    ],
)
def test_compound_units(written: str, scale: float, same: str) -> None:
    assert unit(written)[0] == pytest.approx(scale)
    assert dimension(written) == dimension(same)


@given(st.sampled_from(UNITS), st.sampled_from(UNITS))
def test_products_and_quotients_cancel(left: str, right: str) -> None:
    one, other = dimension(left), dimension(right)
    assert one * other / other == one
    assert one / one == NONE
    assert (one * other) ** 2 == one**2 * other**2
    assert Dimension.of(one.powers) == one


@pytest.mark.parametrize("written", ["GB/s", "TFLOP/s", "W", "kWh", "GHz", "ms"])
def test_scales_agree_with_quantities(written: str) -> None:
    si = {"GB/s": "B/s", "TFLOP/s": "FLOP/s", "W": "W", "kWh": "J", "GHz": "Hz", "ms": "s"}[written]
    assert quantity(f"3 {written}", si) == pytest.approx(3 * unit(written)[0])


def test_an_unknown_unit_is_named() -> None:
    with pytest.raises(ValueError, match="furlong"):
        unit("B/furlong")
