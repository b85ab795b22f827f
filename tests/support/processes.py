"""Runs the service as a separate process: `python -m pkg` with the test's application; reads its log and pages."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import over_unix
from tests.support.client import wait_for

# Process 1 for whoever may not make a PID namespace: the kernel gives orphans to the nearest ancestor that asks for
# them.
SUBREAPER = """
import ctypes, sys
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
from pkg.supervisors.init import hold_signals, serve_in_child
hold_signals()
serve_in_child()
from pkg.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


# The environment of a service in a test has nothing else; the second half is for an extension with sanitizers.
INHERITED = ("PATH", "PYTHONPATH", "HOME", "LANG")
INHERITED += ("LD_PRELOAD", "PYTHONMALLOC", "ASAN_OPTIONS", "TSAN_OPTIONS", "UBSAN_OPTIONS")
# TEST_WORKERS=2 runs every service of the tests with that many worker processes.
WORKERS = {"WEB_CONCURRENCY": os.environ["TEST_WORKERS"]} if "TEST_WORKERS" in os.environ else {}
POOLS = int(WORKERS.get("WEB_CONCURRENCY", 1))  # each worker has the application, and pools of its own
# For tests whose application keeps in its memory what another request is to find.
in_one_process = pytest.mark.skipif(bool(WORKERS), reason="its requests need the memory of one process")


class Process:
    """A running service.  `lines()`: its log records; `errors()`: its output on stderr."""

    def __init__(self, directory: Path, source: str, arguments: tuple[str, ...], environ: dict[str, str]) -> None:
        self._out, self._err = directory / "stdout", directory / "stderr"
        (directory / "application.py").write_text(source)
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        defaults = {"PORT": "0", "HOST": "127.0.0.1", "LOG_FORMAT": "json", "PKG_DRAIN_DELAY": "0"}
        with open(self._out, "wb") as out, open(self._err, "wb") as err:
            self.process = subprocess.Popen(
                self.command(arguments),
                cwd=directory,
                env=inherited | defaults | WORKERS | environ,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )
        self.address = ("127.0.0.1", 0)

    def command(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "pkg", *arguments]

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._out.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def errors(self) -> str:
        return self._err.read_text()

    def messages(self) -> list[str]:
        return [line["message"] for line in self.lines()]

    def faults(self) -> list[str]:
        """Messages of its warnings and errors, except of an event loop that was late, as any is on a busy machine."""
        return [
            line["message"]
            for line in self.lines()
            if line["severity"] not in ("DEBUG", "INFO") and "event loop has been blocked" not in line["message"]
        ]

    def await_message(self, pattern: str, timeout: float = 15.0) -> re.Match[str]:
        """Waits for a log record whose message matches the pattern, and returns the match."""

        def look() -> re.Match[str] | None:
            assert self.process.poll() is None or self.messages(), (self.process.returncode, self.errors())
            return next((m for text in self.messages() if (m := re.search(pattern, text))), None)

        found: re.Match[str] = wait_for(look, timeout, f"a record {pattern!r}")
        return found

    def stop(self, signal_number: int = signal.SIGINT, timeout: float = 15.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        return self.process.wait(timeout)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)


@contextlib.contextmanager
def running(
    directory: Path,
    source: str,
    *arguments: str,
    app: str = "application:app",
    ready: bool = True,
    kind: type[Process] = Process,
    **environ: str,
) -> Iterator[Process]:
    """Runs `python -m pkg` with `source` as its application; kills it at the end if it still runs."""
    path = over_unix.new_path() if over_unix.ON and ready and "PKG_LISTEN" not in environ else None
    if path is not None:
        environ["PKG_LISTEN"] = f"{environ.get('HOST', '127.0.0.1')}:{environ.get('PORT', 0)},unix:{path}"
    process = kind(directory, source, (app, *arguments), environ)
    try:
        if ready:
            match = process.await_message(r"^serving .*? on ([^ ,]*):(\d+)[, ]")
            process.address = (match[1], int(match[2]))
            if path is not None:
                over_unix.remember(process.address, path)
        yield process
    finally:
        process.kill()
        if path is not None:
            over_unix.forget(path)


def children(pid: int) -> list[int]:
    """Of one process, all of them: workers belong to process 1, as the template does."""
    found: set[int] = set()
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError):  # a thread that has ended meanwhile
            found.update(map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split()))
    return sorted(found)


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process are, as /proc names it; those that it closes meanwhile may be missing."""
    names = []
    for number in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            names.append(os.readlink(f"/proc/{pid}/fd/{number}"))
    return names


def ask(
    address: tuple[str, int],
    target: str,
    method: str = "GET",
    *,
    timeout: float = 10.0,
    body: bytes | None = None,
    **headers: str,
) -> tuple[int, dict[str, str], str]:
    """Status, headers in lower case, text."""
    connection = http.client.HTTPConnection(*address, timeout=timeout)
    try:
        connection.request(method, target, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        text = response.read().decode()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, text
    finally:
        connection.close()
