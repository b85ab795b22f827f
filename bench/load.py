"""The clients: wrk for throughput, prober for latency and many connections.  They run on the core for the load."""

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
    """The result of one round of load on one server."""

    rate: float  # 2xx responses per second
    cpu: float  # seconds of CPU per 2xx response, for the whole process tree
    busy: float  # share of one core that the server used
    p99: float  # seconds
    failed: int  # connections cut or timed out, responses other than 2xx

    def __str__(self) -> str:
        return f"{self.rate:,.0f}/s {self.cpu * 1e6:.2f} us" + (f" {self.failed} failed" if self.failed else "")


def wrk(server: Running, *, path: str, connections: int, seconds: float, close: bool = False) -> Sample:
    """Closed loop with one thread.  `close`: a connection for each request.  `/upload` gets a body of 1 MiB."""
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
    count = answers - refused  # a fast error is not a success
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
    """Runs wrk until the end of the block, to keep a server busy (or whatever listens on `port`)."""

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
        """Ends the load and returns the report of wrk."""
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
    """The result of a prober: latency of each probe in seconds; the timeout for a probe without a response."""

    latencies: list[float]
    statuses: dict[str, int]  # "cut": refused or reset, "late": none within the timeout

    def percentile(self, p: float) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * p / 100))]

    def summary(self) -> dict[str, float]:
        return {f"p{p:g}": self.percentile(p) for p in (1, 25, 50, 75, 90, 99, 99.9)} | {"max": max(self.latencies)}


def start_probes(port: int, path: str, seconds: int, interval: float, timeout: int) -> subprocess.Popen[str]:
    """Sends one probe every `interval` seconds, for `seconds`; each has a timeout of `timeout` seconds."""
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
        # A cut connection counts as the timeout and not as a fast response.
        latencies.append(latency / 1e6 if status else max(latency / 1e6, worst))
    return Probes(latencies, statuses)


class Crowd:
    """Keeps many slow or idle connections open until the end of the block."""

    def __init__(self, server: Running, kind: str, count: int, path: str = "/", *, opening: int) -> None:
        """`opening`: maximum time in seconds to open them."""
        words: list[str | Path] = [program("prober"), kind, str(server.port)]
        words += [*([] if kind == "slow" else [path]), str(count), str(opening), "3600"]
        with on_cores(LOAD_CORES):
            self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        self.open = 0

    def wait(self) -> int:
        """The number of open connections: all, or as many as could be opened in time."""
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
