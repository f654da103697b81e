"""What autocast adds to a block: bytes against counts by hand, nothing where parameters are sharded, and the measured steps."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from training_points import TINY, problem, whole

from costmodels.autocast import added, autocast
from costmodels.block import placed
from costmodels.block_table import graphs
from costmodels.constants import find_stack
from costmodels.measured_steps import measured_steps
from costmodels.model_state import optimizer_symbols
from costmodels.training import TrainingModel
from spaces.columns import Columns
from spaces.graph import MATRIX_KINDS
from spaces.plan import Precision

STACK = find_stack("torch-eager")


def symbols(**plan: int) -> dict[str, Any]:
    return {**problem(TINY, stack="torch-eager").scalars, **whole(**plan), **optimizer_symbols("fsdp-mixed")}


def test_each_weight_of_a_product_is_cast_once_each_way() -> None:
    """6 bytes a parameter to make a 16-bit copy forward, 6 to widen its gradient."""
    where, at = placed(symbols(), False)
    for graph in graphs(TINY, STACK.traits).layers.values():
        moved: dict[str, float] = defaultdict(float)
        owned = 0.0
        for op in graph.operators:
            if op.kind not in MATRIX_KINDS:
                continue
            owned += sum(float(graph.elements(dims, where).evaluate(at)) for dims in op.weights)
            for phase, _, traffic in added(graph, op, where, at, eager=False):
                moved[phase] += float(traffic)
        assert dict(moved) == pytest.approx({"forward": 6.0 * owned, "weight_gradient": 6.0 * owned})


def test_compiled_blocks_cast_no_more_than_eager_ones() -> None:
    where, at = placed(symbols(), False)
    for graph in graphs(TINY, STACK.traits).layers.values():
        bytes_of = [
            sum(float(moved) for op in graph.operators for _, _, moved in added(graph, op, where, at, eager=eager))
            for eager in (True, False)
        ]
        assert bytes_of[0] > bytes_of[1] > 0.0


@pytest.mark.parametrize(
    ("plan", "cast"), [({}, 1.0), ({"zero_stage": 3, "data": 2}, 0.0), ({"precision": Precision.FP32}, 0.0)]
)
def test_only_whole_fp32_parameters_in_a_16_bit_step_are_cast(plan: dict[str, int], cast: float) -> None:
    assert float(np.asarray(autocast(symbols(**plan)))) == cast


def test_steps_under_autocast_take_what_was_measured() -> None:
    """Counted from bytes, nothing fitted: half of the steps within 2.5 %, none off by 7 %."""
    asked = Columns.from_values({"recompute_layers": np.zeros(1, np.int64)})
    steps = [step for step in measured_steps() if "precision amp" in step.unusual and not step.host_bound]
    times = [float(TrainingModel().evaluate(step.problem(), asked).value["step_time"][0]) for step in steps]
    off = np.abs(np.array(times) / np.array([step.time for step in steps]) - 1.0)
    assert len(steps) > 30
    assert np.median(off) < 0.025
    assert off.max() < 0.07


def test_sharded_steps_that_wait_for_the_processor_take_what_was_measured() -> None:
    """Layers too short to hide what gathers and reductions cost the host."""
    asked = Columns.from_values({"recompute_layers": np.zeros(1, np.int64)})
    steps = [s for s in measured_steps() if s.kind == "fsdp" and s.host > 0.8 * s.time]
    times = np.array([float(TrainingModel().evaluate(s.problem(), asked).value["step_time"][0]) for s in steps])
    assert len(steps) >= 6
    assert np.abs(times / np.array([s.time for s in steps]) - 1.0).max() < 0.15
