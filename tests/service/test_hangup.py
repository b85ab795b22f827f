"""SIGHUP and SIGQUIT drain as SIGTERM does; a SIGHUP that was ignored at the start is left alone."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.supervisors.test_reload import APP as RELOADED
from tests.supervisors.test_reload import Reloading
from tests.support.client import get, wait_for
from tests.support.ports import free_port
from tests.support.processes import running

APP = """
import ctypes, pathlib, signal, time
if pathlib.Path("own-handler").exists():
    signal.signal(signal.SIGHUP, lambda number, frame: pathlib.Path("called").touch())
def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        pathlib.Path("slow").touch()
        while not pathlib.Path("go").exists():
            time.sleep(0.01)
    if environ["PATH_INFO"] == "/held":    # nobody else gets the interpreter lock
        pathlib.Path("held").touch()
        ctypes.PyDLL(None).sleep(3)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
"""
NUMBERS = [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT]


@contextlib.contextmanager
def starting_with(number: signal.Signals, what: signal.Handlers) -> Iterator[None]:
    """Processes started meanwhile begin with it, whatever these tests were started with (nohup)."""
    before = signal.signal(number, what)
    try:
        yield
    finally:
        signal.signal(number, before)


@pytest.fixture(autouse=True)
def _hangups_not_ignored() -> Iterator[None]:
    with starting_with(signal.SIGHUP, signal.SIG_DFL), starting_with(signal.SIGQUIT, signal.SIG_DFL):
        yield


@pytest.mark.parametrize("number", NUMBERS)
def test_it_drains(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path, APP, PKG_ADMIN="off", PKG_DRAIN_DELAY="3") as p:
        answers: list[bytes] = []
        slow = threading.Thread(target=lambda: answers.append(get(p.address, "/slow").body), daemon=True)
        slow.start()
        wait_for((tmp_path / "slow").exists)
        p.process.send_signal(number)
        p.await_message(f"^draining after {number.name}: 1 requests in flight")
        assert get(p.address, "/readyz").status == 503
        assert get(p.address, "/healthz").status == 200
        assert get(p.address, "/").closes  # accepted all the same
        (tmp_path / "go").touch()
        slow.join(20)
        assert answers == [b"hello"]
        assert p.process.wait(30) == 0
        assert any(", 0 aborted, " in text for text in p.messages())
        assert p.errors() == ""


@pytest.mark.parametrize("number", NUMBERS)
def test_the_front_needs_no_interpreter_for_it(tmp_path: Path, number: signal.Signals) -> None:
    with running(tmp_path, APP, PKG_ADMIN="off") as p:
        held = threading.Thread(target=lambda: get(p.address, "/held"), daemon=True)
        held.start()
        wait_for((tmp_path / "held").exists)
        p.process.send_signal(number)
        wait_for(lambda: get(p.address, "/readyz").status == 503)
        assert not any(text.startswith("draining") for text in p.messages())  # Python has not seen it yet
        held.join(20)
        assert p.process.wait(20) == 0


@pytest.mark.parametrize("own_handler", [False, True], ids=["ignored", "the application's"])
def test_a_hangup_that_was_ignored_at_the_start_is_left_alone(tmp_path: Path, own_handler: bool) -> None:
    """nohup: whoever started it wants it to outlive the terminal.  What the application makes of it is its own."""
    if own_handler:
        (tmp_path / "own-handler").touch()
    with starting_with(signal.SIGHUP, signal.SIG_IGN), running(tmp_path, APP, PKG_ADMIN="off") as p:
        p.process.send_signal(signal.SIGHUP)
        if own_handler:
            wait_for((tmp_path / "called").exists)
        for _ in range(20):
            assert get(p.address, "/readyz").status == 200
        assert p.stop(signal.SIGTERM) == 0
        assert not any(text.startswith("draining after SIGHUP") for text in p.messages())
        p.await_message("^draining after SIGTERM")


def test_an_application_s_handler_is_taken_back(tmp_path: Path) -> None:
    (tmp_path / "own-handler").touch()
    with running(tmp_path, APP, PKG_ADMIN="off") as p:
        p.await_message("ignoring the application's SIGHUP handler")
        p.process.send_signal(signal.SIGHUP)
        assert p.process.wait(20) == 0
        assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("number", NUMBERS)
def test_with_reload(tmp_path: Path, number: signal.Signals) -> None:
    """The child drains, and its parent ends with it."""
    p = Reloading(tmp_path, RELOADED % "one", PORT=str(free_port()))
    try:
        p.await_message("^serving ")
        (child,) = p.children()
        assert p.stop(number) == 0
        p.await_message(f"^draining after {number.name}")
        assert any(text.startswith("stopped: ") for text in p.messages())
        assert not Path(f"/proc/{child}").exists()
    finally:
        if p.process.poll() is None:
            for child in p.children():
                os.kill(child, signal.SIGKILL)
        p.kill()


def test_with_reload_under_nohup(tmp_path: Path) -> None:
    with starting_with(signal.SIGHUP, signal.SIG_IGN):
        p = Reloading(tmp_path, RELOADED % "one")
    try:
        wait_for(lambda: p.says("one"), 20, "the first")
        for pid in (p.process.pid, *p.children()):
            os.kill(pid, signal.SIGHUP)
        assert p.says("one")
        assert p.stop(signal.SIGTERM) == 0
    finally:
        if p.process.poll() is None:
            for child in p.children():
                os.kill(child, signal.SIGKILL)
        p.kill()
