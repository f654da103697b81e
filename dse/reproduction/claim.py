"""A claim as it stands in its file: cases to be answered, published figures, formulas that predict them, a tolerance.

A formula is arithmetic over figures of the cases, such as `8k.mfu / 16k.mfu`, and comes out in the unit of what was published.
The tolerance is the file's and was written before the claim was first run; at most 15 %.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from dse.locations import Fault, locate
from dse.reproduction.cases import CASES
from dse.schema.checking import check
from dse.schema.fields import one_of, read_text
from dse.schema.sections import Section
from spaces.dimensions import Dimension, unit

KIND = "reproduction"
LOOSEST = 0.15
"""No claim is reproduced by a prediction further off than this."""

Text: TypeAlias = Annotated[str, BeforeValidator(read_text)]


def read_published(value: object) -> tuple[float, str]:
    """`120 GB` as (SI value, unit); a plain number or `38 %` has no unit."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("expected a number, or a number with a unit such as '120 GB'")
    number, _, written = str(value).strip().partition(" ")
    try:
        amount = float(number.replace(",", ""))
    except ValueError:
        raise ValueError(f"expected a number, or a number with a unit such as '120 GB', got {value!r}") from None
    if written.strip() in ("", "%"):
        return amount * (0.01 if written else 1.0), ""
    return amount * unit(written)[0], written.strip()


def read_tolerance(value: object) -> float:
    """`10 %` or 0.1, more than nothing and at most 15 %."""
    share, _ = read_published(value)
    if not 0 < share <= LOOSEST:
        raise ValueError(f"a tolerance is more than 0 and at most {LOOSEST:.0%}, got {share:.3g}")
    return share


def read_case(value: object) -> dict[str, Any]:
    """A mapping with the name of what is asked, and its arguments."""
    if not isinstance(value, Mapping) or "ask" not in value:
        raise ValueError(f"expected a mapping with ask: {' | '.join(CASES)} and its arguments")
    one_of("question", lambda: tuple(CASES))(value["ask"])
    return dict(value)


class Figure(Section):
    """One published number and the formula that predicts it.

    `holds`: whether the prediction must be near the published number, or at least or at most it.
    """

    name: Text
    published: Annotated[tuple[float, str], BeforeValidator(read_published)]
    predicted: Text
    holds: Literal["near", "at_least", "at_most"] = "near"

    @property
    def dimension(self) -> Dimension:
        """What the prediction must come out in."""
        return unit(self.published[1])[1]


class Claim(Section):
    """A file of experiments/reproductions."""

    kind: Annotated[str, BeforeValidator(one_of("kind", lambda: (KIND,)))]
    paper: Text
    where: Text
    claim: Text
    tolerance: Annotated[float, BeforeValidator(read_tolerance)]
    setup: Text
    reason: Text | None = None
    cases: dict[str, Annotated[dict[str, Any], BeforeValidator(read_case)]]
    figures: Annotated[list[Figure], Field(min_length=1)]

    @model_validator(mode="after")
    def _names_differ(self) -> Claim:
        names = [figure.name for figure in self.figures]
        if len(set(names)) != len(names):
            raise ValueError(f"two figures share a name: {', '.join(names)}")
        return self


class ClaimError(ValueError):
    """Everything wrong with a claim's file, one line each."""


def read(path: str | os.PathLike[str]) -> Claim:
    """The claim in a file. Raises ClaimError with every fault, OSError."""
    document = locate(Path(path).read_text(encoding="utf-8"), os.fspath(path))
    found, faults = check(document.value, Claim, frozenset(), {}, Path(path).parent)
    every: tuple[Fault, ...] = (*document.faults, *faults)
    if found is None or every:
        raise ClaimError("\n".join(document.describe(fault) for fault in every))
    claim: Claim = found
    return claim
