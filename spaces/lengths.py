"""How long prompts and answers are: fixed, uniform, lognormal, or drawn from what was seen."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Protocol, runtime_checkable

import numpy as np
import yaml

from spaces.columns import IntArray


@runtime_checkable
class Lengths(Protocol):
    """A distribution of lengths in tokens."""

    def draw(self, generator: np.random.Generator, n: int) -> IntArray:
        """n lengths, each at least 1, shape (n,)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """Always as long."""

    tokens: int

    def __post_init__(self) -> None:
        _positive(tokens=self.tokens)

    def draw(self, generator: np.random.Generator, n: int) -> IntArray:
        """n times the same length."""
        del generator
        return np.full(n, self.tokens, np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Uniform:
    """Every whole length from `low` to `high`, both included, equally often."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _positive(low=self.low, high=self.high)
        if self.low > self.high:
            raise ValueError(f"low is {self.low}, above high, {self.high}: swap them")

    def draw(self, generator: np.random.Generator, n: int) -> IntArray:
        """n independent lengths."""
        return generator.integers(self.low, self.high, n, endpoint=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogNormal:
    """Lengths whose logarithm is normal: `median` tokens, `sigma` of the logarithm; cut to 1..`most` (0: no upper limit)."""

    median: float
    sigma: float
    most: int = 0

    def __post_init__(self) -> None:
        _positive(median=self.median)
        if not 0 <= self.sigma < 10:
            raise ValueError(f"sigma is {self.sigma}: the spread of a logarithm lies between 0 and about 3")

    @classmethod
    def of_mean(cls, *, median: float, mean: float, most: int = 0) -> LogNormal:
        """The lognormal with this median and mean: mean = median · exp(σ²/2). Raises ValueError for a mean below the median."""
        if not mean >= median > 0:
            raise ValueError(f"a lognormal's mean, {mean}, cannot be below its median, {median}")
        return cls(median=median, sigma=float(np.sqrt(2 * np.log(mean / median))), most=most)

    def draw(self, generator: np.random.Generator, n: int) -> IntArray:
        """n independent lengths."""
        drawn = np.rint(self.median * np.exp(self.sigma * generator.standard_normal(n)))
        return np.clip(drawn, 1, self.most or np.inf).astype(np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Empirical:
    """Lengths seen somewhere, drawn again with replacement."""

    seen: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.seen:
            raise ValueError("an empirical distribution needs at least one length")
        _positive(shortest=min(self.seen))

    def draw(self, generator: np.random.Generator, n: int) -> IntArray:
        """n lengths, each one of those seen."""
        return np.asarray(self.seen, np.int64)[generator.integers(0, len(self.seen), n)]


@cache
def published_lengths(name: str) -> tuple[LogNormal, LogNormal]:
    """Prompt and answer lengths of a published trace by its name. Raises LookupError with the names there are."""
    known = {entry.name.removesuffix(".yaml"): entry for entry in files("spaces").joinpath("data", "workloads").iterdir()}
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise LookupError(f"no published workload {name!r}{hint} ({', '.join(sorted(known))})")
    facts: dict[str, Any] = yaml.safe_load(known[name].read_text(encoding="utf-8"))
    prompt, output = (
        LogNormal.of_mean(median=facts[part]["median"], mean=facts[part]["mean"], most=facts[part]["most"])
        for part in ("prompt", "output")
    )
    return prompt, output


def _positive(**values: float) -> None:
    for name, value in values.items():
        if not value >= 1:
            raise ValueError(f"{name} is {value}: a length is at least 1 token")
