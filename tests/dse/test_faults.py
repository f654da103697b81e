"""Runs that are killed, and disks that fail, at random moments: nothing lost, nothing twice, the same answer in the end.

Each fault happens FAULT_ROUNDS times (1 unless the environment says otherwise), with a seed of its own each time.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dse import run_folder
from dse.resumption import resume
from dse.run_store import FILE, SLICES, RunStore
from dse.runner import run
from search import spreading

pytestmark = pytest.mark.fault
ROUNDS = range(int(os.environ.get("FAULT_ROUNDS", "1")))
POINTS = 5000  # of a slice, so that a run has eight

EXPERIMENT = """\
kind: training
name: faulty
model: llama-3.1-8b
hardware: {device: H100, devices: 64}
workload: {sequence: 4096, global_batch: 128}
stack: megatron
space: {offload: none}
objectives: [step_time, memory]
search: {top: 3, sample: 500}
"""

DRIVER = f"""\
import resource, signal, sys
from search import spreading
spreading._chunk = lambda cost: {POINTS}
from dse.command_line import main
if __name__ == "__main__":
    if sys.argv[1] != "0":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
    main(sys.argv[2:])
"""


@dataclass(frozen=True, slots=True)
class Whole:
    """An experiment and what a run of it gives that nothing disturbs."""

    file: Path
    answer: tuple[Any, ...]
    slices: int
    size: int


def told(folder: Path) -> tuple[Any, ...]:
    """All of a run's answer, and that its slices are the space, each point once."""
    answer = run_folder.read(folder)
    certificate = answer.certificate
    assert certificate["complete"]
    with closing(sqlite3.connect(folder / FILE)) as store:
        chunks = store.execute("SELECT start, n FROM chunk ORDER BY start").fetchall()
    assert [start for start, _ in chunks] == [sum(n for _, n in chunks[:i]) for i in range(len(chunks))]
    assert sum(n for _, n in chunks) == certificate["space"]
    return (
        (folder / "front.csv").read_bytes(),
        (folder / "top.csv").read_bytes(),
        certificate,
        {name: column.tobytes() for name, column in answer.sample.items()},
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The undisturbed run."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "faulty.yaml").write_text(EXPERIMENT, encoding="utf-8")
    answer = run(folder / "faulty.yaml", out=folder / "run")
    assert answer.front
    slices, size = answer.certificate["space"] // POINTS, (folder / "run" / FILE).stat().st_size
    return Whole(folder / "faulty.yaml", told(folder / "run"), slices, size)


@pytest.fixture(params=ROUNDS)
def chance(request: pytest.FixtureRequest) -> random.Random:
    """When it happens."""
    return random.Random(request.param)


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many slices, so that there is something between the first and the last."""
    monkeypatch.setattr(spreading, "_chunk", lambda _: POINTS)


def started(whole: Whole, out: Path, *settings: str, room: int = 0) -> subprocess.Popen[str]:
    """A driver in a process group of its own; with `room`, no file may grow larger."""
    arguments = [str(room), "run", str(whole.file), "--out", str(out), *(part for s in settings for part in ("--set", s))]
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def slices_of(folder: Path) -> int:
    """Slices on record."""
    found = 0
    for file, table in ((SLICES, "slice"), (FILE, "chunk")):
        try:
            with closing(sqlite3.connect(f"{(folder / file).as_uri()}?mode=ro", uri=True)) as store:
                found = max(found, int(store.execute(f"SELECT count(*) FROM {table}").fetchone()[0]))
        except sqlite3.Error:  # it is being made, or is gone
            continue
    return found


def wait_for(driver: subprocess.Popen[str], folder: Path, slices: int) -> None:
    """Until so many slices are on record, or the driver has ended."""
    while driver.poll() is None and slices_of(folder) < slices:
        time.sleep(0.002)


def children(pid: int) -> list[int]:
    """Worker processes of a driver."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text(encoding="utf-8").rpartition(")")[2].split()
            command = (status.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == pid and b"spawn_main" in command:
            found.append(int(status.parent.name))
    return found


def ended(driver: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error."""
    _, err = driver.communicate(timeout=120)
    return driver.returncode, err


@pytest.mark.parametrize("who", ["serial", "local"])
def test_a_driver_that_is_killed_is_resumed_to_the_same_answer(
    whole: Whole, tmp_path: Path, chance: random.Random, who: str
) -> None:
    out = tmp_path / "run"
    driver = started(whole, out, f"search.executor={who}", "search.workers=1" if who == "serial" else "search.workers=2")
    wait_for(driver, out, chance.randint(1, whole.slices))
    time.sleep(chance.uniform(0, 0.02))
    workers = children(driver.pid)
    driver.kill()
    ended(driver)
    done = slices_of(out)
    deadline = time.monotonic() + 30
    while any(Path(f"/proc/{worker}").exists() for worker in workers):  # they notice that nobody listens
        assert time.monotonic() < deadline
        time.sleep(0.01)
    asked: list[int] = []
    answer = resume(out, overrides=["search.executor=serial", "search.workers=1"], progress=lambda p: asked.append(p.visited))
    assert not answer.trouble
    assert told(out) == whole.answer
    assert done >= 1
    assert len(asked) <= whole.slices + 2 - done or not asked  # what was on record was not searched again


def test_everything_killed_at_once(whole: Whole, tmp_path: Path, chance: random.Random) -> None:
    out = tmp_path / "run"
    driver = started(whole, out, "search.executor=local", "search.workers=2")
    wait_for(driver, out, chance.randint(1, whole.slices))
    os.killpg(driver.pid, signal.SIGKILL)
    ended(driver)
    resume(out)
    assert told(out) == whole.answer


def test_a_worker_that_is_killed_changes_nothing(whole: Whole, tmp_path: Path, chance: random.Random) -> None:
    out = tmp_path / "run"
    driver = started(whole, out, "search.executor=local", "search.workers=2")
    wait_for(driver, out, chance.randint(1, whole.slices))
    workers = children(driver.pid)
    if workers:
        os.kill(chance.choice(workers), signal.SIGKILL)
    code, err = ended(driver)
    assert code == 0, err
    assert told(out) == whole.answer


@pytest.mark.usefixtures("small_slices")
def test_a_node_that_leaves_the_cluster_changes_nothing(
    whole: Whole, tmp_path: Path, chance: random.Random, ray_cluster: Any
) -> None:
    node = ray_cluster.add_node(num_cpus=1)
    moment = chance.randint(1, whole.slices // 2)
    seen: list[Any] = []

    def leave(progress: Any) -> None:
        seen.append(progress)
        if len(seen) == moment:
            ray_cluster.remove_node(node, allow_graceful=False)

    answer = run(whole.file, out=tmp_path / "run", overrides=["search.executor=ray"], progress=leave)
    assert len(seen) >= moment
    assert not answer.trouble
    assert told(tmp_path / "run") == whole.answer


@pytest.mark.parametrize("who", ["serial", "local"])
def test_a_disk_that_fills_up_keeps_what_is_on_record(
    whole: Whole, tmp_path: Path, chance: random.Random, who: str
) -> None:
    out = tmp_path / "run"
    workers = "search.workers=1" if who == "serial" else "search.workers=2"
    room = chance.randint(whole.size // 5, whole.size // 2)
    code, err = ended(started(whole, out, f"search.executor={who}", workers, room=room))
    assert code == 1
    assert "could not be" in err
    assert "Traceback" not in err
    with closing(RunStore(out, ["step_time", "memory"])) as store:
        held = dict(store.slices())
    resume(out)
    assert told(out) == whole.answer
    assert len(held) < whole.slices + 2


@pytest.mark.parametrize("released", [True, False])
@pytest.mark.usefixtures("small_slices")
def test_a_locked_database_stops_nothing(
    whole: Whole, tmp_path: Path, chance: random.Random, released: bool, holder: Callable[[Path], sqlite3.Connection]
) -> None:
    out = tmp_path / "run"
    first, last = sorted(chance.sample(range(1, whole.slices), 2))
    seen: list[Any] = []
    held: list[sqlite3.Connection] = []

    def meddle(progress: Any) -> None:
        seen.append(progress)
        if len(seen) == first:
            held.append(holder(out))
        if len(seen) == last and released:
            held[0].close()

    answer = run(whole.file, out=out, progress=meddle)
    assert answer.front
    if not released:
        assert "locked" in answer.trouble
        held[0].close()
        answer = resume(out)
    assert not answer.trouble
    assert told(out) == whole.answer


@pytest.fixture
def holder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], sqlite3.Connection]]:
    """Takes a run's database for itself alone."""
    monkeypatch.setattr("dse.run_store.PATIENCE", 0.005)
    held: list[sqlite3.Connection] = []

    def take(folder: Path) -> sqlite3.Connection:
        held.append(sqlite3.connect(folder / FILE, isolation_level=None))
        held[-1].execute("BEGIN EXCLUSIVE")
        return held[-1]

    yield take
    for connection in held:
        connection.close()
