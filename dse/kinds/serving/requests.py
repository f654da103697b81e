"""The requests of an experiment file: lengths as one number or a distribution, published ones by name, traces from files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from dse.measures import nearest
from dse.schema.fields import positive, read_count, read_text, said
from spaces.traces import read_trace
from spaces.traffic import SHAPES, Lengths, Pairs, length_names, published_lengths
from spaces.workload import Requests

if TYPE_CHECKING:
    from pydantic import ValidationInfo


def read_lengths(value: object) -> Lengths:
    """`4000`, `{uniform: [100, 3000]}`, `{lognormal: {mean: 1000, spread: 0.8}}` or `{exponential: 300}`."""
    if not isinstance(value, Mapping):
        return Lengths(shape="fixed", mean=read_count(value))
    if len(value) != 1:
        raise ValueError(f"expected one distribution such as {{uniform: [100, 3000]}}, got {len(value)} keys")
    shape, given = next(iter(value.items()))
    if shape == "uniform":
        if not isinstance(given, list) or len(given) != 2:
            raise ValueError(f"uniform takes [least, most], got {said(given)}")
        least, most = (read_count(end) for end in given)
        if least > most:
            raise ValueError(f"uniform takes [least, most]; {least} is more than {most}")
        mean = (least + most) / 2
        return Lengths(shape="uniform", mean=mean, spread=(most - least) / 12**0.5 / mean)
    if shape == "lognormal":
        if not isinstance(given, Mapping) or set(given) != {"mean", "spread"}:
            raise ValueError("lognormal takes {mean: tokens, spread: standard deviation over mean}")
        return Lengths(shape="lognormal", mean=positive("")(given["mean"]), spread=positive("")(given["spread"]))
    if shape == "exponential":
        return Lengths(shape="exponential", mean=positive("")(given), spread=1.0)
    if shape == "fixed":
        return Lengths(shape="fixed", mean=read_count(given))
    raise ValueError(f"no distribution is called {shape!r}{nearest(shape, SHAPES)}")


def read_published(value: object) -> Pairs:
    """A published distribution by its name."""
    name = read_text(value)
    if name not in length_names():
        raise ValueError(f"no distribution of lengths is called {name!r}{nearest(name, length_names())}")
    return published_lengths(name)


def read_trace_file(value: object, info: ValidationInfo) -> Requests:
    """The requests of a trace beside the experiment file."""
    path = cast(Path, (info.context or {}).get("folder", Path())) / read_text(value)
    try:
        return read_trace(path).requests
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None


def read_per_second(value: object) -> float:
    """Requests a second: a number, or text such as `4 /s` or `90 /min`."""
    text = str(value).replace("requests", "").replace("req", "").strip() if isinstance(value, str) else value
    for end, seconds in (("/s", 1.0), ("/min", 60.0), ("/h", 3600.0)):
        if isinstance(text, str) and text.endswith(end):
            return positive("")(text.removesuffix(end).strip()) / seconds
    return positive("")(text)
