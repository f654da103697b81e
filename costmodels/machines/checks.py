"""Predicted against published: die area and power of shipped accelerators, and the fit of the free coefficients.

Power is that of the greatest 16-bit rate a part was measured at, where one is published (`matrix_rate`), else of the share
of its peak that parts are designed for; what is published is the cap.

`python -m costmodels.machines.checks` prints the table. Parts marked `calibration` gave the coefficients; the others
are held out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.optimize import nnls

from costmodels.machines.area import silicon_area, total_area
from costmodels.machines.power import design_power
from costmodels.machines.tables import constants
from spaces.columns import FloatArray
from spaces.hardware.accelerators import Accelerator, accelerator_names, find_accelerator

MM2 = 1e-6


@dataclass(frozen=True, slots=True, kw_only=True)
class Residual:
    """One part's figure: published, predicted (mm² or W), and whether it gave a constant."""

    part: str
    figure: str
    published: float
    predicted: float
    held_out: bool
    notes: str

    @property
    def error(self) -> float:
        """Predicted over published, less one."""
        return self.predicted / self.published - 1.0


def residuals(figure: str) -> tuple[Residual, ...]:
    """Every part that has the figure (`area` or `power`) published."""
    return tuple(
        Residual(
            part=part.name,
            figure=figure,
            published=_published(part, figure),
            predicted=_predicted(part, figure),
            held_out=part.checks[figure] == "held-out",
            notes=part.notes,
        )
        for part in _parts(figure)
    )


def held_out_median(figure: str) -> float:
    """Median of |error| over the parts that gave no constant."""
    return float(np.median([abs(r.error) for r in residuals(figure) if r.held_out]))


@cache
def held_out_ratio(figure: str, share: float = 0.9) -> float:
    """Ratio of predicted to published, or its inverse, that a `share` of new parts stays within, from held-out parts alone.

    The ⌈(n + 1)·share⌉-th smallest of n held-out ratios (split conformal prediction, Vovk et al. 2005), the largest of them
    where n is too small for that.
    """
    ratios = sorted(float(np.exp(abs(np.log1p(r.error)))) for r in residuals(figure) if r.held_out)
    return ratios[min(int(np.ceil((len(ratios) + 1) * share)), len(ratios)) - 1]


def fit(figure: str) -> dict[str, float]:
    """The free coefficients of a figure again, by non-negative least squares of relative error on the calibration parts."""
    parts = [part for part in _parts(figure) if part.checks[figure] == "calibration"]
    free, split = _FREE[figure]
    section = constants(figure)
    rows, rest = [], []
    for part in parts:
        pieces = split(part)
        known = sum(value for name, value in pieces.items() if name not in free.values())
        rows.append([sum(v for n, v in pieces.items() if n == piece) / section[name] for name, piece in free.items()])
        rest.append(_published(part, figure) - known)
    scale = np.array([_published(part, figure) for part in parts])
    found, _ = nnls(np.array(rows) / scale[:, None], np.array(rest) / scale)
    return dict(zip(free, map(float, found), strict=True))


def _area_pieces(part: Accelerator) -> dict[str, float]:
    pieces = {name: float(value[0]) for name, value in silicon_area(part.columns()).items()}
    sram = pieces.pop("core_memory") + pieces.pop("shared_memory")
    return {**pieces, "sram": sram}


def _power_pieces(part: Accelerator) -> dict[str, float]:
    return {name: float(value[0]) for name, value in _power(part).items()}


def _power(part: Accelerator) -> dict[str, FloatArray]:
    return design_power(part.columns(), part.published.get("matrix_rate"))


_FREE: dict[str, tuple[dict[str, str], Callable[[Accelerator], dict[str, float]]]] = {
    "area": ({"matrix_fma": "matrix", "register_kib": "registers", "sram_overhead": "sram"}, _area_pieces),
    "power": ({"static": "static", "delivery": "compute"}, _power_pieces),
}


def _parts(figure: str) -> list[Accelerator]:
    parts = [find_accelerator(name) for name in accelerator_names()]
    return [part for part in parts if part.checks.get(figure) in ("calibration", "held-out")]


def _published(part: Accelerator, figure: str) -> float:
    return part.published["die_area"] / MM2 if figure == "area" else part.values["power"]


def _predicted(part: Accelerator, figure: str) -> float:
    return float((total_area(part.columns()) if figure == "area" else np.asarray(sum(_power(part).values())))[0])


_NEAR = 0.1
"""Watts beyond a cap that may be the model's error as well."""


def table() -> str:
    """The residuals as lines of text."""
    lines = []
    for figure, unit in (("area", "mm2"), ("power", "W")):
        lines.append(f"{figure}: median of held-out parts {100 * held_out_median(figure):.1f} %")
        for r in sorted(residuals(figure), key=lambda r: (r.held_out, r.part)):
            group = "held out" if r.held_out else "calibration"
            capped = ", so its cap lowers its clock" if figure == "power" and r.error > _NEAR else ""
            errs = f"{100 * r.error:+.0f} %{capped}"
            lines.append(f"  {r.part:12} {group:12} {r.published:7.0f} {unit} predicted {r.predicted:7.0f}  {errs}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
