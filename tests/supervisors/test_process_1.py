"""As process 1 of a container: orphans are reaped, signals passed on, and the application's children are its own."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import get, wait_for
from tests.support.processes import SUBREAPER, Process

APP = """
import os, pathlib, signal, subprocess, threading, time
def orphans(n):
    for _ in range(n):              # a shell that leaves a child behind, which ends a moment later
        subprocess.Popen(["/bin/sh", "-c", "sleep 0.05 & exit 0"]).wait()
def app(environ, start_response):
    path, query = environ["PATH_INFO"], environ["QUERY_STRING"]
    text = ""
    if path == "/codes":            # the exit codes of children, asked for late
        codes = []
        for number in range(int(query)):
            child = subprocess.Popen(["/bin/sh", "-c", f"exit {number % 100}"])
            codes.append((child, number % 100))
        time.sleep(0.2)             # by now most have ended, and nobody has asked
        text = str(sum(child.wait() != code for child, code in codes))
    elif path == "/run":            # and at once
        text = str(sum(subprocess.run(["/bin/sh", "-c", f"exit {n % 100}"]).returncode != n % 100
                       for n in range(int(query))))
    elif path == "/orphans":
        orphans(int(query))
    elif path == "/daemon":         # as daemons are made
        pid = os.fork()
        if pid == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(0.1)
            os._exit(0)
        text = str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    elif path == "/pid":
        text = f"{os.getpid()} {os.getppid()}"
    elif path == "/sleep":
        pathlib.Path("sleeping").touch()
        time.sleep(float(query))
        text = "slept"
    elif path == "/kill":
        os.kill(os.getpid(), int(query))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]
"""


@functools.cache
def namespace() -> tuple[str, ...] | None:
    """The command in front of one that becomes process 1 of its own PID namespace; None: this user may not."""
    own = ("--pid", "--fork", "--kill-child", "--mount-proc")
    for flags in ((), ("--user", "--map-root-user")):
        command = ("unshare", *flags, *own)
        if shutil.which("unshare") and subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    return None


class First(Process):
    """`python -m pkg` as process 1, or what does the same.  `init` and `service` are its two processes."""

    def __init__(self, folder: Path, kind: str, *arguments: str, source: str = APP, **environ: str) -> None:
        python = [sys.executable, "-m", "pkg"] if kind == "process 1" else [sys.executable, "-c", SUBREAPER]
        self._before = [*(namespace() or ()), *python] if kind == "process 1" else python
        super().__init__(folder, source, ("application:app", *arguments), {"PKG_ADMIN": "off", **environ})
        self._kind = kind

    def command(self, arguments: tuple[str, ...]) -> list[str]:
        return [*self._before, *arguments]

    @property
    def init(self) -> int:
        return children(self.process.pid)[0] if self._kind == "process 1" else self.process.pid

    @property
    def service(self) -> int:
        return children(self.init)[0]

    def serve(self) -> First:
        match = self.await_message(r"^serving .* on (.*):(\d+) after")
        self.address = (match[1], int(match[2]))
        return self

    def text(self, target: str) -> str:
        return get(self.address, target).body.decode()

    def send(self, number: int) -> None:
        """To process 1, as from outside its namespace."""
        os.kill(self.init, number)


def children(pid: int) -> list[int]:
    """Also those that have ended and are not reaped."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def count(pid: int, field: str) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    match = re.search(rf"^{field}: +(\d+) kB", text, re.MULTILINE)
    assert match is not None
    return int(match[1])


KINDS = ["process 1", "subreaper"]


@pytest.fixture(params=KINDS)
def first(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[First]:
    if request.param == "process 1" and namespace() is None:
        pytest.skip("this user may not make a PID namespace")
    process = First(tmp_path, request.param)
    try:
        yield process.serve()
    finally:
        end(process)


def end(process: First) -> None:
    if process.process.poll() is None:
        for pid in (process.service, process.init):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    process.kill()


def test_exit_codes_are_the_applications_while_orphans_end(first: First) -> None:
    """1,000 of subprocess.run(), and some hundred that are asked for late; at least 110 orphans end meanwhile."""
    stop = threading.Event()
    rounds: list[str] = []

    def leave_orphans() -> None:
        while not stop.is_set():
            rounds.append(first.text("/orphans?10") + first.text("/daemon"))

    disturber = threading.Thread(target=leave_orphans, daemon=True)
    disturber.start()
    try:
        results: list[str] = []
        targets = ["/run?250"] * 4 + ["/codes?100"] * 3
        threads = [threading.Thread(target=lambda t=t: results.append(first.text(t)), daemon=True) for t in targets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    finally:
        stop.set()
        disturber.join(30)
    assert results == ["0"] * len(targets)
    assert rounds == ["0"] * len(rounds)
    assert len(rounds) >= 10
    wait_for(lambda: children(first.init) == [first.service], 20, "every orphan reaped")
    assert first.errors() == ""


def test_orphans_are_reaped(first: First) -> None:
    for _ in range(5):
        assert first.text("/orphans?10") == ""
        assert first.text("/daemon") == "0"
    wait_for(lambda: children(first.init) == [first.service], 20, "every orphan reaped")


def test_it_drains(first: First, tmp_path: Path) -> None:
    answers: list[str] = []
    slow = threading.Thread(target=lambda: answers.append(first.text("/sleep?1")), daemon=True)
    slow.start()
    wait_for((tmp_path / "sleeping").exists)
    first.send(signal.SIGTERM)
    assert first.process.wait(30) == 0
    slow.join(10)
    assert answers == ["slept"]
    first.await_message("^draining after SIGTERM: 1 requests in flight")


def test_each_signal_reaches_the_service(first: First) -> None:
    first.send(signal.SIGUSR1)
    wait_for(lambda: "most recent call first" in first.errors(), 20, "the stacks")
    assert first.text("/pid").split()[0] != ""
    first.send(signal.SIGWINCH)  # ignored by default
    assert get(first.address, "/readyz").status == 200
    first.send(signal.SIGQUIT)
    first.await_message("^draining after SIGQUIT")
    assert first.process.wait(30) == 0


def test_a_third_signal_ends_it_at_once(first: First, tmp_path: Path) -> None:
    threading.Thread(target=_unanswered, args=(first, "/sleep?30"), daemon=True).start()
    wait_for((tmp_path / "sleeping").exists)
    for _ in range(3):
        first.send(signal.SIGTERM)
        time.sleep(1.1)
    assert first.process.wait(10) == 1
    assert "third signal" in first.errors()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_the_exit_code_of_a_service_that_was_killed(first: First, number: signal.Signals) -> None:
    _unanswered(first, f"/kill?{number:d}")
    assert first.process.wait(20) == 128 + number


def _unanswered(first: First, target: str) -> None:
    try:
        get(first.address, target)
    except (OSError, EOFError):
        return


def test_it_needs_next_to_no_memory(first: First) -> None:
    wait_for(lambda: count(first.init, "Private_Dirty") < 1000, 20, "the memory given back")
    assert first.text("/run?3") == "0"


@pytest.mark.parametrize("kind", KINDS)
def test_start_up_that_fails(tmp_path: Path, kind: str) -> None:
    if kind == "process 1" and namespace() is None:
        pytest.skip("this user may not make a PID namespace")
    for source, environ, code in (
        ("import nothing_of_that_name", {}, 3),
        (APP, {"PKG_DRAIN_DELAY": "soon"}, 2),
    ):
        process = First(tmp_path, kind, source=source, **environ)
        try:
            assert process.process.wait(20) == code
        finally:
            end(process)


@pytest.mark.parametrize("kind", KINDS)
def test_with_reload(tmp_path: Path, kind: str) -> None:
    if kind == "process 1" and namespace() is None:
        pytest.skip("this user may not make a PID namespace")
    process = First(tmp_path, kind, "--reload").serve()
    try:
        assert process.text("/orphans?3") == ""
        wait_for(lambda: children(process.init) == [process.service], 20, "every orphan reaped")
        process.send(signal.SIGTERM)
        assert process.process.wait(30) == 0
    finally:
        end(process)


def test_a_terminal_s_signal_comes_once(tmp_path: Path) -> None:
    """The terminal sends it to the whole foreground group: passed on, the service would get it twice."""
    command = [sys.executable, "-c", SUBREAPER, "application:app"]
    (tmp_path / "application.py").write_text(APP)
    environ = os.environ | {"PORT": "0", "HOST": "127.0.0.1", "PKG_ADMIN": "off", "PKG_DRAIN_DELAY": "0"}
    terminal, other = os.openpty()
    seen = b""
    with subprocess.Popen(
        ["setsid", "--ctty", *command], cwd=tmp_path, env=environ, stdin=other, stdout=other, stderr=other
    ) as process:
        os.close(other)
        try:
            while b"serving application:app" not in seen:
                seen += os.read(terminal, 4096)
            os.write(terminal, b"\x03")
            assert process.wait(20) == 0
        finally:
            os.close(terminal)
            process.kill()


def test_a_program_with_threads_serves_by_itself(tmp_path: Path) -> None:
    """A child would not have its threads."""
    source = (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n" + SUBREAPER
    )
    (tmp_path / "application.py").write_text(APP)
    environ = os.environ | {"PORT": "0", "HOST": "127.0.0.1", "PKG_ADMIN": "off", "PKG_DRAIN_DELAY": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", source, "application:app"], cwd=tmp_path, env=environ, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            wait_for(lambda: "serving" in process.stdout.readline(), 20)  # type: ignore[union-attr]
            assert children(process.pid) == []
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            process.kill()
