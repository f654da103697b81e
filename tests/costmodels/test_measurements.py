"""Measurements that cannot be true are refused, with the rows named."""

import csv
from pathlib import Path

import numpy as np
import pytest

from costmodels.measurements import ROOT, BadMeasurements, content_hash, data_files, read

GEMM = {
    "op": "gemm", "dtype": "bf16", "layout": "forward", "m": "4096", "n": "4096", "k": "4096", "groups": "1",
    "fast_accumulate": "false", "cache": "warm", "launch": "graph", "gpu": "H100-80GB-SXM", "time_s": "2.0e-4",
}  # fmt: skip
COPY = {
    "op": "copy", "dtype": "bf16", "direction": "forward", "rows": "1", "cols": "500000000", "cache": "cold",
    "launch": "graph", "gpu": "H100-80GB-SXM", "time_s": "8.0e-4",
}  # fmt: skip


def written(folder: Path, rows: list[dict[str, str]], name: str = "gemm", device: str = "one") -> Path:
    """A root folder with one file of those rows added."""
    (folder / device).mkdir(exist_ok=True)
    with (folder / device / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return folder


def different(count: int, **changes: str) -> list[dict[str, str]]:
    """Rows that differ in m and time."""
    return [GEMM | {"m": str(4096 + 64 * i), "time_s": repr(2.0e-4 * (1 + i / 40))} | changes for i in range(count)]


class TestGoodRows:
    def test_good_rows_are_read_with_blanks_as_nan(self, tmp_path: Path) -> None:
        data = read(written(tmp_path, [row | {"spread": ""} for row in different(3)]))
        (rows,) = data.of("gemm")
        assert rows.n == 3
        assert rows.device == "H100-80GB-SXM"
        assert np.isnan(np.asarray(rows.columns["spread"], dtype=np.float64)).all()
        np.testing.assert_allclose(rows.time, [2.0e-4, 2.05e-4, 2.1e-4])

    def test_small_warm_buffers_may_be_faster_than_memory(self, tmp_path: Path) -> None:
        """A copy of 8 MB within a cache of 50 MB ran at 4.8 TB/s on a device whose memory does 3.35."""
        assert read(written(tmp_path, [COPY | {"cols": "4194304", "time_s": "3.46e-6", "cache": "warm"}], "pointwise")).of(
            "pointwise"
        )

    def test_the_project_s_own_measurements_are_good(self) -> None:
        assert read(ROOT).devices

    def test_without_removes_a_device(self, tmp_path: Path) -> None:
        data = read(written(tmp_path, different(3)))
        assert data.without("H100-80GB-SXM").of("gemm") == ()


class TestBadRows:
    @pytest.mark.parametrize(
        ("row", "why"),
        [
            (GEMM | {"time_s": "1.0e-4"}, "above the datasheet"),
            (GEMM | {"time_s": "200"}, "is the unit seconds"),
            (GEMM | {"time_s": "0.2"}, "is the unit seconds"),
            (GEMM | {"time_s": "nan"}, "not finite and positive"),
            (GEMM | {"time_s": ""}, "not finite and positive"),
            (GEMM | {"time_s": "-1e-4"}, "not finite and positive"),
            (GEMM | {"time_s": "fast"}, "not a number"),
            (GEMM | {"n": "0"}, "not finite and positive"),
            (GEMM | {"dtype": "fp8", "time_s": "6.0e-5"}, "above the datasheet"),
        ],
    )
    def test_an_impossible_product_is_refused_by_line(self, tmp_path: Path, row: dict[str, str], why: str) -> None:
        good = GEMM | {"m": "2048", "time_s": "1.1e-4"}
        with pytest.raises(BadMeasurements, match=why) as refused:
            read(written(tmp_path, [good, row]))
        assert any("one/gemm.csv:3" in reason for reason in refused.value.reasons)
        assert not any("gemm.csv:2:" in reason for reason in refused.value.reasons)

    def test_a_copy_faster_than_memory_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(BadMeasurements, match="bytes/s is above"):
            read(written(tmp_path, [COPY | {"time_s": "5.0e-4"}], "pointwise"))

    def test_a_missing_column_is_named(self, tmp_path: Path) -> None:
        rows = [{key: value for key, value in row.items() if key != "layout"} for row in different(2)]
        with pytest.raises(BadMeasurements, match="column layout missing, so every row from line 2 to 3"):
            read(written(tmp_path, rows))

    def test_a_row_given_twice_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(BadMeasurements, match=r"gemm.csv:3: the same row as line 2"):
            read(written(tmp_path, [GEMM, GEMM | {"time_s": "2.1e-4"}]))

    def test_rows_of_another_device_are_recognised(self, tmp_path: Path) -> None:
        written(tmp_path, different(10))
        written(tmp_path, different(10, gpu="H200-141GB-SXM"), device="two")
        with pytest.raises(BadMeasurements, match="one device's data under another's name"):
            read(tmp_path)

    def test_two_devices_in_one_file_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(BadMeasurements, match="2 devices in one file"):
            read(written(tmp_path, [GEMM, GEMM | {"m": "64", "gpu": "H200-141GB-SXM"}]))

    def test_every_bad_row_is_told_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(BadMeasurements) as refused:
            read(written(tmp_path, different(4, time_s="nan")))
        assert len(refused.value.reasons) == 4


class TestContentHash:
    def test_it_changes_with_a_digit_and_not_with_the_order(self, tmp_path: Path) -> None:
        written(tmp_path, different(3))
        written(tmp_path, [COPY], "pointwise")
        files = data_files(tmp_path)
        before = content_hash(files)
        assert content_hash(reversed(files)) == before
        written(tmp_path, [COPY | {"time_s": "8.1e-4"}], "pointwise")
        assert content_hash(files) != before
