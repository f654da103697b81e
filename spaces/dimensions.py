"""Dimensions of quantities: what units multiply and divide to, so that a formula can be checked before it is used.

A dimension is a product of powers of the base units B, FLOP, s, J, USD, m and kg: `dimension("GB/s")` is B·s⁻¹.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

from spaces.units import measured_in

BASES = ("B", "FLOP", "s", "J", "USD", "m", "kg")
"""Base units, in the order a dimension is spelled."""

_DERIVED = {"W": (("J", 1), ("s", -1)), "Hz": (("s", -1),), "B/s": (("B", 1), ("s", -1)), "FLOP/s": (("FLOP", 1), ("s", -1)),
            "USD/h": (("USD", 1), ("s", -1))}  # fmt: skip
_OWN = {"mm": ("m", 1e-3), "um": ("m", 1e-6), "m": ("m", 1.0), "kg": ("kg", 1.0), "g": ("kg", 1e-3), "t": ("kg", 1e3),
        "hour": ("s", 3600.0), "year": ("s", 31_557_600.0), "pJ": ("J", 1e-12), "nJ": ("J", 1e-9)}  # fmt: skip
_ATOM = re.compile(r"([A-Za-zµμ$%]+)(\d*)")


@dataclass(frozen=True, slots=True)
class Dimension:
    """Powers of base units, those that are not zero, in the order of BASES."""

    powers: tuple[tuple[str, Fraction], ...] = ()

    @classmethod
    def of(cls, powers: Iterable[tuple[str, Fraction | int]]) -> Dimension:
        """The dimension with these powers; a base named twice has their sum."""
        total: dict[str, Fraction] = {}
        for base, power in powers:
            total[base] = total.get(base, Fraction(0)) + power
        return cls(tuple((base, total[base]) for base in BASES if total.get(base)))

    def __mul__(self, other: Dimension) -> Dimension:
        return Dimension.of((*self.powers, *other.powers))

    def __truediv__(self, other: Dimension) -> Dimension:
        return self * other**-1

    def __pow__(self, power: Fraction | int) -> Dimension:
        return Dimension.of((base, exponent * power) for base, exponent in self.powers)

    def __str__(self) -> str:
        above = [_power(base, exponent) for base, exponent in self.powers if exponent > 0]
        below = [_power(base, -exponent) for base, exponent in self.powers if exponent < 0]
        text = "·".join(above) or ("1" if below else "no unit")
        return text + "".join(f"/{part}" for part in below)


NONE = Dimension()
"""A number without a unit."""


def unit(text: str) -> tuple[float, Dimension]:
    """(how many SI units it is, its dimension) of a unit such as "GB/s", "J/B", "USD/mm2", "kg/kWh", "1/s" or "".

    Raises ValueError, naming the part that is unknown.
    """
    scale, dimension = 1.0, NONE
    if whole := measured_in(text.strip()):
        name, size = whole
        return (size if name != "USD/h" else size / 3600.0), _base(name)
    for place, part in enumerate(text.replace(" ", "").split("/")):
        for atom in filter(None, re.split(r"[*·]", part)):
            if atom == "1":
                continue
            size, base = _atom(atom, text)
            scale *= size if place == 0 else 1.0 / size
            dimension = dimension * base if place == 0 else dimension / base
    return scale, dimension


def dimension(text: str) -> Dimension:
    """The dimension of a unit; ValueError as `unit`."""
    return unit(text)[1]


def _atom(atom: str, whole: str) -> tuple[float, Dimension]:
    match = _ATOM.fullmatch(atom)
    if match is None:
        raise ValueError(f"{whole!r} is no unit: {atom!r} cannot be read; write GB/s, W, mm2, USD/kWh")
    name, power = match[1], int(match[2] or 1)
    if name in _OWN:
        base, size = _OWN[name]
        return size**power, Dimension.of([(base, power)])
    found = measured_in(name)
    if found is None:
        raise ValueError(f"{whole!r} is no unit: there is no unit {name!r}; write GB/s, W, mm2, USD/kWh")
    return found[1] ** power, _base(found[0]) ** power


def _base(name: str) -> Dimension:
    """The dimension behind one of the SI units of `spaces.units`."""
    return Dimension.of(_DERIVED.get(name, ((name, 1),) if name else ()))


def _power(base: str, exponent: Fraction) -> str:
    return base if exponent == 1 else f"{base}^{exponent}"
