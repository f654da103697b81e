"""A file held against the schema of its kind: its sections, or everything wrong with them in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from dse.locations import Fault
from dse.measures import nearest
from dse.schema.fields import said
from dse.schema.sections import Section

Examples = Mapping[tuple[str, ...], str]
"""What to write for a key that is missing, by its path."""


def kind_of(value: object, known: Collection[str]) -> tuple[str | None, tuple[Fault, ...]]:
    """The kind that a file says it is, or what is wrong with the saying."""
    if not isinstance(value, Mapping):
        what = "an empty file" if value is None else said(value)
        return None, (Fault(path=(), message=f"expected a mapping of keys such as kind, model and hardware, got {what}"),)
    if "kind" not in value:
        return None, (Fault(path=("kind",), message=f"is missing; for example kind: {next(iter(known))}"),)
    kind = value["kind"]
    if not isinstance(kind, str) or kind not in known:
        message = f"no kind of experiment is called {kind!r}{nearest(kind, list(known))}"
        return None, (Fault(path=("kind",), message=message),)
    return kind, ()


def check(
    value: object, file: type[Section], metrics: frozenset[str], examples: Examples, folder: Path
) -> tuple[Any, tuple[Fault, ...]]:
    """The file's sections, an instance of `file`, or None and everything wrong with them. Relative paths start at `folder`."""
    try:
        return file.model_validate(value, context={"folder": folder, "metrics": metrics}), ()
    except ValidationError as error:
        return None, tuple(_fault(entry, value, file, examples) for entry in error.errors(include_url=False))


def _fault(entry: Any, value: object, file: type[Section], examples: Examples) -> Fault:
    """One of pydantic's errors in our words, at the place in `value` that it is about."""
    path = _place(value, tuple(entry["loc"]))
    kind, message = entry["type"], str(entry["msg"]).removeprefix("Value error, ")
    named = tuple(map(str, path))
    example = f"; for example {examples[named]}" if named in examples else ""
    if kind == "missing":
        message = "is missing" + example
    elif kind == "extra_forbidden":
        message = f"unknown key{nearest(path[-1], keys(file, path[:-1]))}"
    elif kind.startswith(("model_type", "model_attributes", "dict")):
        wanted = ", ".join(keys(file, path))
        message = f"expected a mapping{' of ' if wanted else ''}{wanted}, got {said(entry['input'])}"
    elif kind in ("too_short", "list_type"):
        given = "an empty list" if kind == "too_short" else said(entry["input"])
        message = f"expected a list of at least one, got {given}"
        message += example
    elif kind.startswith("union_tag"):
        context = entry["ctx"]
        names = str(context.get("expected_tags", "")).replace("'", "").split(", ")
        tag, choices = context["discriminator"].strip("'"), [name for name in names if name]
        path = (*path, tag)
        if kind == "union_tag_invalid":
            message = f"there is no {tag} {context['tag']!r}{nearest(context['tag'], choices)}"
        else:
            message = f"is missing; for example {tag}: training"
    return Fault(path=path, message=message)


def _place(value: object, path: tuple[str | int, ...]) -> tuple[str | int, ...]:
    """The path without the names of alternatives that pydantic puts into it: those that are no key, but what `kind` says."""
    here, kept = value, []
    for part in path:
        if isinstance(here, Mapping) and part not in here and here.get("kind") == part:
            continue
        kept.append(part)
        if isinstance(here, Mapping):
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int) and part < len(here):
            here = here[part]
        else:
            here = None
    return tuple(kept)


def keys(file: type[BaseModel], path: tuple[str | int, ...]) -> tuple[str, ...]:
    """Keys that the section at a path may have."""
    section: type[BaseModel] | None = file
    chosen = False
    for part in path:
        if chosen:  # a name that the file chose, under which the section stands
            chosen = False
            continue
        field = None if section is None else section.model_fields.get(str(part))
        section = None if field is None else _section(field.annotation)
        chosen = field is not None and get_origin(field.annotation) is dict
    return () if section is None else tuple(section.model_fields)


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, if it holds one."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
