"""A bench: one device, random data on it, and medians of what a function takes there.

Under CUDA a function is captured into a graph and the graph replayed, so that gaps between launches are not counted;
`eager` issues calls back to back from Python, `single` waits for each. On a CPU the wall clock times calls.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from costmodels.calibration.checks import Limits, limits_of, short_name
from costmodels.calibration.suite import Row

Call = Callable[[int], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds for one call: median, spread (interquartile range over median), clock in MHz, power in W, timings."""

    time_s: float
    spread: float
    sm_clock_mhz: float
    power_w: float
    repeats: int

    def row(self) -> Row:
        """The readings as columns; what the device does not tell stays blank."""
        return {
            "time_s": self.time_s,
            "spread": self.spread,
            "sm_clock_mhz": self.sm_clock_mhz if math.isfinite(self.sm_clock_mhz) else "",
            "power_w": self.power_w if math.isfinite(self.power_w) else "",
            "repeats": self.repeats,
        }


def summary(times: list[float], clock: float = math.nan, power: float = math.nan) -> Timing:
    """Median and relative interquartile range of some seconds."""
    middle = statistics.median(times)
    quartiles = statistics.quantiles(times, n=4) if len(times) > 1 else [middle, middle, middle]
    spread = (quartiles[2] - quartiles[0]) / middle if middle > 0 else math.nan
    return Timing(time_s=middle, spread=spread, sm_clock_mhz=clock, power_w=power, repeats=len(times))


class Bench:
    """The device under test. All work is issued to one side stream, so that it can be captured."""

    def __init__(self, *, rank: int = 0, world: int = 1, cpu: bool = False) -> None:
        import torch

        self.torch: Any = torch
        self.rank, self.world = rank, world
        self.cuda: bool = torch.cuda.is_available() and not cpu
        self.device: Any = torch.device("cuda", rank) if self.cuda else torch.device("cpu")
        self.name = "cpu"
        self.cache, self.memory = 32 * 2**20, 16 * 2**30
        self._noise: dict[str, Any] = {}
        if self.cuda:
            torch.cuda.set_device(self.device)
            self.stream: Any = torch.cuda.Stream()
            torch.cuda.set_stream(self.stream)
            properties = torch.cuda.get_device_properties(self.device)
            self.name, self.cache, self.memory = properties.name, properties.L2_cache_size, properties.total_memory
        torch.manual_seed(1 + rank)

    @property
    def gpu(self) -> str:
        """The catalogue's name of the device."""
        return short_name(self.name)

    @property
    def limits(self) -> Limits:
        """Ceilings of the device, with the memory it really reports."""
        known = limits_of(self.name)
        return Limits(
            flops=known.flops,
            bandwidth=known.bandwidth,
            link_bandwidth=known.link_bandwidth,
            memory=float(self.memory),
            cache=float(self.cache),
        )

    def dtype(self, name: str) -> Any:
        """The torch dtype of a short name."""
        torch = self.torch
        return {
            "bf16": torch.bfloat16,
            "fp16": torch.float16,
            "fp32": torch.float32,
            "fp8": torch.float8_e4m3fn,
            "int64": torch.int64,
        }[name]

    def noise(self, count: int, dtype: str = "bf16", offset: int = 0) -> Any:
        """`count` random normal elements, a view of one large buffer starting near `offset` (rounded to 1,024)."""
        sizes = {"bf16": 3 * 2**30, "fp8": 2**31}
        size = sizes.get(dtype, 2**30) if self.cuda else 2**22
        if count > size or (offset + count > size and 2 * count > size):
            return self._random(count, dtype)
        if dtype not in self._noise:
            self._noise[dtype] = self._random(size, dtype)
        buffer = self._noise[dtype]
        start = (offset // 1024 * 1024) % (size - count + 1) // 1024 * 1024
        return buffer[start : start + count]

    def _random(self, count: int, dtype: str) -> Any:
        torch = self.torch
        if dtype != "fp8":
            return torch.randn(count, device=self.device, dtype=self.dtype(dtype))
        buffer = torch.empty(count, device=self.device, dtype=self.dtype(dtype))
        for start in range(0, count, 2**28):
            piece = buffer[start : start + 2**28]
            piece.copy_(torch.randn(piece.numel(), device=self.device))
        return buffer

    def release(self) -> None:
        """Give back all memory, the libraries' workspaces too, so that a peak measured next is its own."""
        self._noise.clear()
        self.tidy()
        if self.cuda:
            clear = getattr(self.torch._C, "_cuda_clearCublasWorkspaces", None)
            if clear is not None:
                clear()
            self.torch.cuda.empty_cache()

    def tidy(self, above: float = 0.0) -> None:
        """Collect garbage; return cached blocks to the device when more than `above` bytes are held."""
        if self.cuda and self.torch.cuda.memory_reserved() <= above:
            return
        gc.collect()
        if self.cuda:
            self.torch.cuda.empty_cache()

    def wait(self) -> None:
        """Until the device has finished."""
        if self.cuda:
            self.torch.cuda.synchronize()

    def clock_and_power(self) -> tuple[float, float]:
        """SM clock in MHz and power in W now; NaN where the driver's library does not say."""
        if not self.cuda:
            return math.nan, math.nan
        try:
            return float(self.torch.cuda.clock_rate()), self.torch.cuda.power_draw() / 1000
        except Exception:
            return math.nan, math.nan

    def agree(self, value: float) -> float:
        """Rank 0's number on every rank."""
        if self.world == 1:
            return value
        tensor = self.torch.tensor([value], dtype=self.torch.float64, device=self.device)
        self.torch.distributed.broadcast(tensor, 0)
        return float(tensor.item())

    def sets(self, one: int) -> int:
        """How many buffer sets of `one` bytes to rotate so that none is still in the last cache; 1 when one is enough."""
        if one > 4 * self.cache:
            return 1
        return min(512, math.ceil(2.5 * self.cache / one) + 1)

    def time(
        self,
        call: Call,
        *,
        sets: int = 1,
        launch: str = "graph",
        repeats: int = 7,
        least: float = 2e-3,
        most: float = 15e-3,
    ) -> Timing:
        """Seconds of `call(i)`, where i counts through `sets` buffer sets.

        A timing holds enough calls to last about `least` seconds, up to `most` for slow ones.
        """
        if not self.cuda:
            return self._wall(call, sets, min(repeats, 3))
        if launch == "single":
            return self._single(call, max(repeats, 15))
        estimate = self._estimate(call, sets)
        target = max(least, min(10 * estimate, most))
        count = max(1, min(256, math.ceil(target / estimate)))
        if estimate > 50e-3:
            repeats = min(repeats, 4)
        if sets > 1:
            count = math.ceil(count / sets) * sets
        if launch == "graph":
            return self._graph(call, sets, count, repeats)
        return self._eager(call, sets, max(count, 20), min(repeats, 5))

    def _estimate(self, call: Call, sets: int) -> float:
        for i in range(2):
            call(i % sets)
        begin, end = self._events(2)
        begin.record()
        rounds = 3
        for i in range(rounds):
            call(i % sets)
        end.record()
        end.synchronize()
        seconds = begin.elapsed_time(end) * 1e-3 / rounds
        if seconds > 5e-3:
            return float(seconds)
        return float(max(seconds / 4, 2e-6)) if seconds < 60e-6 else float(seconds)

    def _events(self, count: int) -> list[Any]:
        return [self.torch.cuda.Event(enable_timing=True) for _ in range(count)]

    def _graph(self, call: Call, sets: int, count: int, repeats: int) -> Timing:
        def work() -> None:
            for i in range(count):
                call(i % sets)

        graph = self.capture(work)
        timing = self.replays(graph, repeats, count)
        graph.reset()
        return timing

    def capture(self, work: Callable[[], object]) -> Any:
        """A CUDA graph of what `work` launches."""
        # begun and ended by hand: the context manager collects garbage and empties the cache, tens of milliseconds each
        graph = self.torch.cuda.CUDAGraph()
        self.wait()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            work()
        finally:
            graph.capture_end()
        return graph

    def replays(self, graph: Any, repeats: int, count: int = 1) -> Timing:
        """Seconds per call of a graph holding `count` calls."""
        marks = self._events(repeats + 1)
        graph.replay()
        marks[0].record()
        for mark in marks[1:]:
            graph.replay()
            mark.record()
        clock, power = self.clock_and_power()
        self.torch.cuda.synchronize()
        times = [a.elapsed_time(b) * 1e-3 / count for a, b in pairwise(marks)]
        return summary(times, clock, power)

    def _eager(self, call: Call, sets: int, count: int, repeats: int) -> Timing:
        times = []
        clock = power = math.nan
        for _ in range(repeats):
            begin, end = self._events(2)
            begin.record()
            for i in range(count):
                call(i % sets)
            end.record()
            clock, power = self.clock_and_power()
            end.synchronize()
            times.append(begin.elapsed_time(end) * 1e-3 / count)
        return summary(times, clock, power)

    def _single(self, call: Call, repeats: int) -> Timing:
        for _ in range(3):
            call(0)
        times = []
        for _ in range(repeats):
            self.wait()
            begin = time.perf_counter()
            call(0)
            self.wait()
            times.append(time.perf_counter() - begin)
        return summary(times, *self.clock_and_power())

    @staticmethod
    def _wall(call: Call, sets: int, repeats: int) -> Timing:
        call(0)
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            for i in range(2):
                call(i % sets)
            times.append((time.perf_counter() - begin) / 2)
        return summary(times)

    def host_time(self, call: Callable[[], object], count: int = 300, repeats: int = 7) -> Timing:
        """Seconds the processor needs to issue one call, whatever the device then takes."""
        for _ in range(20 if self.cuda else 2):
            call()
        times = []
        for _ in range(repeats if self.cuda else 2):
            self.wait()
            begin = time.perf_counter()
            for _ in range(count if self.cuda else 5):
                call()
            times.append((time.perf_counter() - begin) / (count if self.cuda else 5))
            self.wait()
        return summary(times, *self.clock_and_power())

    def time_together(self, call: Callable[[], object], launch: str, size: int) -> Timing:
        """Seconds of a call that all ranks make: the same number of times everywhere, so it follows from `size` bytes."""
        if not self.cuda:
            return self._wall(lambda _: call(), 1, 3)
        count = max(1, min(50, int(2e-3 / (20e-6 + size / 1e11))))
        for _ in range(5):
            call()
        self.wait()
        if launch == "graph":
            return self._graph(lambda _: call(), 1, count, 9)
        if launch == "single":
            return self._single(lambda _: call(), 15)
        return self._eager(lambda _: call(), 1, max(count, 20) if size < 2**26 else max(count, 5), 5)
