"""The face: experiment files, the engine that runs them, run folders, reports, the command line.

Imports `search`, `costmodels` and `spaces`; nothing imports `dse`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dse.calibration import calibrate as calibrate
    from dse.explanation import explain as explain
    from dse.prediction import predict as predict
    from dse.prediction import predict_rows as predict_rows
    from dse.resumption import resume as resume
    from dse.run_folder import read as read
    from dse.runner import run as run
    from dse.sizing import size as size
    from dse.sweeps import sweep as sweep
    from dse.validation import validate as validate

_FUNCTIONS = {
    "run": "dse.runner",
    "resume": "dse.resumption",
    "sweep": "dse.sweeps",
    "read": "dse.run_folder",
    "explain": "dse.explanation",
    "predict": "dse.prediction",
    "predict_rows": "dse.prediction",
    "validate": "dse.validation",
    "calibrate": "dse.calibration",
    "size": "dse.sizing",
}

__all__ = ["calibrate", "explain", "predict", "predict_rows", "read", "resume", "run", "size", "sweep", "validate"]


def __getattr__(name: str) -> Any:
    """The verbs, imported when first used, so that `dse --help` is quick."""
    if name not in _FUNCTIONS:
        raise AttributeError(f"module 'dse' has no attribute {name!r}")
    function = getattr(import_module(_FUNCTIONS[name]), name)
    globals()[name] = function
    return function
