"""Shell scripts and model names, as every launch file needs them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from dse.kinds.registry import find
from spaces.architecture import Architecture

Flag = tuple[str, object]
"""An option and its value; None leaves it out, True says it without a value."""


def command(head: str, flags: Iterable[Flag], tail: str = "") -> str:
    """A command over several lines, an option a line."""
    lines = [head]
    for name, value in flags:
        if value is None or value is False:
            continue
        lines.append(f"  {name}" if value is True else f"  {name} {shlex.quote(str(value))}")
    return " \\\n".join([*lines, *([f"  {tail}"] if tail else [])])


def script(kind: str, title: str, plan: Mapping[str, Any], blocks: Iterable[str]) -> str:
    """A shell script that says what it starts."""
    head = f"#!/usr/bin/env bash\n# {title}\n# plan: {find(kind).text(plan)}\nset -euo pipefail"
    return "\n\n".join([head, *blocks]) + "\n"


def checkpoint(model: Architecture) -> str:
    """The model's name on Hugging Face, where its sizes were read there; else its own name."""
    found = re.search(r"huggingface\.co/([\w.-]+/[\w.-]+)", model.source)
    return found[1] if found else model.name


def nodes(devices: int, devices_per_node: int) -> tuple[int, int]:
    """(nodes, devices of each) that hold so many devices."""
    return (1, devices) if devices <= devices_per_node else (-(-devices // devices_per_node), devices_per_node)
