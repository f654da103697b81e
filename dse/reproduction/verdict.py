"""A claim held against the engine: every figure predicted, and whether the claim comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dse.reproduction.cases import CASES
from dse.reproduction.claim import Claim, Figure
from spaces.hardware.formulas import BadFormulas, Formula, check_formulas

REPRODUCED, NOT = "reproduced", "not reproduced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """One figure: published and predicted in the published unit, and by how much of the published they differ."""

    name: str
    unit: str
    published: float
    predicted: float
    holds: str
    tolerance: float

    @property
    def difference(self) -> float:
        """(predicted − published) / published, signed; dimensionless."""
        return (self.predicted - self.published) / abs(self.published) if self.published else self.predicted

    @property
    def met(self) -> bool:
        """Whether the prediction is as near as the tolerance says, or on the side of the published number it must be on."""
        if self.holds == "at_least":
            return self.difference >= -1e-9
        if self.holds == "at_most":
            return self.difference <= 1e-9
        return abs(self.difference) <= self.tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """A claim with its predictions. `trouble` says why nothing could be predicted."""

    name: str
    claim: Claim
    figures: tuple[Predicted, ...]
    trouble: str = ""

    @property
    def reproduced(self) -> bool:
        """Whether every figure is met."""
        return bool(self.figures) and all(figure.met for figure in self.figures)

    @property
    def worst(self) -> Predicted | None:
        """The figure that decides: the first that is not met, else the one furthest off."""
        missed = [figure for figure in self.figures if not figure.met]
        near = [figure for figure in self.figures if figure.holds == "near"] or list(self.figures)
        return max(missed or near, key=lambda figure: abs(figure.difference), default=None)

    @property
    def reason(self) -> str:
        """Why the claim does not come out; empty when it does."""
        if self.reproduced:
            return ""
        return self.trouble or self.claim.reason or "the prediction is further off than the tolerance"


def judge(name: str, claim: Claim) -> Verdict:
    """Answer the cases and evaluate the formulas. A claim that cannot be asked is not reproduced, with the reason."""
    try:
        figures = _predictions(claim)
    except BadFormulas:
        raise
    except (ValueError, LookupError) as error:
        return Verdict(name=name, claim=claim, figures=(), trouble=str(error))
    return Verdict(name=name, claim=claim, figures=figures)


def _predictions(claim: Claim) -> tuple[Predicted, ...]:
    values: dict[str, float] = {}
    units: dict[str, str] = {}
    for case, asked in claim.cases.items():
        given = {name: value for name, value in asked.items() if name != "ask"}
        for figure, (value, unit) in CASES[asked["ask"]](**given).items():
            values[f"{case}.{figure}"], units[f"{case}.{figure}"] = value, unit
    formulas = {_key(i): Formula(text=figure.predicted, unit=figure.published[1]) for i, figure in enumerate(claim.figures)}
    predicted = check_formulas(formulas, units).evaluate(values)
    return tuple(_predicted(figure, float(predicted[_key(i)]), claim) for i, figure in enumerate(claim.figures))


def _key(index: int) -> str:
    return f"figure_{index + 1}"


def _predicted(figure: Figure, value: float, claim: Claim) -> Predicted:
    from spaces.dimensions import unit

    amount, written = figure.published
    scale = unit(written)[0] if written else 1.0
    return Predicted(
        name=figure.name,
        unit=written,
        published=amount / scale,
        predicted=value / scale,
        holds=figure.holds,
        tolerance=claim.tolerance,
    )


def to_json(verdict: Verdict) -> Mapping[str, object]:
    """`claim`, `published`, `predicted` (numbers, of the figure that decides), `verdict`, and every figure."""
    worst = verdict.worst
    return {
        "claim": f"{verdict.claim.paper}: {verdict.claim.claim}",
        "published": None if worst is None else worst.published,
        "predicted": None if worst is None else worst.predicted,
        "verdict": REPRODUCED if verdict.reproduced else NOT,
        "reason": verdict.reason,
        "tolerance": verdict.claim.tolerance,
        "figures": [
            {
                "name": figure.name,
                "unit": figure.unit,
                "published": figure.published,
                "predicted": figure.predicted,
                "difference": figure.difference,
                "met": figure.met,
            }
            for figure in verdict.figures
        ],
    }
