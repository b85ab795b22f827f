"""Runs a server on its core, and measures CPU time and memory of its whole process tree.

It does not know which server it is: see `peers`.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.environment import ROOT, Missing
from bench.peers import THREADS, Peer
from tests.support.ports import free_port

START_TIMEOUT = 20.0  # seconds


def cores() -> tuple[set[int], set[int]]:
    """The cores for the server and for the load: one each, if there are two."""
    have = sorted(os.sched_getaffinity(0))
    return ({have[0]}, {have[1]}) if len(have) > 1 else ({have[0]}, {have[0]})


ALL_CORES = os.sched_getaffinity(0)
SERVER_CORES, LOAD_CORES = cores()


@contextlib.contextmanager
def on_cores(which: set[int]) -> Iterator[None]:
    """Processes that are started in this block run on that core."""
    os.sched_setaffinity(0, which)
    try:
        yield
    finally:
        os.sched_setaffinity(0, ALL_CORES)


def process_tree(pid: int) -> list[int]:
    """The process and its living descendants."""
    pids = [pid]
    for parent in pids:
        for listing in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                pids += [int(child) for child in listing.read_text().split()]
    return pids


def cpu_time(pid: int) -> float:
    """Seconds of CPU time of a process, including ended threads, with a resolution of nanoseconds.

    The CPU clock of another process (clock_getcpuclockid(3)); /proc/PID/stat has the same in ticks of 10 ms.
    """
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except OSError:
        return 0.0


class Running:
    """A started server."""

    def __init__(
        self, peer: Peer, extra: dict[str, str] | None = None, *, port: int = 0, cores: set[int] = SERVER_CORES
    ) -> None:
        """Starts on `port` or a free port.  Raises Missing if it does not start."""
        self.peer = peer
        self.port = port or free_port()
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        folder = Path(self._folder.name)
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "BENCH_THREADS": str(THREADS), **peer.environment, **(extra or {}),
        }  # fmt: skip
        environment.pop("PYTHONWARNINGS", None)
        self._log = open(folder / "log", "w+")  # noqa: SIM115 - lives as long as the server
        self.started = time.monotonic()
        with on_cores(cores):
            self.process = subprocess.Popen(
                peer.command(self.port, folder), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL,
                stdout=self._log, stderr=self._log, start_new_session=True,
            )  # fmt: skip
        self.first_answer = 0.0
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise

    def _wait(self) -> None:
        deadline = self.started + START_TIMEOUT
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(OSError, http.client.HTTPException):
                # Not /healthz, to which our server responds before the application has been imported.
                if get(self.port, "/", timeout=2, close=self.peer.closes) == 200:
                    self.first_answer = time.monotonic() - self.started
                    return
            time.sleep(0.002)
        self._log.seek(0)
        lines = [line for line in self._log.read().splitlines() if line.strip()] or ["it said nothing"]
        raise Missing(f"{self.peer.title} did not start: {lines[-1][:200]}")

    def cpu(self) -> float:
        """Seconds of CPU time of the whole tree."""
        return sum(cpu_time(pid) for pid in process_tree(self.process.pid))

    def memory(self) -> tuple[int, int]:
        """(resident, proportional) bytes of the whole tree; proportional counts shared pages once."""
        resident = proportional = 0
        for pid in process_tree(self.process.pid):
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Rss:"):
                        resident += int(line.split()[1]) * 1024
                    elif line.startswith("Pss:"):
                        proportional += int(line.split()[1]) * 1024
        return resident, proportional

    def is_alive(self) -> bool:
        return self.process.poll() is None

    def stop(self) -> None:
        """Ends the server at once, without a drain."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._log.close()
        self._folder.cleanup()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def get(port: int, path: str, timeout: float = 10, *, close: bool = True) -> int:
    """The status of one GET.  `close`: asks the server to close the connection, instead of closing it afterwards."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Connection": "close"} if close else {})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()
