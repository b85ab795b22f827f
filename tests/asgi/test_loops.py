"""The event loops that an ASGI application may run in: asyncio's, and uvloop's, which waits elsewhere."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.client import SLOWNESS, Connection, get, wait_for
from tests.support.processes import ask, running

APPLICATION = """
import asyncio, sys, time

turns = []

async def app(scope, receive, send):
    assert scope["type"] == "http"
    path, _, seconds = scope["path"][1:].partition("/")
    if path == "wait":
        await asyncio.sleep(float(seconds))
    elif path == "block":
        time.sleep(float(seconds))
    elif path == "later":  # not in the step that begins with the request
        await asyncio.sleep(0.05)
        time.sleep(float(seconds))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    body = type(asyncio.get_running_loop()).__module__ + (" uvloop" if "uvloop" in sys.modules else "")
    if path == "turn":
        body = str(len(turns))
        asyncio.get_running_loop().call_soon(turns.append, path)
        time.sleep(float(seconds))
    await send({"type": "http.response.body", "body": body.encode()})
"""

MISSING = "raise ModuleNotFoundError(\"No module named 'uvloop'\", name='uvloop')\n"

NAMES = {"asyncio": b"asyncio.unix_events", "uvloop": b"uvloop uvloop", "auto": b"uvloop uvloop"}


@pytest.mark.slow
def test_all_of_http_and_lifespan_with_uvloop() -> None:
    """The same tests once more."""
    pytest.importorskip("uvloop")
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_http.py", "test_lifespan.py"],
        cwd=folder,
        env=os.environ | {"TEST_LOOP": "uvloop"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    found = re.search(r"(\d+) passed", done.stdout)
    assert found and int(found[1]) > 60, done.stdout


@pytest.mark.parametrize("loop", ["asyncio", "uvloop", "auto"])
def test_probes_and_requests_while_it_is_idle_loaded_and_blocked(tmp_path: Path, loop: str) -> None:
    """A probe waits for the event loop in none of these."""
    pytest.importorskip("uvloop")
    with running(tmp_path, APPLICATION, PKG_ADMIN="off", PKG_LOOP=loop, PKG_ACCESS_LOG="false") as process:
        with Connection(process.address) as c, Connection(process.address) as probe:
            assert c.request("GET", "/").body == NAMES[loop]
            end = time.monotonic() + 0.3
            while time.monotonic() < end:  # enough for the event loop to lead
                assert c.request("GET", "/wait/0").status == 200
                assert probe.request("GET", "/healthz").status == 200
            blocked = threading.Thread(target=get, args=(process.address, "/block/1"), daemon=True)
            blocked.start()
            time.sleep(0.1)
            times = []
            while blocked.is_alive():
                began = time.monotonic()
                assert probe.request("GET", "/healthz").status == 200
                times.append(time.monotonic() - began)
                time.sleep(0.01)
            assert len(times) > 20 and sorted(times)[len(times) // 2] < 0.02 * SLOWNESS
            waits = [threading.Thread(target=get, args=(process.address, "/wait/0.2"), daemon=True) for _ in range(30)]
            for thread in waits:
                thread.start()
            for thread in waits:
                thread.join(10 * SLOWNESS)
                assert not thread.is_alive()
            assert c.request("GET", "/").status == 200
        assert process.stop() == 0


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_turn_takes_few_requests_that_take_long(tmp_path: Path, loop: str) -> None:
    """The others wait in the front, also if they are there already."""
    pytest.importorskip("uvloop")
    with running(tmp_path, APPLICATION, PKG_ADMIN="off", PKG_LOOP=loop) as process, contextlib.ExitStack() as stack:
        blocking, *others = (stack.enter_context(Connection(process.address)) for _ in range(5))
        blocking.send(b"GET /block/0.5 HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.1)
        for c in others:
            c.send(b"GET /turn/0.001 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sorted(c.receive().body for c in others) == [b"0", b"1", b"2", b"3"]
        assert blocking.receive().status == 200
        assert process.stop() == 0


def test_without_uvloop(tmp_path: Path) -> None:
    (tmp_path / "uvloop.py").write_text(MISSING)
    with running(tmp_path, APPLICATION, PKG_ADMIN="off") as process:
        assert ask(process.address, "/")[2] == "asyncio.unix_events"
        assert process.stop() == 0
    with running(tmp_path, APPLICATION, "--loop", "uvloop", ready=False, PKG_ADMIN="off") as process:
        assert process.process.wait(15 * SLOWNESS) == 3
        wait_for(lambda: "loop is uvloop, but it is not installed: pip install" in process.errors())
        assert "Traceback" not in process.errors()


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_it_is_seen_that_a_timer_blocks_it(tmp_path: Path, loop: str) -> None:
    """While no request waits, which the event loop would be asked to take."""
    pytest.importorskip("uvloop")
    with running(tmp_path, APPLICATION, PKG_ADMIN="off", PKG_LOOP=loop) as process:
        assert get(process.address, "/later/1").status == 200
        wait_for(lambda: any("time.sleep(float(seconds)), in GET /later/1" in text for text in process.messages()))
        assert process.stop() == 0
