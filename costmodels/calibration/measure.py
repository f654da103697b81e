"""The suite's command: `python -m costmodels.calibration.measure --out DIR [--seconds 480] [--suite a,b] [--small]`.

Resumes what DIR holds, says what is left and how long it will take, stops in time. Under `torchrun` with several ranks
it measures collectives and parallel training steps as well; rank 0 writes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from costmodels.calibration import attention, collectives, gemm, host, parallel, pointwise, serving, serving_parallel, steps
from costmodels.calibration.ledger import Ledger, RefusedRowError
from costmodels.calibration.shapes import BadShapes, read_shapes
from costmodels.calibration.suite import Pace, Suite, Task, row_key
from costmodels.calibration.timing import Bench

SUITES: dict[str, Suite] = {
    module.SUITE.name: module.SUITE
    for module in (gemm, attention, pointwise, host, steps, serving, collectives, parallel, serving_parallel)
}


def chosen_suites(names: str, ranks: int) -> list[Suite]:
    """Suites by name, or all that suit this many ranks: one rank measures kernels, several what they do together."""
    if not names:
        return [s for s in SUITES.values() if (s.needs_ranks > 1) == (ranks > 1)]
    unknown = [name for name in names.split(",") if name not in SUITES]
    if unknown:
        raise SystemExit(f"no suite {', '.join(unknown)}; there are {', '.join(SUITES)}")
    return [SUITES[name] for name in names.split(",")]


def left(suite: Suite, done: set[tuple[str, ...]], small: bool) -> list[Task]:
    """Tasks whose row is not written yet, each once."""
    tasks = {row_key(suite.key, task.key): task for task in suite.tasks(small)}
    return [task for key, task in tasks.items() if key not in done]


def allotments(suites: Sequence[Suite], wanted: dict[str, float], seconds: float) -> dict[str, float]:
    """Seconds for each suite: its share of the whole, what a suite does not want going to those that want more."""
    given = {suite.name: 0.0 for suite in suites}
    rest, open_suites = seconds, [s for s in suites if wanted[s.name] > 0]
    while rest > 1e-6 and open_suites:
        total = sum(s.share for s in open_suites)
        still = []
        handed = 0.0
        for suite in open_suites:
            more = min(rest * suite.share / total, wanted[suite.name] - given[suite.name])
            given[suite.name] += more
            handed += more
            if given[suite.name] < wanted[suite.name] - 1e-6:
                still.append(suite)
        if handed <= 1e-9:
            break
        rest, open_suites = rest - handed, still
    return given


def versions(bench: Bench) -> dict[str, Any]:
    """Where these rows come from: device, driver, libraries, clocks, date."""
    torch = bench.torch
    facts: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "gpu": bench.gpu,
        "device": bench.name,
        "ranks": bench.world,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": _processor(),
        "cores": os.cpu_count(),
    }
    if not bench.cuda:
        return facts
    properties = torch.cuda.get_device_properties(bench.device)
    facts |= {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "capability": ".".join(map(str, torch.cuda.get_device_capability(bench.device))),
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cache_bytes": properties.L2_cache_size,
        "environment": {k: v for k, v in os.environ.items() if k.startswith("NCCL_")},
    }
    try:
        import pynvml  # type: ignore[import-not-found, import-untyped, unused-ignore]

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(bench.rank)
        text = pynvml.nvmlSystemGetDriverVersion()
        facts["driver"] = text if isinstance(text, str) else text.decode()
        facts["power_limit_w"] = pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000
        facts["max_sm_clock_mhz"] = pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM)
        facts["memory_clock_mhz"] = pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM)
    except Exception as error:
        facts["driver"] = f"not told: {type(error).__name__}"
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def note_session(folder: Path, facts: dict[str, Any], rows: dict[str, int], seconds: float) -> None:
    """Add this run to the folder's provenance."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "provenance.json"
    told = json.loads(path.read_text()) if path.exists() else {"sessions": []}
    told["sessions"].append(facts | {"rows": rows, "seconds": round(seconds, 1)})
    path.write_text(json.dumps(told, indent=1) + "\n")


class Run:
    """One run of the suite in one folder."""

    def __init__(self, bench: Bench, folder: Path, seconds: float, *, small: bool, start: float) -> None:
        self.bench, self.small, self.folder = bench, small, folder
        self.begun, self.deadline = start, start + seconds
        self.ledger = Ledger(folder, bench.limits)
        self.rows: dict[str, int] = {}
        self.paces: dict[str, Pace] = {}

    def left(self, suite: Suite) -> list[Task]:
        """Tasks still to do, the same on every rank."""
        done = self.ledger.done(suite) if self.bench.rank == 0 else set()
        if self.bench.world > 1:
            box = [done]
            self.bench.torch.distributed.broadcast_object_list(box, 0)
            done = box[0]
        return left(suite, done, self.small)

    def go(self, suites: Sequence[Suite]) -> None:
        """Two rounds: every suite its share, then what time is left to those with tasks left."""
        for turn in (1, 2):
            remaining = {suite.name: self.left(suite) for suite in suites}
            wanted = {s.name: self._pace(s).foretell(remaining[s.name]) for s in suites}
            given = allotments(suites, wanted, max(0.0, self.bench.agree(self.deadline - time.perf_counter())))
            if self.bench.rank == 0:
                for suite in suites:
                    count, name = len(remaining[suite.name]), suite.name
                    text = f"{count} rows left, about {wanted[name]:.0f} s; has {given[name]:.0f} s"
                    print(f"round {turn}: {name}: {text}", flush=True)
            later = sum(given.values())
            for suite in suites:
                later -= given[suite.name]  # a slow suite may use the slack, not what others were given
                if remaining[suite.name] and given[suite.name] > 0:
                    self._suite(suite, remaining[suite.name], self.deadline - later)

    def _pace(self, suite: Suite) -> Pace:
        return self.paces.setdefault(suite.name, Pace())

    def _suite(self, suite: Suite, tasks: list[Task], end: float) -> None:
        pace, begin, count = self._pace(suite), time.perf_counter(), 0
        for number, task in enumerate(tasks):
            now = time.perf_counter()
            if self.bench.agree(float(now + task.seconds * max(pace.ratio, 0.3) > end)):
                if number == 0 or task.seconds < 3:
                    break
                continue
            if self._one(suite, task):
                count += 1
            pace.add(task.seconds, time.perf_counter() - now)
            if self.bench.rank == 0 and (number + 1) % 100 == 0:
                ahead = pace.foretell(tasks[number + 1 :])
                print(f"  {suite.name}: {number + 1} of {len(tasks)}, {now - begin:.0f} s, {ahead:.0f} s to go", flush=True)
        self.rows[suite.name] = self.rows.get(suite.name, 0) + count
        serving.forget()
        self.bench.release()
        if self.bench.rank == 0:
            print(f"{suite.name}: {count} rows in {time.perf_counter() - begin:.1f} s", flush=True)

    def _one(self, suite: Suite, task: Task) -> bool:
        bench = self.bench
        error = ""
        row = None
        try:
            row = suite.measure(bench, task.key)
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}"
        if bench.rank != 0:
            return not error
        if row is not None:
            try:
                self.ledger.add(suite, {**task.key, "gpu": bench.gpu, **row})
                return True
            except RefusedRowError as refused:
                error = str(refused)
        print(f"  {suite.name}: {task.name()}: {error[:200]}", flush=True)
        self.ledger.fail(suite, task.key, error)
        if bench.cuda:
            self._recover()
        return False

    def _recover(self) -> None:
        """After an error: free memory; if the device is lost to this process, start it afresh, which resumes."""
        try:
            self.bench.tidy()
            self.bench.wait()
        except Exception:
            remaining = self.deadline - time.perf_counter()
            if self.bench.world > 1 or remaining < 20:
                raise
            print("the device's context is lost; starting again", flush=True)
            arguments = [a for a in sys.argv[1:] if not a.startswith("--seconds")]
            if "--seconds" in sys.argv:
                del arguments[sys.argv[1:].index("--seconds")]
            module = "costmodels.calibration.measure"
            os.execv(sys.executable, [sys.executable, "-m", module, *arguments, f"--seconds={remaining - 8:.0f}"])


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="costmodels.calibration.measure", description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder of the results; resumed when it holds some")
    parser.add_argument("--seconds", type=float, default=480.0, help="stop after this long")
    parser.add_argument("--suite", default="", help=f"comma-separated, of {', '.join(SUITES)}")
    parser.add_argument("--small", action="store_true", help="few, tiny rows: a CPU does them in seconds")
    parser.add_argument("--shapes", type=Path, help="measure just the products and attention calls of this CSV file")
    parser.add_argument("--plan", action="store_true", help="only say what there is to do")
    return parser.parse_args(argv)


def plan(suites: Sequence[Suite], small: bool, tell: Callable[[str], None] = print) -> None:
    """Rows and seconds guessed for each suite; needs no device."""
    for suite in suites:
        tasks = suite.tasks(small)
        tell(f"{suite.name}: {len(tasks)} rows, about {sum(task.seconds for task in tasks):.0f} s")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; 0 when something was written or nothing was left."""
    start = time.perf_counter()
    chosen = arguments(argv)
    rank, world = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    try:
        suites = chosen_suites(chosen.suite, world) if chosen.shapes is None else list(read_shapes(chosen.shapes))
    except (BadShapes, OSError) as error:
        print(f"--shapes: {error}", file=sys.stderr)
        return 1
    if chosen.plan:
        plan(suites, chosen.small)
        return 0
    try:
        bench = Bench(rank=rank, world=world)
    except ModuleNotFoundError as missing:
        print(
            f"measuring needs PyTorch and numpy, and {missing.name} is not installed: pip install torch numpy", file=sys.stderr
        )
        return 1
    if world > 1:
        collectives.join(bench)
    run = Run(bench, chosen.out, chosen.seconds, small=chosen.small, start=start)
    try:
        run.go(suites)
    finally:
        if rank == 0:
            note_session(chosen.out, versions(bench), run.rows, time.perf_counter() - start)
    if world > 1:
        collectives.leave(bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
