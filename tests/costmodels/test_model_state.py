"""Training state per device: the papers' tables, and the relations they follow from."""

import numpy as np
import pytest

from costmodels.model_state import ROLES, model_state_bytes, model_state_parts, state_widths
from costmodels.published import GIB, Fact, read_facts

ZERO_ROWS = [fact for fact in read_facts() if fact.metric == "model_state_memory"]


def printed_unit_in_last_place(text: str) -> float:
    """`31.4` -> 0.1, `4187` -> 1: the papers round some cells and cut others."""
    return 10.0 ** -len(text.partition(".")[2])


def test_the_zero_table_is_all_here() -> None:
    assert len(ZERO_ROWS) == 58


@pytest.mark.parametrize("fact", ZERO_ROWS, ids=lambda fact: fact.id)
def test_zero_tables_are_reproduced_to_their_rounding(fact: Fact) -> None:
    state = model_state_bytes(fact.parameters, int(fact.inputs["dp"]), int(fact.inputs["zero_stage"]))
    assert abs(float(state) / 1e9 - float(fact.printed_value)) < printed_unit_in_last_place(fact.printed_value)


def test_zero_rows_in_one_batch_equal_single_ones() -> None:
    parameters = np.array([fact.parameters for fact in ZERO_ROWS])
    data = np.array([int(fact.inputs["dp"]) for fact in ZERO_ROWS])
    stage = np.array([int(fact.inputs["zero_stage"]) for fact in ZERO_ROWS])
    singles = [float(model_state_bytes(*row)) for row in zip(parameters, data, stage, strict=True)]
    np.testing.assert_array_equal(model_state_bytes(parameters, data, stage), singles)
    assert model_state_bytes(np.array([]), np.array([]), 0).shape == (0,)


@pytest.mark.parametrize("fact", [f for f in read_facts() if f.metric == "parameter_memory"], ids=lambda fact: fact.id)
def test_megatron_state_of_korthikanti_figure_1(fact: Fact) -> None:
    layers, hidden, pp, tp = (int(fact.inputs[name]) for name in ("layers", "hidden", "pp", "tp"))
    per_device = 12 * hidden**2 * layers / (pp * tp)
    state = float(model_state_bytes(per_device, 1, 0, optimizer="megatron-bf16"))
    assert state / GIB == pytest.approx(fact.value, rel=1e-9)


@pytest.mark.parametrize(
    ("optimizer", "stage", "whole", "divided"),
    [
        ("adam-fp16", 0, 16, 0),
        ("adam-fp16", 1, 4, 12),
        ("adam-fp16", 2, 2, 14),
        ("adam-fp16", 3, 0, 16),
        ("megatron-bf16", 0, 18, 0),
        ("megatron-bf16", 1, 6, 12),
        ("fsdp-mixed", 3, 0, 16),
        ("adamw-bf16", 0, 8, 0),
        ("adamw-bf16", 3, 0, 8),
    ],
)
def test_bytes_per_parameter(optimizer: str, stage: int, whole: float, divided: float) -> None:
    data = np.array([1, 3, 8, 1024])
    np.testing.assert_allclose(model_state_bytes(1.0, data, stage, optimizer=optimizer), whole + divided / data)


def test_optimizer_sharding_follows_the_data_ranks() -> None:
    """On a fixed machine the divided state is the same whatever the split between tensor and data ranks.

    Dividing by data ranks alone what tensor ranks have divided already, or not dividing at all, breaks it.
    """
    parameters, devices = 7.5e9, 64
    tensor = np.array([1, 2, 4, 8, 16, 64])
    data = devices // tensor
    for optimizer in state_widths():
        for stage in (1, 2, 3):
            parts = model_state_parts(parameters / tensor, data, stage, optimizer=optimizer)
            widths = state_widths()[optimizer]
            for role in ROLES:
                whole = widths.bytes[role] * parameters
                sharded = widths.sharded_from[role] <= stage
                np.testing.assert_allclose(parts[role], whole / devices if sharded else whole / tensor)
    undivided = model_state_bytes(parameters, np.array([1, 8, 64]), 0)
    np.testing.assert_array_equal(undivided, undivided[0])


def test_more_sharding_never_needs_more_memory() -> None:
    stages = np.arange(4)
    for optimizer in state_widths():
        by_stage = model_state_bytes(1e9, 8, stages, optimizer=optimizer)
        assert (np.diff(by_stage) <= 0).all()
        np.testing.assert_array_equal(model_state_bytes(1e9, 1, stages, optimizer=optimizer), by_stage[0])


def test_parts_sum_to_the_whole() -> None:
    data, stage = np.array([[1], [4]]), np.arange(4)
    parts = model_state_parts(3e9, data, stage)
    assert set(parts) == set(ROLES)
    np.testing.assert_allclose(sum(parts.values()), model_state_bytes(3e9, data, stage))


def test_what_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="nearest is 'adam-fp16'"):
        model_state_bytes(1e9, 1, 0, optimizer="adam-fp61")
    with pytest.raises(ValueError, match="zero_stage"):
        model_state_bytes(1e9, 1, 4)
    with pytest.raises(ValueError, match="data"):
        model_state_bytes(1e9, 0, 1)
