"""Derived quantities by formula: checked whole before any is used."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.hardware.accelerators import derived_formulas, parameter_units
from spaces.hardware.formulas import BadFormulas, Formula, check_formulas

UNITS = {"stacks": "", "each": "B/s", "cores": "", "clock": "Hz", "power": "W"}


def made(**formulas: tuple[str, str | None]) -> dict[str, Formula]:
    return {name: Formula(text=text, unit=unit) for name, (text, unit) in formulas.items()}


def test_scalars_and_arrays_alike() -> None:
    formulas = check_formulas(
        made(
            intensity=("rate / bandwidth", "FLOP/B"),
            bandwidth=("stacks * each", "GB/s"),
            rate=("'2 FLOP' * cores * clock", "FLOP/s"),
        ),
        UNITS,
    )
    clocks = np.array([1e9, 2e9])
    found = formulas.evaluate({"stacks": 8, "each": 1e12, "cores": 100, "clock": clocks})
    np.testing.assert_allclose(found["rate"], 200 * clocks)
    np.testing.assert_allclose(found["intensity"], 200 * clocks / 8e12)
    assert list(formulas.names) == ["bandwidth", "rate", "intensity"]
    assert nx.is_directed_acyclic_graph(formulas.depends())


@pytest.mark.parametrize(
    ("formulas", "name", "words"),
    [
        (made(a=("b", ""), b=("a * 2", "")), "a", "in a circle: a -> b -> a"),
        (made(a=("a + 1", "")), "a", "in a circle: a -> a"),
        (made(a=("stacks * each", None)), "a", "has no unit"),
        (made(a=("stacks * each", "B")), "a", "declared in B, but .* comes out in B/s"),
        (made(a=("stacks + each", "B/s")), "a", "joins no unit with B/s"),
        (made(a=("min(each, power)", "W")), "a", "joins B/s with J/s"),
        (made(a=("staks * each", "B/s")), "a", "'staks'.*nearest are stacks"),
        (made(a=("ceil(each)", "B/s")), "a", "wants a plain number"),
        (made(a=("each ** stacks", "B/s")), "a", "a whole constant where a unit is raised"),
        (made(a=("2 ** each", "")), "a", "a power is a plain number"),
        (made(a=("-" * 5000 + "stacks", "")), "a", "too long; give its parts names"),
        (made(a=("+".join(["stacks"] * 500), "")), "a", "too long; give its parts names"),
        (made(a=("9" * 400 + " * stacks", "")), "a", "no place in a formula"),
        (made(a=("open('x')", "")), "a", "no function of a formula"),
        (made(a=("(lambda: 1)()", "")), "a", "no function of a formula"),
        (made(a=("[1, 2]", "")), "a", "no place in a formula"),
        (made(a=("3 +", "")), "a", "is no formula"),
        (made(a=("max(1)", "")), "a", "takes two values"),
        (made(a=("'fast' * stacks", "")), "a", "no quantity"),
        (made(a=("stacks", "GB/fortnight")), "a", "fortnight"),
    ],
)
def test_a_bad_formula_is_told_by_name(formulas: dict[str, Formula], name: str, words: str) -> None:
    with pytest.raises(BadFormulas, match=words) as told:
        check_formulas(formulas, UNITS)
    assert told.value.faults[0].name == name


def test_all_faults_at_once() -> None:
    with pytest.raises(BadFormulas) as told:
        check_formulas(made(a=("nowhere", ""), b=("each", None), c=("c", "")), UNITS)
    assert {fault.name for fault in told.value.faults} == {"a", "b", "c"}


def test_the_projects_own_formulas_hold() -> None:
    assert set(check_formulas(derived_formulas(), parameter_units()).names) == set(derived_formulas())


@given(st.permutations([f"v{i}" for i in range(7)]))
def test_order_of_writing_does_not_matter(order: list[str]) -> None:
    """A chain v0 = stacks, v(i) = v(i-1) + 1, written in any order."""
    chain = {f"v{i}": Formula(text="stacks" if i == 0 else f"v{i - 1} + 1", unit="") for i in range(7)}
    found = check_formulas({name: chain[name] for name in order}, UNITS).evaluate({"stacks": 3})
    assert found == {f"v{i}": 3 + i for i in range(7)}
