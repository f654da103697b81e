"""Attention as a cascade: passes, buffers, and what length does to them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.machines.cascades import PASSES, attention_cost, attention_traffic, buffer_bytes, query_block
from spaces.hardware import find_accelerator

LENGTHS = np.array([256.0, 1024.0, 8192.0, 131072.0, 1048576.0])
CHIP = {name: values[0] for name, values in find_accelerator("H100").columns().items()}


def test_one_pass_needs_a_buffer_that_does_not_know_the_length() -> None:
    """FuseMax: the same at 1k and 1M tokens; FLAT: grows by the length once scores outweigh the rest."""
    fusemax, flat = (buffer_bytes(mapping, 128, LENGTHS, 128) for mapping in ("fusemax", "flat"))
    assert (fusemax == fusemax[0]).all()
    assert flat[-1] / flat[-2] == pytest.approx(8.0, rel=0.02)
    assert PASSES["fusemax"] == 1 < PASSES["flat"]


@given(
    st.sampled_from(sorted(PASSES)),
    st.floats(min_value=1e3, max_value=1e8),
    st.integers(1, 100_000),
    st.sampled_from([64, 128, 256]),
)
def test_the_query_block_is_the_largest_that_fits(mapping: str, size: float, keys: int, width: int) -> None:
    block = query_block(mapping, size, keys, width)
    if block > 0:
        assert buffer_bytes(mapping, block, keys, width) <= size
    assert buffer_bytes(mapping, block + 1, keys, width) > size


def test_traffic_by_mapping_in_closed_form() -> None:
    """Unfused moves the s² scores five times (write, read, write, read, write+read of three passes); fused moves none."""
    q = k = 4096.0
    ends = 2 * 2 * q * 128
    assert attention_traffic("unfused", q, k, 128, 1) == ends + 2 * 2 * k * 128 + 2 * q * k * 5
    assert attention_traffic("fusemax", q, k, 128, q) == ends + 2 * 2 * k * 128
    assert attention_traffic("fusemax", q, k, 128, 128) == ends + 2 * 2 * k * 128 * 32
    grouped = attention_traffic("fusemax", q, k, 128, 8 * q, heads=8, shared=8)
    assert grouped == 8 * ends + 2 * 2 * k * 128


def test_flat_matches_until_its_rows_outgrow_the_chip_and_then_spills() -> None:
    flat = attention_cost("flat", CHIP, 1, 64, LENGTHS, LENGTHS, 128, causal=1)
    fused = attention_cost("fusemax", CHIP, 1, 64, LENGTHS, LENGTHS, 128, causal=1)
    assert not flat.spilled[0]
    assert flat.spilled[-1]
    assert not fused.spilled.any()
    assert (fused.buffer <= CHIP["chip.l1_bytes"] + CHIP["chip.register_bytes"]).all()
    spilled = flat.spilled
    apart = attention_cost("unfused", CHIP, 1, 64, LENGTHS, LENGTHS, 128, causal=1)
    np.testing.assert_allclose(flat.time[spilled], apart.time[spilled])


@given(st.sampled_from([128.0, 2048.0, 65536.0]), st.sampled_from([64, 128]), st.sampled_from([1, 8]))
def test_fewer_passes_are_never_slower(length: float, width: int, shared: int) -> None:
    times = [
        attention_cost(mapping, CHIP, 2, 32, length, length, width, shared=shared).time
        for mapping in ("fusemax", "flat", "unfused")
    ]
    assert times[0] <= times[1] * (1 + 1e-9) <= times[2] * (1 + 1e-9) ** 2


def test_a_larger_buffer_lets_flat_hold_longer_rows() -> None:
    """The longest row that stays on chip grows with the buffer: the physical reason a larger one pays."""
    at = find_accelerator("H100").columns({"l1_bytes": np.array([2.0**18, 2.0**22, 2.0**26])})
    lengths = np.geomspace(256, 2**22, 60)
    held = [
        (~attention_cost("flat", {n: v[i] for n, v in at.items()}, 1, 8, lengths, lengths, 128).spilled).sum() for i in range(3)
    ]
    assert held[0] < held[1] < held[2]


def test_an_unknown_mapping_is_named() -> None:
    with pytest.raises(ValueError, match="fusemax"):
        buffer_bytes("flash9", 1, 1, 1)
