"""The clients: wrk for throughput, prober for latency and crowds of connections.  They run on the load's core."""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.environment import command, program
from bench.servers import LOAD_CORES, Running, on_cores

UPLOAD = 'wrk.method = "POST"\nwrk.body = string.rep("x", 1048576)\n'


@dataclass
class Sample:
    """One round of load on one server."""

    rate: float  # requests answered 2xx, per second
    cpu: float  # seconds of CPU per request answered 2xx, of the whole process tree
    busy: float  # share of one core that the server used
    p99: float  # seconds
    failed: int  # connections cut or timed out, responses other than 2xx

    def __str__(self) -> str:
        return f"{self.rate:,.0f}/s {self.cpu * 1e6:.2f} us" + (f" {self.failed} failed" if self.failed else "")


def wrk(server: Running, *, path: str, connections: int, seconds: float, close: bool = False) -> Sample:
    """Closed loop, one thread.  `close`: a connection for each request.  `/upload` is sent a megabyte."""
    words = [command("wrk"), "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout=10s", "--latency"]
    if close:
        words += ["-H", "Connection: close"]
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        if path == "/upload":
            script.write(UPLOAD)
            script.flush()
            words += ["-s", script.name]
        before, begin = server.cpu(), time.monotonic()
        with on_cores(LOAD_CORES):
            process = subprocess.Popen(
                [*words, f"http://127.0.0.1:{server.port}{path}"], stdout=subprocess.PIPE, text=True
            )
        text, _ = process.communicate()
        used, took = server.cpu() - before, time.monotonic() - begin
    found = re.search(r"(\d+) requests in ([\d.]+)(us|ms|s|m)", text)
    answers = int(found[1]) if found else 0
    refused = sum(int(n) for n in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    cut = sum(int(n) for line in re.findall(r"Socket errors:.*", text) for n in re.findall(r"\d+", line))
    count = answers - refused  # an error that is answered fast is no success
    elapsed = float(found[2]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}[found[3]] if found else 0.0
    rate = count / elapsed if elapsed else 0.0
    p99 = _seconds(m[1]) if (m := re.search(r"(?m)^\s+99%\s+(\S+)", text)) else 0.0
    return Sample(rate, used / count if count else 0.0, used / took, p99, cut + refused)


def _seconds(text: str) -> float:
    for unit, factor in (("us", 1e-6), ("ms", 1e-3), ("m", 60.0), ("s", 1.0)):
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)


def warm_up(server: Running, path: str, connections: int) -> None:
    wrk(server, path=path, connections=connections, seconds=1)


class Background:
    """wrk that keeps a server (or, given `port`, whoever listens there) busy until the end of the block."""

    def __init__(
        self, server: Running | None, path: str, connections: int, *, port: int = 0, close: bool = False
    ) -> None:
        port = server.port if server is not None else port
        words = [command("wrk"), "-t1", f"-c{connections}", "-d3600s", "--timeout=60s"]
        words += ["-H", "Connection: close"] if close else []
        with on_cores(LOAD_CORES):
            self._process = subprocess.Popen(
                [*words, f"http://127.0.0.1:{port}{path}"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )

    def finish(self) -> str:
        """Ends the load; wrk's report."""
        self._process.send_signal(signal.SIGINT)
        text, _ = self._process.communicate()
        return text

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


@dataclass
class Probes:
    """What a prober saw: latency in seconds of each probe; one without an answer has the time it was given up after."""

    latencies: list[float]
    statuses: dict[str, int]  # "cut": refused or reset, "late": none within the timeout

    def percentile(self, p: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))]

    def summary(self) -> dict[str, float]:
        return {f"p{p:g}": self.percentile(p) for p in (1, 25, 50, 75, 90, 99, 99.9)} | {"max": max(self.latencies)}


def start_probes(port: int, path: str, seconds: int, interval: float, timeout: int) -> subprocess.Popen[str]:
    """One every `interval` seconds for `seconds`, each given up after `timeout`."""
    with on_cores(LOAD_CORES):
        return subprocess.Popen(
            [program("prober"), "probe", str(port), path, str(int(interval * 1e6)), str(seconds), str(timeout)],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip


def read_probes(process: subprocess.Popen[str], worst: float) -> Probes:
    text, _ = process.communicate()
    latencies, statuses = [], dict[str, int]()
    for line in text.splitlines():
        _, latency, status = map(int, line.split())
        name = {0: "cut", -1: "late"}.get(status, str(status))
        statuses[name] = statuses.get(name, 0) + 1
        # A cut connection is no answer: it counts as the worst there is, not as a fast one.
        latencies.append(latency / 1e6 if status else max(latency / 1e6, worst))
    return Probes(latencies, statuses)


class Crowd:
    """Many connections, slow or idle, open until the end of the block."""

    def __init__(self, server: Running, kind: str, count: int, path: str = "/", *, opening: int) -> None:
        """`opening`: seconds that opening them may take."""
        words: list[str | Path] = [program("prober"), kind, str(server.port)]
        words += [*([] if kind == "slow" else [path]), str(count), str(opening), "3600"]
        with on_cores(LOAD_CORES):
            self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        self.open = 0

    def wait(self) -> int:
        """How many there are: all, or as many as could be opened in the time for it."""
        out: IO[str] | None = self._process.stdout
        assert out is not None
        self.open = int((out.readline().split() or ["", "0"])[1])
        return self.open

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
