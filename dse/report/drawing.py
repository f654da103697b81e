"""Drawings in plain SVG: axes with readable ticks, a scatter of the front over the space, bars of parts.

Colours come from the page's style (`currentColor` and CSS variables), so a drawing suits a light and a dark page. Text is
real text; every mark carries a `<title>` that a browser shows on hover.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from dse.measures import Measure, significant

WIDTH, HEIGHT = 760, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 74, 18, 14, 52
PALETTE = ("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#b07aa1", "#edc948", "#9c755f", "#ff9da7", "#8a8a8a")
"""Ten colours that stay apart on white and on black."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A point: its place in SI, what hovering says, and its class for the style."""

    x: float
    y: float
    title: str
    kind: str = "front"


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Maps values to pixels, linear or logarithmic."""

    low: float
    high: float
    start: float
    stop: float
    logarithmic: bool

    def __call__(self, value: float) -> float:
        """Pixel of a value."""
        low, high, at = self.low, self.high, value
        if self.logarithmic:
            low, high, at = math.log10(low), math.log10(high), math.log10(at)
        return self.start + (at - low) / ((high - low) or 1.0) * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """Round values across the range."""
        return _decades(self.low, self.high) if self.logarithmic else _steps(self.low, self.high)


def scale(values: Sequence[float], start: float, stop: float) -> Scale:
    """A scale that holds the values with some air; logarithmic when they span more than a factor of 20."""
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if low > 0 and high / low > 20:
        return Scale(low=low / 1.15, high=high * 1.15, start=start, stop=stop, logarithmic=True)
    air = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    floor = 0.0 if 0 <= low < 0.25 * high else low - air
    return Scale(low=floor, high=high + air, start=start, stop=stop, logarithmic=False)


def _steps(low: float, high: float) -> list[float]:
    raw = (high - low) / 6
    size = 10 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _decades(low: float, high: float) -> list[float]:
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    return [f * 10.0**e for e in exponents for f in factors if low <= f * 10.0**e <= high]


def scatter(marks: Sequence[Mark], x: Measure, y: Measure, label: str) -> str:
    """Points over two measures; marks are drawn in order, so the important ones come last."""
    across = scale([x.shown(m.x) for m in marks], _LEFT, WIDTH - _RIGHT)
    up = scale([y.shown(m.y) for m in marks], HEIGHT - _BOTTOM, _TOP)
    dots = "".join(
        f'<circle class="{m.kind}" cx="{across(x.shown(m.x)):.1f}" cy="{up(y.shown(m.y)):.1f}" r="{_RADIUS[m.kind]}">'
        + (f"<title>{escape(m.title)}</title>" if m.title else "")
        + "</circle>"
        for m in marks
    )
    return _svg(WIDTH, HEIGHT, label, _grid(across, up, x, y) + dots)


_RADIUS: Mapping[str, float] = {"sample": 1.6, "infeasible": 1.6, "front": 4.5, "baseline": 5.5, "winner": 6}


def _grid(across: Scale, up: Scale, x: Measure, y: Measure) -> str:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = [f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>']
    for value in across.ticks():
        at = across(value)
        parts.append(f'<path class="grid" d="M{at:.1f} {_TOP}V{bottom}"/>')
        parts.append(f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{_tick(value)}</text>')
    for value in up.ticks():
        at = up(value)
        parts.append(f'<path class="grid" d="M{_LEFT} {at:.1f}H{right}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{_tick(value)}</text>')
    middle = (_TOP + bottom) / 2
    parts.append(_name(x.heading, (_LEFT + right) / 2, HEIGHT - 10, ""))
    parts.append(_name(y.heading, 16, middle, f' transform="rotate(-90 16 {middle})"'))
    return "".join(parts)


def _name(text: str, x: float, y: float, turned: str) -> str:
    return f'<text class="name" x="{x}" y="{y}" text-anchor="middle"{turned}>{escape(text)}</text>'


def _tick(value: float) -> str:
    """A tick without needless zeros."""
    text = significant(value, 3)
    return text.rstrip("0").rstrip(".") if "." in text else text


Bar = tuple[str, Mapping[str, float]]
"""A bar's name and its parts."""

_BAR, _GAP, _NAMES, _TOTALS = 26, 12, 150, 110


def stacked(rows: Sequence[Bar], shown: Measure, label: str, limit: float | None = None) -> str:
    """Bars, one a row, split into parts in the same colours, with a legend; `limit` (SI) is drawn as a line."""
    largest: dict[str, float] = {}
    for _, parts in rows:
        for name, value in parts.items():
            largest[name] = max(largest.get(name, 0.0), value)
    names = sorted((name for name, value in largest.items() if value > 0), key=lambda name: -largest[name])
    colours = {name: PALETTE[min(i, len(PALETTE) - 1)] for i, name in enumerate(names)}
    longest = max([sum(max(v, 0.0) for v in parts.values()) for _, parts in rows] + [limit or 0.0]) or 1.0
    pixels = (WIDTH - _NAMES - _TOTALS) / longest
    line = _NAMES + limit * pixels if limit is not None else 0.0
    body = "".join(_bar(row, 8.0 + i * (_BAR + _GAP), pixels, colours, shown, line) for i, row in enumerate(rows))
    bottom = 8.0 + len(rows) * (_BAR + _GAP)
    if limit is not None:
        tip = f"<title>{escape(shown.show(limit, with_unit=True))}</title>"
        body += f'<path class="limit" d="M{line:.1f} 2V{bottom - _GAP + 6}">{tip}</path>'
    legend, height = _legend(names, colours, bottom + 6)
    return _svg(WIDTH, height, label, body + legend)


def _bar(row: Bar, y: float, pixels: float, colours: Mapping[str, str], shown: Measure, line: float) -> str:
    """One bar with its name before and its total behind, clear of the limit's line."""
    title, parts = row
    pieces = [f'<text x="{_NAMES - 8}" y="{y + _BAR / 2 + 4}" text-anchor="end">{escape(title)}</text>']
    at = float(_NAMES)
    for name, colour in colours.items():
        width = max(parts.get(name, 0.0), 0.0) * pixels
        if width > 0:
            tip = escape(f"{name.replace('_', ' ')}: {shown.show(parts[name], with_unit=True)}")
            box = f'x="{at:.1f}" y="{y}" width="{width:.2f}" height="{_BAR}"'
            pieces.append(f'<rect {box} fill="{colour}"><title>{tip}</title></rect>')
            at += width
    total = shown.show(sum(parts.values()), with_unit=True)
    at = line if at <= line <= at + 80 else at
    return "".join(pieces) + f'<text x="{at + 7:.1f}" y="{y + _BAR / 2 + 4}">{escape(total)}</text>'


def _legend(names: Sequence[str], colours: Mapping[str, str], top: float) -> tuple[str, int]:
    parts, x, y = [], 10.0, top
    for name in names:
        text = name.replace("_", " ")
        width = 34 + 7.2 * len(text)
        if x + width > WIDTH:
            x, y = 10.0, y + 20
        parts.append(f'<rect x="{x:.0f}" y="{y:.0f}" width="11" height="11" fill="{colours[name]}"/>')
        parts.append(f'<text x="{x + 16:.0f}" y="{y + 10:.0f}">{escape(text)}</text>')
        x += width
    return "".join(parts), int(y + 24)


def _svg(width: int, height: int, label: str, body: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label, quote=True)}">{body}</svg>'
