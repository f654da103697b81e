"""Ring attention that passes keys and values on, and PyTorch's that gathers them: bytes, what hides, what merging moves."""

import numpy as np
import pytest
from training_points import TINY, problem, step

from costmodels.context import exchanged, merging

RING = {
    "context": np.array([2, 4, 8]), "heads": 16, "kv_heads": 4, "stack.overlap.context": 1.0,
    "stack.context.gathers": 0, "stack.context.repeats": 0, "stack.context.gradient_bytes": 2,
    "stack.context.merge_forward": 0, "stack.context.merge_backward": 0,
}  # fmt: skip
TORCH = RING | {"stack.context.gathers": 1, "stack.context.repeats": 1, "stack.context.gradient_bytes": 4}


def cost(_: str, size: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A second a byte that a rank sends: (n − 1)/n of the tensor for either collective."""
    sent = np.asarray(size * (RING["context"] - 1) / RING["context"])
    return sent, sent, 0.0 * sent


@pytest.mark.parametrize("backward", [False, True])
def test_a_ring_hides_behind_all_of_the_attention(backward: bool) -> None:
    time, hidden, inner, _ = exchanged(RING, 100.0, 40.0, backward=backward, cost=cost)
    assert np.allclose(time, cost("", 100.0)[0])
    assert np.allclose(hidden, 20.0)  # keys and values have half of it each
    assert np.allclose(inner, time)


def test_what_is_gathered_once_hides_behind_the_first_chunk() -> None:
    time, hidden, *_ = exchanged(TORCH, 100.0, 40.0, backward=False, cost=cost)
    assert np.allclose(time, 4 * cost("", 100.0)[0])  # all 16 heads, of the 4 that are computed
    assert np.allclose(hidden, 20.0 / RING["context"])


def test_gradients_go_all_the_way_round_in_fp32() -> None:
    time, _, inner, _ = exchanged(TORCH, 100.0, 0.0, backward=True, cost=cost)
    again = 4 * cost("", 100.0)[0]
    assert np.allclose(time - again, 4 * 2 * 100.0)  # heads, width; context steps of 1/context each
    assert np.allclose(inner, time)


def test_merging_grows_with_the_steps_after_the_first() -> None:
    moved = merging(TORCH | {"stack.context.merge_forward": 46}, 10.0, backward=False)
    assert np.allclose(moved, 46 * 10.0 * (RING["context"] - 1))
    assert not merging(TORCH | {"context": 1, "stack.context.merge_forward": 46}, 10.0, backward=False)


def test_compiled_and_eager_steps_pay_for_it() -> None:
    for stack in ("torchtitan-eager", "torchtitan-compile"):
        plan = {"context": 4, "zero_stage": 3}
        free = {f"stack__context__{name}": 0.0 for name in ("gathers", "repeats", "merge_forward", "merge_backward")}
        ring = {**free, "stack__context__gradient_bytes": 2.0}
        asked = {"sequence": 65_536, "global_batch": 4}
        assert step(problem(TINY, stack=stack, **asked), **plan) > step(problem(TINY, stack=stack, **asked, **ring), **plan)
