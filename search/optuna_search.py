"""Optuna's samplers as search methods, and runs as Optuna studies: the only module that imports Optuna.

A study here is a view. The archive (and the run store behind it) holds what was evaluated; the study is rebuilt from it, so a
search may go on where another stopped, or start from points that a cheaper model chose. Points are asked in batches. Every
trial is told with its greatest violation as a constraint; a plan that comes up again is told from memory; a plan that the
model's bounds rule out is told as infeasible and not evaluated.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from search.archive import Archive
from search.encoding import Encoding, encoding
from search.store import Trials
from spaces.columns import FloatArray, IntArray

if TYPE_CHECKING:
    import optuna

_ASKED = 6  # trials asked for one that is evaluated, at most: a sampler may insist on what is known
_PROVEN = "violation"  # the name of the constraint

Sampler = Callable[[int, int], "optuna.samplers.BaseSampler"]
"""(seed, objectives) -> sampler."""


def random(archive: Archive, generator: np.random.Generator) -> None:
    """Independent uniform levels of each axis."""
    _search(archive, generator, lambda seed, _: _samplers().RandomSampler(seed=seed), batch=256)


def qmc(archive: Archive, generator: np.random.Generator) -> None:
    """A scrambled Sobol sequence over the axes."""
    _search(
        archive,
        generator,
        lambda seed, _: _samplers().QMCSampler(
            scramble=True, seed=seed, warn_independent_sampling=False, warn_asynchronous_seeding=False
        ),
        batch=256,
    )


def tpe(archive: Archive, generator: np.random.Generator) -> None:
    """Tree-structured Parzen estimator: multivariate, with a constant liar for the trials of a batch."""
    _search(
        archive,
        generator,
        lambda seed, _: _samplers().TPESampler(multivariate=True, constant_liar=True, seed=seed),
        batch=16,
    )


def nsga2(archive: Archive, generator: np.random.Generator) -> None:
    """NSGA-II; the population is an eighth of the budget, 8 to 50."""
    size = _population(archive)
    _search(
        archive, generator, lambda seed, _: _samplers().NSGAIISampler(population_size=size, seed=seed), batch=size
    )


def nsga3(archive: Archive, generator: np.random.Generator) -> None:
    """NSGA-III; the population is an eighth of the budget, 8 to 50."""
    size = _population(archive)
    _search(
        archive, generator, lambda seed, _: _samplers().NSGAIIISampler(population_size=size, seed=seed), batch=size
    )


def gp(archive: Archive, generator: np.random.Generator) -> None:
    """Gaussian process with expected (hypervolume) improvement. Raises ValueError without torch."""
    if find_spec("torch") is None:
        raise ValueError("the search method 'gp' needs PyTorch, which is not installed: pip install torch, or use 'tpe'")
    _search(
        archive,
        generator,
        lambda seed, _: _samplers().GPSampler(seed=seed, deterministic_objective=True, warn_independent_sampling=False),
        batch=4,
    )


def cmaes(archive: Archive, generator: np.random.Generator) -> None:
    """CMA-ES. Raises ValueError for several objectives, and without the package cmaes."""
    objectives = archive.costs.shape[1]
    if objectives > 1:
        raise ValueError(f"the search method 'cmaes' takes one objective, not {objectives}; use 'evolutionary' or 'nsga2'")
    if find_spec("cmaes") is None:
        raise ValueError("the search method 'cmaes' needs the package cmaes: pip install 'frontplan[cmaes]'")
    _search(
        archive,
        generator,
        lambda seed, _: _samplers().CmaEsSampler(seed=seed, with_margin=True, warn_independent_sampling=False),
        batch=16,
        constrained=False,
    )


def _population(archive: Archive) -> int:
    return int(np.clip(archive.most // 8, 8, 50))


def _samplers() -> Any:
    import optuna

    return optuna.samplers


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna says nothing and its marks of experimental features are no warnings, until the end of the block."""
    import optuna

    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def _search(
    archive: Archive, generator: np.random.Generator, sampler: Sampler, *, batch: int, constrained: bool = True
) -> None:
    """Ask, evaluate and tell in batches until the budget is spent or the sampler brings nothing new.

    A sampler that is not `constrained` knows nothing of violations: they make its costs worse than any feasible one.
    """
    import optuna

    coded = encoding(archive.ranking)
    if not archive.ranking.size:
        return
    if not coded.axes:
        archive.evaluate(np.zeros(1, np.int64))
        return
    seed = int(generator.integers(1 << 31))
    objectives = archive.costs.shape[1]
    with _quiet():
        study = optuna.create_study(directions=["minimize"] * objectives, sampler=sampler(seed, objectives))
        study.add_trials(trials_of(archive, coded, 0, constrained))
        ranges = _ranges(coded)
        asked = 0
        while archive.left > 0 and asked < _ASKED * archive.most + batch:
            trials = [study.ask(ranges) for _ in range(min(batch, archive.left))]
            asked += len(trials)
            ordinals = coded.decode(np.array([[trial.params[name] for name in coded.names] for trial in trials]))
            rows = np.full(len(ordinals), -1)
            known = archive.known(ordinals)
            out = np.zeros(len(ordinals), np.bool_)
            out[~known] = archive.rule_out(ordinals[~known])
            rows[~out] = archive.evaluate(ordinals[~out])
            _tell(study, archive, trials, ordinals, rows, out, constrained)


def _tell(
    study: optuna.Study,
    archive: Archive,
    trials: Sequence[optuna.Trial],
    ordinals: IntArray,
    rows: IntArray,
    ruled_out: Any,
    constrained: bool,
) -> None:
    """Tell each trial's costs and violation; a plan ruled out has the worst costs seen and the violation that is proven."""
    import optuna

    worst = _worst(archive.costs)
    proven = archive.proven(ordinals[ruled_out])
    places = np.cumsum(ruled_out) - 1
    for i, trial in enumerate(trials):
        row = rows[i]
        if not ruled_out[i] and (row < 0 or not np.isfinite(archive.costs[row]).all()):
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            continue
        violation = float(proven[places[i]]) if ruled_out[i] else _constraint(archive.violation[row])
        if constrained:
            trial.set_constraint(_PROVEN, violation)
            study.tell(trial, worst if ruled_out[i] else archive.costs[row].tolist())
        else:
            study.tell(trial, _penalised(archive.costs[row], violation, worst))


def _penalised(costs: FloatArray, violation: float, worst: list[float]) -> list[float]:
    """Costs, or where a constraint is violated worse ones than any seen, the more so the greater the violation."""
    if violation <= 0:
        return [float(cost) for cost in costs]
    return [most + (abs(most) or 1.0) * violation for most in worst]


def _constraint(violation: float) -> float:
    """A violation as Optuna takes it: finite."""
    return float(np.clip(violation, -1.0, 1e9))


def _worst(costs: FloatArray) -> list[float]:
    """The greatest finite cost of each objective, 0 where there is none."""
    finite = np.where(np.isfinite(costs), costs, np.nan)
    return [float(np.nanmax(column)) if np.isfinite(column).any() else 0.0 for column in finite.T]


def _ranges(coded: Encoding) -> dict[str, optuna.distributions.BaseDistribution]:
    """The integers of every axis."""
    import optuna

    whole = optuna.distributions.IntDistribution
    return {name: whole(0, levels - 1) for name, levels in zip(coded.names, coded.levels, strict=True)}


def trials_of(
    archive: Archive, coded: Encoding, start: int, constrained: bool = True
) -> list[optuna.trial.FrozenTrial]:
    """The archive's points from row `start` on as finished trials; those that failed are failed trials."""
    import optuna

    ranges = _ranges(coded)
    integers = coded.encode(archive.ordinals[start:]).tolist()
    states = optuna.trial.TrialState
    worst = _worst(archive.costs)
    found = []
    for row, values in enumerate(integers, start):
        violation = _constraint(archive.violation[row])
        costs = archive.costs[row].tolist() if constrained else _penalised(archive.costs[row], violation, worst)
        sound = bool(np.isfinite(archive.costs[row]).all())
        found.append(
            optuna.trial.create_trial(
                state=states.COMPLETE if sound else states.FAIL,
                values=costs if sound else None,
                params=dict(zip(coded.names, values, strict=True)),
                distributions=ranges,
                constraints={_PROVEN: violation} if sound and constrained else None,
            )
        )
    return found


# --- studies that people open --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Studied:
    """n points to be read in a study: `choices[name]` is one value (a number or a word) per point, `values` (n, objectives) the
    objectives as people read them, `violation` (n,) at most 0 where feasible; rows with values that are not finite failed."""

    choices: Mapping[str, Sequence[Any]]
    values: FloatArray
    violation: FloatArray


def write_study(target: str, name: str, objectives: Sequence[tuple[str, bool]], points: Studied) -> int:
    """Write points as a study into a journal file or an RDB URL; how many trials were written.

    `objectives` are (name, whether it is maximised). Numbers become integer or float parameters, words categories. Raises
    ValueError when the target holds a study of that name already.
    """
    import optuna

    states = optuna.trial.TrialState
    ranges = {choice: _distribution(values) for choice, values in points.choices.items() if len(set(values)) > 1}
    with _quiet():
        _created(target, name, objectives)
        trials = []
        for row in range(len(points.values)):
            sound = bool(np.isfinite(points.values[row]).all())
            trials.append(
                optuna.trial.create_trial(
                    state=states.COMPLETE if sound else states.FAIL,
                    values=points.values[row].tolist() if sound else None,
                    params={choice: points.choices[choice][row] for choice in ranges},
                    distributions=ranges,
                    constraints={_PROVEN: _constraint(points.violation[row])} if sound else None,
                )
            )
        with _at_once(target) as opened:
            optuna.load_study(study_name=name, storage=opened).add_trials(trials)
    return len(trials)


@contextmanager
def _at_once(target: str) -> Iterator[optuna.storages.BaseStorage]:
    """A storage whose records go to disk together when the block ends, where it is a journal: a journal waits for the disk at
    every record. Nobody else's records are seen meanwhile, so that it is of no use afterwards."""
    import optuna
    from optuna.storages.journal import BaseJournalBackend, JournalFileBackend

    class Held(BaseJournalBackend):
        def __init__(self) -> None:
            self.file, self.before = JournalFileBackend(target), 0
            self.records: list[dict[str, Any]] = []

        def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
            if not self.before:
                found = list(self.file.read_logs(log_number_from))
                self.before = log_number_from + len(found)
                return found
            return self.records[log_number_from - self.before :]

        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            self.records += logs

    if "://" in target:
        yield storage(target)
        return
    held = Held()
    yield optuna.storages.JournalStorage(held)
    held.file.append_logs(held.records)


def mirror(
    target: str, name: str, objectives: Sequence[tuple[str, bool]], record: Trials | None = None
) -> Callable[[Archive], None]:
    """A listener that writes every batch of an archive into a new study as it comes, for `optuna-dashboard` to watch.

    A search that goes on goes on with its study: one whose trials are the first of the `record`. Raises ValueError when the
    target holds another study of that name.
    """
    signs = np.array([-1.0 if maximise else 1.0 for _, maximise in objectives])
    with _quiet():
        study = _begun(target, name, record.costs * signs) if record is not None else None
        study = study or _created(target, name, objectives)
        written = [len(study.trials)]

    def told(archive: Archive) -> None:
        coded = encoding(archive.ranking)
        with _quiet():
            trials = trials_of(archive, coded, written[0])
            for trial in trials:
                if trial.values is not None:
                    trial.values = (np.array(trial.values) * signs).tolist()
            study.add_trials(trials)
        written[0] = max(written[0], len(archive))

    return told


def _begun(target: str, name: str, values: FloatArray) -> optuna.Study | None:
    """The study of that name in a storage, if its trials are the first of some values (n, objectives)."""
    import optuna

    try:
        study = optuna.load_study(study_name=name, storage=storage(target))
    except KeyError:
        return None
    told = study.trials
    same = len(told) <= len(values) and all(
        trial.values is None or np.allclose(trial.values, value) for trial, value in zip(told, values, strict=False)
    )
    return study if same else None


def _created(target: str, name: str, objectives: Sequence[tuple[str, bool]]) -> optuna.Study:
    """A new study in a storage."""
    import optuna

    ways = optuna.study.StudyDirection
    directions = [ways.MAXIMIZE if maximise else ways.MINIMIZE for _, maximise in objectives]
    try:
        study = optuna.create_study(study_name=name, storage=storage(target), directions=directions)
    except optuna.exceptions.DuplicatedStudyError:
        raise ValueError(f"{target} holds a study called '{name}' already: write to another file, or remove it") from None
    study.set_metric_names([metric for metric, _ in objectives])
    return study


def storage(target: str) -> optuna.storages.BaseStorage:
    """An RDB URL (`sqlite:///trials.db`), or a journal file by its path. No connection outlives its use. ValueError where no
    database answers, or the driver for it is not installed."""
    import optuna
    from optuna.storages.journal import JournalFileBackend

    if "://" in target:
        from sqlalchemy.exc import SQLAlchemyError
        from sqlalchemy.pool import NullPool

        try:
            return optuna.storages.RDBStorage(target, engine_kwargs={"poolclass": NullPool})
        except (ImportError, SQLAlchemyError) as error:
            told = next(iter(str(error.__cause__ or error).strip().splitlines()), type(error).__name__)
            if isinstance(error.__cause__ or error, ImportError):
                told += "; install the driver, or write to sqlite:///trials.db or to a file, trials.journal"
            raise ValueError(f"{_without_password(target)} cannot be opened as a database of studies: {told}") from None
    try:
        return optuna.storages.JournalStorage(JournalFileBackend(target))
    except (ValueError, LookupError, TypeError):  # a file's lines are read as records at once
        raise ValueError(f"{target} is there and is no journal of studies: write to another file, or remove it") from None


def _without_password(url: str) -> str:
    """A database's address as it may be shown."""
    return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)


def _distribution(values: Sequence[Any]) -> Any:
    """The range of a choice: whole numbers, numbers or words."""
    import optuna

    distributions = optuna.distributions
    if all(isinstance(value, int) for value in values):
        return distributions.IntDistribution(min(values), max(values))
    if all(isinstance(value, int | float) for value in values):
        return distributions.FloatDistribution(float(min(values)), float(max(values)))
    return distributions.CategoricalDistribution(tuple(dict.fromkeys(values)))
