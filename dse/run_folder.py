"""Run folders: made new each time, never overwritten, holding all that is needed to read and to repeat a run.

`experiment.yaml` as resolved, `manifest.json` (versions, seed, hashes, certificate), `run.sqlite` (trials as they were found,
then front, top and sample), until the run is whole `slices.sqlite` (`dse.run_store`), `front.csv`, `top.csv`, `report.md`,
`report.html`; of machines also `sensitivity.json`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import platform
import shutil
import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from dse.answers import PlanAnswer, Run, row, to_json_text
from dse.run_store import FILE, SLICES, connect, drop_slices
from search.sampled import GAVE_UP

SCHEMA = 2
"""Version of the folder's layout; a reader refuses any other."""
GRID = "sweep.json"
"""What a sweep's folder holds in place of a run."""
WHOLE = ("", "sampled", GAVE_UP)
"""Why searches stop that nobody needs to go on with: nothing is left, the budget of points is spent, or
the method asks for known points alone."""

_LIBRARIES = ("frontplan", "numpy", "scipy", "networkx", "pyyaml", "pydantic", "moocore")


class BadRunFolder(ValueError):
    """A folder that is not a run, or one of another schema version."""


def create(parent: Path, name: str) -> Path:
    """A new folder `<parent>/<name>-<n>` with the smallest n not taken. Raises OSError."""
    parent.mkdir(parents=True, exist_ok=True)
    for n in range(1, 1_000_000):
        folder = parent / f"{name}-{n}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{parent} holds a million runs of {name}")


def create_at(folder: Path) -> Path:
    """`folder` itself when it does not exist, else `<folder>-<n>` beside it. Raises OSError."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return create(folder.parent, folder.name)
    return folder


def write_experiment(experiment: str, files: Mapping[str, Path], folder: Path) -> None:
    """What is asked, in a new folder. Raises OSError."""
    (folder / "experiment.yaml").write_text(experiment, encoding="utf-8")
    for name, source in files.items():
        shutil.copyfile(source, folder / name)


def write(run: Run, folder: Path, *, seed: int) -> None:
    """Fill a folder with a run's answer. Raises OSError or sqlite3.Error when the disk does not take it."""
    _write_store(run, folder)
    _write_csv(folder / "front.csv", ({"rank": i} | row(a) for i, a in enumerate(run.front, 1)))
    top = ({"by": by, "rank": i} | row(a) for by, plans in run.top.items() for i, a in enumerate(plans, 1))
    _write_csv(folder / "top.csv", top)
    manifest = {
        "schema": SCHEMA,
        "kind": run.kind,
        "name": run.name,
        "title": run.title,
        "seed": seed,
        "python": platform.python_version(),
        "versions": versions(),
        "data_sha256": data_hashes(),
        "certificate": run.certificate,
        "wall_s": run.wall_s,
        "cpu_s": run.cpu_s,
        "units": "SI; *_low and *_high bound the interval",
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if run.sensitivity is not None:
        (folder / "sensitivity.json").write_text(to_json_text(run.sensitivity) + "\n", encoding="utf-8")
    write_reports(run, folder)


def write_reports(run: Run, folder: Path) -> None:
    """report.md and report.html, made again if they are there."""
    from dse.report.html import page as html_page
    from dse.report.markdown import page as markdown_page

    (folder / "report.md").write_text(markdown_page(run), encoding="utf-8")
    (folder / "report.html").write_text(html_page(run), encoding="utf-8")


def versions() -> dict[str, str]:
    """Versions of what figures depend on; a library that is not installed as a distribution is left out."""
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def data_hashes() -> dict[str, str]:
    """SHA-256 of every data file the packages ship, by path within the package."""
    import costmodels
    import spaces

    hashes = {}
    for package in (costmodels, spaces):
        root = Path(next(iter(package.__path__)))
        for file in sorted((root / "data").rglob("*.*")):
            if file.is_file():
                hashes[f"{root.name}/{file.relative_to(root).as_posix()}"] = hashlib.sha256(file.read_bytes()).hexdigest()
    return hashes


def code_hash() -> str:
    """SHA-256 over the source of spaces, cost models and search: what figures come from."""
    import costmodels
    import search
    import spaces

    digest = hashlib.sha256()
    for package in (spaces, costmodels, search):
        root = Path(next(iter(package.__path__)))
        for file in sorted(root.rglob("*.py")):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _write_csv(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    held = list(rows)
    headings = list(dict.fromkeys(key for entry in held for key in entry))
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, headings)
        writer.writeheader()
        writer.writerows(held)


# --- the store ----------------------------------------------------------------------------------------------------------------


def _write_store(run: Run, folder: Path) -> None:
    """All of the answer or nothing; the slices and figures of a whole search have done their duty."""
    plans = [("front", i, a) for i, a in enumerate(run.front, 1)]
    plans += [(f"top:{by}", i, a) for by, found in run.top.items() for i, a in enumerate(found, 1)]
    plans += [(name, 1, a) for name, a in (("baseline", run.baseline), ("closest", run.closest)) if a is not None]
    meta = {
        "schema": SCHEMA,
        "kind": run.kind,
        "name": run.name,
        "title": run.title,
        "objectives": run.objectives,
        "certificate": run.certificate,
        "assumptions": run.assumptions,
        "sensitivity": run.sensitivity,
        "wall_s": run.wall_s,
        "cpu_s": run.cpu_s,
    }
    whole = run.certificate["stopped"] in WHOLE
    with closing(connect(folder)) as store, store:
        store.execute("BEGIN IMMEDIATE")
        if whole:
            if (folder / SLICES).exists():
                store.execute("INSERT OR REPLACE INTO chunk SELECT start, n, cpu_s FROM found.slice")
            store.execute("DELETE FROM figures")
        for table in ("plan", "removed"):
            store.execute(f"DELETE FROM {table}")
        store.execute("DROP TABLE IF EXISTS sample")
        rows = [(key, to_json_text(value)) for key, value in meta.items()]
        store.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", rows)
        store.executemany("INSERT INTO plan VALUES (?, ?, ?)", [(n, i, to_json_text(a.to_json())) for n, i, a in plans])
        store.executemany("INSERT INTO removed VALUES (?, ?, ?)", run.removed)
        _write_sample(store, run.sample)
    if whole:
        drop_slices(folder)


def _write_sample(store: sqlite3.Connection, sample: Mapping[str, Any]) -> None:
    names = list(sample)
    if not names:
        return
    columns = ", ".join(f'"{name}"' for name in names)
    store.execute(f"CREATE TABLE sample ({columns})")
    rows = zip(*(np.asarray(sample[name]).tolist() for name in names), strict=True)
    store.executemany(f"INSERT INTO sample VALUES ({', '.join('?' * len(names))})", rows)


def anew(folder: Path) -> str:
    """What to do where a run's record is of no use."""
    return f"dse run {folder / 'experiment.yaml'} begins it anew"


def not_a_run(folder: Path) -> BadRunFolder:
    """What there is in place of a run folder, and which folders would do."""
    if folder.is_file():
        return BadRunFolder(f"{folder} is a file, not the folder that a run wrote, such as runs/NAME-1")
    if not folder.is_dir():
        return BadRunFolder(f"there is no run folder {folder}" + _such(folder.parent, "those beside it are "))
    if (folder / GRID).is_file():
        return BadRunFolder(f"{folder} is a sweep, not a run" + _such(folder, "its runs are "))
    return BadRunFolder(f"{folder} is not a run folder: it has no {FILE}" + _such(folder, "those in it are "))


def _such(parent: Path, said: str, most: int = 5) -> str:
    """Run folders in a folder, as the end of a sentence."""
    runs = sorted(str(found.parent) for found in parent.glob(f"*/{FILE}")) if parent.is_dir() else []
    return f"; {said}{', '.join(runs[:most])}{', …' if len(runs) > most else ''}" if runs else ""


def read(folder: str | os.PathLike[str]) -> Run:
    """The run a folder holds. Raises BadRunFolder, FileNotFoundError."""
    folder = Path(folder)
    store_path = folder / FILE
    if not store_path.is_file():
        raise not_a_run(folder)
    try:
        with closing(sqlite3.connect(f"{store_path.resolve().as_uri()}?mode=ro", uri=True)) as store:
            return _read(store, folder)
    except (sqlite3.DatabaseError, KeyError, json.JSONDecodeError) as error:
        raise BadRunFolder(f"{store_path} cannot be read as a run: {error}; {anew(folder)}") from None


def _read(store: sqlite3.Connection, folder: Path) -> Run:
    meta = {key: json.loads(value) for key, value in store.execute("SELECT key, value FROM meta")}
    if "certificate" not in meta:
        raise BadRunFolder(f"{folder} holds a run that has not ended; dse resume {folder} goes on with it")
    if meta["schema"] != SCHEMA:
        raise BadRunFolder(f"{folder} was written with schema {meta['schema']}; this version reads schema {SCHEMA}")
    lists: dict[str, list[PlanAnswer]] = {}
    for name, answer in store.execute("SELECT list, answer FROM plan ORDER BY rowid"):
        lists.setdefault(name, []).append(PlanAnswer.from_json(_whole(json.loads(answer))))
    return Run(
        kind=meta["kind"],
        name=meta["name"],
        folder=folder,
        experiment=(folder / "experiment.yaml").read_text(encoding="utf-8"),
        title=meta["title"],
        objectives=tuple((metric, maximise) for metric, maximise in meta["objectives"]),
        front=tuple(lists.get("front", ())),
        top={name.removeprefix("top:"): tuple(found) for name, found in lists.items() if name.startswith("top:")},
        baseline=next(iter(lists.get("baseline", ())), None),
        closest=next(iter(lists.get("closest", ())), None),
        certificate=meta["certificate"],
        removed=tuple(store.execute("SELECT axis, reason, count FROM removed ORDER BY rowid")),
        assumptions=tuple(meta["assumptions"]),
        wall_s=meta["wall_s"],
        cpu_s=meta["cpu_s"],
        sample=_read_sample(store),
        sensitivity=meta.get("sensitivity"),
    )


def _whole(answer: dict[str, Any]) -> dict[str, Any]:
    """Figures that were not finite come back as NaN."""
    for figure in answer["metrics"].values():
        figure.update({key: float("nan") for key, value in figure.items() if value is None})
    return answer


def _read_sample(store: sqlite3.Connection) -> dict[str, Any]:
    if not store.execute("SELECT name FROM sqlite_master WHERE name = 'sample'").fetchone():
        return {}
    cursor = store.execute("SELECT * FROM sample")
    names = [column[0] for column in cursor.description]
    values = np.array(cursor.fetchall(), np.float64).reshape(-1, len(names))
    return {name: values[:, i] for i, name in enumerate(names)}
