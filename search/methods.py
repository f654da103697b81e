"""The search methods by name (how `auto` chooses is in search/automatic.py).

A method is a function that proposes points to an archive until nothing is left to spend. `exact` is not among them: it lists
the space in order instead (search/exact.py). A new method is one file and one line here; one that is not ours is asked for as
`module:function`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from importlib import import_module
from types import MappingProxyType
from typing import TypeAlias, cast

import numpy as np

from search.archive import Archive

Method: TypeAlias = Callable[[Archive, np.random.Generator], None]
"""Proposes ordinals to `archive.evaluate` until `archive.left` is 0 or it has nothing to propose.

Contract: draws all randomness from the generator, so that the same seed asks the same points; works with any number of
objectives it does not refuse by ValueError, with points that fail, and where nothing is feasible; takes batches as large as
is useful, for cost models are vectorised.
"""

_METHODS: Mapping[str, str] = MappingProxyType(
    {
        "auto": "search.automatic:automatic",
        "evolutionary": "search.evolutionary:evolve",
        "guided": "search.guided:guided",
        "random": "search.optuna_search:random",
        "qmc": "search.optuna_search:qmc",
        "tpe": "search.optuna_search:tpe",
        "nsga2": "search.optuna_search:nsga2",
        "nsga3": "search.optuna_search:nsga3",
        "gp": "search.optuna_search:gp",
        "cmaes": "search.optuna_search:cmaes",
    }
)

OPTUNA = ("random", "qmc", "tpe", "nsga2", "nsga3", "gp", "cmaes")
"""Methods that are Optuna's samplers."""
NAMES = ("exact", "nested", *_METHODS)
"""Every method that can be asked for."""


def require_name(name: str) -> str:
    """The name itself. Raises ValueError with the nearest names when there is no such method."""
    if ":" in name:
        _own(name)
    elif name not in NAMES:
        near = difflib.get_close_matches(name, NAMES, n=3, cutoff=0.4) or list(NAMES)
        raise ValueError(f"no search method is called '{name}'; the nearest are {', '.join(near)}")
    return name


def _own(name: str) -> Method:
    """A method of the asker's, as `module:function`. Raises ValueError where there is none."""
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"the search method '{name}' cannot be imported: {error}; PYTHONPATH says where modules are") from None
    if not callable(found):
        raise ValueError(f"the search method '{name}' is no function (archive, generator) -> None")

    def told(archive: Archive, generator: np.random.Generator) -> None:
        try:
            found(archive, generator)
        except (TypeError, AttributeError, ArithmeticError, AssertionError) as error:  # of code that nobody else has tried
            said = f"the search method '{name}' (archive, generator) -> None raised {type(error).__name__}: {error}"
            raise ValueError(said) from error

    return told


def method(name: str) -> Method:
    """The sampling method of that name. Raises ValueError for `exact`, `nested` and names that are not there."""
    if ":" in name:
        return _own(name)
    require_name(name)
    if name not in _METHODS:
        raise ValueError(f"'{name}' does not sample; the methods that do are {', '.join(_METHODS)}")
    module, function = _METHODS[name].split(":")
    return cast(Method, getattr(import_module(module), function))
