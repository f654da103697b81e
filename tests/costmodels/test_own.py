"""Somebody's own measurements over a model: measured shapes as measured, near ones drawn along, others left as they were."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from costmodels.kernel_models.exact import keys, read_known
from costmodels.kernel_models.forms import prepared
from costmodels.kernel_models.own import own_model
from costmodels.kernel_models.registry import find_kernel_model, taught_devices
from costmodels.kernel_models.symbols import kernel_symbols
from costmodels.measurements import ROOT, BadMeasurements
from costmodels.metrics import Evidence
from spaces.hardware import find_device

SLOWER = 1.2
SIZES = ((256, 4096, 4096), (1024, 4096, 4096), (4096, 4096, 4096), (1024, 8192, 8192), (4096, 8192, 8192), (8192, 8192, 8192))


def rows(device: str, factor: float = SLOWER) -> list[dict[str, object]]:
    """Products on a device that takes `factor` times what the model says."""
    m, n, k = (np.array(sizes, np.float64) for sizes in zip(*SIZES, strict=True))
    time = find_kernel_model("learned").predict("gemm", {"m": m, "n": n, "k": k}, kernel_symbols(find_device(device))).value
    words = {"op": "gemm", "dtype": "bf16", "layout": "forward", "groups": 1, "fast_accumulate": "false", "cache": "warm"}
    return [
        {**words, "launch": "graph", "gpu": device, "m": a, "n": b, "k": c, "time_s": f"{factor * t:.9g}", "spread": 0.01}
        for (a, b, c), t in zip(SIZES, time.tolist(), strict=True)
    ]


def write(folder: Path, many: Sequence[Mapping[str, object]], name: str = "gemm.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(many[0]))
        writer.writeheader()
        writer.writerows(many)
    return folder


@pytest.mark.parametrize("device", ["H100-80GB-SXM", "A100-80GB-SXM"])
def test_a_measured_shape_is_answered_by_its_measurement_and_others_are_drawn_along(device: str, tmp_path: Path) -> None:
    many = rows(device)
    own, plain = own_model(write(tmp_path, many), find_kernel_model("learned")), find_kernel_model("learned")
    symbols = kernel_symbols(find_device(device))
    at = {name: np.array([float(str(row[name])) for row in many]) for name in ("m", "n", "k")}
    at["fast_accumulate"] = np.full(len(many), "false")
    time = own.predict("gemm", at, symbols)
    np.testing.assert_allclose(time.value, [float(str(row["time_s"])) for row in many], rtol=1e-6)
    assert (time.evidence == Evidence.MEASURED).all()
    near = {"m": np.array([2048.0]), "n": np.array([5120.0]), "k": np.array([5120.0]), "fast_accumulate": np.array(["false"])}
    before, after = plain.predict("gemm", near, symbols), own.predict("gemm", near, symbols)
    assert 1.1 * before.value[0] < after.value[0] < SLOWER * 1.05 * before.value[0]
    assert after.evidence[0] == Evidence.INTERPOLATED
    assert after.low[0] <= after.value[0] <= after.high[0]


def test_other_devices_and_operators_are_left_as_they_were(tmp_path: Path) -> None:
    own, plain = own_model(write(tmp_path, rows("A100-80GB-SXM")), find_kernel_model("learned")), find_kernel_model("learned")
    sizes = {"rows": np.array([4096.0]), "cols": np.array([4096.0])}
    for device in ("H100-80GB-SXM", "A100-80GB-SXM"):
        symbols = kernel_symbols(find_device(device))
        assert own.predict("add", sizes, symbols).value == plain.predict("add", sizes, symbols).value
    shape = {name: np.array([4096.0]) for name in ("m", "n", "k")}
    symbols = kernel_symbols(find_device("H200"))
    assert own.predict("gemm", shape, symbols).value == plain.predict("gemm", shape, symbols).value
    assert "A100-80GB-SXM" in (taught_devices("learned", str(tmp_path)) or ())


def test_new_rows_are_seen_at_once(tmp_path: Path) -> None:
    model, symbols = find_kernel_model("learned"), kernel_symbols(find_device("H100"))
    shape = {"m": np.array([4096.0]), "n": np.array([4096.0]), "k": np.array([4096.0]), "fast_accumulate": np.array(["false"])}
    first = own_model(write(tmp_path, rows("H100-80GB-SXM")), model).predict("gemm", shape, symbols)
    second = own_model(write(tmp_path, rows("H100-80GB-SXM", 1.4)), model).predict("gemm", shape, symbols)
    assert second.value[0] == pytest.approx(first.value[0] * 1.4 / SLOWER, rel=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"time_s": 1e-9}, "above the datasheet"),
        ({"time_s": 2.0}, "is the unit seconds"),
        ({"time_s": "nan"}, "not finite and positive"),
        ({"m": 0}, "not finite and positive"),
    ],
)
def test_rows_that_cannot_be_true_are_named(change: dict[str, object], said: str, tmp_path: Path) -> None:
    many = rows("H100-80GB-SXM")
    many[2] |= change
    with pytest.raises(BadMeasurements, match=said) as refused:
        own_model(write(tmp_path, many), find_kernel_model("learned"))
    assert "gemm.csv:4" in str(refused.value)


def test_a_missing_column_and_a_copy_under_another_name_are_refused(tmp_path: Path) -> None:
    short = [{name: value for name, value in row.items() if name != "layout"} for row in rows("H100-80GB-SXM")]
    with pytest.raises(BadMeasurements, match="column layout missing"):
        own_model(write(tmp_path / "short", short), find_kernel_model("learned"))
    with (ROOT / "h100-80gb-sxm" / "gemm.csv").open(encoding="utf-8", newline="") as file:
        copied = [{**row, "gpu": "H200-141GB-SXM"} for row in list(csv.DictReader(file))[:400]]
    with pytest.raises(BadMeasurements, match="one device's data under another's name"):
        own_model(write(tmp_path / "copied", copied), find_kernel_model("learned"))


def test_the_projects_own_measured_shapes_are_measured() -> None:
    model = find_kernel_model("learned")
    for family, op in (("gemm", "gemm"), ("attention", "attention_decode"), ("pointwise", "rms_norm")):
        for device, known in read_known(family).items():
            symbols = kernel_symbols(find_device(device))
            with next((ROOT / device.lower()).glob(f"{family}.csv")).open(encoding="utf-8", newline="") as file:
                row = next(r for r in csv.DictReader(file) if r["op"] == op and r["launch"] == "graph" and r["cache"] == "warm")
            numbers = ("m", "n", "k", "groups", "rows", "cols", "batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim")
            words = ("dtype", "layout", "fast_accumulate", "cache", "implementation", "causal", "direction")
            at = {name: np.array([float(row[name])]) for name in numbers if row.get(name)}
            at |= {name: np.array([row[name]]) for name in words if row.get(name)}
            time = model.predict(op, at, symbols)
            assert time.evidence[0] == Evidence.MEASURED, (device, op)
            assert time.value[0] == known[op][keys(op, prepared(op, at, symbols))[0]][0]
