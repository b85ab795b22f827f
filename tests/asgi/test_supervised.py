"""An ASGI application in a child of ours: restarted by --reload, and below process 1 of a container."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.supervisors.test_process_1 import First, namespace
from tests.supervisors.test_reload import Reloading
from tests.support.client import SLOWNESS, Connection, get, wait_for

APPLICATION = """
import asyncio, pathlib, subprocess

ANSWER = b"%s"

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        assert (await receive())["type"] == "lifespan.startup"
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        with open("shutdowns", "ab") as file:
            file.write(ANSWER + b" ")
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = ANSWER
    if scope["path"] == "/child":  # asyncio's own way to learn of the end of a child
        child = await asyncio.create_subprocess_exec("/bin/sh", "-c", "exit 7")
        body = str(await child.wait()).encode()
    elif scope["path"] == "/orphan":
        subprocess.Popen(["/bin/sh", "-c", "sleep 0.05 & exit 0"]).wait()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body, "more_body": scope["path"] == "/stream"})
    if scope["path"] == "/stream":
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b", ended"})
"""


@pytest.fixture(params=["asyncio", "uvloop"])
def reloading(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reloading]:
    pytest.importorskip(request.param)
    process = Reloading(tmp_path, APPLICATION % "one", PKG_LOOP=request.param, PKG_ADMIN="off")
    try:
        wait_for(lambda: process.says("one"), 20, "the first")
        yield process
    finally:
        if process.process.poll() is None:
            for child in process.children():
                os.kill(child, signal.SIGKILL)
            process.process.kill()
        process.process.wait()


def test_a_change_starts_another_after_a_shutdown(reloading: Reloading) -> None:
    """Also while a page has a stream open, which is told to end early."""
    with Connection(reloading.address) as c:
        c.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(c._fill)
        reloading.write("application.py", APPLICATION % "two")
        assert c.receive().body == b"one, ended"
    wait_for(lambda: reloading.says("two"), 20, "the second")
    assert (reloading.folder / "shutdowns").read_text() == "one "
    assert reloading.stop(signal.SIGTERM) == 0
    assert (reloading.folder / "shutdowns").read_text() == "one two "


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_below_process_1(tmp_path: Path, loop: str) -> None:
    """Children of the application are its own, orphans are reaped, and a signal is the beginning of the drain."""
    pytest.importorskip(loop)
    process = First(tmp_path, "process 1" if namespace() else "subreaper", source=APPLICATION % "one", PKG_LOOP=loop)
    try:
        process.serve()
        assert process.text("/child") == "7"
        for _ in range(3):
            assert process.text("/orphan") == "one"
        service = process.service
        wait_for(
            lambda: Path(f"/proc/{process.init}/task/{process.init}/children").read_text().split() == [str(service)]
        )
        began = time.monotonic()
        process.send(signal.SIGTERM)
        assert process.process.wait(15 * SLOWNESS) == 0
        assert time.monotonic() - began < 8 * SLOWNESS
        assert (tmp_path / "shutdowns").read_text() == "one "
    finally:
        with contextlib.suppress(IndexError, FileNotFoundError, ProcessLookupError):
            os.kill(process.service, signal.SIGKILL)
        process.kill()
    with pytest.raises(OSError):
        get(process.address, "/")
