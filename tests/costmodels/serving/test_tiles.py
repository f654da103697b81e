"""Products of servers' own kernels: whole waves of tiles, and what others measured of shapes that no constant was fitted to."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from benchmarks.kernels import PUBLISHED
from costmodels.constants import DATA
from costmodels.kernel_models.operations import complete
from costmodels.kernel_models.registry import find_kernel_model
from costmodels.kernels import smooth_max
from costmodels.serving.local import Local
from costmodels.serving.problem import serving_problem, serving_symbols
from costmodels.serving.products import product
from costmodels.serving.stack import find_serving_stack
from costmodels.serving.tiles import tile_time, tiles_of
from spaces.architecture import find
from spaces.columns import Bindings, Columns, FloatArray
from spaces.facts import facts_in
from spaces.hardware import find_device
from spaces.serving_plan import serving_code

PRODUCTS = (("vllm", "fp8"), ("sglang", "fp8"), ("sglang", "fp8_block"), ("tensorrt-llm", "fp8_block"))
ONE = Columns(n=1, codes={}, levels={})
INPUT = 0.97e-12  # s an element of the input that vLLM's table has above 512 rows, whatever the outputs: product_tiles.yaml


def sample(gpu: str, stack: str, kind: str) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """(m, n, k, seconds without what quantises the input) of measured products."""
    with (PUBLISHED / "served_products.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["gpu"], row["stack"], row["format"]) == (gpu, stack, kind)]
    m, n, k, time, quantise = (np.array([float(row[c]) for row in rows]) for c in ("m", "n", "k", "time_s", "quantise_s"))
    more = INPUT * m * k * (m > 512) if (stack, kind) == ("vllm", "fp8") else 0.0
    return m, n, k, time - quantise - more


@pytest.mark.parametrize("gpu", ["H100-80GB-SXM", "H200-141GB-SXM"])
@pytest.mark.parametrize(("stack", "kind"), PRODUCTS)
def test_waves_of_tiles_tell_the_time_of_shapes_they_were_not_fitted_to(stack: str, kind: str, gpu: str) -> None:
    m, n, k, time = sample(gpu, stack, kind)
    at = serving_symbols(find_device(gpu))
    shapes = {"m": m, "n": n, "k": k, "dtype": np.full(len(m), "fp8"), "cache": np.full(len(m), "cold")}
    alone = find_kernel_model().predict("gemm", complete("gemm", shapes), at).value
    waves, times = tile_time(tiles_of(stack)[kind], at, m, n, k)
    before, after = (np.abs(np.log(predicted / time)) for predicted in (alone, smooth_max(times * alone, waves)))
    assert len(m) == 104
    assert np.median(after) < 0.1
    assert after.mean() < 0.65 * before.mean()
    few = m <= 64
    assert after[few].mean() < 0.14


def test_the_sample_and_the_constants_are_cited() -> None:
    sources = facts_in((PUBLISHED / "sources.yaml").read_text(encoding="utf-8"))["served_products"]
    tiles = facts_in((DATA / "product_tiles.yaml").read_text(encoding="utf-8"))["stacks"]
    for stack, kind in PRODUCTS:
        assert kind in tiles[stack]
        assert "aiconfigurator-core 0.12.0" in tiles[stack]["source"]
        assert stack in sources


@pytest.mark.parametrize(("stack", "kind"), PRODUCTS)
def test_a_device_makes_as_many_tiles_at_once_as_it_has_processors(stack: str, kind: str) -> None:
    at, tiles = serving_symbols(find_device("H100")), tiles_of(stack)[kind]
    for rows, columns, processors in zip(tiles.rows, tiles.columns, tiles.processors, strict=True):
        own = np.flatnonzero((tiles.rows == rows) & (tiles.columns == columns))[0]
        m = min(tiles.up_to[own], 8192.0)
        down, across = np.ceil(m / rows), at["device.compute_units"] // processors
        most = across // down if down <= across else 0.0
        if most < 1:
            continue
        one, full, over = (tile_time(tiles, at, m, n, 4096.0)[0] for n in (columns, most * columns, (across + 1) * columns))
        assert one == full < over
        deeper = tile_time(tiles, at, m, columns, 8192.0)[0]
        np.testing.assert_allclose(deeper - one, one - tiles.start[own])


def test_a_larger_tile_is_taken_where_rows_exceed_the_smaller_one() -> None:
    at, tiles = serving_symbols(find_device("H200")), tiles_of("vllm")["fp8"]
    times = tile_time(tiles, at, np.array([1.0, 16.0, 17.0, 64.0]), 8192.0, 8192.0)[0]
    assert times[0] == times[1] < times[2] == times[3]


def test_a_device_of_twice_the_rate_is_quicker_by_no_more_than_that() -> None:
    at, tiles = serving_symbols(find_device("H100")), tiles_of("vllm")["fp8"]
    twice = {**at, "device.matrix_flops.fp8": 2.0 * at["device.matrix_flops.fp8"]}
    m = np.array([16.0, 64.0, 128.0, 512.0, 4096.0])
    ratio = tile_time(tiles, at, m, 8192.0, 8192.0)[0] / tile_time(tiles, twice, m, 8192.0, 8192.0)[0]
    assert np.all((ratio > 1.0) & (ratio < 2.0))


@pytest.mark.parametrize(
    ("stack", "precision", "gpu", "own"),
    [
        ("vllm", "fp8", "H100", True),
        ("vllm", "bf16", "H100", False),
        ("vllm", "fp8", "B200", False),  # not measured there
        ("vllm", "fp8", "A100-80GB", False),  # widened to 16 bits
        ("tensorrt-llm", "fp8", "H100", False),  # cuBLASLt's, which the model learned
        ("torch-graph", "fp8", "H100", False),
    ],
)
def test_only_products_of_kernels_that_were_measured_change(stack: str, precision: str, gpu: str, own: bool) -> None:
    problem = serving_problem(find("llama-3.1-70b"), stack, find_device(gpu))
    scalars = {**problem.scalars, "precision": serving_code("precision", precision)}
    tokens = np.array([[1.0, 32.0, 1024.0]])
    local = Local(Bindings(scalars, ONE), tokens)
    found = find_serving_stack(stack)
    (call,) = product(local, found, tokens, 8192.0, 8192.0, quantised=True)
    (head,) = product(local, found, tokens, 8192.0, 8192.0, quantised=False)
    assert np.all(np.asarray(call.floor) > 0) == (own or (gpu == "A100-80GB" and precision == "fp8"))
    assert np.all(np.asarray(head.floor) == 0)


def test_blocks_take_kernels_of_their_own() -> None:
    floors = []
    for model in ("llama-3.1-8b", "qwen3-8b"):  # one scale a tensor; one a block
        problem = serving_problem(find(model), "vllm", find_device("H100"))
        local = Local(Bindings({**problem.scalars, "precision": serving_code("precision", "fp8")}, ONE), np.array([[32.0]]))
        (call,) = product(local, find_serving_stack("vllm"), local.tokens, 4096.0, 4096.0, quantised=True)
        floors.append(float(np.max(call.floor)))
    for kind, floor in zip(("fp8", "fp8_block"), floors, strict=True):
        waves, times = tile_time(tiles_of("vllm")[kind], serving_symbols(find_device("H100")), 32.0, 4096.0, 4096.0)
        np.testing.assert_allclose(floor, waves / times)
