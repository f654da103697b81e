"""Measured kernels as the calibration suite writes them: one folder a device, one CSV file a family of operators.

Reading refuses what a machine cannot have done: every bad row of every file is named in one `BadMeasurements`, and nothing
of the folder is used. A content hash goes with the data, so that whatever was fitted on it can say on what.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from costmodels.kernel_models.operations import TEXT, family_of, traffic_and_work
from spaces.columns import FloatArray
from spaces.hardware import Device, UnknownDevice, find_device

ROOT = Path(__file__).parent / "data" / "measurements"
"""The project's own measurements."""

KEYS: Mapping[str, tuple[str, ...]] = {
    "gemm": ("op", "dtype", "layout", "m", "n", "k", "groups", "fast_accumulate", "cache", "launch"),
    "attention": ("op", "dtype", "batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim", "causal", "implementation",
                  "cache", "launch"),
    "pointwise": ("op", "dtype", "direction", "rows", "cols", "cache", "launch"),
    "collectives": ("op", "dtype", "bytes", "launch", "ranks", "ranks_per_node"),
    "host": ("op", "nodes"),
}  # fmt: skip
"""What identifies a row of each family; the rest are readings."""

_WORDS = frozenset(
    {"op", "dtype", "layout", "fast_accumulate", "cache", "launch", "causal", "implementation", "direction", "backend"}
)
_NEEDED = ("gpu", "time_s")
_MARGIN = 1.02  # clocks above the datasheet's are real, rates a fiftieth above its peak are not
_SLOWEST = 300.0  # times the datasheet's bound (beyond 2 ms): seconds that were milliseconds
_ALIKE = 0.2  # share of two devices' common rows that may agree to the last digit by chance


class BadMeasurements(ValueError):
    """Rows that cannot be true; the message names each with its file, line and reason."""

    def __init__(self, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        shown = "\n  ".join(self.reasons[:50])
        more = f"\n  … and {len(self.reasons) - 50} more" if len(self.reasons) > 50 else ""
        super().__init__(f"{len(self.reasons)} measured rows are refused:\n  {shown}{more}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """n measured rows of one family on one device.

    `columns` maps a name to an array of shape (n,): text, or float64 in SI units with NaN where the cell is blank.
    `line` is each row's line in its file, shape (n,).
    """

    family: str
    device: str
    n: int
    columns: Mapping[str, NDArray[np.generic]]
    line: NDArray[np.int64]

    @property
    def time(self) -> FloatArray:
        """Seconds, shape (n,)."""
        return np.asarray(self.columns["time_s"], dtype=np.float64)

    def take(self, rows: NDArray[np.generic]) -> Rows:
        """The rows of a mask or of indices."""
        line = self.line[rows]
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Rows(family=self.family, device=self.device, n=len(line), columns=columns, line=line)

    def where(self, **wanted: str) -> Rows:
        """The rows whose text columns hold these words."""
        keep = np.ones(self.n, dtype=np.bool_)
        for name, word in wanted.items():
            keep &= self.columns[name] == word
        return self.take(keep)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Measurements:
    """All rows below the folder `root`: `rows[family]` has one `Rows` a device."""

    rows: Mapping[str, tuple[Rows, ...]]
    root: Path = ROOT

    def of(self, family: str) -> tuple[Rows, ...]:
        """The rows of a family, one `Rows` a device; empty where nobody measured it."""
        return self.rows.get(family, ())

    def without(self, device: str) -> Measurements:
        """The same without one device, as if it had never been measured."""
        kept = {family: tuple(rows for rows in many if rows.device != device) for family, many in self.rows.items()}
        return Measurements(rows=kept, root=self.root)

    @property
    def devices(self) -> tuple[str, ...]:
        """Names of the devices, sorted."""
        return tuple(sorted({rows.device for many in self.rows.values() for rows in many}))


def rows_of(root: Path, name: str) -> list[dict[str, str]]:
    """Every row of the files of that name below `root`, one folder a machine, unchecked."""
    found = []
    for path in sorted(root.glob(f"*/{name}.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            found += list(csv.DictReader(file))
    return found


def content_hash(paths: Iterable[Path]) -> str:
    """sha256 over folder names, file names and contents, whatever the order given."""
    digest = hashlib.sha256()
    for path in sorted(paths, key=lambda path: (path.parent.name, path.name)):
        digest.update(f"{path.parent.name}/{path.name}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def data_files(root: Path = ROOT) -> tuple[Path, ...]:
    """The CSV files of kernel families in `root` and the folders in it, sorted."""
    found = {path for family in KEYS for pattern in (f"{family}.csv", f"*/{family}.csv") for path in root.glob(pattern)}
    return tuple(sorted(found))


@cache
def data_digest(family: str, root: Path = ROOT) -> str:
    """Content hash of what a family's models are fitted on, without checking it: its rows below `root`, and the host's."""
    return content_hash(path for path in data_files(root) if path.stem in (family, "host"))


def read(root: Path = ROOT) -> Measurements:
    """Every kernel measurement below `root`, checked.

    Folders of one device (a machine of one, a machine of two) are joined by the `gpu` their rows name. Raises
    BadMeasurements, naming all rows that are missing a column, not finite and positive, faster than the device's
    datasheet, absurdly slow (wrong units), given twice, or copied from another device.
    """
    paths = data_files(root)
    reasons: list[str] = []
    found: dict[str, dict[str, list[Rows]]] = {family: {} for family in KEYS}
    for path in paths:
        rows = read_file(path, reasons)
        if rows is not None:
            found[rows.family].setdefault(rows.device, []).append(rows)
    joined = {family: tuple(_joined(many) for many in devices.values()) for family, devices in found.items() if devices}
    for family, many in joined.items():
        reasons += _copied(family, many)
    if reasons:
        raise BadMeasurements(reasons)
    return Measurements(rows=joined, root=root)


def read_file(path: Path, reasons: list[str]) -> Rows | None:
    """One file; what is wrong with it is appended to `reasons`, and None is returned when it cannot be read at all."""
    family, where = path.stem, f"{path.parent.name}/{path.name}"
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        cells = list(reader)
        header = reader.fieldnames or []
    missing = [name for name in (*KEYS[family], *_NEEDED) if name not in header]
    if missing:
        reasons.append(f"{where}: column {', '.join(missing)} missing, so every row from line 2 to {len(cells) + 1} is refused")
        return None
    if not cells:
        return None
    names = {row["gpu"] for row in cells}
    if len(names) > 1:
        reasons.append(f"{where}: rows of {len(names)} devices in one file ({', '.join(sorted(map(str, names)))})")
        return None
    told: list[tuple[int, str]] = []
    rows = _columns(family, str(names.pop()), [name for name in header if name], cells, told)
    told += _not_positive(rows) + _twice(rows)
    told += _impossible(rows)
    reasons += [f"{where}:{line}: {why}" for line, why in sorted(told)]
    return rows


def _columns(
    family: str, device: str, header: Sequence[str], cells: Sequence[Mapping[str, str]], told: list[tuple[int, str]]
) -> Rows:
    """The cells as arrays; a cell that should be a number and is not is told and read as NaN."""
    columns: dict[str, NDArray[np.generic]] = {}
    for name in header:
        if name == "gpu":
            continue
        values = [row.get(name) or "" for row in cells]
        if name in _WORDS:
            columns[name] = np.array(values, dtype=np.str_)
            continue
        numbers = np.full(len(values), np.nan)
        for i, value in enumerate(values):
            try:
                numbers[i] = float(value) if value != "" else math.nan
            except ValueError:
                told.append((i + 2, f"{name} is {value!r}, not a number"))
        columns[name] = numbers
    line = np.arange(2, len(cells) + 2, dtype=np.int64)
    return Rows(family=family, device=_catalogue_name(device), n=len(cells), columns=columns, line=line)


def _catalogue_name(device: str) -> str:
    """The full name of a catalogued device, else the name as it is."""
    try:
        return find_device(device).name
    except UnknownDevice:
        return device


def _not_positive(rows: Rows) -> list[tuple[int, str]]:
    """Times and sizes that are not finite and above zero."""
    told = []
    for name in ("time_s", *(key for key in KEYS[rows.family] if key not in _WORDS)):
        values = np.asarray(rows.columns[name], dtype=np.float64)
        for i in np.flatnonzero(~(np.isfinite(values) & (values > 0))):
            told.append((int(rows.line[i]), f"{name} is {values[i]:g}, which is not finite and positive"))
    return told


def _twice(rows: Rows) -> list[tuple[int, str]]:
    """Rows whose key was seen before in the same file."""
    first: dict[tuple[object, ...], int] = {}
    told = []
    for key, line in zip(_keys(rows), rows.line.tolist(), strict=True):
        if first.setdefault(key, line) != line:
            told.append((line, f"the same row as line {first[key]}"))
    return told


def _keys(rows: Rows) -> list[tuple[object, ...]]:
    return list(zip(*(rows.columns[name].tolist() for name in KEYS[rows.family]), strict=True))


def _impossible(rows: Rows) -> list[tuple[int, str]]:
    """Rows faster than the device's datasheet allows, or so slow that their unit must be another."""
    device = _known(rows.device)
    if device is None or rows.family == "host":
        return []
    told = []
    for op in np.unique(np.asarray(rows.columns["op"], dtype=np.str_)):
        some = rows.take(rows.columns["op"] == op)
        if family_of(str(op)) != rows.family or not np.all(np.isfinite(some.time) & (some.time > 0)):
            continue
        told += _rates(str(op), some, device)
    return told


def _rates(op: str, rows: Rows, device: Device) -> list[tuple[int, str]]:
    """The rows of one operator against the device's peaks; what the last-level cache may have held is not counted."""
    symbols = device.symbols()
    shapes = {name: values for name, values in rows.columns.items() if name in TEXT or values.dtype.kind == "f"}
    if not all(np.all(np.isfinite(v)) for k, v in shapes.items() if k in KEYS[rows.family] and v.dtype.kind == "f"):
        return []
    work = traffic_and_work(op, shapes, symbols)
    seconds = rows.time
    cold = rows.columns["cache"] == "cold" if "cache" in rows.columns else np.zeros(rows.n, dtype=np.bool_)
    kept = np.where(cold, 0.0, 2.5 * symbols["device.cache_bytes"])
    rate = work.flops / seconds
    speed = np.maximum(work.traffic - kept, 0.0) / seconds
    limit = symbols["device.scale_up_bandwidth"] if rows.family == "collectives" else symbols["device.memory_bandwidth"]
    speed = work.traffic / seconds if rows.family == "collectives" else speed
    slowest = _SLOWEST * np.maximum(work.flops / work.rate, work.traffic / limit) + 2e-3
    told = []
    for i in range(rows.n):
        line = int(rows.line[i])
        if rate[i] > _MARGIN * work.rate[i]:
            told.append((line, f"{op} at {rate[i]:.4g} FLOP/s is above the datasheet's {work.rate[i]:.4g}"))
        elif speed[i] > _MARGIN * limit:
            told.append((line, f"{op} at {speed[i]:.4g} bytes/s is above the datasheet's {limit:.4g}"))
        elif seconds[i] > slowest[i]:
            told.append(
                (
                    line,
                    f"{op} takes {seconds[i]:.4g} s, more than {_SLOWEST:.0f} times the device's bound: is the unit seconds?",
                )
            )
    return told


def _known(device: str) -> Device | None:
    try:
        return find_device(device)
    except UnknownDevice:
        return None


def _joined(many: Sequence[Rows]) -> Rows:
    """Rows of one device out of several folders; columns that one of them lacks are blank there."""
    if len(many) == 1:
        return many[0]
    names = dict.fromkeys(name for rows in many for name in rows.columns)

    def column(rows: Rows, name: str) -> NDArray[np.generic]:
        blank = np.full(rows.n, "" if name in _WORDS else np.nan)
        return rows.columns.get(name, blank)

    columns = {name: np.concatenate([column(rows, name) for rows in many]) for name in names}
    line = np.concatenate([rows.line for rows in many])
    return Rows(family=many[0].family, device=many[0].device, n=len(line), columns=columns, line=line)


def _copied(family: str, many: Sequence[Rows]) -> list[str]:
    """Rows that two devices share to the last digit, when that is more than chance."""
    told = []
    for i, one in enumerate(many):
        times = dict(zip(_keys(one), one.time.tolist(), strict=True))
        for other in many[:i]:
            common = [
                (key, line, t)
                for key, line, t in zip(_keys(other), other.line.tolist(), other.time.tolist(), strict=True)
                if key in times
            ]
            same = [line for key, line, t in common if times[key] == t]
            if len(same) >= 5 and len(same) > _ALIKE * len(common):
                lines = ", ".join(map(str, same[:20]))
                told.append(
                    f"{family}.csv: {len(same)} of {len(common)} rows of {one.device} are those of {other.device} "
                    f"to the last digit (lines {lines} of {other.device}): one device's data under another's name"
                )
    return told


def copied_rows(data: Measurements) -> list[str]:
    """What of somebody's measurements is the project's own under another device's name; one line a family and device."""
    own = read() if data.root != ROOT else data
    told = []
    for family, many in data.rows.items():
        for rows in many:
            others = [theirs for theirs in own.of(family) if theirs.device != rows.device]
            told += _copied(family, [*others, rows])[-1:] if any(_copied(family, [other, rows]) for other in others) else []
    return told


def provenance(root: Path = ROOT) -> dict[str, object]:
    """The folders' provenance records (date, driver, library versions), by folder name."""
    return {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(root.glob("*/provenance.json"))}
