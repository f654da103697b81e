"""Roofline at a generation's sustained shares: what a datasheet alone gives."""

from __future__ import annotations

import numpy as np

from costmodels.collectives import LinkConstants, collective_time
from costmodels.kernel_models.fitted import read_fit
from costmodels.kernel_models.forms import kernel_name
from costmodels.kernel_models.groups import spread_of
from costmodels.kernel_models.operations import (
    DeviceSymbols,
    Shapes,
    by_word,
    complete,
    datasheet_bound,
    family_of,
    traffic_and_work,
)
from costmodels.kernel_models.protocol import KernelTime, interval
from costmodels.kernels import smooth_max
from costmodels.metrics import Evidence
from spaces.columns import FloatArray, Value

_DOUBLED = 2.0  # intervals of a device without a measurement, against errors on measured ones
_UNKNOWN = 0.5  # log error assumed where nothing was ever measured
_HOST = 15e-6  # s a call from Python, where the host was not measured (PHYSICS: 15 to 25 us in eager mode)
_STEM = {"flash": "flash2", "cudnn": "flash3", "efficient": "flash1", "unfused": "unfused", "grouped": "unfused"}
_SCORE_BYTES = {"forward": 13.0, "backward": 19.0}  # stored scores, softmax and mask (Korthikanti 2022, §4.2, and measured)
_STREAMING = {"rms_norm": "norm", "rms_norm_composite": "norm", "layer_norm": "norm", "softmax": "norm"}


class Roofline:
    """Datasheet times the sustained shares in `costmodels/data/kernels`; evidence is first principles, intervals doubled."""

    @property
    def reads(self) -> frozenset[str]:
        """Every `device.*`, `kernel.*` and `link.*` symbol of `kernel_symbols`."""
        return frozenset({"device.*", "kernel.*", "link.*"})

    def predict(self, op: str, shapes: Shapes, device: DeviceSymbols) -> KernelTime:
        """As the protocol says."""
        shapes = complete(op, shapes) if family_of(op) else shapes
        value = roofline_time(op, shapes, device)
        fit = read_fit(family_of(op))
        spread = np.full(len(value), _UNKNOWN) if fit is None else spread_of(fit, "roofline", op, complete(op, shapes), device)
        evidence = np.full(len(value), Evidence.FIRST_PRINCIPLES)
        return interval(value, _DOUBLED * spread, evidence, datasheet_bound(op, shapes, device))


def roofline_time(op: str, shapes: Shapes, device: DeviceSymbols) -> FloatArray:
    """Seconds of each row, host included where `launch` is eager, shape (n,). Raises ValueError for an unknown operator."""
    family = family_of(op)
    if not family:
        raise ValueError(f"no kernel model for the operator {op!r}")
    at = complete(op, shapes)
    value = {"gemm": _gemm, "attention": _attention, "pointwise": _pointwise, "collectives": collective_prior}[family](
        op, at, device
    )
    bounded = np.maximum(value, datasheet_bound(op, at, device))
    return np.asarray(np.where(at["launch"] == "eager", np.maximum(bounded, _HOST), bounded))


def _gemm(op: str, at: Shapes, device: DeviceSymbols) -> FloatArray:
    work = traffic_and_work(op, at, device)
    share = by_word(at["dtype"], lambda word: device.get(f"kernel.gemm.share.{word}", device["kernel.gemm.share.bf16"]))
    ramp = work.flops / (work.flops + device["kernel.gemm.half_flops"])
    compute = work.flops / (work.rate * share * np.maximum(ramp, 0.02))
    memory = work.traffic / (device["device.memory_bandwidth"] * device["kernel.gemm.bandwidth"])
    return np.asarray(device["kernel.gemm.overhead"] + smooth_max(compute, memory))


def _attention(op: str, at: Shapes, device: DeviceSymbols) -> FloatArray:
    work = traffic_and_work(op, at, device)
    phase = "backward" if op == "attention_backward" else "forward"
    usual = device[f"kernel.attention.{phase}"]

    def sustained(word: str) -> Value:
        return device.get(f"kernel.attention.{_STEM.get(kernel_name(word, device), word)}.{phase}", usual)

    share = by_word(at["implementation"], sustained)
    unfused = at["implementation"] == "unfused"
    scores = at["batch"] * at["heads"] * at["q_len"] * at["kv_len"] * _SCORE_BYTES[phase]
    flops = work.flops * np.where(unfused & (at["causal"] == "true"), 2.0, 1.0)  # masked products are computed all the same
    traffic = work.traffic + np.where(unfused, scores, 0.0)
    memory = traffic / (device["device.memory_bandwidth"] * device["kernel.pointwise.bandwidth"])
    return np.asarray(device["kernel.gemm.overhead"] + smooth_max(flops / (work.rate * share), memory))


def _pointwise(op: str, at: Shapes, device: DeviceSymbols) -> FloatArray:
    share = device[f"kernel.pointwise.{_STREAMING.get(op, 'bandwidth')}"]
    moved = traffic_and_work(op, at, device).traffic / (device["device.memory_bandwidth"] * share)
    return np.asarray(device["kernel.pointwise.overhead"] + moved)


def collective_prior(op: str, at: Shapes, device: DeviceSymbols) -> FloatArray:
    """α–β seconds of a collective on the device's links, shape (n,)."""
    inner, outer = (
        LinkConstants(
            **{name: device[f"link.{tier}.{name}"] for name in ("latency", "setup", "share", "half_size")},
            evidence="",
            source="",
        ).link(device[bandwidth])
        for tier, bandwidth in (("inner", "device.scale_up_bandwidth"), ("outer", "device.nic_bandwidth"))
    )
    return collective_time(op, at["bytes"], at["ranks"], at["ranks_per_node"], inner, outer)
