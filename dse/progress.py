"""How far a long search is: a live line on a terminal, plain lines now and then elsewhere, both on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

EVERY = 5.0
"""Seconds between plain lines."""


@contextmanager
def reporter() -> Iterator[Callable[[Any], None]]:
    """A function to call with the search's `Progress`; silent for searches that end within the first seconds elsewhere."""
    if not sys.stderr.isatty():
        yield _plain()
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("counting the space", total=None)

        def report(state: Any) -> None:
            bar.update(task, total=state.most, completed=state.visited, description=_said(state))

        yield report


def _plain() -> Callable[[Any], None]:
    due = time.monotonic() + EVERY

    def report(state: Any) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + EVERY
            print(f"{state.visited / max(state.most, 1) * 100:3.0f} %  {_said(state)}", file=sys.stderr, flush=True)

    return report


def _said(state: Any) -> str:
    """Where a budget ends the search, what it pays for stands before the space."""
    budget = f"the budget's {state.most:,} of " if state.most < state.space else ""
    return f"{state.visited:,} of {budget}{state.space:,} plans, {state.feasible:,} fit, front of {state.front}"
