"""Kernels that others measured: the file's honesty, and what the shipped model says of rows that no fit has read."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from benchmarks.kernels import A100, H100, PUBLISHED
from costmodels.kernel_models.heldout import carry_over
from costmodels.kernel_models.operations import TEXT, complete, dimensions
from costmodels.kernel_models.registry import find_kernel_model
from costmodels.kernel_models.samples import Sample, samples
from costmodels.kernel_models.symbols import kernel_symbols
from costmodels.measurements import ROOT, read
from spaces.facts import facts_in
from spaces.hardware import find_device


@pytest.fixture(scope="module")
def products() -> dict[str, Sample]:
    return {sample.device: sample for sample in samples(read(PUBLISHED), "gemm")}


def test_the_rows_are_possible_cited_and_no_part_of_any_fit(products: dict[str, Sample]) -> None:
    sources = facts_in(files("costmodels").joinpath("data/published/kernels/sources.yaml").read_text(encoding="utf-8"))
    for path in PUBLISHED.glob("*/*.csv"):
        assert path.parent.name in sources[path.stem]
    assert "aiconfigurator-core 0.12.0" in sources["package"]
    assert not PUBLISHED.is_relative_to(ROOT)
    assert set(products) == {A100, H100}


def test_both_devices_ran_the_same_products(products: dict[str, Sample]) -> None:
    shapes = [np.stack([products[name].at[size] for size in ("m", "n", "k")]) for name in (A100, H100)]
    np.testing.assert_array_equal(*shapes)
    assert np.median(products[A100].time / products[H100].time) > 1.5


def test_products_of_an_h100_that_somebody_else_measured(products: dict[str, Sample]) -> None:
    """Another harness, other shapes, other libraries: within what is asked of unseen sites, short cool runs and all."""
    sample = products[H100]
    shapes = {name: values for name, values in sample.at.items() if name in (*dimensions(sample.op), *TEXT, "groups")}
    answer = find_kernel_model().predict(sample.op, complete(sample.op, shapes), kernel_symbols(find_device(H100)))
    error = np.abs(answer.value / sample.time - 1.0)
    few = sample.at["m"] <= 64
    assert np.mean(error[few]) <= 0.08
    assert np.median(error[~few]) <= 0.10
    assert np.mean((answer.low <= sample.time) & (sample.time <= answer.high)) >= 0.75


def test_rows_carried_over_to_another_device_are_worse_than_to_their_own(products: dict[str, Sample]) -> None:
    some = {name: sample.take(np.arange(0, len(sample), 6)) for name, sample in products.items()}
    own, across = (carry_over([some[A100]], [some[device]])[0] for device in (A100, H100))
    errors = [float(np.median(np.abs(held.error("calibrated")))) for held in (own, across)]
    assert errors[0] < 0.12
    assert errors[0] < errors[1] < 0.6


def test_the_page_names_both_devices() -> None:
    page = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")
    assert f"{A100}: gemm bf16, m ≤ 64 | the shipped model" in page
    assert f"{H100}: gemm bf16, m ≤ 64 | {A100}, published" in page
