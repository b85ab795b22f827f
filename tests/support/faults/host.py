"""A running service for fault tests: the process, its log, continuous probes, and load.

It judges nothing; the matrix does.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.client import Connection, wait_for
from tests.support.processes import WORKERS, children

__all__ = ["Host", "Load", "Probe"]

ROOT = Path(__file__).resolve().parents[3]


class Probe(NamedTuple):
    at: float  # time.monotonic()
    path: str  # `-`: the delay of the prober itself
    status: int  # 0: no response
    latency: float  # seconds


@dataclass
class Load:
    """Counts of responses by status; 0: the connection was cut."""

    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    slowest: float = 0.0
    answers: list[tuple[float, int, float]] = field(default_factory=list)  # time.monotonic(), status, latency

    def __str__(self) -> str:
        return ", ".join(f"{count} x {status or 'cut'}" for status, count in sorted(self.statuses.items())) or "none"


class Host:
    """Runs `python -m pkg` on a free port until the end of the block; its exit code must be 0."""

    def __init__(self, url: str = "", *, app: str = "tests.support.faults.application:app", **settings: str) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PKG_")}
        environ |= {
            "HOST": "127.0.0.1",
            "PORT": "0",
            "PKG_ADMIN": "off",
            "LOG_FORMAT": "json",
            "PKG_ACCESS_LOG": "false",
        }
        environ |= {"PKG_DRAIN_DELAY": "0", "PYTHONPATH": str(ROOT)}
        environ |= {"DATABASE_URL": url} if url else {}
        environ |= WORKERS | settings
        self.probes: list[Probe] = []
        self.log: list[dict[str, Any]] = []
        self._service = subprocess.Popen(
            [sys.executable, "-m", "pkg", app],
            env=environ, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self._watch: subprocess.Popen[str] | None = None
        self._readers = [
            threading.Thread(target=self._read_log, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        self.errors: list[str] = []
        for reader in self._readers:
            reader.start()

    def __enter__(self) -> Host:
        try:
            line = wait_for(lambda: self.logged("serving "), 20, "the service's start")
            self.port = int(line.split(" on ")[1].split()[0].rpartition(":")[2])
            self._watch = subprocess.Popen(
                [sys.executable, "-m", "tests.support.faults.watch", str(self.port), "0.02", "/readyz", "/healthz"],
                cwd=ROOT, stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            reader = threading.Thread(target=self._read_probes, daemon=True)
            self._readers.append(reader)
            reader.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        code = self.close()
        if kind is None:
            assert code == 0, (code, self.errors)
            assert not self.errors, self.errors

    def close(self) -> int:
        """Ends the service and returns its exit code."""
        if self._watch is not None:
            self._watch.kill()
            self._watch.wait()
        self._service.send_signal(signal.SIGTERM)
        try:
            code = self._service.wait(30)
        except subprocess.TimeoutExpired:
            self._service.kill()
            code = self._service.wait()
        for reader in self._readers:
            reader.join(5)
        for process in (self._service, self._watch):
            for stream in (process.stdout, process.stderr) if process is not None else ():
                if stream is not None:
                    stream.close()
        return code

    # ------------------------------------------------------------------ log and probes

    def _read_log(self) -> None:
        assert self._service.stdout is not None
        for line in self._service.stdout:
            self.log.append(json.loads(line))

    def _read_errors(self) -> None:
        assert self._service.stderr is not None
        self.errors.extend(self._service.stderr)

    def _read_probes(self) -> None:
        assert self._watch is not None and self._watch.stdout is not None
        for line in self._watch.stdout:
            at, path, status, latency = line.split()
            self.probes.append(Probe(float(at), path, int(status), float(latency)))

    def logged(self, text: str) -> str | None:
        """The last log message that contains the text."""
        return next((r["message"] for r in reversed(self.log) if text in r["message"]), None)

    @property
    def status(self) -> int:
        """The last response of /readyz."""
        return next((p.status for p in reversed(self.probes) if p.path == "/readyz"), 0)

    def wait_ready(self, status: int, within: float) -> float:
        """Waits for this status of /readyz and returns its time.monotonic(); raises AssertionError after the
        timeout."""
        begin = time.monotonic()
        first = len(self.probes)

        def seen() -> float | None:
            return next((p.at for p in self.probes[first:] if p.path == "/readyz" and p.status == status), None)

        return float(wait_for(seen, begin + within - time.monotonic(), f"/readyz {status}"))

    # ------------------------------------------------------------------ resources

    @property
    def threads(self) -> int:
        return self._count("task")

    @property
    def descriptors(self) -> int:
        return self._count("fd")

    def _count(self, kind: str) -> int:
        """In all of its processes: template and workers are children of the first one."""
        return sum(len(os.listdir(f"/proc/{pid}/{kind}")) for pid in (self._service.pid, *children(self._service.pid)))

    # ------------------------------------------------------------------ load

    @contextlib.contextmanager
    def load(self, target: str = "/query", *, threads: int = 2, pause: float = 0.02) -> Iterator[Load]:
        """Sends requests in a closed loop until the end of the block; each thread has its own connection."""
        load, stop = Load(), threading.Event()
        workers = [threading.Thread(target=self._ask, args=(load, stop.is_set, target, pause)) for _ in range(threads)]
        for worker in workers:
            worker.start()
        try:
            yield load
        finally:
            stop.set()
            for worker in workers:
                worker.join(60)

    def _ask(self, load: Load, is_over: Callable[[], bool], target: str, pause: float) -> None:
        connection: Connection | None = None
        while not is_over():
            began = time.monotonic()
            try:
                connection = connection or Connection(("127.0.0.1", self.port), 60)
                answer = connection.request("GET", target)
                status = answer.status
                if answer.closes:
                    connection.close()
                    connection = None
            except (OSError, EOFError):
                status = 0
                if connection is not None:
                    connection.close()
                connection = None
            latency = time.monotonic() - began
            load.statuses[status] += 1
            load.slowest = max(load.slowest, latency)
            load.answers.append((began + latency, status, latency))
            time.sleep(pause)
        if connection is not None:
            connection.close()
