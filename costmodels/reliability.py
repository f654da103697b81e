"""Effective throughput of a run that fails: checkpoints cost time, failures cost the work since the last one.

With checkpoint cost C, mean time between failures M and restart R, the best interval is √(2·C·M) (Young 1974; Daly 2006, first
order), and the share of time that makes progress is 1 − C/τ − (τ/2 + R)/M.
"""

from __future__ import annotations

import numpy as np

from costmodels.energy import SECONDS_PER_HOUR
from spaces.columns import Bindings, FloatArray

STATE_BYTES = 14.0
"""Bytes per parameter of a checkpoint: 16-bit weights, fp32 master weights and two moments."""


def checkpoint_interval(at: Bindings, devices: FloatArray) -> FloatArray:
    """Seconds between checkpoints that lose least."""
    return np.sqrt(2.0 * _checkpoint_time(at) * _between_failures(at, devices))


def effective_share(at: Bindings, devices: FloatArray) -> FloatArray:
    """Share of the time that makes progress, in (0, 1]; clipped at 1 % where a run can hardly progress."""
    between = _between_failures(at, devices)
    cost = _checkpoint_time(at)
    every = checkpoint_interval(at, devices)
    lost = cost / every + (every / 2.0 + at["reliability.restart_time"]) / between
    return np.asarray(np.maximum(1.0 - lost, 0.01), np.float64)


def _between_failures(at: Bindings, devices: FloatArray) -> FloatArray:
    rate = np.asarray(at["reliability.failures_per_device_hour"], np.float64) * devices
    return SECONDS_PER_HOUR / np.maximum(rate, 1e-12)


def _checkpoint_time(at: Bindings) -> FloatArray:
    """Seconds to write a checkpoint of the whole state at the declared bandwidth."""
    return np.asarray(at["parameters"] * STATE_BYTES / at["reliability.checkpoint_bandwidth"], np.float64)
