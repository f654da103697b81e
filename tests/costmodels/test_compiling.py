"""Compiled functions do what Python does with the same lines."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_tables import imagined_tables

from costmodels.compiling import kept_code, machine_code
from costmodels.compiling.machine_code import compiled
from costmodels.compiling.signatures import NotCompilable
from costmodels.simulation import Limits, Pool
from costmodels.simulation.layout import layout
from costmodels.simulation.limits import KvLink
from costmodels.simulation.loop import advance
from costmodels.simulation.state import ENDED
from spaces.columns import FloatArray, IntArray
from spaces.workload import Requests

SCALE = 3


def arithmetic(m: IntArray, f: FloatArray, a: int, b: int) -> float:
    f[0] = a / b + min(f[1], float(a)) - max(b, f[2]) * -f[1]
    m[3] = (a // b) * 1000 + a % b + (a << 2) - (a >> 1) + (a & 12) + (b | 1)
    f[4] = math.floor(f[1] * a)
    m[5] = a > b and b != 0
    m[6], m[7] = b, -a
    m[7] += SCALE
    return f[0]


def control(m: IntArray, f: FloatArray, a: int, b: int) -> float:
    total = 0.0
    for i in range(a % 5, 12):
        if i == 9 or (f[1] > 0 and i == b):
            continue
        if not i % 11 and i > 0:
            break
        total += halved(m, i) if i % 2 else 0.5
        total += i if i % 2 else -i
    n = 0
    while True:
        n += 1
        if n * n > abs_of(a):
            break
    m[3] = n
    return total if b > 0 else math.inf


def halved(m: IntArray, i: int) -> float:
    m[4] += i
    if i < 0:
        return 0.0
    return i / 2


def abs_of(a: int) -> int:
    return -a if a < 0 else a


words = st.integers(-1000, 1000)


@pytest.mark.parametrize("function", [arithmetic, control])
def test_compiled_and_interpreted_agree_bit_by_bit(function) -> None:  # type: ignore[no-untyped-def]
    machine = compiled(function)

    @given(words, words.filter(bool), st.lists(st.floats(-100, 100), min_size=8, max_size=8))
    def agree(a: int, b: int, values: list[float]) -> None:
        blocks = [np.array(values).view(np.int64) for _ in range(2)]
        blocks[0][3:5] = blocks[1][3:5] = 7
        results = [run(m, m.view(np.float64), a, b) for run, m in zip((function, machine), blocks, strict=True)]
        assert results[0] == results[1]
        assert blocks[0].tobytes() == blocks[1].tobytes()

    agree()


def test_the_event_loop_is_the_same_compiled_and_read_aloud() -> None:
    generator = np.random.default_rng(3)
    n = 60
    requests = Requests(
        arrival=np.sort(generator.uniform(0, 0.3, n)), prompt=generator.integers(1, 40, n), output=generator.integers(1, 20, n)
    )
    limits = Limits(max_batch=4, max_tokens=30, kv_blocks=20, block_size=4, verified_tokens=3, accepted_tokens=2.3)
    pool = Pool(tables=imagined_tables(stages=2, slowest_share=0.6), engine=1, limits=limits, replicas=2)
    one = layout((pool, pool), requests, KvLink(latency=1e-3, time_per_token=1e-5), "least-loaded", math.inf).m
    two = copy.deepcopy(one)
    assert advance(one, one.view(np.float64), 1 << 62) == compiled(advance)(two, two.view(np.float64), 1 << 62) == ENDED
    assert one.tobytes() == two.tobytes()


def text(m: IntArray) -> int:
    return len(m)


def stranger(f: FloatArray) -> int:
    return f[0]  # type: ignore[return-value]


def unannotated(m) -> int:  # type: ignore[no-untyped-def]
    return m[0]  # type: ignore[no-any-return]


def listed(m: IntArray) -> int:
    return [m[0]][0]


@pytest.mark.parametrize(
    ("function", "said"),
    [(text, "len"), (stranger, "double where i64"), (unannotated, "m is not annotated"), (listed, r"test_compiling.py:\d+:")],
)
def test_what_is_not_understood_is_refused_with_its_place(function, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(NotCompilable, match=said):
        compiled(function)


def spread(m: IntArray, f: FloatArray, a: int, b: int) -> float:
    m[1] = a
    f[0] = 1.5 * a + b + SCALE
    return f[0]


def run_spread(folder: Path | None) -> float:
    f = np.zeros(4)
    return float(compiled(spread, folder)(f.view(np.int64), f, 7, 2))


def test_kept_code_gives_the_same_and_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = run_spread(None)
    assert run_spread(tmp_path / "new") == fresh
    (kept,) = (tmp_path / "new").iterdir()
    before = kept.read_bytes()
    monkeypatch.setattr(machine_code, "_machine_code", None)  # no second compilation
    assert run_spread(tmp_path / "new") == fresh
    assert kept.read_bytes() == before


def test_kept_code_follows_the_numbers_that_a_function_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run_spread(tmp_path)
    monkeypatch.setitem(globals(), "SCALE", SCALE + 10)
    assert run_spread(tmp_path) == before + 10


@pytest.mark.parametrize(
    "damage", [lambda code: code[:0], lambda code: code[:100], lambda code: code[:-1] + b"?", lambda code: code[::-1]]
)
def test_broken_kept_code_changes_nothing(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    fresh = run_spread(tmp_path)
    (kept,) = tmp_path.iterdir()
    whole = kept.read_bytes()
    kept.write_bytes(damage(whole))
    assert run_spread(tmp_path) == fresh
    assert kept.read_bytes() == whole  # mended


def test_code_of_others_and_folders_that_cannot_be_written_are_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = run_spread(tmp_path)
    (kept,) = tmp_path.iterdir()
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    assert kept_code.read(tmp_path, kept.name) is None
    monkeypatch.undo()
    assert kept_code.read(tmp_path, kept.name) is not None
    kept.unlink()
    kept.mkdir()  # in the way
    assert run_spread(tmp_path) == fresh
    (tmp_path / "file").write_text("")
    assert run_spread(tmp_path / "file") == fresh
