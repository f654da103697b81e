"""Rows measured after every fit: none of them is among the fitted ones, and what they are held to."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from benchmarks import unseen
from costmodels.calibration.measure import SUITES
from costmodels.calibration.suite import row_key
from costmodels.measurements import ROOT

pytestmark = pytest.mark.slow

time = cache(unseen.training)
served = cache(unseen.serving)
kernels = cache(unseen.kernels)


def keys(root: Path, name: str) -> set[tuple[str, ...]]:
    """What identifies the rows of a file, on whatever machine."""
    found = set()
    for path in root.glob(f"*/{name}.csv"):
        with path.open(encoding="utf-8", newline="") as file:
            found |= {(row["gpu"], *row_key(SUITES[name].key, row)) for row in csv.DictReader(file)}
    return found


@pytest.mark.parametrize("name", ["steps", "parallel", "serving", "serving_parallel", "gemm", "attention"])
def test_no_fitted_row_is_among_the_unseen(name: str) -> None:
    assert keys(unseen.ROOT, name)
    assert not keys(unseen.ROOT, name) & keys(ROOT, name)


def errors(found: dict[str, list[float]], start: str, without: tuple[str, ...] = ()) -> np.ndarray:
    return np.concatenate(
        [np.array(e) for what, e in found.items() if what.startswith(start) and not any(w in what for w in without)]
    )


def test_steps_on_one_device_that_a_stack_describes() -> None:
    found = np.abs(errors(time()[0], "step, one GPU", ("precision amp", "host-bound")))
    assert np.median(found) <= 0.04
    assert np.quantile(found, 0.9) <= 0.08


@pytest.mark.parametrize("device", ["H100", "H200"])
def test_steps_that_wait_for_the_host(device: str) -> None:
    found = np.abs(errors(time()[0], f"step, one GPU, eager, host-bound, {device}"))
    assert len(found) >= 10
    assert np.median(found) <= 0.15


@pytest.mark.parametrize("kind", ["ddp", "fsdp", "tensor", "pipeline"])
def test_steps_on_two_devices(kind: str) -> None:
    assert np.median(np.abs(errors(time()[0], f"step, two GPUs, {kind}", ("host-bound",)))) <= 0.06


def test_peak_memory_is_counted() -> None:
    found = errors(time()[1], "peak memory")
    assert np.median(np.abs(found)) <= 0.01
    assert found.min() >= -0.02


@pytest.mark.parametrize("step", ["decode", "prefill"])
@pytest.mark.parametrize("ranks", ["one GPU", "two GPUs"])
def test_steps_of_served_models(step: str, ranks: str) -> None:
    assert np.mean(np.abs(errors(served(), f"{step} step, {ranks}"))) <= 0.10


def test_products_and_attention_on_unseen_sites_and_heads() -> None:
    """What was asked of one H100: unseen (n, k), each implementation of attention, decoding."""
    found = kernels()
    products = np.abs(errors(found, "gemm bf16", ("H200",)))
    assert np.median(products) <= 0.035
    assert products.mean() <= 0.06
    assert np.median(np.abs(errors(found, "gemm fp8", ("H200",)))) <= 0.045
    for kernel in ("default", "flash", "cudnn"):
        assert np.median(np.abs(errors(found, f"attention prefill, {kernel}"))) <= 0.06
        assert np.median(np.abs(errors(found, f"attention decode, {kernel}"))) <= 0.08


def test_collectives_of_two_devices() -> None:
    large = ("below 1 MiB", "eager, 1 to 64 MiB")
    for kind in ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv"):
        assert np.median(np.abs(errors(kernels(), f"{kind}, graph", large))) <= 0.08
        assert np.median(np.abs(errors(kernels(), f"{kind}, eager", large))) <= 0.08
