"""Plots an outage of the database: status and latency of the health pages, the pool, and responses to requests.

It is a picture of one run and compares nothing; every fault, with its bounds, is in tests/system/test_fault_matrix.py.

    python -m bench.outage [--fault stopped|frozen|black-hole] [--seconds 12] [--output bench/outage.svg]
"""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bench.environment import BENCH
from bench.plots import ALARM, FAINT, INK, MARGIN, OURS, WIDTH, _line, _picture, _rect, _text
from tests.support.faults.host import Host, Probe
from tests.support.faults.postgres import PASSWORD, NoServer, Postgres
from tests.support.faults.proxy import Mode, Proxy
from tests.support.ports import free_port

BEFORE, AFTER = 4.0, 6.0  # seconds of normal operation before and after
POOL = 6
MUTED, WARM = "#5b6670", "#fbeeec"


@dataclass
class Fault:
    title: str
    begin: Callable[[Postgres, Proxy], object]
    end: Callable[[Postgres, Proxy], object]


def _set(proxy: Proxy, mode: Mode) -> None:
    proxy.mode = mode


FAULTS = {
    "stopped": Fault("server stopped", lambda s, p: s.stop(), lambda s, p: s.start()),
    "frozen": Fault("server frozen (SIGSTOP)", lambda s, p: s.pause(), lambda s, p: s.resume()),
    "black-hole": Fault("network gone", lambda s, p: _set(p, Mode.BLACK_HOLE), lambda s, p: _set(p, Mode.PASS)),
}


@dataclass
class Run:
    """Times are seconds since the first sample."""

    title: str
    begun: float = 0.0
    ended: float = 0.0
    length: float = 0.0
    probes: list[Probe] = field(default_factory=list)
    pool: list[tuple[float, int, int]] = field(default_factory=list)  # time, connections, connections in use
    requests: list[tuple[float, int, float]] = field(default_factory=list)  # time of the response, status, latency

    def turned(self, status: int, since: float) -> float | None:
        """When /readyz first said so."""
        return next((p.at for p in self.probes if p.path == "/readyz" and p.at >= since and p.status == status), None)


# ---------------------------------------------------------------------- measuring


def measure(fault: Fault, seconds: float) -> Run:
    run = Run(fault.title)
    settings = {"PKG_POOL_MIN_SIZE": str(POOL), "PKG_POOL_MAX_SIZE": str(POOL), "PKG_THREADS": "16"}
    with Postgres() as server, Proxy(server.port) as proxy:
        admin = free_port()
        with Host(server.url_of(PASSWORD, proxy.port), PKG_ADMIN=f"127.0.0.1:{admin}", **settings) as host:
            host.wait_ready(200, 10)
            with host.load(threads=4, pause=0.05) as load, _sampled(admin) as pool:
                time.sleep(1.0)
                start = time.monotonic()
                time.sleep(BEFORE)
                begun = time.monotonic()
                fault.begin(server, proxy)
                time.sleep(seconds)
                fault.end(server, proxy)
                ended = time.monotonic()
                time.sleep(AFTER)
            stop = time.monotonic()
            probes = list(host.probes)
    run.begun, run.ended, run.length = begun - start, ended - start, stop - start
    run.probes = [p._replace(at=p.at - start) for p in probes if start <= p.at <= stop and p.path != "-"]
    run.pool = [(at - start, size, used) for at, size, used in pool if start <= at <= stop]
    run.requests = [(at - start, status, latency) for at, status, latency in load.answers if start <= at <= stop]
    return run


@contextlib.contextmanager
def _sampled(admin: int) -> Iterator[list[tuple[float, int, int]]]:
    """Reads the service's statistics of its pool ten times a second."""
    samples: list[tuple[float, int, int]] = []
    over = threading.Event()

    def sample() -> None:
        while not over.wait(0.1):
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(f"http://127.0.0.1:{admin}/metrics", timeout=5) as answer:
                    text = answer.read().decode()
                counts = dict(re.findall(r'^db_client_connections\{.*state="(\w+)".*\} (\d+)', text, re.M))
                used, idle = int(counts.get("used", 0)), int(counts.get("idle", 0))
                samples.append((time.monotonic(), used + idle, used))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


# ---------------------------------------------------------------------- drawing

LEFT, RIGHT = 130.0, WIDTH - MARGIN - 6.0
LOW, HIGH, LIMIT = -2, 1, 5.0  # latency in powers of ten of a millisecond; the promise for 99 %, in milliseconds


def draw(run: Run) -> str:
    def x(at: float) -> float:
        return LEFT + (RIGHT - LEFT) * at / run.length

    parts = [
        _text(MARGIN, 26, f"One outage: {run.title} for {run.ended - run.begun:.0f} s", size=17, bold=True),
        _text(MARGIN, 45, _summary(run), size=12, fill=MUTED),
    ]
    top, bottom = 58.0, 426.0
    parts.append(_rect(x(run.begun), top, x(run.ended) - x(run.begun), bottom - top, WARM))
    for edge in (run.begun, run.ended):
        parts.append(_line(x(edge), top, x(edge), bottom, ALARM, 1, "3 3"))
    for row, path in enumerate(("/healthz", "/readyz")):
        parts += _band(path, top + 10 + 22 * row, [p for p in run.probes if p.path == path], x)
    parts += _latencies(run, 132.0, 84.0, x)
    parts += _pool(run, 242.0, 66.0, x)
    parts += _requests(run, 334.0, 84.0, x)
    for second in range(0, int(run.length) + 1, 2):
        parts.append(_line(x(second), bottom, x(second), bottom + 4, INK))
        parts.append(_text(x(second), bottom + 17, f"{second} s", anchor="middle", size=10, fill=MUTED))
    parts.append(_line(LEFT, bottom, RIGHT, bottom, INK))
    return _picture(bottom + 30, f"One outage: {run.title}", parts)


def _summary(run: Run) -> str:
    red, green = run.turned(503, run.begun), run.turned(200, run.ended)
    worst = sorted(p.latency * 1000 for p in run.probes)[len(run.probes) * 99 // 100]
    said = [
        f"/readyz red after {red - run.begun:.1f} s" if red is not None else "/readyz stays green",
        f"green {green - run.ended:.1f} s after the end" if red is not None and green is not None else "",
        f"probes answered in {worst:.2f} ms (99th percentile, {len(run.probes)} probes)",
        "/healthz 200 throughout" if all(p.status == 200 for p in run.probes if p.path == "/healthz") else "",
    ]
    return ", ".join(filter(None, said))


def _band(path: str, y: float, probes: list[Probe], x: Callable[[float], float]) -> list[str]:
    """A bar for each period with the same status."""
    parts = [_text(LEFT - 8, y + 12, path, anchor="end")]
    first = 0
    for n in range(1, len(probes) + 1):
        if n == len(probes) or probes[n].status != probes[first].status:
            status, at = probes[first].status, x(probes[first].at)
            width = x(probes[n - 1 if n == len(probes) else n].at) - at
            parts.append(_rect(at, y, width, 16, OURS if status == 200 else ALARM))
            if width > 30:
                parts.append(_text(at + 6, y + 12, str(status or "no answer"), size=11, fill="#ffffff"))
            first = n
    return parts


def _latencies(run: Run, top: float, height: float, x: Callable[[float], float]) -> list[str]:
    """A thin bar for each tenth of a second, from its fastest probe to its slowest."""

    def y(milliseconds: float) -> float:
        share = (math.log10(max(milliseconds, 10.0**LOW)) - LOW) / (HIGH - LOW)
        return top + height - height * min(share, 1.0)

    parts = [_text(LEFT - 8, top - 9, "probe latency", anchor="end", bold=True)]
    for power in range(LOW, HIGH + 1):
        parts.append(_line(LEFT, y(10.0**power), RIGHT, y(10.0**power), FAINT))
        parts.append(_text(LEFT - 8, y(10.0**power) + 4, f"{10.0**power:g} ms", anchor="end", size=10, fill=MUTED))
    parts.append(_line(LEFT, y(LIMIT), RIGHT, y(LIMIT), MUTED, 1, "4 3"))
    parts.append(_text(RIGHT, y(LIMIT) - 3, f"promised: {LIMIT:g} ms", anchor="end", size=10, fill=MUTED))
    slots: dict[int, list[float]] = {}
    for probe in run.probes:
        slots.setdefault(int(probe.at * 10), []).append(probe.latency * 1000)
    for slot, found in sorted(slots.items()):
        at = x(slot / 10 + 0.05)
        parts.append(_line(at, y(min(found)) + 0.5, at, y(max(found)) - 0.5, OURS, 2))
    return parts


def _pool(run: Run, top: float, height: float, x: Callable[[float], float]) -> list[str]:
    """Connections as a stepped area, those in use in a darker colour."""
    parts = [_text(LEFT - 8, top - 9, "connections", anchor="end", bold=True)]
    for count in (0, POOL // 2, POOL):
        y = top + height - height * count / POOL
        parts.append(_line(LEFT, y, RIGHT, y, FAINT))
        parts.append(_text(LEFT - 8, y + 4, str(count), anchor="end", size=10, fill=MUTED))
    steps = [s for n, s in enumerate(run.pool) if n == 0 or s[1:] != run.pool[n - 1][1:]]
    for n, (at, size, used) in enumerate(steps):
        width = x(steps[n + 1][0] if n + 1 < len(steps) else run.length) - x(at)
        for count, opacity in ((size, 0.35), (used, 1.0)):
            tall = height * min(count, POOL) / POOL
            if tall:
                parts.append(_rect(x(at), top + height - tall, width, tall, OURS, opacity))
    parts.append(_text(RIGHT, top - 4, "light: in the pool, dark: in use", anchor="end", size=10, fill=MUTED))
    return parts


def _requests(run: Run, top: float, height: float, x: Callable[[float], float]) -> list[str]:
    """Responses in each quarter of a second: successful ones at the bottom, the others on top."""
    slot = 0.25
    good, bad = [0] * int(run.length / slot + 1), [0] * int(run.length / slot + 1)
    for at, status, _ in run.requests:
        (good if status == 200 else bad)[int(at / slot)] += 1
    most = max(map(sum, zip(good, bad, strict=True)))
    parts = [
        _text(LEFT - 8, top - 9, "requests", anchor="end", bold=True),
        _text(LEFT - 8, top + 12, f"{most / slot:.0f}/s", anchor="end", size=10, fill=MUTED),
        _text(RIGHT, top - 4, "green 200, red 503", anchor="end", size=10, fill=MUTED),
    ]
    for n, (fine, failed) in enumerate(zip(good, bad, strict=True)):
        left, width = x(n * slot), x(slot) - x(0) - 1
        floor = top + height
        for count, colour in ((fine, OURS), (failed, ALARM)):
            # A single failed request among many must be visible.
            tall = max(height * count / most, 3.0) if count else 0.0
            if tall:
                parts.append(_rect(left, floor - tall, width, tall, colour))
                floor -= tall
    return parts


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.outage", description="Draw one outage of the database.")
    parser.add_argument("--fault", choices=FAULTS, default="frozen")
    parser.add_argument("--seconds", type=float, default=12.0, help="duration of the outage in seconds (default: 12)")
    parser.add_argument("--output", type=Path, default=BENCH / "outage.svg", help="default: %(default)s")
    arguments = parser.parse_args()
    try:
        run = measure(FAULTS[arguments.fault], arguments.seconds)
    except NoServer as error:
        parser.exit(3, f"{error}\n")
    arguments.output.write_text(draw(run))
    print(f"{run.title}: {_summary(run)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
