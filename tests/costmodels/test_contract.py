"""What every cost model promises, as a class that its tests join with one fixture.

    class TestMyModel(CostModelContract):
        @pytest.fixture
        def case(self) -> Case:
            return Case(MyModel(), problem, columns)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from training_points import OLD, SPARSE, TINY, device_values, problem, whole

from costmodels.metrics import MAXIMISED, CostModel, Metrics
from costmodels.training import TrainingModel
from spaces.architecture import find
from spaces.columns import Columns
from spaces.plan import PLAN_SYMBOLS, Recompute, Schedule
from spaces.problem import Problem

EXACT = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A model, and a problem and points to put to it.

    `columns` bind as many symbols as can be axes: plan, workload and hardware; feasible points and points that do not fit.
    `beside` are the beginnings of the names of scalars that a model may read without listing them; `rich` is the row of a
    point in which as many choices as can be are not neutral.
    """

    model: CostModel
    problem: Problem
    columns: Columns
    beside: tuple[str, ...] = ()
    rich: int = 0


class CostModelContract:
    """Joined by subclassing with a fixture `case`."""

    @pytest.fixture
    def case(self) -> Case:
        raise NotImplementedError("a model joins the contract with a fixture `case`")

    def test_it_is_a_cost_model(self, case: Case) -> None:
        assert isinstance(case.model, CostModel)

    def test_the_case_is_worth_testing(self, case: Case) -> None:
        """Points that fit and points that do not, and more than a handful."""
        worst = np.max(np.stack(list(case.model.evaluate(case.problem, case.columns).violation.values())), axis=0)
        assert case.columns.n >= 8
        assert (worst <= 0).any()
        assert (worst > 0).any()

    def test_same_points_same_bytes(self, case: Case) -> None:
        for ask in _verbs(case):
            first, second = dict(_arrays(ask(case.columns))), dict(_arrays(ask(case.columns)))
            assert first.keys() == second.keys()
            for name, values in first.items():
                assert values.tobytes() == second[name].tobytes(), name

    def test_points_are_left_as_they_were(self, case: Case) -> None:
        before = {symbol: case.columns[symbol].copy() for symbol in case.columns.levels}
        scalars = dict(case.problem.scalars)
        for ask in _verbs(case):
            ask(case.columns)
        assert scalars == dict(case.problem.scalars)
        for symbol, values in before.items():
            np.testing.assert_array_equal(case.columns[symbol], values)

    def test_no_points_no_rows(self, case: Case) -> None:
        full = case.model.evaluate(case.problem, case.columns)
        none = case.model.evaluate(case.problem, case.columns.take(slice(0, 0)))
        assert none.n == 0
        assert set(none.value) == set(full.value)
        assert dict(_arrays(none)).keys() == dict(_arrays(full)).keys()
        for name, values in (*_arrays(none), *_arrays(case.model.bound(case.problem, case.columns.take(slice(0, 0))))):
            assert values.shape == (0,), name

    def test_every_figure_has_a_row_per_point(self, case: Case) -> None:
        for ask in _verbs(case):
            metrics = ask(case.columns)
            assert metrics.n == case.columns.n
            for name, values in _arrays(metrics):
                assert values.shape == (case.columns.n,), name
                assert np.isfinite(values).all(), name

    def test_a_row_does_not_know_its_neighbours(self, case: Case) -> None:
        order = np.random.default_rng(0).permutation(case.columns.n)
        for ask in _verbs(case):
            together = dict(_arrays(ask(case.columns)))
            _agree({name: values[order] for name, values in together.items()}, dict(_arrays(ask(case.columns.take(order)))))
            for i in range(0, case.columns.n, 3):
                alone = dict(_arrays(ask(case.columns.take(slice(i, i + 1)))))
                _agree({name: values[i : i + 1] for name, values in together.items()}, alone)

    def test_rows_taken_from_the_answer_are_the_answer_for_the_rows(self, case: Case) -> None:
        rows = np.array([5, 0, 3])
        for ask in _verbs(case):
            _agree(dict(_arrays(ask(case.columns).take(rows))), dict(_arrays(ask(case.columns.take(rows)))))

    def test_bounds_are_optimistic(self, case: Case) -> None:
        bound, exact = (ask(case.columns) for ask in _verbs(case))
        assert bound.value or bound.violation
        for name, values in bound.value.items():
            limit = exact.value[name]
            slack = 1e-9 * np.abs(limit)
            assert (values >= limit - slack if name in MAXIMISED else values <= limit + slack).all(), name
        for name, values in bound.violation.items():
            assert (values <= exact.violation[name] + 1e-9).all(), name

    def test_parts_sum_to_the_value(self, case: Case) -> None:
        metrics = case.model.evaluate(case.problem, case.columns)
        assert metrics.parts
        for name, parts in metrics.parts.items():
            np.testing.assert_allclose(sum(parts.values()), metrics.value[name], rtol=1e-9, err_msg=name)

    def test_intervals_hold_their_value(self, case: Case) -> None:
        metrics = case.model.evaluate(case.problem, case.columns)
        for name, value in metrics.value.items():
            assert (metrics.low[name] <= value * (1 + EXACT)).all(), name
            assert (metrics.high[name] >= value * (1 - EXACT)).all(), name

    def test_symbols_as_columns_equal_as_many_scalar_problems(self, case: Case) -> None:
        """Every symbol the points bind, bound by the problem instead."""
        for i in range(case.columns.n):
            row = case.columns.row(i)
            bound = replace(case.problem, scalars={**case.problem.scalars, **row})
            nothing = Columns(n=1, codes={}, levels={})
            for verb, together in zip(("bound", "evaluate"), _verbs(case), strict=True):
                alone = getattr(case.model, verb)(bound, nothing)
                _agree({name: values[i : i + 1] for name, values in _arrays(together(case.columns))}, dict(_arrays(alone)))

    def test_any_symbol_may_be_a_column_or_a_scalar(self, case: Case) -> None:
        """Three equal rows: each symbol of `reads` alone in the columns, and random halves of all that the points bind."""
        row = case.columns.take(slice(case.rich, case.rich + 1)).row(0)
        bound = replace(case.problem, scalars={**case.problem.scalars, **row})
        expected = dict(_arrays(case.model.evaluate(case.problem, case.columns.take(np.full(3, case.rich)))))
        random = np.random.default_rng(0)
        halves = [[name for name in row if random.random() < 0.5] for _ in range(4)]
        for chosen in (*([name] for name in row if name in case.model.reads), *halves):
            others = replace(bound, scalars={name: v for name, v in bound.scalars.items() if name not in chosen})
            found = case.model.evaluate(others, Columns.from_values({name: np.full(3, row[name]) for name in chosen}))
            _agree(expected, dict(_arrays(found)), ", ".join(chosen))

    def test_reads_names_what_is_looked_at(self, case: Case) -> None:
        """Every symbol asked for is listed, or is a scalar of a family that the case excepts."""
        asked: set[str] = set()
        nothing = Columns(n=1, codes={}, levels={})
        for i in range(0, case.columns.n, 3):
            scalars = _Recorder({**case.problem.scalars, **case.columns.row(i)}, asked)
            watched = replace(case.problem, scalars=scalars)
            case.model.bound(watched, nothing)
            case.model.evaluate(watched, nothing)
        hidden = {name for name in asked if name not in case.model.reads and not name.startswith(case.beside)}
        assert not hidden, f"looked at without being in `reads`: {', '.join(sorted(hidden))}"
        assert case.model.reads <= asked, f"in `reads` and never looked at: {', '.join(sorted(case.model.reads - asked))}"

    def test_an_infeasible_point_is_told_not_raised(self, case: Case) -> None:
        metrics = case.model.evaluate(case.problem, case.columns)
        assert metrics.violation
        broken = np.any([values > 0 for values in metrics.violation.values()], axis=0)
        assert all(np.isfinite(values[broken]).all() for values in metrics.value.values())


class _Recorder(Mapping[str, Any]):
    """Scalars that write down which of them were asked for."""

    def __init__(self, scalars: Mapping[str, Any], asked: set[str]) -> None:
        self._scalars, self._asked = scalars, asked

    def __getitem__(self, symbol: str) -> Any:
        value = self._scalars[symbol]
        self._asked.add(symbol)
        return value

    def __contains__(self, symbol: object) -> bool:
        return symbol in self._scalars

    def __iter__(self) -> Any:
        return iter(self._scalars)

    def __len__(self) -> int:
        return len(self._scalars)


def _verbs(case: Case) -> tuple[Callable[[Columns], Metrics], Callable[[Columns], Metrics]]:
    """`bound` and `evaluate` of the case's model on its problem."""
    return (lambda points: case.model.bound(case.problem, points)), (lambda points: case.model.evaluate(case.problem, points))


def _arrays(metrics: Metrics) -> Iterable[tuple[str, NDArray[Any]]]:
    """Every array of an answer under its path."""
    for family in ("value", "low", "high", "violation"):
        for name, values in getattr(metrics, family).items():
            yield f"{family}.{name}", values
    for metric, parts in metrics.parts.items():
        for name, values in parts.items():
            yield f"parts.{metric}.{name}", values
    if metrics.evidence is not None:
        yield "evidence", metrics.evidence


def _agree(expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]], about: str = "") -> None:
    """Equal to 1e-12 of the value; a part to 1e-12 of the metric it is a part of."""
    assert expected.keys() == found.keys()
    for path, values in expected.items():
        family, metric = [*path.split("."), ""][:2]
        scale = np.abs(expected[f"value.{metric}"]) if family == "parts" else np.maximum(np.abs(values), family == "violation")
        off = np.abs(values - found[path]) > EXACT * scale
        assert not off.any(), f"{about} {path}: {values[off]} against {found[path][off]}"


# ---- the training step --------------------------------------------------------------------------------------------------

DEVICES = ["A100-80GB-SXM", "H100-80GB-SXM", "B200-180GB-SXM"]
PLANS = [
    whole(),
    whole(data=8, zero_stage=1),
    whole(data=4, context=2, zero_stage=3, micro_batch=2),
    whole(tensor=4, data=2, sequence_parallel=1, recompute=Recompute.SELECTIVE),
    whole(tensor=2, pipeline=2, data=2, recompute=Recompute.FULL, rank_order=1, zero_stage=1, offload=1),
    whole(pipeline=4, virtual=2, micro_batch=2, stage_layout=0),
    whole(pipeline=4, schedule=Schedule.ZERO_BUBBLE, data=2, precision=3),
    whole(pipeline=2, schedule=Schedule.GPIPE, recompute=Recompute.FIRST_K, recompute_layers=2, data=3),
    whole(pipeline=2, schedule=Schedule.DUALPIPE, data=2, micro_batch=4, zero_stage=2),
    whole(tensor=8, data=8, zero_stage=3, shard_degree=4, sequence_parallel=1, precision=0),
    whole(data=2, trainable=1, micro_batch=4, precision=1),
    whole(tensor=2, pipeline=3, data=2, stage_layout=1, sequence_parallel=1),
]


def training_case(architecture: Any, stack: str, **every: int) -> Case:
    """Plans of every sort on three devices, with sequence, global batch, device and the whole plan as columns."""
    n = len(PLANS)
    rows = [{**plan, **every} for plan in PLANS]
    values: dict[str, NDArray[Any]] = {symbol: np.array([row[symbol] for row in rows]) for symbol in PLAN_SYMBOLS}
    codes = np.arange(n) % len(DEVICES)
    values |= device_values(DEVICES, stack, codes)
    values["device.memory_capacity"] = np.where(np.arange(n) % 4 == 1, 1e9, values["device.memory_capacity"])
    values["sequence"] = np.where(np.arange(n) % 2, 2048, 4096)
    values["global_batch"] = np.where(np.arange(n) % 5, 96, 48)
    left = frozenset(values) - {"sequence", "global_batch"}
    return Case(
        TrainingModel(),
        problem(architecture, stack=stack, without=left | {"sequence", "global_batch"}),
        Columns.from_values(values),
        rich=4,
        beside=("device", "kernel.", "link.", "stack.", "optimizer.", "generation", *problem(architecture).scalars),
    )


class TestTrainingOfDenseModels(CostModelContract):
    @pytest.fixture
    def case(self) -> Case:
        return training_case(TINY, "torchtitan-eager")


class TestTrainingOfUnfusedModels(CostModelContract):
    @pytest.fixture
    def case(self) -> Case:
        return training_case(OLD, "megatron-2022")


class TestTrainingOfExperts(CostModelContract):
    @pytest.fixture
    def case(self) -> Case:
        return training_case(SPARSE, "megatron", expert=1)


def test_model_shape_may_be_a_column() -> None:
    """The width of the MLP and the vocabulary as axes: n scalar problems in one."""
    widths, vocabularies = np.array([4096, 8192, 6144]), np.array([32_000, 64_000, 128_000])
    bare = problem(TINY, without=frozenset({"ffn", "vocab"}))
    plan = whole(tensor=2, pipeline=2, data=2)
    columns = {symbol: np.full(3, value) for symbol, value in plan.items()} | {"ffn": widths, "vocab": vocabularies}
    together = TrainingModel().evaluate(bare, Columns.from_values(columns))
    for i, (ffn, vocab) in enumerate(zip(widths.tolist(), vocabularies.tolist(), strict=True)):
        shaped = problem(TINY.with_dimensions(ffn=ffn, vocab=vocab))
        alone = TrainingModel().evaluate(shaped, Columns.from_values({name: np.array([v]) for name, v in plan.items()}))
        for name in ("step_time", "memory", "energy", "mfu"):
            assert together.value[name][i] == pytest.approx(alone.value[name][0], rel=EXACT), name


def test_latent_attention_and_windows_join_too() -> None:
    """DeepSeek-V2-Lite and Gemma 3: finite, positive, parts that sum."""
    for name in ("deepseek-v2-lite", "gemma-3-4b", "gpt-oss-20b"):
        plan = whole(tensor=2, data=4, sequence_parallel=1)
        asked = problem(find(name))
        metrics = TrainingModel().evaluate(asked, Columns.from_values({k: np.array([v]) for k, v in plan.items()}))
        assert metrics.value["step_time"][0] > 0
        for metric, parts in metrics.parts.items():
            assert sum(parts.values()) == pytest.approx(metrics.value[metric], rel=1e-9)
