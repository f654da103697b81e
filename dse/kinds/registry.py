"""What a kind of experiment brings, and all kinds by name. A new kind is a folder with a `KIND` and one line here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from search.screening import Fidelity
from spaces.columns import Columns
from spaces.problem import Problem
from spaces.space import Space

if TYPE_CHECKING:
    from dse.answers import PlanAnswer
    from dse.locations import Fault
    from dse.schema.sections import Question

Job = TypeVar("Job")


class Explained(Protocol):
    """A plan taken apart; printing it gives the page."""

    @property
    def answer(self) -> PlanAnswer:
        """The plan with its figures."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Kind(Generic[Job]):
    """One kind of experiment. A `job` is what its file asks, checked; plans are mappings of codes by symbol.

    The file: `file` is its schema, `metrics` the names that objectives and constraints may use, `examples` what to write
    for a missing key, `faults` what no section can see alone, `resolved` the sections that a saved file spells out.

    The search: `problem`, `space` and `models` (cheapest first: each screens for the next); `point` is one plan as a batch
    of one, `codes` reads a plan as people write it, `sampled` are symbols kept of sampled points.

    The words: `spelled` names the choices of a design point and `text` puts them in one line; `shown` are metrics listed
    beside the objectives, `breakdowns` the metrics whose parts are shown, each with a heading; `stages` is the memory of
    each distinct pipeline stage by part; `explained` takes a plan apart; `sensitivity` says as plain values what front members
    (codes) lean on, given the objectives and how many points were evaluated, or is None; `lacking` tells how a plan breaks a
    constraint of that name, with its excess, where the figures say more than a share.
    """

    name: str
    file: type[Question]
    metrics: frozenset[str]
    examples: Mapping[tuple[str, ...], str]
    faults: Callable[[Any], Iterable[Fault]]
    default_objectives: Callable[[Any], tuple[str, ...]]
    baseline: Callable[[Any], Mapping[str, Any] | None]
    resolved: Callable[[Any, Mapping[str, Any]], dict[str, Any]]
    job: Callable[[Any], Job]
    problem: Callable[[Job], Problem]
    space: Callable[[Job], Space]
    models: Callable[[Job], tuple[Fidelity, ...]]
    point: Callable[[Job, Mapping[str, Any]], Columns]
    codes: Callable[[Job, str | Mapping[str, Any]], dict[str, Any]]
    sampled: frozenset[str]
    title: Callable[[Job], str]
    assumptions: Callable[[Job], tuple[str, ...]]
    spelled: Callable[[Problem, Mapping[str, Any]], dict[str, Any]]
    text: Callable[[Mapping[str, Any]], str]
    shown: tuple[str, ...]
    breakdowns: tuple[tuple[str, str], ...]
    stages: Callable[[Problem, Columns], tuple[tuple[str, Mapping[str, float]], ...]]
    explained: Callable[[Job, Mapping[str, Any]], Explained]
    lacking: Mapping[str, Callable[[PlanAnswer, float], str]] = field(default_factory=dict)
    sensitivity: Callable[[Job, Sequence[Mapping[str, Any]], Sequence[tuple[str, bool]], int], Mapping[str, Any]] | None = None


KINDS: Mapping[str, str] = MappingProxyType(
    {"training": "dse.kinds.training", "serving": "dse.kinds.serving", "hardware": "dse.kinds.hardware"}
)
"""The package of every kind, imported when first asked for."""


def find(name: str) -> Kind[Any]:
    """The kind of that name. Raises KeyError for a name that is not in `KINDS`."""
    kind: Kind[Any] = import_module(KINDS[name]).KIND
    return kind
