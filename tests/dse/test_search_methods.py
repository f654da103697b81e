"""Experiment files that name a search method and a budget, from the file to the run folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BUDGET = "search: {method: METHOD, top: 3, sample: 200, budget: {share: 0.1}}"


@pytest.fixture
def asked(small: Path) -> Callable[[str], Path]:
    """The small experiment with another search section."""

    def file(search: str) -> Path:
        text = small.read_text(encoding="utf-8").replace("search: {top: 3, sample: 200}", search)
        assert search in text
        path = small.with_name("asked.yaml")
        path.write_text(text, encoding="utf-8")
        return path

    return file


@pytest.mark.parametrize("method", ["auto", "evolutionary", "nsga2"])
def test_a_budget_is_kept_and_the_rest_is_unvisited(
    dse: Callable[..., Any], asked: Callable[[str], Path], method: str
) -> None:
    done = dse("run", asked(BUDGET.replace("METHOD", method)), "--json")
    assert done.code == 0, done.err
    answer = json.loads(done.out.splitlines()[-1])
    certificate = answer["certificate"]
    assert 0 < certificate["evaluated"] <= 0.1 * certificate["space"]
    assert certificate["unvisited"] > 0
    assert not certificate["complete"]
    parts = sum(certificate["pruned"].values()) + certificate["evaluated"] + certificate["failed"]
    assert certificate["space"] == parts + certificate["unvisited"]
    assert "sampled" in done.out
    assert answer["front"]
    again = json.loads(dse("run", asked(BUDGET.replace("METHOD", method)), "--json").out.splitlines()[-1])
    assert again["front"] == answer["front"]


def test_auto_without_a_budget_proves_the_front(dse: Callable[..., Any], small: Path) -> None:
    answer = json.loads(dse("run", small, "--json").out.splitlines()[-1])
    assert answer["certificate"]["complete"]


def test_nested_takes_every_machine_without_a_budget(dse: Callable[..., Any], small: Path) -> None:
    text = small.read_text(encoding="utf-8").replace("device: H100", "device: [H100, H200]")
    plain = small.with_name("plain.yaml")
    plain.write_text(text, encoding="utf-8")
    nested = small.with_name("nested.yaml")
    nested.write_text(text.replace("search: {", "search: {method: nested, "), encoding="utf-8")
    exact, folded = (json.loads(dse("run", file, "--json").out.splitlines()[-1]) for file in (plain, nested))
    assert folded["certificate"] == exact["certificate"]
    assert folded["front"] == exact["front"]


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("search: {method: evolutionry}", "evolutionary"),
        ("search: {method: exact, budget: {points: 5}}", "needs method: auto"),
        ("search: {method: auto, budget: {share: 2}}", "at most 1"),
        ("search: {method: auto, budget: {}}", "points, share or seconds"),
        ("search: {method: auto, budget: {points: 0}}", "whole number from 1"),
        ("search: {method: exact, mirror: x.journal}", "dse export RUN --to optuna"),
        ("search: {mirror: x.journal}", "dse export RUN --to optuna"),
        ("search: {method: tpe, outer: device}", "belong to method: nested"),
        ("search: {method: cmaes, budget: {points: 5}}", "one objective, not 2"),
        ("search: {method: nested}", "first axes"),
    ],
)
def test_what_cannot_be_searched_is_told(
    dse: Callable[..., Any], asked: Callable[[str], Path], search: str, said: str
) -> None:
    done = dse("run", asked(search))
    assert done.code == 1
    assert said in done.err
    assert "Traceback" not in done.err


def test_runs_of_one_file_share_a_mirror(asked: Callable[[str], Path], dse: Callable[..., Any], tmp_path: Path) -> None:
    import optuna

    from search.optuna_search import storage

    file = asked("search: {method: random, budget: {points: 5}, mirror: trials.journal}")
    for _ in range(2):
        assert dse("run", file).code == 0
    journal = storage(str(tmp_path / "trials.journal"))
    one, two = (optuna.load_study(study_name=f"small-{n}", storage=journal).trials for n in (1, 2))
    assert len(one) == 5
    assert [trial.values for trial in one] == [trial.values for trial in two]
