"""Every framework a plan can be written for, and the writing of it beside a run. A new one is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

from dse.answers import PlanAnswer
from dse.experiment import Experiment
from dse.measures import nearest

Writer = Callable[[Experiment[Any], Mapping[str, Any]], str]
"""The launch file of a plan (names by symbol), as text. Raises CannotLaunch for what the framework cannot do."""


class CannotLaunch(ValueError):
    """A plan that a framework cannot run, or none to write; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Framework:
    """Where its writer is, what its file ends in, and the kind of experiment it runs."""

    module: str
    suffix: str
    kind: str


FRAMEWORKS: Mapping[str, Framework] = MappingProxyType(
    {
        "vllm": Framework(module="dse.launch.vllm", suffix=".sh", kind="serving"),
        "sglang": Framework(module="dse.launch.sglang", suffix=".sh", kind="serving"),
        "trtllm": Framework(module="dse.launch.trtllm", suffix=".sh", kind="serving"),
        "megatron": Framework(module="dse.launch.megatron", suffix=".sh", kind="training"),
        "torchtitan": Framework(module="dse.launch.torchtitan", suffix=".toml", kind="training"),
    }
)


def launch_text(experiment: Experiment[Any], answer: PlanAnswer, to: str) -> str:
    """The launch file of a plan for one framework. Raises CannotLaunch."""
    if to not in FRAMEWORKS:
        raise CannotLaunch(f"--to: no framework is called {to!r}{nearest(to, list(FRAMEWORKS))}")
    framework = FRAMEWORKS[to]
    if framework.kind != experiment.kind:
        fit = ", ".join(name for name, other in FRAMEWORKS.items() if other.kind == experiment.kind)
        raise CannotLaunch(f"{to} runs {framework.kind}, and this is a {experiment.kind} experiment; choose one of {fit}")
    write = cast(Writer, import_module(framework.module).write)
    return write(experiment, answer.plan)


def export(folder: Path, to: str, rank: int = 1, out: Path | None = None) -> Path:
    """Write the launch file of a run's front member (from 1): `<run>/launch/<framework>-<rank>…`, or `out`.

    A file that is there and says something else is not overwritten. Raises BadRunFolder, CannotLaunch, OSError.
    """
    from dse.experiment import load
    from dse.run_folder import read

    run = read(folder)
    if not 1 <= rank <= len(run.front):
        raise CannotLaunch(f"the front has {len(run.front)} plans; there is no number {rank}")
    text = launch_text(load(folder / "experiment.yaml"), run.front[rank - 1], to)
    path = out or folder / "launch" / f"{to}-{rank}{FRAMEWORKS[to].suffix}"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise FileExistsError(17, "holds something else and is not overwritten; name another file with --out", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
