"""Draws SVG pictures from results.json: probe latency under load, requests per second of CPU, tails, memory of workers.

Ours is the one in colour; blue and vermilion are told apart by everybody, and the white ground stays on dark pages.
It measures nothing, and needs nothing but the standard library.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Iterable
from html import escape
from typing import Any

from bench.peers import BY_NAME

OURS, OTHERS, LIMIT, INK, FAINT, ALARM = "#0067a8", "#8a94a0", "#c3cad1", "#1f2933", "#e3e7eb", "#b34700"
WIDTH, LABELS, MARGIN, ROW = 900, 160, 14, 24
KUBELET = 1000.0  # milliseconds: the default timeout of a Kubernetes probe

Results = dict[str, Any]


def draw(results: Results) -> dict[str, str]:
    """Pictures by file name without suffix; only those for which there are results."""
    out = {}
    if results.get("latency"):
        out["latency"] = latency(results["latency"])
    panels = [
        ("Probes, keep-alive, 32 connections", [r for r in results.get("probes", []) if r["case"] == "keep-alive"]),
        ("Hello world, 32 connections",
         [r for r in results.get("hosting", []) if r["case"] == "hello" and r["connections"] == 32]),
    ]  # fmt: skip
    if any(rows for _, rows in panels):
        out["throughput"] = throughput([(title, rows) for title, rows in panels if rows])
    if results.get("restarts"):
        out["restarts"] = restarts(results["restarts"])
    if results.get("steady"):
        out["tails"] = tails(results["steady"])
    if memory := [row for row in results.get("workers", []) if "pss" in row]:
        out["memory"] = memory_of_workers(memory)
    return out


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", size: int = 14, fill: str = INK, bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{fill}"{weight}>'
        f"{escape(text)}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1, dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        f'stroke-width="{width:g}" stroke-linecap="butt"{dashes}/>'
    )


def _rect(x: float, y: float, width: float, height: float, colour: str, opacity: float = 1) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" fill="{colour}" '
        f'fill-opacity="{opacity:g}"/>'
    )


def _picture(height: float, title: str, parts: Iterable[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
        f'height="{height:.0f}" font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif" '
        f'role="img" aria-label="{escape(title)}">\n'
        f'<rect width="{WIDTH}" height="{height:.0f}" rx="6" fill="#ffffff"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _title(name: str) -> str:
    return BY_NAME[name].title if name in BY_NAME else name


def _ink(name: str) -> str:
    return OURS if name == "pkg" else LIMIT if name in BY_NAME and not BY_NAME[name].hosts else OTHERS


def _duration(ms: float) -> str:
    if ms >= 995:
        return f"{ms / 1000:.1f} s"
    return f"{ms:.0f} ms" if ms >= 9.95 else f"{ms:.1f} ms" if ms >= 1 else f"{ms:.2f} ms"


class _Axis:
    """Milliseconds from `low` to `high`, logarithmic, between two places of the picture."""

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        self.left, self.right, self.low, self.high = left, right, low, high

    def x(self, ms: float) -> float:
        share = math.log(min(max(ms, self.low), self.high) / self.low) / math.log(self.high / self.low)
        return self.left + share * (self.right - self.left)

    def ticks(self, top: float, bottom: float) -> list[str]:
        """A line and a number for each power of ten."""
        parts = []
        for power in range(math.ceil(math.log10(self.low)), math.floor(math.log10(self.high)) + 1):
            ms = 10.0**power
            words = f"{ms / 1000:g} s" if ms >= 1000 else f"{ms:g} ms"
            parts += [
                _line(self.x(ms), top, self.x(ms), bottom, FAINT),
                _text(self.x(ms), bottom + 13, words, anchor="middle", size=12, fill="#4a545e"),
            ]
        return parts


# ---------------------------------------------------------------------- latency

CASES = (
    ("saturated", "/healthz", "Application saturated: 32 clients x 50 ms of CPU"),
    ("lock held", "/healthz", "Interpreter lock held for 3 s at a time"),
    ("slow clients", "/healthz", "10,000 slow clients"),
    ("database frozen", "/readyz", "Database frozen, readiness asked"),
)
LOW, HIGH = 0.05, 10_000.0  # milliseconds


def latency(rows: list[dict[str, Any]]) -> str:
    """One row for each server: thin line p1 to p99, bar p25 to p75, mark at the median, p99 as a number."""
    panels = []
    for case, path, title in CASES:
        found = [r for r in rows if r["case"] == case and r["path"] == path]
        if found:
            panels.append((title, sorted(found, key=lambda r: r["ms"]["p99"])))
    parts = [
        _text(MARGIN, 26, "How long a health probe waits", size=19, bold=True),
        _text(MARGIN, 45, "line: 1st to 99th percentile, bar: the middle half, mark: median, figure: 99th; logarithmic",
              size=13, fill="#4a545e"),
    ]  # fmt: skip
    y = 58.0
    for title, found in panels:
        picture, y = _latency_panel(title, found, y)
        parts += picture
    return _picture(y + 4, "Probe latency under load", parts)


def _latency_panel(title: str, rows: list[dict[str, Any]], top: float) -> tuple[list[str], float]:
    left, right = MARGIN + LABELS, WIDTH - MARGIN - 126
    axis = _Axis(left, right, LOW, HIGH)
    x = axis.x
    first, bottom = top + 30, top + 30 + ROW * len(rows)
    parts = [
        _text(MARGIN, top + 18, title, size=15, bold=True),
        _rect(x(KUBELET), first - 4, right - x(KUBELET), bottom - first + 6, ALARM, 0.08),
        *axis.ticks(first - 4, bottom + 2),
        _line(x(KUBELET), first - 4, x(KUBELET), bottom + 2, ALARM, 1.5, "4 3"),
        _text(x(KUBELET) - 4, top + 20, "a kubelet's patience: 1 s", anchor="end", size=12, fill=ALARM),
    ]
    for n, row in enumerate(rows):
        y, ms, colour = first + ROW * n + ROW / 2, row["ms"], _ink(row["server"])
        ours = row["server"] == "pkg"
        parts += [
            _text(left - 8, y + 4, _title(row["server"]), anchor="end", bold=ours, fill=OURS if ours else INK),
            _line(x(ms["p1"]), y, x(ms["p99"]), y, colour, 2),
            _rect(x(ms["p25"]), y - 5, max(x(ms["p75"]) - x(ms["p25"]), 2), 10, colour),
            _line(x(ms["p50"]), y - 8, x(ms["p50"]), y + 8, INK, 2),
            _text(right + 12, y + 4, _waited(row), size=13, bold=ours,
                  fill=ALARM if ms["p99"] >= KUBELET else OURS if ours else INK),
        ]  # fmt: skip
    return parts, bottom + 26


def _waited(row: dict[str, Any]) -> str:
    none = sum(row["statuses"].get(kind, 0) for kind in ("cut", "late")) / max(row["probes"], 1)
    if none >= 0.995:
        return "no answer"
    return _duration(row["ms"]["p99"]) + (f", {none:.0%} lost" if none >= 0.005 else "")


# ------------------------------------------------------------------------ tails

FASTEST, SLOWEST = 0.5, 2000.0  # milliseconds


def tails(rows: list[dict[str, Any]]) -> str:
    """One row for each server: line from the median to p99.9, mark and figure: p99.  The highest rate of each case.

    What a case has two kinds of requests for is side by side, and so are two cases with one kind.
    """
    rates: dict[str, int] = {}
    for row in rows:
        rates[row["case"]] = max(row["rate"], rates.get(row["case"], 0))
    panels = list(dict.fromkeys((row["case"], row["path"]) for row in rows))
    kinds = collections.Counter(case for case, _ in panels)
    parts = [
        _text(MARGIN, 26, "How long requests take at a constant rate", size=19, bold=True),
        _text(MARGIN, 45, "line: median to 99.9th percentile, mark and figure: 99th; from the moment at which they "
              "were due; logarithmic", size=13, fill="#4a545e"),
    ]  # fmt: skip
    y = 58.0
    while panels:
        is_pair = len(panels) > 1 and kinds[panels[0][0]] == kinds[panels[1][0]]
        pair = [panels.pop(0) for _ in range(1 + is_pair)]
        bottoms = []
        for (case, path), at in zip(pair, (0, WIDTH / 2), strict=False):
            found = [r for r in rows if (r["case"], r["rate"], r["path"]) == (case, rates[case], path)]
            title = f"{case}, {rates[case]:,}/s: {path}"
            picture, bottom = _tails_panel(title, sorted(found, key=lambda r: r["ms"]["p99"]), at, y)
            parts += picture
            bottoms.append(bottom)
        y = max(bottoms)
    return _picture(y + 4, "Latency at a constant rate", parts)


def _tails_panel(title: str, rows: list[dict[str, Any]], at: float, top: float) -> tuple[list[str], float]:
    """In one half of the picture's width, which begins `at`."""
    left, right = at + MARGIN + 112, at + WIDTH / 2 - MARGIN - 62
    axis = _Axis(left, right, FASTEST, SLOWEST)
    x = axis.x
    first, bottom = top + 30, top + 30 + ROW * len(rows)
    parts = [_text(at + MARGIN, top + 18, title, size=14, bold=True), *axis.ticks(first - 4, bottom + 2)]
    for n, row in enumerate(rows):
        y, ms, ours = first + ROW * n + ROW / 2, row["ms"], row["server"] == "pkg"
        parts += [
            _text(left - 8, y + 4, _title(row["server"]), anchor="end", bold=ours, fill=OURS if ours else INK),
            _line(x(ms["p50"]), y, x(ms["p99.9"]), y, _ink(row["server"]), 4),
            _line(x(ms["p99"]), y - 8, x(ms["p99"]), y + 8, INK, 2),
            _text(right + 10, y + 4, _duration(ms["p99"]), size=13, bold=ours, fill=OURS if ours else INK),
        ]
    return parts, bottom + 24


# --------------------------------------------------------------------- memory


def memory_of_workers(rows: list[dict[str, Any]]) -> str:
    """Bars: memory of the whole process tree, which counts shared pages once."""
    parts = [
        _text(MARGIN, 26, "Memory by the number of worker processes", size=19, bold=True),
        _text(MARGIN, 45, "of the whole process tree after a load, shared pages counted once", size=13, fill="#4a545e"),
    ]
    y, left, right = 58.0, MARGIN + LABELS, WIDTH - MARGIN - 100
    most = max(row["pss"] for row in rows)
    for case in dict.fromkeys(row["case"] for row in rows):
        parts.append(_text(MARGIN, y + 18, case.removeprefix("memory, ").capitalize(), size=15, bold=True))
        y += 30
        for row in sorted((r for r in rows if r["case"] == case), key=lambda r: r["pss"]):
            ours, width = row["server"] == "pkg", (right - left) * row["pss"] / most
            parts += [
                _text(left - 8, y + 15, _title(row["server"]), anchor="end", bold=ours, fill=OURS if ours else INK),
                _rect(left, y + 4, width, ROW - 8, _ink(row["server"])),
                _text(left + width + 6, y + 15, f"{row['pss'] / 1e6:.0f} MB", bold=ours, fill=OURS if ours else INK),
            ]
            y += ROW
        y += 8
    return _picture(y + 4, "Memory by the number of worker processes", parts)


# ------------------------------------------------------------------- restarts


def restarts(rows: list[dict[str, Any]]) -> str:
    """Bars: of 10,000 requests, how many got no answer in rolling restarts, by balancer and connection."""
    parts = [
        _text(MARGIN, 26, "Requests lost in a rolling update", size=19, bold=True),
        _text(MARGIN, 45, f"of 10,000, in {max(r['restarts'] for r in rows)} restarts of two instances behind a "
              "balancer, under load", size=13, fill="#4a545e"),
    ]  # fmt: skip

    def share(row: dict[str, Any], kind: str) -> float:
        return 1e4 * row["kinds"][kind]["lost"] / max(row["kinds"][kind]["sent"], 1)

    kinds = list(rows[0]["kinds"])
    most = max([share(row, kind) for row in rows for kind in kinds] + [1.0])
    y, left, right = 58.0, MARGIN + LABELS, WIDTH - MARGIN - 100
    for kind in kinds:
        parts.append(_text(MARGIN, y + 18, kind[:1].upper() + kind[1:], size=15, bold=True))
        y += 30
        for row in rows:
            ours, lost = row["server"] == "pkg", share(row, kind)
            width = (right - left) * lost / most
            parts += [
                _text(left - 8, y + 15, _title(row["server"]), anchor="end", bold=ours, fill=OURS if ours else INK),
                _rect(left, y + 4, width, ROW - 8, ALARM),
                _text(left + width + 6, y + 15, f"{lost:,.0f}" if lost == 0 or lost >= 1 else f"{lost:.1f}", bold=ours,
                      fill=OURS if ours else INK),
            ]  # fmt: skip
            y += ROW
        y += 8
    return _picture(y + 4, "Requests lost in a rolling update", parts)


# ------------------------------------------------------------------- throughput


def throughput(panels: list[tuple[str, list[dict[str, Any]]]]) -> str:
    """Requests per second of CPU time, which is valid even if the load generator was slower than the server."""
    parts = [
        _text(MARGIN, 26, "Requests per second of CPU", size=19, bold=True),
        _text(MARGIN, 45, "of the server's whole process tree; right: CPU per request", size=13, fill="#4a545e"),
    ]
    y, left, right = 58.0, MARGIN + LABELS, WIDTH - MARGIN - 170
    for title, rows in panels:
        rows = sorted((r for r in rows if r["cpu_us"]), key=lambda r: r["cpu_us"])
        most = max(1e6 / r["cpu_us"] for r in rows)
        parts.append(_text(MARGIN, y + 18, title, size=15, bold=True))
        y += 30
        for row in rows:
            rate, ours = 1e6 / row["cpu_us"], row["server"] == "pkg"
            width = (right - left) * rate / most
            parts += [
                _text(left - 8, y + 15, _title(row["server"]), anchor="end", bold=ours, fill=OURS if ours else INK),
                _rect(left, y + 4, width, ROW - 8, _ink(row["server"])),
                _text(left + width + 6, y + 15, f"{rate:,.0f}", bold=ours, fill=OURS if ours else INK),
                _text(WIDTH - MARGIN, y + 15, f"{row['cpu_us']:.1f} µs", anchor="end", size=13, fill="#4a545e"),
            ]
            y += ROW
        y += 8
    return _picture(y + 4, "Requests per second of CPU", parts)
