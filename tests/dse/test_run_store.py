"""The run store: what is told is told once, comes back as it was, survives the process, and one driver writes at a time."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dse.run_store import FILE, RunLocked, RunStore
from search.store import Ledger, Remembered, Trials, TrialStore

Made = Callable[[], RunStore | Remembered]


@pytest.fixture(params=["memory", "disk"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Made]:
    """Makes empty stores of two objectives."""
    stores: list[RunStore] = []

    def make() -> RunStore | Remembered:
        if request.param == "memory":
            return Remembered(objectives=2)
        folder = tmp_path / str(len(stores))
        folder.mkdir()
        stores.append(RunStore(folder, ["step_time", "memory"]))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


def trials(ordinals: list[int], failed: frozenset[int] = frozenset()) -> Trials:
    """Trials whose figures follow from their ordinals."""
    places = np.array(ordinals, np.int64)
    bad = np.isin(places, sorted(failed))
    return Trials(
        ordinals=places,
        costs=np.where(bad[:, None], np.inf, np.stack([places * 0.1, -places / 3], axis=1)),
        violation=np.where(bad, np.inf, places / 7 - 1),
        reasons={i: f"no {o}" for i, o in enumerate(ordinals) if o in failed},
    )


@given(st.lists(st.lists(st.integers(0, 30), max_size=12), max_size=6), st.frozensets(st.integers(0, 30)))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
def test_each_point_is_on_record_once_as_first_told(made: Made, batches: list[list[int]], failed: frozenset[int]) -> None:
    store = made()
    assert isinstance(store, TrialStore)
    for batch in batches:
        store.tell(trials(batch, failed))
    once = list(dict.fromkeys(o for batch in batches for o in batch))
    told, expected = store.trials(), trials(once, failed)
    assert told.ordinals.tolist() == once
    assert told.costs.tobytes() == expected.costs.tobytes()
    assert told.violation.tobytes() == expected.violation.tobytes()
    assert dict(told.reasons) == dict(expected.reasons)
    assert store.known(np.arange(31)).tolist() == [o in once for o in range(31)]


def test_a_slice_comes_back_as_it_was_kept(made: Made) -> None:
    store = made()
    assert isinstance(store, Ledger)
    store.keep(0, 10, b"abc", 0.5)
    store.keep(10, 7, b"\x00\xff", 0.25)
    assert dict(store.slices()) == {0: 10, 10: 7}
    assert store.found(10) == (b"\x00\xff", 0.25)


def test_trials_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match="3 trials need"):
        Trials(ordinals=np.arange(3), costs=np.zeros((2, 1)), violation=np.zeros(3))


def test_what_was_told_is_there_for_the_next_process(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, numpy as np; from pathlib import Path\n"
        "from dse.run_store import RunStore; from search.store import Trials\n"
        "s = RunStore(Path(sys.argv[1]), ['a'])\n"
        "s.tell(Trials(ordinals=np.array([4, 2]), costs=np.array([[1.5], [2.5]]), violation=np.array([-1.0, 0.5])))\n"
        "s.keep(0, 3, b'slice', 1.0)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    store = RunStore(tmp_path, ["a"])  # the dead process holds no lock
    assert store.trials().ordinals.tolist() == [4, 2]
    assert store.trials().costs.tolist() == [[1.5], [2.5]]
    assert store.found(0) == (b"slice", 1.0)
    store.tell(trials_of_one([2, 9]), b"nine")
    assert store.trials().figures == (b"nine",)
    assert store.trials().ordinals.tolist() == [4, 2, 9]
    store.close()


def trials_of_one(ordinals: list[int]) -> Trials:
    """Trials of one objective."""
    return Trials(ordinals=np.array(ordinals), costs=np.ones((len(ordinals), 1)), violation=np.zeros(len(ordinals)))


def test_two_drivers_on_one_folder_the_second_is_refused(tmp_path: Path) -> None:
    first = RunStore(tmp_path, ["a"])
    code = "import sys; from pathlib import Path; from dse.run_store import RunStore; RunStore(Path(sys.argv[1]), ['a'])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True, text=True)
    assert "is being written by process" in done.stderr
    with pytest.raises(RunLocked):
        RunStore(tmp_path, ["a"])
    first.close()
    RunStore(tmp_path, ["a"]).close()


def test_a_locked_database_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dse.run_store.PATIENCE", 0.01)
    store = RunStore(tmp_path, ["a"])
    store.tell(trials_of_one([1]))
    other = sqlite3.connect(tmp_path / FILE, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    store.tell(trials_of_one([2, 3]))
    store.keep(0, 5, b"five", 1.0)
    assert "locked" in store.trouble
    assert store.known(np.array([1, 2, 3, 4])).tolist() == [True, True, True, False]
    assert store.found(0) == (b"five", 1.0)
    assert store.trials().ordinals.tolist() == [1, 2, 3]
    other.execute("ROLLBACK")
    other.close()
    store.tell(trials_of_one([3, 4]))
    assert store.trouble == ""
    store.close()
    again = RunStore(tmp_path, ["a"])
    assert again.trials().ordinals.tolist() == [1, 2, 3, 4]
    assert dict(again.slices()) == {0: 5}
    again.close()


def test_a_full_disk_keeps_what_was_written_and_says_so(tmp_path: Path) -> None:
    code = (
        "import resource, signal, sys, numpy as np; from pathlib import Path\n"
        "from dse.run_store import RunStore\n"
        "s = RunStore(Path(sys.argv[1]), ['a'])\n"
        "s.keep(0, 1, b'x' * 1000, 1.0)\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))\n"
        "s.keep(1, 1, b'y' * 1_000_000, 1.0)\n"
        "print(s.trouble); assert s.found(1)[0] == b'y' * 1_000_000\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard)) if len(sys.argv) > 2 else None\n"
        "s.close(); print(s.trouble or 'well')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    assert "could not be written down" in done.stdout.splitlines()[0]
    store = RunStore(tmp_path, ["a"])
    assert dict(store.slices()) == {0: 1}
    store.close()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), "room"], check=True, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "well"
    store = RunStore(tmp_path, ["a"])
    assert dict(store.slices()) == {0: 1, 1: 1}
    store.close()
