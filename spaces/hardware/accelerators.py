"""Accelerators by their parameters: what a designer chooses, and the device figures that follow by formula.

`spaces/data/accelerator.yaml` names every parameter with its unit and every derived figure with its formula;
`spaces/data/accelerators/` describes shipped parts in these terms. Symbols are `chip.<parameter>` and `device.<figure>`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import numpy as np

from spaces.columns import FloatArray
from spaces.dimensions import unit
from spaces.facts import facts_in
from spaces.hardware.device import TOPOLOGIES
from spaces.hardware.formulas import Formula, Formulas, check_formulas
from spaces.hardware.topology import reach
from spaces.units import measured_in, quantity

PROCESSES = ("N16", "N12", "N7", "N6", "N5", "N4", "N4P", "N3", "N2")
"""Process nodes; `chip.process` and `chip.io_process` are positions in it."""
CATEGORIES = ("process", "io_process", "memory_kind", "scale_up_topology")
"""Parameters that are names; their symbols hold positions."""


class UnknownAccelerator(ValueError):
    """An accelerator that is not described; the message lists the nearest."""


class BadFigure(ValueError):
    """A figure of a device that no device can have; `name` is that of its formula."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


_WANTED = "a device's figures are numbers from 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One number that describes an accelerator; `usual` is that of a part that does not say."""

    name: str
    unit: str
    whole: bool
    least: float
    means: str
    usual: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Accelerator:
    """A part by its parameters, SI units. `published` holds figures to check models with; `checks` whether one calibrates.

    `device` is the catalogue's device whose kernel constants it inherits.
    """

    name: str
    device: str
    values: Mapping[str, float]
    words: Mapping[str, str]
    published: Mapping[str, float] = field(default_factory=dict)
    checks: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    notes: str = ""

    def columns(self, changes: Mapping[str, Any] | None = None, formulas: Formulas | None = None) -> dict[str, FloatArray]:
        """`chip.*` and `device.*` of n designs that differ from this one in `changes` (name -> array (n,), words or SI).

        Raises ValueError for a name that is no parameter or a value out of its range, naming both.
        """
        return accelerator_columns(self, changes or {}, formulas)


@cache
def parameters() -> Mapping[str, Parameter]:
    """Every numeric parameter by name."""
    facts = _facts()["parameters"]
    return MappingProxyType(
        {
            name: Parameter(
                name=name,
                unit=entry["unit"],
                whole=entry.get("whole", False),
                least=float(entry["least"]),
                means=entry["means"],
                usual=entry.get("usual"),
            )
            for name, entry in facts.items()
        }
    )


@cache
def memory_kinds() -> Mapping[str, tuple[float, float]]:
    """(capacity in bytes, bandwidth in bytes/s) of one stack, by kind; `chip.memory_kind` is the position."""
    facts = _facts()["memories"]
    return MappingProxyType(
        {
            name: (quantity(entry["stack_capacity"], "B"), quantity(entry["stack_bandwidth"], "B/s"))
            for name, entry in facts.items()
        }
    )


def derived_formulas() -> dict[str, Formula]:
    """The formulas of accelerator.yaml, to which an experiment may add or in whose place put its own."""
    return {name: Formula(text=entry["formula"], unit=entry["unit"]) for name, entry in _facts()["derived"].items()}


def parameter_units() -> dict[str, str]:
    """The unit of every parameter."""
    return {name: parameter.unit for name, parameter in parameters().items()}


def names_of(category: str) -> tuple[str, ...]:
    """The names a categorical parameter may take; its symbol is a position in them."""
    return {
        "process": PROCESSES,
        "io_process": PROCESSES,
        "memory_kind": tuple(memory_kinds()),
        "scale_up_topology": TOPOLOGIES,
    }[category]


def parameter_value(name: str, value: object) -> float:
    """A parameter's value as its symbol holds it: SI, or the position of a name. Raises ValueError, naming the parameter."""
    if name in CATEGORIES:
        known = names_of(name)
        if value not in known:
            near = difflib.get_close_matches(str(value), known, n=3, cutoff=0.3) or known
            raise ValueError(f"{name}: there is no {value!r}; the nearest are {', '.join(near)}")
        return float(known.index(str(value)))
    known_parameter = _parameter(name)
    try:
        number = _number(value, known_parameter.unit)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    _in_range(known_parameter, np.array([number]))
    return number


def accelerator_names() -> tuple[str, ...]:
    """Every described part, in alphabetical order."""
    return tuple(sorted((_read(path)["name"] for path in _paths()), key=str.casefold))


@cache
def find_accelerator(name: str) -> Accelerator:
    """The part of that name. Raises UnknownAccelerator, naming the nearest."""
    for path in _paths():
        facts = _read(path)
        if _key(facts["name"]) == _key(name):
            return _accelerator(facts)
    near = difflib.get_close_matches(name, accelerator_names(), n=4, cutoff=0.3) or accelerator_names()
    raise UnknownAccelerator(f"no accelerator is called {name!r}; the nearest are {', '.join(near)}")


def accelerator_columns(
    base: Accelerator, changes: Mapping[str, Any], formulas: Formulas | None = None
) -> dict[str, FloatArray]:
    """Symbols of n designs like `base`; see `Accelerator.columns`. A new memory kind brings its stacks' size and speed."""
    n = max([np.size(value) for value in changes.values()], default=1)
    values: dict[str, FloatArray] = {name: np.full(n, value) for name, value in base.values.items()}
    for name, word in base.words.items():
        values[name] = np.full(n, parameter_value(name, word))
    for name, given in changes.items():
        if name in CATEGORIES:
            codes = np.asarray(given)
            known = codes if codes.dtype.kind in "iuf" else [parameter_value(name, str(word)) for word in np.atleast_1d(codes)]
            values[name] = np.broadcast_to(np.asarray(known, np.float64), (n,)).copy()
        else:
            values[name] = np.broadcast_to(np.asarray(given, np.float64), (n,)).copy()
            _in_range(_parameter(name), values[name])
    if "memory_kind" in changes:
        kinds = np.array(list(memory_kinds().values()))
        for place, name in enumerate(("stack_capacity", "stack_bandwidth")):
            if name not in changes:
                values[name] = kinds[values["memory_kind"].astype(np.int64), place]
    chosen = formulas or _own_formulas()
    derived = {
        name: np.broadcast_to(np.asarray(value, np.float64), (n,)).copy() for name, value in chosen.evaluate(values).items()
    }
    _sound(derived, values, set(changes))
    linked = np.stack([values["scale_up_topology"], values["scale_up_domain"]])
    kinds, kind = np.unique(linked, axis=1, return_inverse=True)
    ports = np.array([reach(TOPOLOGIES[int(code)], int(size)).ports for code, size in kinds.T], np.float64)
    derived.setdefault("device.peer_bandwidth", derived["device.scale_up_bandwidth"] / ports[kind.reshape(-1)])
    return {f"chip.{name}": value for name, value in values.items()} | derived


def _sound(derived: Mapping[str, FloatArray], values: Mapping[str, FloatArray], changed: set[str]) -> None:
    """Raise ValueError for a device's figure that a formula makes negative or not finite, saying for which design."""
    for name, figure in derived.items():
        bad = np.flatnonzero(~np.isfinite(figure) | (figure < 0)) if name.startswith("device.") else np.empty(0, np.int64)
        if len(bad):
            numbers = [n for n in changed if n not in CATEGORIES]
            design = ", ".join(f"{n} {values[n][bad[0]]:g}" for n in sorted(numbers)) or "the base"
            raise BadFigure(name, f"the formula of {name} gives {figure[bad[0]]:g} for {design}; {_WANTED}")


@cache
def _own_formulas() -> Formulas:
    return check_formulas(derived_formulas(), parameter_units())


def _parameter(name: str) -> Parameter:
    known = parameters()
    if name not in known:
        every = (*known, *CATEGORIES)
        near = difflib.get_close_matches(name, every, n=3, cutoff=0.4) or every
        raise ValueError(f"an accelerator has no parameter {name!r}; the nearest are {', '.join(near)}")
    return known[name]


def _in_range(parameter: Parameter, values: FloatArray) -> None:
    """Raise ValueError for a value that is not finite, below the least, or no whole number where one is wanted."""
    bad = ~np.isfinite(values) | (values < parameter.least)
    if parameter.whole:
        bad |= values != np.floor(values)
    if bad.any():
        kind = "a whole number" if parameter.whole else "a number"
        least = f"{parameter.least:g} {_si(parameter.unit)}".strip()
        raise ValueError(f"{parameter.name} ({parameter.means}) must be {kind} from {least}, got {values[bad][0]:g}")


def _si(written: str) -> str:
    return (measured_in(written) or (written, 1.0))[0]


def _number(value: object, written: str) -> float:
    """A number in the SI unit behind `written`."""
    known = measured_in(written)
    if written and known is None:
        scale, _ = unit(written)
        return float(str(value).split()[0]) * scale
    return quantity(value, known[0] if known else "")


def _accelerator(facts: Mapping[str, Any]) -> Accelerator:
    """The part a file describes. Raises ValueError for a missing parameter."""
    usual = {name: p.usual for name, p in parameters().items() if p.usual is not None}
    facts = {**usual, **facts}
    missing = [name for name in (*parameters(), *CATEGORIES) if name not in facts]
    if missing:
        raise ValueError(f"{facts['name']}: the description lacks {', '.join(missing)}")
    published = {}
    for name, text in (facts["published"] or {}).items():
        number, _, written = str(text).partition(" ")
        published[name] = float(number) * unit(written)[0]
    return Accelerator(
        name=facts["name"],
        device=facts["device"],
        values=MappingProxyType({name: parameter_value(name, facts[name]) for name in parameters()}),
        words=MappingProxyType({name: str(facts[name]) for name in CATEGORIES}),
        published=MappingProxyType(published),
        checks=MappingProxyType(dict(facts["checks"])),
        source=facts["source"],
        notes=facts["notes"],
    )


def _key(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter not in "-_ /")


@cache
def _paths() -> tuple[str, ...]:
    folder = files("spaces").joinpath("data", "accelerators")
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".yaml")))


@cache
def _read(path: str) -> Mapping[str, Any]:
    return dict(facts_in(files("spaces").joinpath("data", "accelerators", path).read_text(encoding="utf-8")))


@cache
def _facts() -> Mapping[str, Any]:
    return dict(facts_in(files("spaces").joinpath("data", "accelerator.yaml").read_text(encoding="utf-8")))
