"""Kernel models by name: those of the project, and those others register under the entry point `dse.kernel_models`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from costmodels.kernel_models.calibrated import Calibrated
from costmodels.kernel_models.dataflow import Dataflow
from costmodels.kernel_models.fitted import fitted_devices
from costmodels.kernel_models.learned import Learned
from costmodels.kernel_models.own import Own, own_model
from costmodels.kernel_models.protocol import KernelModel
from costmodels.kernel_models.roofline import Roofline

GROUP = "dse.kernel_models"
DEFAULT = "learned"
_OWN: dict[str, Callable[[], KernelModel]] = {
    "roofline": Roofline,
    "calibrated": Calibrated,
    "learned": Learned,
    "dataflow": Dataflow,
}


class UnknownKernelModel(ValueError):
    """A kernel model nobody registered; the message lists the nearest."""


def kernel_models() -> dict[str, Callable[[], KernelModel]]:
    """Makers of every registered model by name. Raises ValueError for a name registered twice."""
    found = dict(_OWN)
    for point in _installed():
        if point.name in _OWN:
            raise ValueError(f"the kernel model {point.name!r} is registered twice; {point.value} must take another name")
        found[point.name] = point.load
    return {name: make if name in _OWN else _loaded(make) for name, make in found.items()}


@cache
def _installed() -> tuple[EntryPoint, ...]:
    """Models that other packages bring; looking them up reads the metadata of every package there is."""
    return tuple(entry_points(group=GROUP))


def taught_devices(name: str = DEFAULT, calibration: str = "") -> tuple[str, ...] | None:
    """Names of the devices that a model was taught on, or that the folder `calibration` holds measurements of.

    None for a model that needs no teaching, or is somebody else's.
    """
    if name not in ("roofline", "calibrated", "learned"):
        return None
    taught = () if name == "roofline" else fitted_devices()
    model = find_kernel_model(name, calibration)
    return tuple(dict.fromkeys([*model.devices, *taught])) if isinstance(model, Own) else taught


def find_kernel_model(name: str = DEFAULT, calibration: str = "") -> KernelModel:
    """A model of that name, under the measurements in the folder `calibration` if one is given.

    Raises UnknownKernelModel, naming the nearest, and BadMeasurements, naming the rows of the folder that cannot be true.
    """
    known = kernel_models()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)
        raise UnknownKernelModel(f"no kernel model is called {name!r}; did you mean {', '.join(near)}?")
    return own_model(Path(calibration), known[name]()) if calibration else known[name]()


def _loaded(load: Callable[[], object]) -> Callable[[], KernelModel]:
    """An entry point's model: its class, made when asked for."""

    def make() -> KernelModel:
        kind = load()
        model = kind() if callable(kind) else kind
        if not isinstance(model, KernelModel):
            raise TypeError(f"{kind!r} is no kernel model: it needs `reads` and `predict(op, shapes, device)`")
        return model

    return make
