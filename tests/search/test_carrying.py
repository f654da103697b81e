"""What travels to workers: by name where it has one, by value where a script or a notebook defines it."""

from __future__ import annotations

import sys
import threading
from multiprocessing.spawn import get_preparation_data
from types import MappingProxyType, ModuleType

import pytest

from search.carrying import from_bytes, to_bytes, unimported_main, work_to_bytes
from search.execution import ExecutorError
from search.local import Local
from tests.search.errands import slowly_squared

SCRIPT = """
class Model:
    factor = 3

    def __call__(self, number):
        return self.factor * number

raise SystemExit("a script must not be started again")
"""


def script() -> ModuleType:
    """A script that has run up to where it asks."""
    module = ModuleType("__main__")
    module.__file__ = "/nowhere/script.py"
    exec(SCRIPT.partition("raise")[0], module.__dict__)
    return module


def test_what_a_script_defines_travels_by_value_and_all_else_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    main = script()
    monkeypatch.setitem(sys.modules, "__main__", main)
    data = to_bytes(main.Model())
    assert to_bytes(slowly_squared) == to_bytes(from_bytes(to_bytes(slowly_squared)))
    monkeypatch.setitem(sys.modules, "__main__", ModuleType("__main__"))
    assert from_bytes(data)(7) == 21
    assert from_bytes(to_bytes(MappingProxyType({"a": lambda x: x + 1})))["a"](1) == 2


def test_a_worker_does_not_start_the_script_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "__main__", main := script())
    assert get_preparation_data("worker").get("init_main_from_path") == main.__file__
    with unimported_main():
        assert not {"init_main_from_path", "init_main_from_name"} & set(get_preparation_data("worker"))
    assert sys.modules["__main__"] is main
    assert sorted(Local(workers=1).map(main.Model(), iter([1, 2]))) == [(0, 3), (1, 6)]


def test_work_that_cannot_leave_the_process_is_told() -> None:
    with pytest.raises(ExecutorError, match="cannot be sent to workers: TypeError: "):
        work_to_bytes({"model": threading.Lock()})
