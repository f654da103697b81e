"""Three tiers of memory (SN40L, Prabhakar et al., MICRO 2024): on-chip, stacked, and large and slow; what moves between them.

Many models (or experts) live in the large tier; one is in the stacked tier while it runs. Time to switch is bytes over the
slower link; how often one must switch follows from how many the stacked tier holds.
"""

from __future__ import annotations

import numpy as np

from spaces.columns import FloatArray, Value


def tiered_time(sizes: tuple[Value, ...], bandwidths: tuple[Value, ...], *, overlapped: bool = True) -> FloatArray:
    """Seconds to read `sizes` bytes from each tier at its bandwidth: the slowest where they overlap, their sum where not."""
    times = np.broadcast_arrays(*(np.asarray(s, np.float64) / b for s, b in zip(sizes, bandwidths, strict=True)))
    return np.asarray(np.maximum.reduce(times) if overlapped else sum(times))


def switch_time(size: Value, bandwidth: Value) -> FloatArray:
    """Seconds to bring a model of `size` bytes into the stacked tier."""
    return np.asarray(np.asarray(size, np.float64) / bandwidth)


def miss_share(models: Value, capacity: Value, size: Value) -> FloatArray:
    """Share of requests whose model is not in the stacked tier, models of one size asked for uniformly: 1 − held / models."""
    held = np.minimum(np.floor(np.asarray(capacity, np.float64) / size), models)
    return np.asarray(1.0 - held / models)


def request_time(
    run: Value, models: Value, size: Value, capacity: Value, bandwidth: Value, *, hidden: Value = 0.0
) -> FloatArray:
    """Mean seconds of a request: running, plus a switch for the share that misses, less what is `hidden` behind running."""
    switching = np.maximum(switch_time(size, bandwidth) - np.asarray(hidden, np.float64), 0.0)
    return np.asarray(run + miss_share(models, capacity, size) * switching)


def spilled_bandwidth(working_set: Value, capacities: tuple[Value, ...], bandwidths: tuple[Value, ...]) -> FloatArray:
    """Bytes/s at which a working set is read that fills the tiers from the fastest on: the harmonic mean by bytes.

    Raises ValueError where the tiers together do not hold it.
    """
    left = np.asarray(working_set, np.float64)
    time = np.zeros_like(left)
    for capacity, bandwidth in zip(capacities, bandwidths, strict=True):
        here = np.minimum(left, capacity)
        time = time + here / bandwidth
        left = left - here
    if np.any(left > 1e-9 * np.asarray(working_set)):
        raise ValueError(f"the tiers hold {sum(np.max(c) for c in capacities):.3g} bytes, less than the working set")
    return np.asarray(np.asarray(working_set) / time)
