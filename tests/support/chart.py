"""Draws numbers over time as SVG: a page of small charts, for pages of the documentation and for the soak.

It measures nothing, and needs nothing but the standard library.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

__all__ = ["Chart", "Points", "draw"]

Points = Sequence[tuple[float, float]]  # seconds, value

INK, FAINT, PALE, ALARM = "#1f2933", "#e3e7eb", "#4a545e", "#b34700"
COLOURS = ("#0067a8", ALARM, "#8a94a0", INK)  # told apart by everybody
WIDTH, MARGIN, LEFT, HEIGHT, HEAD, FOOT = 900, 14, 62, 130, 40, 24
MOST = 600  # points of a line; of more only the highest of each group is drawn


class Chart(NamedTuple):
    """`unit`: s, bytes, or "" for plain numbers.  `lines`: points by the names of the legend."""

    title: str
    unit: str
    lines: Mapping[str, Points]


def draw(title: str, about: str, charts: Sequence[Chart], trouble: tuple[float, float] | None = None) -> str:
    """Two charts in a row, all of the same time.  `trouble`: the seconds of which the ground is coloured."""
    ends = [point[0] for chart in charts for points in chart.lines.values() for point in points]
    until, rows = max(ends, default=1.0), math.ceil(len(charts) / 2)
    parts = [_text(MARGIN, 26, title, size=19, bold=True), _text(MARGIN, 45, about, fill=PALE)]
    for n, chart in enumerate(charts):
        left, top = MARGIN + n % 2 * WIDTH / 2, 58 + n // 2 * (HEAD + HEIGHT + FOOT)
        parts += _chart(chart, left, top, until, trouble)
    height = 58 + rows * (HEAD + HEIGHT + FOOT)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" role="img" '
        f'aria-label="{escape(title)}">\n<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _chart(chart: Chart, left: float, top: float, until: float, trouble: tuple[float, float] | None) -> Iterable[str]:
    first, bottom = left + LEFT, top + HEAD + HEIGHT
    width = WIDTH / 2 - 2 * MARGIN - LEFT
    lines = {name: points for name, points in chart.lines.items() if points}
    most = _ceiling(max((y for points in lines.values() for _, y in points), default=1.0))

    def x(seconds: float) -> float:
        return first + width * seconds / until

    def y(value: float) -> float:
        return bottom - HEIGHT * value / most

    yield _text(left, top + 14, chart.title, size=15, bold=True)
    if trouble is not None:
        begin, end = (x(seconds) for seconds in trouble)
        yield (
            f'<rect x="{begin:.1f}" y="{top + HEAD}" width="{end - begin:.1f}" height="{HEIGHT}" fill="{ALARM}" '
            'fill-opacity="0.08"/>'
        )
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        level = y(most * share)
        yield f'<path d="M{first:.1f} {level:.1f}h{width:.1f}" stroke="{FAINT}"/>'
        yield _text(first - 6, level + 4, _value(most * share, chart.unit), anchor="end", fill=PALE, size=12)
        yield _text(x(until * share), bottom + 15, _time(until * share, until), anchor=anchor, fill=PALE, size=12)
    for n, (name, points) in enumerate(lines.items()):
        colour = COLOURS[n % len(COLOURS)]
        path = "L".join(f"{x(at):.1f} {y(value):.1f}" for at, value in _thinned(points))
        yield f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.6" stroke-linejoin="round"/>'
        yield _text(first + n * width / len(lines), top + 31, name, fill=colour, size=12)


def _thinned(points: Points) -> Points:
    group = math.ceil(len(points) / MOST)
    return [max(points[n : n + group], key=lambda point: point[1]) for n in range(0, len(points), group)]


def _ceiling(value: float) -> float:
    """1, 2 or 5 times a power of ten, not below the value."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if value <= step * power * 1.0000001)


def _value(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 1e6:g} MB"
    if unit == "s":
        return f"{value * 1000:g} ms" if 0 < value < 1 else f"{value:g} s"
    return f"{value:g}"


def _time(seconds: float, until: float) -> str:
    for length, name in ((3600.0, "h"), (60.0, "min")):
        if until >= 2 * length:
            return f"{seconds / length:.3g} {name}"
    return f"{seconds:.3g} s"


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 13, fill: str = INK, bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}"{weight}>'
        f"{escape(text)}</text>"
    )
