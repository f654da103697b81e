"""What a metric is called, which way is better, and how it is shown to people: GiB for memory, GB/s for links."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from spaces.units import quantity

GIB = 2.0**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """A metric: `unit` and `scale` are for display (shown = SI value / scale), `dimension` is the SI unit files may use."""

    name: str
    title: str
    unit: str
    scale: float = 1.0
    dimension: str = ""
    maximise: bool = False

    def show(self, value: float, *, with_unit: bool = False) -> str:
        """Four significant figures in the display unit; devices are whole."""
        text = f"{value:,.0f}" if self.name == "devices" else significant(value / self.scale)
        return f"{text} {self.unit}".rstrip() if with_unit else text

    def shown(self, value: float) -> float:
        """The value in the display unit."""
        return value / self.scale

    @property
    def heading(self) -> str:
        """Title with its unit."""
        return f"{self.title}, {self.unit}" if self.unit else self.title


def significant(value: float, digits: int = 4) -> str:
    """`value` at so many significant figures, thousands separated, without an exponent between 1e-4 and 1e15."""
    if value != value:
        return "unknown"
    if value == 0 or 1e-4 <= abs(value) < 1e15:
        size = f"{abs(value):e}".split("e")[1]
        return f"{value:,.{max(0, digits - 1 - int(size))}f}"
    return f"{value:.{digits - 1}e}"


_RATE: Mapping[str, Any] = {"unit": "TFLOP/s", "scale": 1e12, "dimension": "FLOP/s", "maximise": True}

_LATENCIES = (
    Measure(name="ttft", title="TTFT", unit="ms", scale=1e-3, dimension="s"),
    Measure(name="tpot", title="TPOT", unit="ms", scale=1e-3, dimension="s"),
    Measure(name="inter_token", title="gap between tokens", unit="ms", scale=1e-3, dimension="s"),
    Measure(name="request_latency", title="request latency", unit="s", dimension="s"),
)
"""Times of single requests: the name is their mean, the name with `_p95` a percentile (any from 0 to 100)."""

_TRAINING = (
    Measure(name="step_time", title="step time", unit="s", dimension="s"),
    Measure(name="memory", title="device memory", unit="GiB", scale=GIB, dimension="B"),
    Measure(name="peak_memory", title="allocated at peak", unit="GiB", scale=GIB, dimension="B"),
    Measure(name="tokens_per_second", title="throughput", unit="tokens/s", maximise=True),
    Measure(name="tokens_per_second_per_device", title="throughput a device", unit="tokens/s", maximise=True),
    Measure(name="effective_tokens_per_second", title="throughput net of failures", unit="tokens/s", maximise=True),
    Measure(name="mfu", title="MFU", unit="%", scale=0.01, maximise=True),
    Measure(name="hfu", title="HFU", unit="%", scale=0.01, maximise=True),
    Measure(name="mfu_causal", title="MFU, causal", unit="%", scale=0.01, maximise=True),
    Measure(name="model_flops_per_device", title="model rate a device", **_RATE),
    Measure(name="hardware_flops_per_device", title="executed rate a device", **_RATE),
    Measure(name="energy", title="energy a step", unit="MJ", scale=1e6, dimension="J"),
    Measure(name="price", title="price a step", unit="USD", dimension="USD"),
    Measure(name="devices", title="devices", unit=""),
    Measure(name="energy_per_token", title="energy a token", unit="J", dimension="J"),
    Measure(name="price_per_million_tokens", title="price a million tokens", unit="USD", dimension="USD"),
    Measure(name="training_days", title="training run", unit="days"),
    Measure(name="training_price", title="training price", unit="M USD", scale=1e6, dimension="USD"),
    Measure(name="buying_price", title="price when bought", unit="M USD", scale=1e6, dimension="USD"),
    Measure(name="cluster_capital", title="capital", unit="M USD", scale=1e6, dimension="USD"),
    Measure(name="break_even_days", title="days of use at which buying pays", unit="days"),
    Measure(name="training_energy", title="training energy", unit="MWh", scale=3.6e9, dimension="J"),
)  # fmt: skip

_SERVING = (
    Measure(name="tokens_per_second_per_user", title="speed a user", unit="tokens/s", maximise=True),
    Measure(name="requests_per_second", title="requests", unit="1/s", dimension="1/s", maximise=True),
    Measure(name="request_rate", title="request rate", unit="requests/s", dimension="1/s", maximise=True),
    Measure(name="highest_rate", title="highest rate", unit="requests/s", dimension="1/s", maximise=True),
    Measure(name="refused", title="requests refused", unit=""),
    Measure(name="goodput", title="goodput", unit="requests/s", dimension="1/s", maximise=True),
    Measure(name="goodput_per_device", title="goodput a device", unit="requests/s", dimension="1/s", maximise=True),
    Measure(name="slo_attainment", title="requests within the SLO", unit="%", scale=0.01, maximise=True),
    Measure(name="kv_headroom", title="KV cache left at peak", unit="%", scale=0.01, maximise=True),
    Measure(name="utilisation", title="load", unit="%", scale=0.01),
    Measure(name="power", title="power", unit="kW", scale=1e3, dimension="W"),
    Measure(name="rated_power", title="rated power", unit="kW", scale=1e3, dimension="W"),
    Measure(name="price_per_hour", title="price an hour", unit="USD"),
    Measure(name="row_servers", title="servers in the row", unit="", maximise=True),
    Measure(name="rated_row_servers", title="servers by rated power", unit="", maximise=True),
    Measure(name="row_tokens_per_second", title="throughput of the row", unit="tokens/s", maximise=True),
    *_LATENCIES,
)  # fmt: skip

BASE = "× base"
"""Unit of what is relative to the part that designs descend from."""

_HARDWARE = (
    Measure(name="performance", title="performance", unit=BASE, maximise=True),
    Measure(name="performance_per_dollar", title="performance a dollar", unit=BASE, maximise=True),
    Measure(name="performance_per_watt", title="performance a watt", unit=BASE, maximise=True),
    Measure(name="latency", title="latency", unit=BASE),
    Measure(name="capital", title="capital a device", unit="USD", dimension="USD"),
    Measure(name="device_price", title="price of the device", unit="USD", dimension="USD"),
    Measure(name="hourly_price", title="cost of a device-hour", unit="USD", dimension="USD"),
    Measure(name="die_area", title="silicon", unit="mm²"),
    Measure(name="design_power", title="power at full activity", unit="W", dimension="W"),
    Measure(name="sustained_clock", title="clock under the cap", unit="%", scale=0.01, maximise=True),
    Measure(name="embodied_carbon", title="embodied carbon", unit="kg CO2e"),
)  # fmt: skip
"""Of machines; the first four are relative to the part that designs descend from."""

_OF_WORK: Mapping[str, Measure] = {
    "throughput": Measure(name="throughput", title="throughput a device", unit="tokens/s", maximise=True),
    "latency": Measure(name="latency", title="time of a step or request", unit="s", dimension="s"),
    "energy": Measure(name="energy", title="energy a token", unit="J", dimension="J"),
}
"""Of one workload of a machine, by the end of the name: `train.throughput`."""

MEASURES: Mapping[str, Measure] = MappingProxyType({measure.name: measure for measure in (*_TRAINING, *_SERVING, *_HARDWARE)})
"""Every metric that has a title and a unit of its own."""

LATENCIES = frozenset(latency.name for latency in _LATENCIES)
"""Metrics that have percentiles."""

SERVING = LATENCIES | {
    "tokens_per_second",
    "tokens_per_second_per_device",
    "tokens_per_second_per_user",
    "requests_per_second",
    "goodput",
    "goodput_per_device",
    "slo_attainment",
    "price_per_million_tokens",
    "price_per_hour",
    "energy_per_token",
    "power",
    "rated_power",
    "row_servers",
    "rated_row_servers",
    "row_tokens_per_second",
    "kv_headroom",
    "memory",
    "devices",
}
"""Metrics of serving experiments."""

TRAINING = frozenset(measure.name for measure in _TRAINING)
"""Metrics of training experiments."""

HARDWARE = frozenset(measure.name for measure in _HARDWARE)
"""Metrics of hardware experiments."""

NEED_TOKENS = frozenset({"training_days", "training_price", "training_energy"})
"""Metrics of a whole run: they exist only when `workload.tokens` says how long it is."""

NEED_FINANCE = frozenset({"buying_price", "cluster_capital", "break_even_days"})
"""Metrics that exist only when `finance` says for how long machines are bought."""

NEED_ROW = frozenset({"row_servers", "rated_row_servers", "row_tokens_per_second"})
"""Metrics that exist only when `hardware.row` says what feeds the servers."""

NEED_RELIABILITY = frozenset({"effective_tokens_per_second"})
"""Metrics that exist only when `reliability` says how often devices fail."""

if len(MEASURES) != len(_TRAINING) + len(_SERVING) + len(_HARDWARE):
    raise ValueError("two measures share a name")


_PERCENTILE = re.compile(r"(\w+)_p(\d{1,2}(?:\.\d+)?|100)")


def percentile(name: str) -> tuple[str, float] | None:
    """(`ttft`, 95.0) for `ttft_p95`; None for a name that is no percentile of a latency."""
    found = _PERCENTILE.fullmatch(name)
    return (found[1], float(found[2])) if found and found[1] in LATENCIES else None


def measure(name: str) -> Measure:
    """The metric of that name; a metric without an entry is shown as it is, in SI."""
    part = percentile(name)
    if part is not None:
        whole = MEASURES[part[0]]
        return dataclasses.replace(whole, name=name, title=f"{whole.title} p{part[1]:g}")
    work, _, what = name.rpartition(".")
    if work and what in _OF_WORK:
        return dataclasses.replace(_OF_WORK[what], name=name, title=f"{work}: {_OF_WORK[what].title}")
    return MEASURES.get(name) or Measure(name=name, title=name.replace("_", " "), unit="")


def require(name: str, known: Collection[str]) -> Measure:
    """The metric of that name among the known ones. Raises ValueError with the nearest names when there is none."""
    part = percentile(name)
    if (name if part is None else part[0]) not in known:
        some = [f"{latency}_p95" for latency in LATENCIES if latency in known]
        raise ValueError(f"no metric is called {name!r}{nearest(name, sorted([*known, *some]))}")
    return measure(name)


def limit(name: str, text: object) -> float:
    """A limit on the metric, as written ("70 GiB", 90, "1700 mm2"), in SI. Raises ValueError, naming the metric."""
    shown = measure(name)
    if not shown.dimension and shown.unit not in ("", "%", BASE) and isinstance(text, str):
        unit = shown.unit.replace("²", "2")
        plain = text.replace("²", "2").strip().removesuffix(unit).strip()
        try:
            return quantity(plain, "")
        except ValueError:
            raise ValueError(f"{name}: expected a number of {shown.unit}, such as '100 {unit}', got {text!r}") from None
    try:
        return quantity(text, shown.dimension)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def nearest(wanted: object, known: Mapping[str, object] | tuple[str, ...] | frozenset[str] | list[str]) -> str:
    """The end of an error message: "; the nearest is …", or all there is when nothing comes near."""
    close = difflib.get_close_matches(str(wanted), list(known), n=3, cutoff=0.5)
    if close:
        return f"; the nearest {'is' if len(close) == 1 else 'are'} {', '.join(close)}"
    return f"; choose one of {', '.join(known)}"
