"""Where every key of a YAML file stands: composed once, with line and column, duplicate keys and YAML 1.1's traps found."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from spaces.facts import facts_in

Path: TypeAlias = tuple[str | int, ...]
"""Keys and list positions from the root: ("space", "tensor", 0)."""

_SEXAGESIMAL = re.compile(r"[-+]?\d+(:[0-5]?\d)+(\.\d*)?")
_WORDS_READ_AS_TRUTH = {"yes", "no", "on", "off", "y", "n"}
_EXPONENT = re.compile(r"[-+]?\d[\d_]*\.?\d*[eE]\d+|[-+]?\d+[eE][-+]?\d+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing wrong with a file: at which key, and what."""

    path: Path
    message: str
    line: int | None = None
    setting: str | None = None
    """The `--set` text it came with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A YAML document as Python values, and where each stands.

    `lines[path]` is the 1-based line (column likewise in `columns`) of the key; `written[path]` the text of a scalar as it
    was typed; `overridden[path]` the `--set` text that put a value there. `faults` were found while reading.
    """

    name: str
    value: Any
    lines: Mapping[Path, int] = field(default_factory=dict)
    columns: Mapping[Path, int] = field(default_factory=dict)
    written: Mapping[Path, str] = field(default_factory=dict)
    overridden: Mapping[Path, str] = field(default_factory=dict)
    faults: tuple[Fault, ...] = ()

    def describe(self, fault: Fault) -> str:
        """`file:line: key.path: what was wrong`, with a note on how YAML read the value where that is the likely cause."""
        key = ".".join(str(part) for part in self._named(fault.path))
        parts = [self._place(fault), *([key] if key else []), fault.message + self._trap(fault)]
        return ": ".join(parts)

    def _named(self, path: Path) -> Path:
        """The path without the position in a list of one that was written as a single value."""
        if path and isinstance(path[-1], int):
            here = self.value
            for part in path[:-1]:
                here = here.get(part) if isinstance(here, Mapping) else None
            return path if isinstance(here, list) else path[:-1]
        return path

    def _place(self, fault: Fault) -> str:
        if fault.setting is not None:
            return f"{self.name}: from --set {fault.setting}"
        within = [text for path, text in self.overridden.items() if path[: len(fault.path)] == fault.path != path]
        also = f", with --set {within[-1]}" if within and fault.path else ""
        for stop in range(len(fault.path), -1, -1):
            prefix = fault.path[:stop]
            if prefix in self.overridden:
                return f"{self.name}: from --set {self.overridden[prefix]}"
            if also and fault.path not in self.lines:  # nothing but settings put something there
                return f"{self.name}: from --set {within[-1]}"
            if fault.line is None and prefix in self.lines:
                return f"{self.name}:{self.lines[prefix]}{also}"
        return self.name if fault.line is None else f"{self.name}:{fault.line}"

    def _trap(self, fault: Fault) -> str:
        if fault.line is not None:  # a duplicate: the key is wrong, not the value
            return ""
        text = self.written.get(fault.path) or self.written.get(fault.path[:-1], "")
        note = how_yaml_read(text)
        return f" ({note})" if note and note not in fault.message else ""


def how_yaml_read(text: str) -> str | None:
    """What YAML 1.1 made of a plain scalar that means something else to most people, or None."""
    if text.lower() in _WORDS_READ_AS_TRUTH:
        truth = "false" if text.lower() in {"no", "off", "n"} else "true"
        return f"YAML 1.1 reads {text} as {truth}; quote it if the word is meant"
    if _SEXAGESIMAL.fullmatch(text):
        return f"YAML 1.1 reads {text} as a number in base 60; quote it"
    if _EXPONENT.fullmatch(text) and not isinstance(facts_in(text), float):
        return f"YAML 1.1 reads {text} as text; write {_plain(float(text.replace('_', '')))}"
    return None


def _plain(number: float) -> str:
    """A spelling YAML reads as a number."""
    if number == int(number) and abs(number) < 1e12:
        return str(int(number))
    mantissa, exponent = f"{number:e}".split("e")
    return f"{float(mantissa)}e{int(exponent):+d}"


def locate(text: str, name: str) -> Located:
    """Read one YAML document. Syntax errors, duplicate keys and base-60 numbers become faults, never exceptions."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        node = yaml.compose(text, Loader=loader)
    except yaml.YAMLError as error:
        return Located(name=name, value=None, faults=(_syntax(error),))
    reader = _Reader()
    value = None if node is None else reader.read(node, ())
    return Located(
        name=name,
        value=value,
        lines=reader.lines,
        columns=reader.columns,
        written=reader.written,
        faults=tuple(reader.faults),
    )


def _syntax(error: yaml.YAMLError) -> Fault:
    """A YAML error as a fault with its line."""
    mark = getattr(error, "problem_mark", None)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    return Fault(path=(), message=f"not valid YAML: {what}", line=None if mark is None else mark.line + 1)


class _Reader:
    """Walks composed nodes once and notes where everything stands."""

    def __init__(self) -> None:
        self.lines: dict[Path, int] = {}
        self.columns: dict[Path, int] = {}
        self.written: dict[Path, str] = {}
        self.faults: list[Fault] = []
        self._open: list[yaml.Node] = []
        self._constructor = yaml.constructor.SafeConstructor()

    def read(self, node: yaml.Node, path: Path) -> Any:
        self._mark(node, path)
        if any(node is outer for outer in self._open):
            self.faults.append(Fault(path=path, message="an alias that contains itself"))
            return None
        self._open.append(node)
        try:
            return self._value(node, path)
        finally:
            self._open.pop()

    def _value(self, node: yaml.Node, path: Path) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*path, i)) for i, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: yaml.MappingNode, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value) if isinstance(key_node, yaml.ScalarNode) else "?"
            place = (*path, key)
            line = key_node.start_mark.line + 1
            if key in result:
                first = self.lines.get(place)
                self.faults.append(Fault(path=place, message=f"duplicate key, first given on line {first}", line=line))
                continue
            result[key] = self.read(value_node, place)
            self._mark(key_node, place)
        return result

    def _scalar(self, node: yaml.Node, path: Path) -> Any:
        if getattr(node, "style", None) in (None, ""):
            self.written[path] = str(node.value)
            if _SEXAGESIMAL.fullmatch(str(node.value)):
                note = how_yaml_read(str(node.value))
                self.faults.append(Fault(path=path, message=f"ambiguous number; {note}"))
        try:
            return self._constructor.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            self.faults.append(Fault(path=path, message=f"cannot be read: {error}".splitlines()[0]))
            return None

    def _mark(self, node: yaml.Node, path: Path) -> None:
        self.lines[path] = node.start_mark.line + 1
        self.columns[path] = node.start_mark.column + 1


def override(document: Located, settings: tuple[str, ...]) -> Located:
    """The document with `KEY=VALUE` settings put in; VALUE is YAML and KEY a dotted path; places of lists count from 0.

    A key that has dots of its own is found where the file has it, and may be quoted: `formulas."device.power".unit=W`. A
    setting that cannot be applied becomes a fault that says it came from --set.
    """
    value = _copied(document.value)
    overridden = dict(document.overridden)
    written = dict(document.written)
    lines = dict(document.lines)
    faults = list(document.faults)
    for setting in settings:
        key, equals, text = setting.partition("=")
        path = _placed(value, _parts(key))
        overridden[path] = setting
        inner = locate(text, "--set")
        if not equals or not path:
            faults.append(Fault(path=(), message="expected KEY=VALUE, such as hardware.devices=64", setting=setting))
        elif inner.faults:
            faults.append(Fault(path=path, message=inner.faults[0].message, setting=setting))
        elif wrong := _put(value, path, inner.value):
            faults.append(Fault(path=path, message=wrong, setting=setting))
        written = {place: typed for place, typed in written.items() if place[: len(path)] != path}
        lines = {place: line for place, line in lines.items() if len(place) <= len(path) or place[: len(path)] != path}
        written |= {(*path, *place): typed for place, typed in inner.written.items()}
    overridden.pop((), None)
    return Located(
        name=document.name,
        value=value,
        lines=lines,
        columns=document.columns,
        written=written,
        overridden=overridden,
        faults=tuple(faults),
    )


def _copied(value: Any) -> Any:
    """Mappings and lists copied, scalars shared."""
    if isinstance(value, Mapping):
        return {key: _copied(item) for key, item in value.items()}
    return [_copied(item) for item in value] if isinstance(value, list | tuple) else value


_PART = re.compile(r'"([^"]+)"|\'([^\']+)\'|([^.]+)')


def _parts(key: str) -> tuple[str, ...]:
    """A dotted path in parts; a quoted part keeps its dots."""
    return tuple(next(filter(None, found)) for found in _PART.findall(key.strip()))


def _placed(root: Any, path: tuple[str, ...]) -> Path:
    """The path with the places of lists as numbers and keys that have dots as one part, as far as it leads."""
    here = root
    placed: list[str | int] = []
    while path:
        taken = 1
        part: str | int = path[0]
        if isinstance(here, list) and path[0].isdecimal():
            part = int(path[0])
            here = here[part] if part < len(here) else None
        else:
            if isinstance(here, Mapping):  # the longest key that the file has
                lengths = range(len(path), 0, -1)
                taken = next((n for n in lengths if ".".join(path[:n]) in here), 1)
                part = ".".join(path[:taken])
            here = here.get(part) if isinstance(here, Mapping) else None
        placed.append(part)
        path = path[taken:]
    return tuple(placed)


def _put(root: Any, path: Path, value: Any) -> str:
    """Set `value` at `path`, making mappings on the way; what stands in the way, or ''."""
    here = root
    for depth, part in enumerate(path):
        last, so_far = depth == len(path) - 1, ".".join(map(str, path[:depth]))
        if isinstance(here, list):
            if not isinstance(part, int) or part >= len(here):
                return f"{so_far} is a list of {len(here)}: name one by its place, {so_far}.0 to {so_far}.{len(here) - 1}"
            if last:
                here[part] = value
            here = here[part]
            continue
        if not isinstance(here, dict):
            return f"{so_far} is no mapping that a key could go under"
        if last:
            here[str(part)] = value
        else:
            here = here.setdefault(str(part), {})
    return ""
