"""The mistakes themselves: for each check of `test_mistakes`, ways to put its mistake back in this process.

Each takes pytest's monkeypatch and leaves the code as a tool that makes the mistake would have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from costmodels import block, block_table, data_parallel, measurements, pipeline, training
from costmodels.calibration import checks
from costmodels.metrics import Metrics
from dse import validation
from search.front import Objective, Points
from search.visiting import Task
from spaces import training as plans
from spaces import units
from spaces.space import Axis, Space
from spaces.training_axes.scope import axis_of

Patch = pytest.MonkeyPatch
Mutation = Callable[[Patch], None]


class _Instead:
    """A symbol table with some symbols replaced."""

    def __init__(self, at: Any, **symbols: Any) -> None:
        self._at, self._symbols = at, symbols

    def __getitem__(self, symbol: str) -> Any:
        return self._symbols[symbol] if symbol in self._symbols else self._at[symbol]


def _wrap(patch: Patch, module: Any, name: str, change: Callable[..., Any]) -> None:
    """Replace module.name by change(original, *arguments)."""
    original = getattr(module, name)
    patch.setattr(module, name, lambda *args, **kwargs: change(original, *args, **kwargs))


# ---- training -----------------------------------------------------------------------------------------------------------


def no_embedding_parameters(patch: Patch) -> None:
    def layers_only(original: Any, blocks: Any, combination: Any, counts: Any, *rest: Any) -> Any:
        dense = blocks.dense.copy()
        dense[counts.shape[0] :] = 0.0
        return original(replace(blocks, dense=dense), combination, counts, *rest)

    _wrap(patch, training, "stage_parameters", layers_only)


def no_head_flops(patch: Patch) -> None:
    def without_head(original: Any, model: Any, *rest: Any) -> Any:
        return original(replace(model, head=replace(model.head, operators=())), *rest)

    _wrap(patch, training, "convention_flops", without_head)


def no_bubble(patch: Patch) -> None:
    def busy_alone(original: Any, *args: Any) -> Any:
        timed = original(*args)
        return replace(timed, total=timed.busy, bubble=0 * timed.busy)

    _wrap(patch, pipeline, "pipeline_time", busy_alone)


def everything_in_one_domain(patch: Patch) -> None:
    patch.setattr(block, "worst_group", lambda size, *_: (np.asarray(size), np.ones_like(np.asarray(size))))


def latency_of_two_ranks(patch: Patch) -> None:
    def of_two(original: Any, kind: str, size: Any, ranks: Any, inside: Any, *links: Any) -> Any:
        return np.where(np.asarray(ranks) > 1, original(kind, size, np.minimum(ranks, 2), np.minimum(inside, 2), *links), 0.0)

    _wrap(patch, block, "collective_time", of_two)
    _wrap(patch, data_parallel, "collective_time", of_two)


def recompute_flops_many_times(patch: Patch) -> None:
    def more(original: Any, *args: Any) -> Any:
        found = original(*args)
        return replace(found, again=7.6 * found.again)

    _wrap(patch, training, "convention_flops", more)


def recompute_time_many_times(patch: Patch) -> None:
    def more(original: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        return replace(found, backward=found.backward + 6.6 * found.recompute, recompute=7.6 * found.recompute)

    _wrap(patch, block_table, "block_time", more)


def gather_without_zero(patch: Patch) -> None:
    def always(original: Any, at: Any, *args: Any) -> Any:
        found, sharded = original(at, *args), original(_Instead(at, zero_stage=1, shard_degree=0), *args)
        return replace(found, reduce=found.reduce + np.where(np.asarray(at["zero_stage"]) == 0, sharded.gather, 0.0))

    _wrap(patch, training, "data_parallel_time", always)


def optimizer_ignores_tensor(patch: Patch) -> None:
    def unsplit(original: Any, at: Any, *args: Any) -> Any:
        found = original(at, *args)
        return replace(found, optimizer=found.optimizer * at["tensor"])

    _wrap(patch, training, "state_memory", unsplit)


# ---- memory and units ---------------------------------------------------------------------------------------------------


def memory_last(patch: Patch) -> None:
    def nothing(_: Any, __: Any, points: Any) -> Metrics:
        return Metrics(n=points.n, value={})

    patch.setattr(training.TrainingModel, "bound", nothing)


def no_reserve(patch: Patch) -> None:
    def bare(original: Any, *args: Any) -> Any:
        found = original(*args)
        return replace(found, device=found.peak, overhead=0 * found.peak)

    _wrap(patch, training, "memory_use", bare)


def any_micro_batch(patch: Patch) -> None:
    """Microbatches that do not divide the batch, which is then rounded without a word."""

    def axis(_: Any) -> Axis:
        return Axis(name="micro_batch", symbols={"micro_batch": np.array([1, 3])}, rules=())

    patch.setattr(plans, "_AXES", tuple(axis if make.__name__ == "micro_batch" else make for make in plans._AXES))


def rounded_batch(patch: Patch) -> None:
    def up(original: Any, at: Any, step: Any, *rest: Any) -> Any:
        found = original(at, step, *rest)
        return {**found, "tokens_per_second": found["tokens_per_second"] * (1 + 0.1 * (np.asarray(at["data"]) > 1))}

    _wrap(patch, training, "_rates", up)


def energy_by(factor: float) -> Mutation:
    def mutation(patch: Patch) -> None:
        def scaled(original: Any, *args: Any) -> Any:
            return {name: factor * part for name, part in original(*args).items()}

        _wrap(patch, training, "energy", scaled)

    return mutation


def gigabytes_are_gibibytes(patch: Patch) -> None:
    patch.setitem(units._UNITS["B"], "GB", 2.0**30)  # type: ignore[index]


# ---- search -------------------------------------------------------------------------------------------------------------


def another_objective(patch: Patch) -> None:
    patch.setattr(Objective, "cost", lambda _, metrics, at: np.broadcast_to(metrics.value["memory"], (at.n,)))


def fewer_chips(patch: Patch) -> None:
    def without(scope: Any) -> Any:
        return axis_of("devices", scope.counts[:-1] or (1,))

    patch.setattr(plans, "_AXES", tuple(without if make.__name__ == "devices" else make for make in plans._AXES))


def saves_another_model(patch: Patch) -> None:
    from dse import run_folder

    def without(original: Any, run: Any, folder: Any, **rest: Any) -> None:
        original(run, folder, **rest)
        saved = folder / "experiment.yaml"
        text = saved.read_text(encoding="utf-8")
        saved.write_text(text.replace("llama-3.1-8b", "llama-3.2-1b"), encoding="utf-8")

    _wrap(patch, run_folder, "write", without)


def dies_on_a_bad_point(patch: Patch) -> None:
    def plain(self: Any, batch: Any, ordinals: Any, *_: Any) -> Any:
        metrics = self.model.evaluate(self.problem, batch)
        points = Points(columns=batch, metrics=metrics, costs=self.costs(metrics, batch), ordinals=ordinals)
        worst = np.max(np.array([*self.violations(metrics, batch).values()]), axis=0)
        return points, worst, []

    patch.setattr(Task, "evaluated", plain)


def many_evaluations(patch: Patch) -> None:
    original = Task.evaluated

    def again(self: Any, batch: Any, *rest: Any) -> Any:
        original(self, batch, *rest)
        return original(self, batch, *rest)

    patch.setattr(Task, "evaluated", again)


def the_same_points_again(patch: Patch) -> None:
    original = Space.batches

    def twice(self: Space, *args: Any) -> Iterator[Any]:
        for batch in original(self, *args):
            yield batch
            yield batch

    patch.setattr(Space, "batches", twice)


# ---- learning and running -----------------------------------------------------------------------------------------------


def errors_on_every_row(patch: Patch) -> None:
    patch.setattr(validation.Validation, "judged", property(lambda told: told.compared))


def errors_on_training_rows(patch: Patch) -> None:
    def swapped(original: Any, split: str = "calibration", **more: Any) -> Any:
        return original(split, **more)

    _wrap(patch, validation, "validate", swapped)


def remembered_by_name(patch: Patch) -> None:
    known: dict[str, Any] = {}
    original = block_table.graphs

    def by_name(architecture: Any, traits: Any) -> Any:
        return known.setdefault(architecture.name, original(architecture, traits))

    patch.setattr(block_table, "graphs", by_name)
    patch.setattr(training, "graphs", by_name)


def remembered_without_the_stack(patch: Patch) -> None:
    known: dict[Any, Any] = {}
    original = block_table.graphs

    def by_model(architecture: Any, traits: Any) -> Any:
        return known.setdefault(architecture, original(architecture, traits))

    patch.setattr(block_table, "graphs", by_model)
    patch.setattr(training, "graphs", by_model)


def any_measurement(patch: Patch) -> None:
    patch.setattr(checks, "refusals", lambda *_: [])


def copies_accepted(patch: Patch) -> None:
    patch.setattr(measurements, "_copied", lambda *_: [])
    patch.setattr(measurements, "_impossible", lambda *_: [])


MUTATIONS: Mapping[str, Mapping[str, Mutation]] = {
    "embedding_and_head_are_counted": {"no parameters": no_embedding_parameters, "no FLOPs": no_head_flops},
    "a_pipeline_fills_and_drains": {"no bubble": no_bubble},
    "tensor_parallelism_across_nodes_pays_the_network": {"one domain": everything_in_one_domain},
    "latency_grows_with_the_group": {"of two ranks": latency_of_two_ranks},
    "recomputation_is_one_more_forward_pass": {
        "FLOPs 7.6 times": recompute_flops_many_times,
        "time 7.6 times": recompute_time_many_times,
    },
    "parameters_are_gathered_under_zero_alone": {"always": gather_without_zero},
    "optimizer_state_is_split_by_tensor_and_data_ranks_alike": {"tensor ignored": optimizer_ignores_tensor},
    "what_does_not_fit_is_never_timed": {"memory last": memory_last},
    "a_device_is_never_filled_to_the_brim": {"no reserve": no_reserve},
    "every_plan_trains_the_batch_that_was_asked": {"any microbatch": any_micro_batch, "rounded": rounded_batch},
    "power_lies_between_idle_and_the_cap": {"a hundred times": energy_by(100.0), "a hundredth": energy_by(0.01)},
    "a_gigabyte_is_not_a_gibibyte": {"GB is GiB": gigabytes_are_gibibytes},
    "the_objective_searched_is_the_one_reported": {"memory instead": another_objective},
    "all_the_chips_are_tried": {"fewer": fewer_chips},
    "a_saved_experiment_runs_again": {"another model": saves_another_model},
    "one_bad_point_does_not_end_the_search": {"dies": dies_on_a_bad_point},
    "each_point_is_evaluated_once": {"again and again": many_evaluations, "drawn twice": the_same_points_again},
    "errors_are_reported_on_rows_nothing_was_fitted_on": {
        "on all rows": errors_on_every_row,
        "on training rows": errors_on_training_rows,
    },
    "what_is_remembered_is_keyed_by_what_it_was_made_from": {
        "by name": remembered_by_name,
        "without the stack": remembered_without_the_stack,
    },
    "impossible_and_copied_measurements_are_refused": {"any row": any_measurement, "copies": copies_accepted},
}
"""Ways to make each mistake, by the check that catches it."""
