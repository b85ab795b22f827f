"""What every test may use.  Fixtures of one subject live beside its tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

# Processes that tests start find the package of this checkout, wherever they run.
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))

# Under nohup, and behind a shell's &, some signals are ignored, and would be by every process that a test starts.  One
# that is caught, though nothing is done, is theirs again (execve(2)).
for _number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No setting of the person who runs the tests reaches them."""
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


assert sys.platform.startswith("linux")
