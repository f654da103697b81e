"""Times of a block's kernels: the sustained formulas, corrected by what a kernel model knows of each distinct shape.

A block states every kernel twice: by a formula on the device's sustained rates (costmodels.kernels), and, where a kernel model
may know it, as the operator and shape the model is asked about. On a device that was measured the answer is the model's. On
another of its generation the formula is multiplied by what the model makes of the formula on the measured one: efficiency is
held, so nothing jumps between the two. Elsewhere the formula stands.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from costmodels.constants import device_symbols, find_stack, generation_constants
from costmodels.kernel_models.fitted import Fit, read_fit
from costmodels.kernel_models.protocol import KernelModel, SecondsAlone, known_seconds
from costmodels.kernel_models.registry import DEFAULT, find_kernel_model, taught_devices
from costmodels.kernel_models.symbols import kernel_symbols
from costmodels.measurements import content_hash, data_files
from spaces.columns import Columns, FloatArray, IntArray, Value, distinct
from spaces.expressions import SymbolTable
from spaces.hardware import Device, find_device
from spaces.plan import Precision
from spaces.problem import Problem

FORMATS = {Precision.FP16: "fp16", Precision.BF16: "bf16", Precision.FP8: "fp8"}
"""Formats of products that kernels were measured in, by precision."""
_FEW = 32
"""Rows that are quicker looked up one by one than sorted first."""
_NEAREST = ("device.matrix_flops.bf16", "device.memory_bandwidth", "device.power")


Formula: TypeAlias = Callable[[SymbolTable], Value]
"""Seconds on any symbols, a number or (n,)."""
ATTENTION_OF_STACK = "stack's"
"""Stands for the kernel that the stack runs attention with on the device."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """A kernel: the formula that stands for it, and how models know it, as operator, dimensions (number or (n,)) and words.

    `op` is '' for what no model knows. `reference` is the formula of what the model is asked about, where that is not the
    kernel itself. `applies` (n,) or bool says where the model's operator is what runs, `dtype` is a precision's code, a number
    or (n,). Of the call's time the kernel takes `share` (negative: it is taken off).
    """

    formula: Formula
    op: str = ""
    dimensions: Mapping[str, Value] = field(default_factory=dict)
    words: Mapping[str, str] = field(default_factory=dict)
    dtype: Value = Precision.BF16
    applies: Value = True
    reference: Formula | None = None
    share: float = 1.0


class KernelTimes:
    """Answers of one kernel model under one stack; every distinct shape is asked about once and remembered."""

    def __init__(
        self,
        model: KernelModel,
        stack: str,
        generations: Sequence[str],
        measured: Sequence[Device],
        pairs: Fit | None = None,
        *,
        taught: bool = True,
    ) -> None:
        """`generations` are the names behind the symbol `generation`, `measured` the devices the model was taught on.

        `pairs` is a fit of collectives between two devices. A model that is not `taught` is asked about the devices as they
        are, and first principles are an answer.
        """
        self._pairs, self._taught = pairs, taught
        self._model, self._generations, self._measured = model, tuple(generations), tuple(measured)
        self._known: dict[tuple[str, str, tuple[str, ...]], dict[tuple[Any, ...], float]] = {}
        symbols = {device.name: device_symbols(device, stack) for device in measured}
        self._symbols = {
            name: {key: value for key, value in own.items() if key.startswith(("device.", "kernel."))}
            for name, own in symbols.items()
        }
        self._attention = {device.name: attention_kernel(stack, device.generation) for device in measured}
        self._asking = {device.name: kernel_symbols(device) for device in measured}

    def seconds(self, at: SymbolTable, calls: Sequence[Call], n: int) -> list[FloatArray]:
        """Seconds of each call, shape (n,): its formula, times what the model makes of it on the measured device."""
        times = [_rows(call.formula(at), n).copy() for call in calls]
        for device, rows in self._references(at, n):
            same = all(np.all(at[name] == value) for name, value in self._symbols[device.name].items())
            there = at if same else _Over(at, self._symbols[device.name])
            self._correct(device, at, there, calls, times, rows, n)
        return times

    def pair_factor(self, at: SymbolTable, kind: str, size: Value, ranks: Value, inside: Value) -> Value:
        """Measured over α–β time of a collective between two devices of one domain, (n,) or a number; 1 for any other group."""
        pair = (np.asarray(ranks) == 2) & (np.asarray(inside) >= 2)
        if not np.any(pair) or self._pairs is None or kind not in self._pairs.curves:
            return 1.0
        known = np.array([any(d.generation == name for d in self._measured) for name in self._generations] or [False])
        pair = pair & known[np.asarray(at["generation"], np.int64)]
        each = np.log2(np.maximum(np.asarray(size, np.float64) / 2.0, 1.0))
        points = np.asarray(self._pairs.curves[kind])
        return np.where(pair, np.exp(np.interp(each, points[:, 0], points[:, 1])), 1.0)

    def _references(self, at: SymbolTable, n: int) -> list[tuple[Device, IntArray]]:
        """Measured devices and the rows they stand for: of the same generation, the nearest by its figures."""
        codes = np.broadcast_to(np.asarray(at["generation"], np.int64), (n,)) if self._measured else np.zeros(0, np.int64)
        found: list[tuple[Device, IntArray]] = []
        for code in sorted(set(codes.tolist())):
            many = [device for device in self._measured if device.generation == self._generations[code]]
            if not many:
                continue
            apart = np.zeros((len(many), n))
            for name in _NEAREST:
                here = np.log(np.maximum(np.asarray(at[name], np.float64), 1.0))
                apart += np.stack([np.broadcast_to(np.abs(here - math.log(d.symbols()[name])), (n,)) for d in many])
            nearest = np.argmin(apart, axis=0)
            rows = [np.flatnonzero((codes == code) & (nearest == i)) for i in range(len(many))]
            found += [(device, own) for device, own in zip(many, rows, strict=True) if len(own)]
        return found

    def _correct(
        self,
        device: Device,
        at: SymbolTable,
        there: SymbolTable,
        calls: Sequence[Call],
        times: list[FloatArray],
        rows: IntArray,
        n: int,
    ) -> None:
        """Put the model's answers into `times` at `rows`; `there` are the measured device's symbols."""
        slowdown = _rows(at["stack.slowdown"], n)
        wanted: dict[tuple[str, str, tuple[str, ...]], list[tuple[int, IntArray, list[tuple[Any, ...]], IntArray]]] = {}
        for i, call in enumerate(calls):
            if not call.op:
                continue
            applies = _rows(call.applies, n, np.bool_)[rows]
            precision = _rows(call.dtype, n, np.int64)[rows]
            for code in sorted(set(precision.tolist())):
                chosen = rows[applies & (precision == code)]
                if not len(chosen) or code not in FORMATS:
                    continue
                words = (FORMATS[Precision(code)], *self._words(device, call, code))
                sizes = {d: _rows(v, n)[chosen] for d, v in call.dimensions.items()}
                place = np.arange(len(chosen))
                if len(chosen) > _FEW:
                    few, place = distinct(Columns.from_values(sizes), sizes)
                    sizes = {name: few[name] for name in sizes}
                shapes = [(*words, *shape) for shape in zip(*(column.tolist() for column in sizes.values()), strict=True)]
                names = ("dtype", *call.words, *call.dimensions)
                wanted.setdefault((device.name, call.op, names), []).append((i, chosen, shapes, place))
        for key, many in wanted.items():
            known = self._known.setdefault(key, {})
            fresh = list(dict.fromkeys(shape for _, _, shapes, _ in many for shape in shapes if shape not in known))
            if fresh:
                known.update(zip(fresh, self._predicted(*key, fresh), strict=True))
            for i, chosen, shapes, place in many:
                model = np.array([known[shape] for shape in shapes])[place] * slowdown[chosen]
                reference = calls[i].reference
                if there is not at or reference is not None:
                    formula = _rows((reference or calls[i].formula)(there), n)[chosen]
                    scaled = times[i][chosen] * model / np.maximum(formula, 1e-12)
                    model = np.where(times[i][chosen] == formula, model, scaled)  # to the bit, whatever else is asked about
                times[i][chosen] = np.where(np.isfinite(model), model, times[i][chosen])

    def _words(self, device: Device, call: Call, precision: int) -> tuple[str, ...]:
        """A call's words. 8-bit operands are transposed beforehand: their products have one layout."""
        words = dict(call.words)
        if precision == Precision.FP8 and "layout" in words:
            words["layout"] = "forward"
        if words.get("implementation") == ATTENTION_OF_STACK:
            words["implementation"] = self._attention[device.name]
        return tuple(words.values())

    def _predicted(self, device: str, op: str, names: tuple[str, ...], shapes: list[tuple[Any, ...]]) -> list[float]:
        """Seconds of each shape; NaN where a taught model has nothing but first principles to go by."""
        at = {name: np.array(values) for name, values in zip(names, zip(*shapes, strict=True), strict=True)}
        asking = self._asking[device]
        if self._taught and isinstance(self._model, SecondsAlone):
            return self._model.taught_seconds(op, at, asking).tolist()  # type: ignore[no-any-return]
        time = self._model.predict(op, at, asking)
        seconds = known_seconds(time) if self._taught else np.where(np.isfinite(time.value), time.value, math.nan)
        return seconds.tolist()  # type: ignore[no-any-return]


def _rows(value: Value, n: int, kind: type[np.generic] = np.float64) -> NDArray[Any]:
    """The value of each of n rows."""
    array = np.asarray(value, kind)
    if array.shape == (n,):
        return array
    return array.reshape(1) if n == array.size == 1 else np.broadcast_to(array, (n,))


@dataclass(frozen=True, slots=True)
class _Over:
    """Symbols with those of a device in place of their own."""

    at: SymbolTable
    device: Mapping[str, float]

    def __getitem__(self, symbol: str) -> Value:
        if symbol.startswith("chip."):  # a measured device is no design
            raise KeyError(symbol)
        return self.device[symbol] if symbol in self.device else self.at[symbol]


def kernel_times(problem: Problem) -> KernelTimes:
    """The kernel times a problem asks for: labels `kernel_model` (the learned one where absent) and `calibration`, a folder.

    Label `reference` names the measured devices to hold the efficiency of, in place of all: designs that descend from one part
    are judged by that part alone, so that nothing jumps between them.
    """
    labels = problem.labels
    model, folder = (labels.get(name, ("",))[0] for name in ("kernel_model", "calibration"))
    content = content_hash(data_files(Path(folder))) if folder else ""
    generations, devices = labels.get("generation", ()), labels.get("device", ())
    return _times(model or DEFAULT, folder, content, problem.stack, generations, devices, labels.get("reference"))


@lru_cache(maxsize=16)
def _times(
    name: str,
    calibration: str,
    _content: str,
    stack: str,
    generations: tuple[str, ...],
    devices: tuple[str, ...],
    held: tuple[str, ...] | None,
) -> KernelTimes:
    taught = taught_devices(name, calibration)
    measured = devices if taught is None else tuple(device for device in taught if held is None or device in held)
    pairs = read_fit("collectives") if taught else None
    found = [find_device(device) for device in measured]
    return KernelTimes(find_kernel_model(name, calibration), stack, generations, found, pairs, taught=taught is not None)


def attention_kernel(stack: str, generation: str) -> str:
    """Which kernel a stack runs attention with on a generation: flash1, flash2, flash3 or unfused."""
    chosen = find_stack(stack)
    meeting = {**chosen.generations.get("default", {}), **chosen.generations.get(generation, {})}
    return str(meeting.get("attention", generation_constants(generation)["attention_default"]))
