"""Facts in YAML text: data files, and values that a person types."""

from __future__ import annotations

from typing import Any

import yaml

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The C parser is ten times faster, and absent where PyYAML was built without libyaml."""


def facts_in(text: str) -> Any:
    """What YAML text says: mappings, lists, numbers, words. Raises `yaml.YAMLError` for text that is none."""
    return yaml.load(text, Loader=_LOADER)
