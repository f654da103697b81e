"""How far a search is, in words."""

from __future__ import annotations

import dataclasses

import pytest

from dse import progress
from search.result import Progress

STATE = Progress(
    space=90_000, most=300, visited=150, evaluated=150, pruned=0, failed=0, feasible=140, front=2, wall_s=6.0
)


def test_a_search_within_a_budget_is_as_far_as_its_budget_is_spent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with progress.reporter() as report:
        report(STATE)
        report(dataclasses.replace(STATE, most=90_000))
    first, second = capsys.readouterr().err.splitlines()
    assert first.split()[:2] == ["50", "%"]
    assert "150 of the budget's 300 of 90,000 plans" in first
    assert second.split()[:2] == ["0", "%"]
    assert "150 of 90,000 plans" in second
