"""Arrays, tilings and products: closed forms against a cycle-by-cycle walk and brute force over small tilings."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.machines.arrays import STATIONARY, array_cycles, folds, utilisation
from costmodels.machines.dataflow import product_cost
from costmodels.machines.tiling import ACCUMULATOR, SLAB, buffer_traffic, operand_tiling, output_tiling
from spaces.hardware import find_accelerator

small = st.integers(min_value=1, max_value=9)
sides = st.integers(min_value=1, max_value=5)


def walked(stationary: str, m: int, n: int, k: int, rows: int, columns: int) -> tuple[int, int]:
    """(cycles, multiply-adds) of a skewed array walked cell by cell, one filling after the other, nothing hidden.

    Cell (i, j) works on stream element t in cycle t + i + j after a filling has moved its rows in.
    """
    across, along, stream = {"output": (m, n, k), "weight": (k, n, m), "input": (k, m, n)}[stationary]
    now = work = 0
    for i0, j0 in itertools.product(range(0, across, rows), range(0, along, columns)):
        now += rows
        last = 0
        for i, j, t in itertools.product(range(rows), range(columns), range(stream)):
            last = max(last, t + i + j + 1)
            work += (i0 + i < across) and (j0 + j < along)
        now += last
    return now, work


@given(st.sampled_from(STATIONARY), small, small, small, sides, sides)
def test_cycles_are_those_of_the_walk(stationary: str, m: int, n: int, k: int, rows: int, columns: int) -> None:
    cycles, work = walked(stationary, m, n, k, rows, columns)
    assert work == m * n * k
    assert array_cycles(stationary, m, n, k, rows, columns, double_buffered=False) == cycles


@given(st.sampled_from(STATIONARY), small, small, small, sides, sides)
def test_double_buffering_hides_and_never_beats_the_work(
    stationary: str, m: int, n: int, k: int, rows: int, columns: int
) -> None:
    hidden = array_cycles(stationary, m, n, k, rows, columns)
    count, stream = folds(stationary, m, n, k, rows, columns)
    assert hidden >= count * stream
    assert utilisation(stationary, m, n, k, rows, columns) <= 1.0
    if stream >= rows:
        assert hidden <= array_cycles(stationary, m, n, k, rows, columns, double_buffered=False)


def test_a_long_stream_fills_the_array() -> None:
    assert utilisation("weight", 1e6, 128, 128, 128, 128) == pytest.approx(1.0, rel=1e-3)
    assert utilisation("weight", 1e6, 128, 64, 128, 128) == pytest.approx(0.5, rel=1e-3)


def brute_force(kind: str, m: int, n: int, k: int, size: float) -> float:
    """Least bytes over every integer tile that fits."""
    first, second = (m, n) if kind == "output" else (k, n)
    best = np.inf
    for a, b in itertools.product(range(1, first + 1), range(1, second + 1)):
        if kind == "output":
            slab = 2.0 * min(SLAB, k) * 2.0
            need = ACCUMULATOR * a * b + slab * (a + b)
            moved = 2.0 * k * (m * -(-n // b) + n * -(-m // a)) + 2.0 * m * n
        else:
            slab = 2.0 * min(SLAB, m)
            need = 2.0 * a * b + slab * (2.0 * a + ACCUMULATOR * b)
            moved = 2.0 * (k * n + m * k * -(-n // b)) + m * n * (2.0 + 2 * ACCUMULATOR * (-(-k // a) - 1))
        if need <= size:
            best = min(best, moved)
    return best


@given(
    st.sampled_from(["output", "weight"]),
    st.integers(1, 14),
    st.integers(1, 14),
    st.integers(1, 14),
    st.floats(min_value=20.0, max_value=4000.0),
)
def test_the_scan_of_cuts_finds_the_best_tile(kind: str, m: int, n: int, k: int, size: float) -> None:
    tiling = output_tiling if kind == "output" else operand_tiling
    found = tiling(m, n, k, size).traffic
    best = brute_force(kind, m, n, k, size)
    assert found == best or (np.isinf(found) and np.isinf(best))


@given(*[st.integers(min_value=1, max_value=5000)] * 3, st.floats(min_value=64.0, max_value=1e8))
def test_traffic_lies_between_the_least_and_the_naive(m: int, n: int, k: int, size: float) -> None:
    once = 2.0 * (m * k + k * n + m * n)
    moved = buffer_traffic(m, n, k, size)
    assert once <= moved * (1 + 1e-12)
    assert moved <= m * n * (4.0 * k + 2.0)
    assert buffer_traffic(m, n, k, 2 * size) <= moved  # a larger buffer never moves more
    assert buffer_traffic(m, n, k, 1e12) == once


def test_traffic_obeys_hong_and_kung() -> None:
    """2mnk/√S elements at the least, for a memory of S elements (Hong & Kung 1981), within a factor of three."""
    m = n = k = 8192
    for size in (2**16, 2**18, 2**20):
        bound = 2.0 * 2.0 * m * n * k / np.sqrt(size / 2.0)
        assert bound <= buffer_traffic(m, n, k, size) <= 3.5 * bound


def chip(**changes: object) -> dict[str, np.ndarray]:
    return find_accelerator("H100").columns(changes)


@given(
    st.sampled_from([(1, 4096, 4096), (64, 8192, 8192), (4096, 4096, 4096), (8192, 28672, 8192), (333, 777, 555)]),
    st.sampled_from(["cores", "l1_bytes", "l2_bytes", "clock", "memory_stacks"]),
)
def test_more_of_anything_never_slows_a_product(shape: tuple[int, int, int], parameter: str) -> None:
    value = find_accelerator("H100").values[parameter]
    at = chip(**{parameter: np.array([value, 2 * value])})
    cost = product_cost(at, *(np.full(2, side) for side in shape))
    assert cost.time[1] <= cost.time[0] * (1 + 1e-12)


def test_time_is_its_slowest_limit_and_without_double_buffering_their_sum() -> None:
    shape = (np.array([16.0, 512.0, 8192.0]),) * 3
    at = {name: values[0] for name, values in chip().items()}
    over, apart = product_cost(at, *shape), product_cost(at, *shape, double_buffered=False)
    np.testing.assert_allclose(over.time, np.maximum.reduce([over.compute, over.shared, over.memory]))
    np.testing.assert_allclose(apart.time, apart.compute + apart.shared + apart.memory)
    assert (apart.time >= over.time).all()
    assert (over.efficiency <= 1.0).all()
    assert (np.diff(over.efficiency) > 0).all()


def test_a_large_array_wastes_small_products() -> None:
    """The same multiply-adds as one 256 x 256 array or as sixty-four 32 x 32: only the former starves on 32 rows."""
    at = find_accelerator("TPU-v4").columns({"array_rows": np.array([256, 32]), "array_columns": np.array([256, 32])})
    thin = product_cost(at, np.full(2, 32.0), np.full(2, 8192.0), np.full(2, 8192.0))
    assert thin.compute[0] > 4 * thin.compute[1]
    square = product_cost(at, *[np.full(2, 8192.0)] * 3)
    assert square.compute[0] == pytest.approx(square.compute[1], rel=0.25)


def test_one_point_is_a_batch_of_one() -> None:
    at = chip(cores=np.array([64, 132]))
    both = product_cost(at, np.array([100.0, 4000.0]), np.array([4096.0, 512.0]), np.array([1024.0, 4096.0]))
    alone = product_cost({name: v[1] for name, v in at.items()}, 4000.0, 512.0, 4096.0)
    assert alone.time == both.time[1]
    assert alone.memory_bytes == both.memory_bytes[1]
