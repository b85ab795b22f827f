"""A real browser for tests: Debian's chromium without a window, controlled through the pipe of the DevTools protocol.

It sends one command at a time and keeps the events that come meanwhile.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

TIMEOUT = 60.0  # a cold start on a busy machine takes some seconds
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # root has no sandbox in a container; only pages of the tests are opened
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--remote-debugging-pipe",
)
# The browser reads commands from descriptor 3 and writes answers to 4.
_START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


def program() -> str | None:
    """The path of the browser, or None."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Tab:
    """One page.  `events`: events since the last `open`, as (method, parameters)."""

    def __init__(self, read_fd: int, write_fd: int) -> None:
        self._read_fd, self._write_fd = read_fd, write_fd
        self._buffer = b""
        self._id = 0
        self._session: str | None = None
        self.events: list[tuple[str, dict[str, Any]]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command and returns its result."""
        self._id += 1
        message: dict[str, Any] = {"id": self._id, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write_fd, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == self._id:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result

    def _receive(self, deadline: float) -> dict[str, Any]:
        """The next message; events are also recorded."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._read_fd, selectors.EVENT_READ)
            while b"\0" not in self._buffer:
                assert selector.select(max(0.0, deadline - time.monotonic())), "the browser says nothing"
                data = os.read(self._read_fd, 1 << 20)
                assert data, "the browser has ended"
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message

    def said(self, method: str) -> list[dict[str, Any]]:
        """The events with this method."""
        return [parameters for name, parameters in self.events if name == method]

    def open(self, url: str) -> None:
        """Opens a page and waits until it is loaded."""
        self.events.clear()
        answer = self.call("Page.navigate", url=url)
        assert "errorText" not in answer, answer
        deadline = time.monotonic() + TIMEOUT
        while not self.said("Page.loadEventFired"):
            self._receive(deadline)

    def look(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def show(self, width: int, height: int, scheme: str) -> None:
        """Emulates a screen of this size and the preferred colour scheme, light or dark."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def screenshot(self) -> bytes:
        """The whole page as PNG."""
        return base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"])


@contextlib.contextmanager
def browsing() -> Iterator[Tab]:
    """Runs a browser with its own profile until the end of the block."""
    chromium = program()
    assert chromium is not None
    commands, answers = os.pipe(), os.pipe()
    ends = str(commands[0]), str(answers[1])
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", _START, *ends, chromium, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(commands[0], answers[1]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": profile},
        )
        os.close(commands[0])
        os.close(answers[1])
        try:
            yield Tab(answers[0], commands[1])
        finally:
            os.close(commands[1])  # the end of its commands: it goes, and takes its processes along
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()
            process.wait()
            os.close(answers[0])
