"""Designs against the part they descend from: nothing changed, nothing moves; arrays and buffers move what they must."""

import itertools

import numpy as np
import pytest

from costmodels.kernel_models.dataflow import Dataflow
from costmodels.kernel_models.roofline import Roofline
from costmodels.kernel_models.symbols import kernel_symbols
from costmodels.machines.relative import attention_factors, base_symbols, changed, product_factors
from spaces.hardware import find_accelerator, find_device

SHAPES = {"m": np.array([16.0, 512.0, 8192.0]), "n": np.full(3, 8192.0), "k": np.full(3, 8192.0)}
ATTENTION = {
    "batch": np.ones(2), "heads": np.full(2, 32.0), "kv_heads": np.full(2, 8.0), "q_len": np.array([512.0, 16384.0]),
    "kv_len": np.array([512.0, 16384.0]), "head_dim": np.full(2, 128.0),
}  # fmt: skip


def design(name: str = "H100", **changes: float) -> dict[str, float]:
    """Symbols of one design: the base's kernel constants, its own chip and rates, and its base."""
    base = find_accelerator(name)
    own = {symbol: float(values[0]) for symbol, values in base.columns(changes).items()}
    return kernel_symbols(find_device(base.device)) | own | base_symbols(base)


def test_an_unchanged_design_is_its_base() -> None:
    at = design()
    assert not changed(at)
    assert product_factors(at, 100.0, 200.0, 300.0) == (1.0, 1.0)
    for op, shapes in (("gemm", SHAPES), ("attention_prefill", ATTENTION)):
        np.testing.assert_array_equal(Dataflow().predict(op, shapes, at).value, Roofline().predict(op, shapes, at).value)


def test_a_device_without_arrays_is_the_roofline() -> None:
    at = kernel_symbols(find_device("A100"))
    np.testing.assert_array_equal(Dataflow().predict("gemm", SHAPES, at).value, Roofline().predict("gemm", SHAPES, at).value)


def test_more_cores_leave_small_products_behind() -> None:
    """Twice the cores double the peak; a product of few tiles cannot use them, a large one can."""
    compute, _ = product_factors(design(cores=264), SHAPES["m"], 2048.0, 512.0)
    assert compute[0] > compute[2]
    assert compute[2] == pytest.approx(1.0, abs=0.15)


def test_a_larger_shared_cache_moves_less() -> None:
    _, small = product_factors(design(l2_bytes=5e6), 16384.0, 16384.0, 16384.0)
    _, large = product_factors(design(l2_bytes=500e6), 16384.0, 16384.0, 16384.0)
    assert large <= 1.0 <= small
    assert small > large


def test_wide_arrays_slow_thin_products_and_the_model_says_so() -> None:
    wide = Dataflow().predict("gemm", SHAPES, design(array_rows=128, array_columns=16)).value
    square = Dataflow().predict("gemm", SHAPES, design()).value
    assert wide[0] >= square[0]
    assert wide[2] == pytest.approx(square[2], rel=0.25)


def test_vector_units_bound_fused_attention_where_they_are_few() -> None:
    few, _ = attention_factors(
        design(vector_fma=16), *[ATTENTION[n] for n in ("batch", "heads", "q_len", "kv_len", "head_dim")]
    )
    assert (few > 2.0).all()
    slow = Dataflow().predict("attention_prefill", ATTENTION, design(vector_fma=16)).value
    assert (slow > Dataflow().predict("attention_prefill", ATTENTION, design()).value).all()


DECODE = {
    "batch": np.array([1.0, 64.0, 256.0]), "heads": np.full(3, 64.0), "kv_heads": np.full(3, 8.0), "q_len": np.ones(3),
    "kv_len": np.array([128.0, 4096.0, 32768.0]), "head_dim": np.full(3, 128.0), "cache": np.full(3, "cold"),
}  # fmt: skip
EXPERTS = {**SHAPES, "m": np.full(3, 8.0), "groups": np.array([1.0, 8.0, 8.0]), "cache": np.full(3, "cold")}


@pytest.mark.parametrize(("op", "shapes"), [("attention_decode", DECODE), ("gemm", EXPERTS)])
def test_units_beside_the_memory_help_what_reads_much_and_computes_little(op: str, shapes: dict[str, np.ndarray]) -> None:
    """None change nothing; more of them, or more bandwidth, is never slower; what they do not run stays as it was."""
    plain = Dataflow().predict(op, shapes, design()).value
    ladder = [
        Dataflow().predict(op, shapes, design(near_memory_flops=flops, near_memory_ratio=ratio)).value
        for ratio in (1.0, 4.0)
        for flops in (0.0, 1e12, 2e13, 1e14)
    ]
    np.testing.assert_array_equal(ladder[0], plain)
    np.testing.assert_array_equal(ladder[4], plain)
    for i, (less, more) in enumerate(itertools.pairwise(ladder)):
        assert i == 3 or np.all(more <= less)
    assert np.all(np.array(ladder[4:]) <= np.array(ladder[:4]))
    assert np.any(ladder[-1] < plain)
    if op == "gemm":
        assert ladder[-1][0] == plain[0]  # one dense product stays on the matrix units


@pytest.mark.parametrize(
    ("op", "shapes"), [("gemm", EXPERTS), ("gemm", SHAPES), ("attention_decode", DECODE), ("attention_prefill", ATTENTION)]
)
def test_rows_on_devices_of_their_own_are_those_of_each_alone(op: str, shapes: dict[str, np.ndarray]) -> None:
    """Also where some have units beside the memory, arrays of their own, or no fp8 (and so another attention kernel)."""
    changes = [{}, {"near_memory_flops": 2e13}, {"cores": 200, "clock": 1.2e9}, {"fp8_ratio": 0}, {"memory_stacks": 9}]
    devices = [design(**change) for change in changes]
    n = len(next(iter(shapes.values())))
    rows, device = np.tile(np.arange(n), len(devices)), np.repeat(np.arange(len(devices)), n)
    found = Dataflow().seconds_on(op, {name: values[rows] for name, values in shapes.items()}, devices, device)
    alone = np.concatenate([Dataflow().predict(op, shapes, one).value for one in devices])
    np.testing.assert_allclose(found, alone, rtol=1e-12)
