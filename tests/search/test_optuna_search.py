"""Optuna's samplers join the contract of a search method; studies hold what was found, and can be opened."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from search.archive import Archive
from search.budget import Budget
from search.encoding import encoding
from search.methods import Method, method
from search.optuna_search import Studied, mirror, storage, write_study
from search.result import Result
from search.sampled import GAVE_UP, sampled_search
from search.store import Remembered, Trials
from search.testing import MEMORY, PROBLEM, TIME, MethodContract, Toy, toy_space
from spaces.ranking import ranking


class TestRandom(MethodContract):
    share, seeds = 0.05, 3

    def method(self) -> Method:
        return method("random")


class TestQmc(MethodContract):
    share, seeds = 0.05, 1

    def method(self) -> Method:
        return method("qmc")


class TestTpe(MethodContract):
    share, seeds = 0.05, 1

    def method(self) -> Method:
        return method("tpe")


class TestNsga2(MethodContract):
    share, seeds = 0.05, 1

    def method(self) -> Method:
        return method("nsga2")


class TestNsga3(MethodContract):
    share, seeds = 0.05, 1

    def method(self) -> Method:
        return method("nsga3")


@pytest.mark.skipif(find_spec("torch") is None, reason="gp needs torch")
class TestGp(MethodContract):
    share, seeds = 0.05, 1

    def method(self) -> Method:
        return method("gp")


@pytest.mark.skipif(find_spec("cmaes") is None, reason="cmaes needs its package")
class TestCmaes(MethodContract):
    objectives = (TIME,)

    def method(self) -> Method:
        return method("cmaes")

    def test_finds_much_of_the_front(self) -> None:
        """One objective: the best of a twentieth of the space is within 30 % of the best there is."""
        best = self.exact().min()
        found = [self.look(Toy(), Budget(share=0.05), seed).front.points.costs.min() for seed in range(3)]
        assert np.median(found) <= 1.3 * best


def look(name: str, points: int = 30, model: Toy | None = None, **more: Any) -> Result:
    return sampled_search(
        toy_space(), model or Toy(), PROBLEM, (TIME, MEMORY), method=method(name), budget=Budget(points=points), top=3, **more
    )


def test_cma_es_with_two_objectives_is_refused_with_what_would_work() -> None:
    with pytest.raises(ValueError, match=r"one objective, not 2; use 'evolutionary'"):
        look("cmaes")


@pytest.mark.skipif(find_spec("torch") is not None, reason="torch is here")
def test_gp_without_torch_says_what_to_install() -> None:
    with pytest.raises(ValueError, match="pip install torch"):
        look("gp")


@given(st.integers(0, 99))
def test_integers_mean_points_and_points_their_integers(seed: int) -> None:
    coded, random = encoding(ranking(toy_space())), np.random.default_rng(seed)
    ordinals = coded.ranking.draw(random, 20)
    assert np.array_equal(coded.decode(coded.encode(ordinals)), ordinals)
    wild = np.stack([random.integers(0, levels, 20) for levels in coded.levels], axis=1)
    meant = coded.decode(wild)
    assert ((meant >= 0) & (meant < coded.ranking.size)).all()
    assert len(coded.names) == len(coded.levels) == 4
    features = coded.features(ordinals)
    assert ((features >= 0) & (features <= 1)).all()
    assert len(np.unique(features, axis=0)) == 20


@pytest.mark.parametrize(("name", "raises"), [("tpe", 0), ("nsga2", 5), ("evolutionary", 0), ("guided", 5)])
def test_a_search_that_was_stopped_goes_on_from_the_record_to_the_same_end(name: str, raises: int) -> None:
    store, model, whole = Remembered(2), Toy(raises=raises), Toy(raises=raises)
    broken = look(name, 45, model=model, store=store, cancelled=lambda: len(store.trials()) >= 20)
    assert broken.stopped == "cancelled"
    before = len(store.trials())
    assert 20 <= before < 45
    resumed = look(name, 45, model=model, store=store)
    unbroken = look(name, 45, model=whole)
    assert resumed.certificate == unbroken.certificate
    pairs = [(resumed.top[name], unbroken.top[name]) for name in unbroken.top]
    for found, expected in [(resumed.front.points, unbroken.front.points), *pairs]:
        assert np.array_equal(found.ordinals, expected.ordinals)
        for metric, figure in expected.metrics.value.items():
            assert np.array_equal(found.metrics.value[metric], figure)
    assert np.array_equal(resumed.front.ties, unbroken.front.ties)
    assert len(store.trials()) == 45
    assert model.asked() == whole.asked()  # nothing was evaluated again, not even for its figures


def test_a_front_found_elsewhere_is_evaluated_first() -> None:
    start = np.array([5, 9, 700])
    seen: list[list[int]] = []
    look("tpe", start=start, watch=lambda archive: seen.append(archive.ordinals.tolist()))
    assert seen[0] == [5, 9, 700]
    assert seen[1][:3] == [5, 9, 700]


def test_a_mirror_shows_every_trial_in_the_direction_people_read(tmp_path: Path) -> None:
    import optuna

    target = str(tmp_path / "trials.journal")
    objectives = [("step_time", False), ("memory", False)]
    kept: list[Archive] = []
    watching = mirror(target, "toy", objectives)

    def watch(archive: Archive) -> None:
        watching(archive)
        kept.append(archive)

    look("evolutionary", watch=watch)
    study = optuna.load_study(study_name="toy", storage=storage(target))
    assert len(study.trials) == len(kept[-1]) == 30
    assert [trial.values for trial in study.trials] == kept[-1].costs.tolist()
    fits = [all(value <= 0 for value in trial.constraints.values()) for trial in study.trials]
    assert fits == (kept[-1].violation <= 0).tolist()
    with pytest.raises(ValueError, match="holds a study called 'toy' already"):
        mirror(target, "toy", objectives)


def test_a_search_that_goes_on_goes_on_with_its_mirror(tmp_path: Path) -> None:
    import optuna

    target, store = str(tmp_path / "trials.journal"), Remembered(2)
    objectives = [("step_time", False), ("memory", False)]

    def cut() -> bool:
        return len(store.trials()) >= 20

    look("evolutionary", 45, store=store, watch=mirror(target, "toy", objectives, store.trials()), cancelled=cut)
    other = Trials(ordinals=store.trials().ordinals, costs=store.trials().costs + 1.0, violation=store.trials().violation)
    with pytest.raises(ValueError, match="already"):
        mirror(target, "toy", objectives, other)
    look("evolutionary", 45, store=store, watch=mirror(target, "toy", objectives, store.trials()))
    study = optuna.load_study(study_name="toy", storage=storage(target))
    assert [trial.values for trial in study.trials] == store.trials().costs.tolist()


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
def test_points_become_a_study(tmp_path: Path, kind: str) -> None:
    import optuna

    target = str(tmp_path / "study.journal") if kind == "journal" else f"sqlite:///{tmp_path / 'study.db'}"
    points = Studied(
        choices={"tensor": [1, 2, 4], "schedule": ["1f1b", "gpipe", "1f1b"], "rate": [0.5, 1.5, 2.5], "pipeline": [4, 4, 4]},
        values=np.array([[1.0, 5.0], [2.0, 4.0], [np.nan, 3.0]]),
        violation=np.array([-0.5, 0.25, -1.0]),
    )
    assert write_study(target, "plans", [("step_time", False), ("mfu", True)], points) == 3
    study = optuna.load_study(study_name="plans", storage=storage(target))
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]
    assert study.metric_names == ["step_time", "mfu"]
    assert study.trials[1].params == {"tensor": 2, "schedule": "gpipe", "rate": 1.5}
    assert [trial.number for trial in study.best_trials] == [0]  # the second is infeasible, the third failed
    assert study.trials[2].state.name == "FAIL"


def test_a_sampler_that_repeats_itself_is_not_said_to_have_spent_its_budget() -> None:
    def stubborn(archive: Archive, random: np.random.Generator) -> None:  # noqa: ARG001
        archive.evaluate(np.arange(3))

    result = sampled_search(toy_space(), Toy(), PROBLEM, (TIME, MEMORY), method=stubborn, budget=Budget(points=9))
    assert result.stopped == GAVE_UP
    result = sampled_search(toy_space(), Toy(), PROBLEM, (TIME, MEMORY), method=stubborn, budget=Budget(points=3))
    assert result.stopped == "sampled"


@pytest.mark.parametrize("url", ["nothing://x", "sqlite:////nonexistent/trials.db", "nothing://me:secret@there/x"])
def test_a_database_that_cannot_be_opened_is_told_without_its_password(url: str) -> None:
    with pytest.raises(ValueError, match="cannot be opened as a database of studies") as told:
        storage(url)
    assert "secret" not in str(told.value)


def test_a_file_that_is_no_journal_is_told_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text("kind: training\nmodel: x\n", encoding="utf-8")
    points = Studied(choices={"tensor": [1, 2]}, values=np.ones((2, 1)), violation=np.zeros(2))
    with pytest.raises(ValueError, match=r"experiment\.yaml is there and is no journal of studies"):
        write_study(str(file), "s", [("step_time", False)], points)
    assert file.read_text(encoding="utf-8") == "kind: training\nmodel: x\n"


def test_a_driver_that_is_not_installed_is_told_with_what_needs_none() -> None:
    with pytest.raises(ValueError, match=r"No module named .*install the driver, or write to sqlite:///"):
        storage("mssql+pymssql://there/x")


def test_a_journal_waits_for_the_disk_once_however_many_trials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import optuna

    synced: list[int] = []
    monkeypatch.setattr("os.fsync", synced.append)
    points = Studied(choices={"tensor": list(range(50))}, values=np.arange(50.0)[:, None], violation=np.zeros(50))
    for name in ("one", "two"):  # the second beside the first
        assert write_study(str(tmp_path / "t.journal"), name, [("step_time", False)], points) == 50
    assert len(synced) < 10
    for name in ("one", "two"):
        study = optuna.load_study(study_name=name, storage=storage(str(tmp_path / "t.journal")))
        assert [trial.values for trial in study.trials] == [[float(i)] for i in range(50)]
        assert [trial.number for trial in study.trials] == list(range(50))
