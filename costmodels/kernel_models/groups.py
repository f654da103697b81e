"""Groups of kernels that err alike, and the held-out error quantile of each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from costmodels.kernel_models.fitted import Fit
from costmodels.kernel_models.forms import variant
from costmodels.kernel_models.operations import DeviceSymbols, Shapes, family_of, words_in
from spaces.columns import FloatArray

COVERAGE = 0.9
_LEAST = 20  # rows below which a group's own quantile says little
_UNKNOWN = 0.5


def group_of(op: str, at: Shapes, device: DeviceSymbols) -> NDArray[Any]:
    """Name of each row's group, shape (n,): format and token range, attention kernel, operator, or kind and size."""
    family = family_of(op)
    if family == "gemm":
        size = np.where(at["m"] <= 64, "small", np.where(at["m"] <= 512, "middle", "large"))
        return np.char.add(np.char.add(at["dtype"], "."), size)
    if family == "collectives":
        return np.char.add(f"{op}.", np.where(at["bytes"] >= 2**20, "large", "small"))
    return variant(op, at, device)


def quantiles(error: FloatArray, group: NDArray[Any], coverage: float = COVERAGE) -> dict[str, float]:
    """Conformal quantile of |log error| by group, and of all of it under ''; groups too small for their own are left out.

    The k-th smallest of n with k = ceil((n+1)·coverage) covers a new exchangeable row with at least that probability
    (Vovk 2005; Lei 2018, §2).
    """
    result = {"": _quantile(error, coverage)}
    for name in np.unique(group).tolist():
        own = error[group == name]
        if len(own) >= _LEAST:
            result[name] = _quantile(own, coverage)
    return result


def _quantile(error: FloatArray, coverage: float) -> float:
    if not len(error):
        return _UNKNOWN
    rank = min(int(np.ceil((len(error) + 1) * coverage)), len(error))
    return float(np.sort(error)[rank - 1])


def spread_of(fit: Fit, model: str, op: str, at: Shapes, device: DeviceSymbols) -> FloatArray:
    """Half width of the 90 % interval in log time for each row, shape (n,)."""
    known = fit.spreads.get(model) or fit.spreads.get("roofline", {})
    usual = known.get("", _UNKNOWN)
    groups = group_of(op, at, device)
    half = np.full(len(groups), usual)
    for name in words_in(groups):
        half[groups == name] = known.get(name, usual)
    return half
