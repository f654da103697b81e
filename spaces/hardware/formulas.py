"""Derived quantities as formulas in a file: `"2 FLOP" * cores * width * clock`, with a unit each, for scalars and arrays alike.

Formulas are arithmetic over names, numbers and quoted quantities. Before any is evaluated all are checked: every name known,
units that add up to the one declared, no cycle. All faults are told at once.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from spaces.columns import Value
from spaces.dimensions import NONE, Dimension, dimension, unit

if TYPE_CHECKING:
    import networkx as nx

_SAME: Mapping[str, Callable[..., Any]] = {"min": np.minimum, "max": np.maximum}
_PLAIN: Mapping[str, Callable[..., Any]] = {"ceil": np.ceil, "floor": np.floor, "log2": np.log2, "exp": np.exp}
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {**_SAME, **_PLAIN, "sqrt": np.sqrt}
_OPERATORS: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FormulaFault:
    """What is wrong with the formula of one name."""

    name: str
    message: str


class BadFormulas(ValueError):
    """Formulas that cannot be used; `faults` has every one."""

    def __init__(self, faults: tuple[FormulaFault, ...]) -> None:
        super().__init__("; ".join(f"{fault.name}: {fault.message}" for fault in faults))
        self.faults = faults


@dataclass(frozen=True, slots=True, kw_only=True)
class Formula:
    """One formula as it stands in a file; its value is in SI units whatever `unit` is spelled like."""

    text: str
    unit: str | None


@dataclass(frozen=True, slots=True, eq=False)
class Formulas:
    """Checked formulas in an order in which each needs only those before it."""

    trees: Mapping[str, ast.expr]

    @property
    def names(self) -> tuple[str, ...]:
        """The derived quantities, in order of evaluation."""
        return tuple(self.trees)

    def evaluate(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Every derived quantity under the given parameters (SI, scalars or arrays that broadcast together)."""
        known = dict(values)
        with np.errstate(all="ignore"):  # what is not finite is told by name, by whoever asked
            for name, tree in self.trees.items():
                known[name] = _value(tree, known)
        return {name: known[name] for name in self.trees}

    def depends(self) -> nx.DiGraph[str]:
        """Which name each formula reads: an edge from what is read to what reads it."""
        import networkx as nx  # slow to import; runs do without

        graph: nx.DiGraph[str] = nx.DiGraph()
        graph.add_nodes_from(self.trees)
        graph.add_edges_from((read, name) for name, tree in self.trees.items() for read in _names(tree))
        return graph


def check_formulas(formulas: Mapping[str, Formula], units: Mapping[str, str]) -> Formulas:
    """The formulas, checked. `units` are those of the parameters. Raises BadFormulas with every fault of every formula."""
    faults: list[FormulaFault] = []
    trees: dict[str, ast.expr] = {}
    known = {name: dimension(written) for name, written in units.items()}
    for name, formula in formulas.items():
        try:
            trees[name] = _parsed(formula.text)
            if formula.unit is None:
                raise ValueError(f"the formula {formula.text!r} has no unit; write unit: beside it ('' for a plain number)")
            known[name] = dimension(formula.unit)
        except ValueError as error:
            faults.append(FormulaFault(name=name, message=str(error)))
    for name, tree in trees.items():
        for read in dict.fromkeys(_names(tree)):
            if read not in known and read not in formulas:
                near = difflib.get_close_matches(read, known, n=2, cutoff=0.4)
                hint = f"; the nearest are {', '.join(near)}" if near else ""
                faults.append(FormulaFault(name=name, message=f"reads {read!r}, which is no parameter and no formula{hint}"))
    order = {name: trees[name] for name in _ordered(trees)}
    if len(order) < len(trees):
        faults += _circles(trees)
    if not faults:
        faults = [*_unit_faults(trees, formulas, known)]
    if faults:
        raise BadFormulas(tuple(faults))
    return Formulas(order)


def _ordered(trees: Mapping[str, ast.expr]) -> list[str]:
    """Names after all that they read, of those that may come next the first in the alphabet; none that a circle holds up."""
    reads = {name: {read for read in _names(tree) if read in trees} for name, tree in trees.items()}
    found: list[str] = []
    while ready := [name for name in sorted(reads) if reads[name] <= set(found) and name not in found]:
        found.append(ready[0])
    return found


def _circles(trees: Mapping[str, ast.expr]) -> list[FormulaFault]:
    """A fault for every circle of formulas that read each other."""
    import networkx as nx  # slow to import; runs do without

    graph = nx.DiGraph([(read, name) for name, tree in trees.items() for read in _names(tree) if read in trees])
    return [
        FormulaFault(name=cycle[0], message=f"the formulas go in a circle: {' -> '.join([*cycle, cycle[0]])}")
        for cycle in map(sorted_cycle, nx.simple_cycles(graph))
    ]


def sorted_cycle(cycle: list[str]) -> list[str]:
    """A cycle turned so that its first name in the alphabet comes first: one cycle, one spelling."""
    start = cycle.index(min(cycle))
    return cycle[start:] + cycle[:start]


def _unit_faults(
    trees: Mapping[str, ast.expr], formulas: Mapping[str, Formula], known: Mapping[str, Dimension]
) -> Iterator[FormulaFault]:
    for name, tree in trees.items():
        try:
            found = _dimension(tree, known)
        except ValueError as error:
            yield FormulaFault(name=name, message=str(error))
            continue
        if found != known[name]:
            told = formulas[name].unit or "no unit"
            yield FormulaFault(name=name, message=f"is declared in {told}, but {formulas[name].text!r} comes out in {found}")


def _parsed(text: str) -> ast.expr:
    """The syntax tree of a formula. Raises ValueError for what is not arithmetic."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise ValueError(f"{text!r} is no formula; write arithmetic over names, such as 'stacks * stack_bandwidth'") from None
    except (RecursionError, MemoryError):
        raise ValueError(_TOO_LONG) from None
    nodes = list(ast.walk(tree))
    if len(nodes) > _LONGEST:
        raise ValueError(_TOO_LONG)
    for node in nodes:
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
            if called not in _FUNCTIONS or node.keywords:
                functions = ", ".join(sorted(_FUNCTIONS))
                raise ValueError(f"{called!r} is no function of a formula; there are {functions}")
            if len(node.args) != (2 if called in _SAME else 1):
                raise ValueError(f"{called} takes {'two values' if called in _SAME else 'one value'}, got {len(node.args)}")
        elif not isinstance(node, _ALLOWED) or (isinstance(node, ast.Constant) and not _is_constant(node.value)):
            raise ValueError(f"{ast.unparse(node)!r} has no place in a formula; use + - * / **, names, numbers, 'quantities'")
    return tree


_LONGEST = 600
_TOO_LONG = "the formula is too long; give its parts names and formulas of their own"

_ALLOWED = (ast.BinOp, ast.UnaryOp, ast.Name, ast.Attribute, ast.Constant, ast.Load, ast.USub, ast.UAdd, *_OPERATORS)


def _is_constant(value: object) -> bool:
    return isinstance(value, str) or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST)


_LARGEST = 1e100


def _names(tree: ast.expr) -> Iterator[str]:
    """Every name a formula reads, dotted ones whole."""
    if isinstance(tree, ast.Name | ast.Attribute):
        yield ast.unparse(tree)
    elif isinstance(tree, ast.Call):
        for argument in tree.args:
            yield from _names(argument)
    else:
        for child in ast.iter_child_nodes(tree):
            if isinstance(child, ast.expr):
                yield from _names(child)


def _quantity(text: str) -> tuple[float, Dimension]:
    """A quoted quantity: "900 GB/s" or "2 FLOP"."""
    number, _, written = text.strip().partition(" ")
    try:
        amount = float(number.replace("_", ""))
    except ValueError:
        raise ValueError(f"{text!r} is no quantity; write a number, a space and a unit: '2 FLOP'") from None
    scale, measured = unit(written)
    return amount * scale, measured


def _dimension(tree: ast.expr, known: Mapping[str, Dimension]) -> Dimension:
    """The dimension of a formula. Raises ValueError where units do not go together."""
    match tree:
        case ast.Name() | ast.Attribute():
            return known[ast.unparse(tree)]
        case ast.Constant(value=str() as text):
            return _quantity(text)[1]
        case ast.Constant():
            return NONE
        case ast.UnaryOp(operand=operand):
            return _dimension(operand, known)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _dimension(left, known) * _dimension(right, known)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _dimension(left, known) / _dimension(right, known)
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            return _to_power(_dimension(left, known), right, known)
        case ast.BinOp(left=left, right=right):
            return _alike(tree, left, right, known)
        case ast.Call(func=ast.Name(id=called), args=[left, right]):
            return _alike(tree, left, right, known) if called in _SAME else NONE
        case ast.Call(func=ast.Name(id="sqrt"), args=[inner]):
            return _dimension(inner, known) ** Fraction(1, 2)
        case ast.Call(func=ast.Name(id=called), args=[inner]):
            if _dimension(inner, known) != NONE:
                raise ValueError(f"{called} wants a plain number, but {ast.unparse(inner)} is in {_dimension(inner, known)}")
            return NONE
    raise ValueError(f"{ast.unparse(tree)!r} has no place in a formula")


def _to_power(base: Dimension, exponent: ast.expr, known: Mapping[str, Dimension]) -> Dimension:
    if base == NONE and _dimension(exponent, known) == NONE:
        return NONE
    if isinstance(exponent, ast.Constant) and isinstance(exponent.value, int):
        return base**exponent.value
    raise ValueError(f"a power is a plain number, and a whole constant where a unit is raised; got {ast.unparse(exponent)}")


def _alike(tree: ast.expr, left: ast.expr, right: ast.expr, known: Mapping[str, Dimension]) -> Dimension:
    one, other = _dimension(left, known), _dimension(right, known)
    if one != other:
        raise ValueError(f"{ast.unparse(tree)!r} joins {one} with {other}")
    return one


def _value(tree: ast.expr, known: Mapping[str, Value]) -> Value:
    """The value of a checked formula."""
    match tree:
        case ast.Constant(value=str() as text):
            return _quantity(text)[0]
        case ast.Constant(value=int() | float() as number):
            return np.float64(number)  # whole numbers of Python grow without end: 9**9**9 would never come back
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, known)
        case ast.UnaryOp(operand=operand):
            return _value(operand, known)
        case ast.BinOp(left=left, op=operator, right=right):
            return _OPERATORS[type(operator)](_value(left, known), _value(right, known))
        case ast.Call(func=ast.Name(id=called), args=arguments):
            return _FUNCTIONS[called](*(_value(argument, known) for argument in arguments))
    return known[ast.unparse(tree)]
