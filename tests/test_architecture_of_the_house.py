"""House rules that a reader would otherwise police: what a class may be, what a module is called, who imports whom."""

from __future__ import annotations

import ast
import dataclasses
import enum
import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Protocol

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("spaces", "costmodels", "search", "dse")
"""From the ground up: each imports from those before it alone."""
FORBIDDEN = {"utils", "util", "helpers", "helper", "common", "manager", "misc", "tools", "lib", "core", "base"}
FILES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
HEAVY = {"torch", "ray", "optuna", "plotly", "lightgbm", "pandas", "polars", "transformers", "onnx", "llvmlite"}

RUNNING = {
    "costmodels.block_memory._Walk",
    "costmodels.calibration.suite.Pace",
    "search.assignment.Assignment",
    "search.assignment._UnderWay",
    "search.guided._Guide",
    "search.local._Worker",
    "search.spreading.Spread",
}
"""Dataclasses that change: the clock of a measuring session; a walk or work that is under way; what is learnt on the way."""

DOORS = {"costmodels.compiling.machine_code": "llvmlite", "costmodels.compiling.translation": "llvmlite"}
"""Modules that are the door to a library of another name."""


def name_of(path: Path) -> str:
    """The module of a file, dotted."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def loaded(path: Path) -> ModuleType:
    """The module, or nothing where it wants a library that is an extra."""
    try:
        return importlib.import_module(name_of(path))
    except ModuleNotFoundError as error:
        if error.name not in HEAVY:
            raise
        return ModuleType(name_of(path))


def classes() -> Iterator[tuple[str, type]]:
    for path in FILES:
        module = loaded(path)
        for name, value in inspect.getmembers(module, inspect.isclass):
            if value.__module__ == module.__name__:
                yield f"{module.__name__}.{name}", value


CLASSES = dict(classes())


def is_final_value(cls: type) -> bool:
    """A frozen dataclass, or a class nothing inherits from."""
    return not any(other is not cls and issubclass(other, cls) for other in CLASSES.values())


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_a_protocol_an_enum_an_exception_or_final(name: str) -> None:
    cls = CLASSES[name]
    if getattr(cls, "_is_protocol", False):
        methods = [key for key, value in vars(cls).items() if callable(value) or isinstance(value, property)]
        asked = [method for method in methods if not method.startswith("_") or method in ("__call__", "__getitem__")]
        assert 1 <= len(asked) <= 3, f"a protocol asks for one to three things, {name} for {', '.join(asked)}"
        return
    if issubclass(cls, enum.Enum | BaseException):
        return
    if {base.__name__ for base in cls.__mro__} & {"BaseModel"}:
        return  # pydantic's sections of an experiment file: data, validated at the border
    assert is_final_value(cls), f"{name} is inherited from: make it a Protocol, or put what differs into a function"
    if dataclasses.is_dataclass(cls) and name not in RUNNING:
        assert cls.__dataclass_params__.frozen, f"{name} is a dataclass and not frozen"  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_is_named_for_its_idea_and_says_what_it_is(path: Path) -> None:
    assert path.stem not in FORBIDDEN
    assert path.parent.name not in FORBIDDEN
    text = ast.get_docstring(tree(path))
    assert text, f"{name_of(path)} has no docstring"
    assert text.splitlines()[0].endswith((".", ":", "?")) or len(text.splitlines()) > 1


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_down(path: Path) -> None:
    own = PACKAGES.index(name_of(path).split(".")[0])
    for node in ast.walk(tree(path)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        for name in names:
            top = name.split(".")[0]
            assert top not in ("tests", "benchmarks", "experiments"), f"a package imports {name}"
            if top in PACKAGES:
                assert PACKAGES.index(top) <= own, f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    """Not at the top of a module of the four packages, except of the one that adapts the library."""
    if "calibration" in path.parts:
        return  # runs on the machine it measures
    for node in tree(path).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        heavy = {name.split(".")[0] for name in names} & HEAVY
        assert not heavy - {path.stem, DOORS.get(name_of(path))}, f"{name_of(path)} imports {', '.join(heavy)} at its top"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_functions_and_classes_say_what_they_do(path: Path) -> None:
    silent = [
        node.name
        for node in tree(path).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and not ast.get_docstring(node)
    ]
    assert not silent, f"{name_of(path)}: no docstring on {', '.join(silent)}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_nothing_is_pickled(path: Path) -> None:
    imported = {
        alias.name for node in ast.walk(tree(path)) if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names
    }
    travels = {"cloudpickle"} if name_of(path) == "search.carrying" else set()  # between processes, never to a disk
    assert not imported & {"pickle", "dill", "cloudpickle", "joblib", "shelve"} - travels


def test_no_two_public_names_hide_a_module() -> None:
    """`dse.run` is a function, so no module is called dse/run.py."""
    for package in PACKAGES:
        module = importlib.import_module(package)
        modules = {path.stem for path in (ROOT / package).iterdir() if path.is_dir() or path.suffix == ".py"}
        for name in getattr(module, "__all__", ()):
            assert name not in modules or inspect.ismodule(getattr(module, name)), f"{package}.{name} hides {package}/{name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_packages_are_ours(package: str) -> None:
    """`spaces` and `experiments` exist on the package index as other projects."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    assert Path(spec.origin).resolve() == ROOT / package / "__init__.py"


def test_a_protocol_is_recognised() -> None:
    """What the test of classes leans on."""

    class Small(Protocol):
        def speak(self) -> str: ...

    assert Small._is_protocol  # type: ignore[attr-defined]
    assert not getattr(dataclasses.make_dataclass("Made", []), "_is_protocol", False)
    assert len(CLASSES) > 30
