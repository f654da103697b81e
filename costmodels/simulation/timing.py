"""A step's time in the event loop: the sum of `costmodels.step_tables.step_time`, read one step at a time.

Totals change little from one step to the next, so each cell remembers where it read last and looks from there.
"""

from __future__ import annotations

from costmodels.simulation import state as w
from spaces.columns import FloatArray, IntArray


def locate(m: IntArray, f: FloatArray, grid: int, n: int, at: float, hint: int) -> int:
    """Left edge of the grid's interval that holds `at`: 0 below the grid, the last one beyond it; looked up from `hint`."""
    left = m[hint]
    while left < n - 2 and f[grid + left + 1] <= at:
        left += 1
    while left > 0 and f[grid + left] > at:
        left -= 1
    m[hint] = left
    return left


def position(f: FloatArray, grid: int, n: int, at: float, left: int) -> float:
    """Position in the interval: 0 below the grid, above 1 beyond its end."""
    if n == 1:
        return 0.0
    low = f[grid + left]
    return max((at - low) / (f[grid + left + 1] - low), 0.0)


def line(m: IntArray, f: FloatArray, grid: int, n: int, values: int, at: float, hint: int) -> float:
    """Linear interpolation of `values` (n,)."""
    left = locate(m, f, grid, n, at, hint)
    low = f[values + left]
    return low + position(f, grid, n, at, left) * (f[values + min(left + 1, n - 1)] - low)


def surface(
    m: IntArray, f: FloatArray, one: int, n: int, two: int, k: int, values: int, x: float, y: float, hint: int
) -> float:
    """Bilinear interpolation of `values` (n, k); hints for both coordinates, one after the other."""
    i, j = locate(m, f, one, n, x, hint), locate(m, f, two, k, y, hint + 1)
    u, v = position(f, one, n, x, i), position(f, two, k, y, j)
    bottom, top, right = values + i * k, values + min(i + 1, n - 1) * k, min(j + 1, k - 1)
    low = f[bottom + j] * (1 - v) + f[bottom + right] * v
    high = f[top + j] * (1 - v) + f[top + right] * v
    return low * (1 - u) + high * u


def batch_time(m: IntArray, f: FloatArray, p: int, c: int) -> float:
    """Seconds of the step that a cell has scheduled."""
    decoding = m[c + w.DECODING_NOW] if m[c + w.GAIN] > 0 else 0
    queries = m[c + w.QUERIES]
    sampled = decoding * m[p + w.P_VERIFIED] + m[c + w.FINISHED]
    new = decoding * m[p + w.P_VERIFIED] + queries
    device = line(m, f, m[p + w.P_TOKENS], m[p + w.P_N_TOKENS], m[p + w.P_TOKEN_TIME], float(new), c + w.AT_TOKENS)
    if sampled > 0:
        grid, n, values = m[p + w.P_SEQUENCES], m[p + w.P_N_SEQUENCES], m[p + w.P_SEQUENCE_TIME]
        device += line(m, f, grid, n, values, float(sampled), c + w.AT_SEQUENCES)
    if decoding > 0:
        one, n, two, k = m[p + w.P_REQUESTS], m[p + w.P_N_REQUESTS], m[p + w.P_DECODE_KV], m[p + w.P_N_DECODE_KV]
        kv = float(m[c + w.KV])
        device += surface(m, f, one, n, two, k, m[p + w.P_DECODE_TIME], float(decoding), kv, c + w.AT_REQUESTS)
    if queries > 0:
        one, n, two, k = m[p + w.P_QUERIES], m[p + w.P_N_QUERIES], m[p + w.P_PAIRS], m[p + w.P_N_PAIRS]
        pairs = f[c + w.PAIRS]
        device += surface(m, f, one, n, two, k, m[p + w.P_PREFILL_TIME], float(queries), pairs, c + w.AT_QUERIES)
    if queries > 0 or sampled > f[p + w.P_GRAPH_SEQUENCES]:
        device = max(device, f[p + w.P_LAUNCH])
    fetch = 0.0
    if f[p + w.P_FETCH] > 0.0:
        kv = m[c + w.KV] if decoding > 0 else 0
        fetch = f[p + w.P_FETCH] * float(max(kv + m[c + w.FOUND], new))
        fetch -= min(fetch * f[p + w.P_FETCH_OVERLAP], device)
    host = f[p + w.P_HOST] + f[p + w.P_HOST_PER_SEQUENCE] * sampled
    beside = host * f[p + w.P_HOST_OVERLAP]
    longer, shorter = max(device, beside), min(device, beside)
    if longer > 0.0:  # as costmodels.step_tables.together
        share = shorter / longer
        cube = share * share * share
        longer = longer * (1.0 + cube / (3.0 + 0.847 * cube))
    return longer + fetch + host - beside
