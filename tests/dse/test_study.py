"""A run exported as a study: what it holds, and that optuna-dashboard opens it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def exported(dse: Callable[..., Any], small: Path) -> tuple[dict[str, Any], Path]:
    """A run, and its study in a journal."""
    answer = json.loads(dse("run", small, "--set", "search.sample=40", "--json").out.splitlines()[-1])
    done = dse("export", answer["run"], "--to", "optuna")
    assert done.code == 0, done.err
    assert "optuna-dashboard" in done.out
    return answer, Path(answer["run"]).resolve() / "trials.journal"


def test_the_study_holds_the_front_and_the_sample(
    dse: Callable[..., Any], exported: tuple[dict[str, Any], Path]
) -> None:
    import optuna

    from search.optuna_search import storage

    answer, journal = exported
    study = optuna.load_study(study_name="small", storage=storage(str(journal)))
    assert study.metric_names == ["step_time", "memory"]
    found = {tuple(trial.values) for trial in study.trials}
    front = {tuple(plan["metrics"][name]["value"] for name in study.metric_names) for plan in answer["front"]}
    assert front <= found
    assert front == {tuple(trial.values) for trial in study.best_trials}
    assert len(study.trials) >= 40
    assert {"none", "full"} >= {trial.params["recompute"] for trial in study.trials}
    again = dse("export", answer["run"], "--to", "optuna")
    assert again.code == 1
    assert "holds a study called 'small' already" in again.err
    database = f"sqlite:///{journal.with_name('trials.db')}"
    assert dse("export", answer["run"], "--to", "optuna", "--study", database).code == 0
    assert optuna.load_study(study_name="small", storage=storage(database)).trials[0].values == study.trials[0].values


@pytest.mark.skipif(find_spec("optuna_dashboard") is None, reason="optuna-dashboard is an extra")
def test_the_dashboard_starts_and_shows_the_study(exported: tuple[dict[str, Any], Path]) -> None:
    _, journal = exported
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = "from optuna_dashboard._cli import main; main()"
    server = subprocess.Popen(
        [sys.executable, "-c", start, str(journal), "--host", "127.0.0.1", "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "no_proxy": "127.0.0.1"},
    )
    try:
        names: list[str] = []
        for _ in range(240):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies", timeout=5) as reply:
                    names = [study["study_name"] for study in json.load(reply)["study_summaries"]]
                break
            except OSError:
                assert server.poll() is None, "the dashboard ended"
                time.sleep(0.25)
        assert names == ["small"]
    finally:
        server.terminate()
        server.wait(10)
