"""Quantities with units, as people write them in files: `quantity("900 GB/s", "B/s")` is 9e11.

Inside the code everything is SI (seconds, bytes, FLOP, watts, joules, US dollars) and plain floats.
"""

import difflib
import re
from collections.abc import Mapping

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}
_TIME = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ns": 1e-9, "min": 60.0, "h": 3600.0, "day": 86400.0}


def _prefixed(stem: str, scale: float = 1.0, *, binary: bool = False, small: bool = False) -> dict[str, float]:
    """`stem` under every prefix; a small b is a bit (an eighth of a byte), a capital B a byte."""
    prefixes = _DECIMAL | (_BINARY if binary else {}) | ({"m": 1e-3} if small else {})
    return {prefix + stem: factor * scale for prefix, factor in prefixes.items()}


_BYTES = _prefixed("B", binary=True) | _prefixed("b", 1 / 8, binary=True) | _prefixed("bit", 1 / 8, binary=True)

# dimension (named by its SI unit) -> unit -> how many of the SI unit it is
_UNITS: Mapping[str, Mapping[str, float]] = {
    "B": _BYTES,
    "B/s": {f"{unit}{per}": scale for unit, scale in _BYTES.items() for per in ("/s", "ps")},
    "FLOP": _prefixed("FLOP") | _prefixed("OP"),
    "FLOP/s": _prefixed("FLOP/s") | _prefixed("FLOPS") | _prefixed("OP/s") | _prefixed("OPS"),
    "s": _TIME,
    "W": _prefixed("W", small=True),
    "J": _prefixed("J", small=True) | _prefixed("Wh", 3600.0),
    "Hz": _prefixed("Hz"),
    "USD": {"USD": 1.0, "$": 1.0},
    "USD/h": {"USD/h": 1.0, "$/h": 1.0, "USD/hour": 1.0, "$/hour": 1.0},
    "": {"": 1.0, "%": 0.01},
}
_LIKE = {"B": "80 GB", "B/s": "900 GB/s", "FLOP": "2 TFLOP", "FLOP/s": "2 TFLOP/s", "s": "50 ms", "W": "700 W", "J": "5 kWh",
         "Hz": "1.8 GHz", "USD": "25000 USD", "USD/h": "2.5 USD/h"}  # fmt: skip
_NUMBER = re.compile(r"\s*([-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(.*?)\s*")


def quantity(value: object, unit: str) -> float:
    """The number of `unit` (an SI unit such as "B/s") that `value` says.

    A number, or text without a unit (YAML reads `1e9` as text), is taken to be in `unit` already. Letters keep their
    case: `Gb/s` is a gigabit, `GB/s` a gigabyte. Raises ValueError for anything else, naming what was expected.
    """
    if unit not in _UNITS:
        raise ValueError(f"no such dimension {unit!r}; the SI units known are {', '.join(filter(None, _UNITS))}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _NUMBER.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        like = f"a quantity in {unit}, as a number or text like '{_LIKE[unit]}'" if unit else "a plain number"
        raise ValueError(f"expected {like}, got {value!r}")
    number, written = float(match[1].replace("_", "")), match[2]
    scale = _UNITS[unit].get(written) if written else 1.0
    if scale is None:
        raise ValueError(_wrong_unit(str(value), written, unit))
    return number * scale


def measured_in(written: str) -> tuple[str, float] | None:
    """The dimension a unit measures and how many of its SI unit it is: ("B/s", 1e9) for "GB/s"; None for no unit known."""
    return next(((dimension, units[written]) for dimension, units in _UNITS.items() if written and written in units), None)


def _wrong_unit(value: str, written: str, unit: str) -> str:
    """What to say about a unit that is unknown or measures something else."""
    expected = f"{value!r}: expected {f'a quantity in {unit}' if unit else 'a plain number'}"
    for dimension, units in _UNITS.items():
        if written in units:
            return f"{expected}, but {written} is a unit of {dimension or 'a share'}"
    nearest = _nearest(written, _UNITS[unit])
    return f"{expected}, and there is no unit {written!r}" + (f"; the nearest is {nearest}" if nearest else "")


def _nearest(written: str, units: Mapping[str, float]) -> str | None:
    """The unit spelled most like `written`: first but for its letters' case, then by resemblance."""
    same = [unit for unit in units if unit.casefold() == written.casefold()]
    usual = [unit for unit in units if not unit.endswith("ps")]  # suggest GB/s, though GBps is read too
    return next(iter(same or difflib.get_close_matches(written, usual, n=1, cutoff=0.0)), None)
