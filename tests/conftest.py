"""Fixtures for all tests.  Fixtures of one subject are beside its tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from tests.support import over_unix

# Processes that tests start import the package of this checkout, in whatever folder they run.
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))

# Under nohup, and in the background of a shell, some signals are ignored, and processes that a test starts would
# inherit that.  A signal with a handler, even an empty one, gets its default again in them (execve(2)).
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hides the settings of the person who runs the tests."""
    for name in list(os.environ):
        if name.startswith("PKG_") or name in {
            "DATABASE_URL",
            "DATABASE_URL_FILE",
            "PORT",
            "HOST",
            "SCRIPT_NAME",
            "LOG_LEVEL",
            "LOG_FORMAT",
        }:
            monkeypatch.delenv(name)
    yield


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if over_unix.ON:
        terminalreporter.write_line(f"{over_unix.made} connections over Unix sockets")


if over_unix.ON:
    over_unix.install()

assert sys.platform.startswith("linux")
