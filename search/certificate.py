"""The certificate: how much of a space an answer covers, and what was left out and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """How much of the space an answer covers: `space` = Σ `pruned` + `evaluated` + `failed` + `unvisited`.

    Raises ValueError when the identity does not hold.
    """

    space: int
    pruned: dict[str, int]
    evaluated: int
    failed: int
    unvisited: int

    def __post_init__(self) -> None:
        parts = sum(self.pruned.values()) + self.evaluated + self.failed + self.unvisited
        if self.space != parts or self.unvisited < 0:
            raise ValueError(f"the certificate does not add up: space {self.space}, parts {parts}: {self}")

    @property
    def complete(self) -> bool:
        """Whether the answer is proved for the whole space."""
        return self.failed == 0 and self.unvisited == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """Partial choices that one structural rule ruled out."""

    axis: str
    reason: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A point the model could not predict, and why."""

    point: dict[str, Any]
    reason: str
