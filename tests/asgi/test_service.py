"""An ASGI application in the whole service: start, end, and health pages while its event loop is blocked."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.client import SLOWNESS, Connection, get, wait_for
from tests.support.ports import free_port
from tests.support.processes import Process, ask, running

APPLICATION = """
import asyncio, collections, itertools, os, time
import pkg

PLAIN = [(b"content-type", b"text/plain")]

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        print("starting", flush=True)
        if "SLOW_START" in os.environ:
            await asyncio.sleep(60)
        if "FAIL" in os.environ:
            await send({"type": "lifespan.startup.failed", "message": "no such queue"})
            return
        scope["state"]["name"] = "pool"
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await asyncio.sleep(float(os.environ.get("SLOW_END", "0")))
        print("shut down", flush=True)
        await send({"type": "lifespan.shutdown.complete"})
        return
    path, _, seconds = scope["path"][1:].partition("/")
    body = scope["state"]["name"].encode()
    if path == "wait":
        await asyncio.sleep(float(seconds))
    elif path == "block":
        time.sleep(float(seconds))
    elif path == "callbacks":
        end = time.monotonic() + float(seconds)
        for length in itertools.cycle((0.0001, 0.0003, 0.001, 0.003, 0.01)):
            until = time.monotonic() + length
            while time.monotonic() < until:
                pass
            await asyncio.sleep(0)
            if time.monotonic() > end:
                break
    elif path == "lock":
        end = time.monotonic() + float(seconds)
        while time.monotonic() < end:
            collections.deque(itertools.repeat(None, 20_000_000), maxlen=0)
    elif path == "left":
        while (await receive())["type"] != "http.disconnect":
            pass
        print("left", flush=True)
        return
    elif path == "stream":
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"begun, ", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.body", "body": b"ended"})
        return
    elif path == "asks":
        await send({"type": "http.response.start", "status": 200})
        while not pkg.draining():
            await send({"type": "http.response.body", "body": b".", "more_body": True})
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"ended"})
        return
    elif path == "fork":
        child = os.fork()
        if child == 0:
            return
        body = repr(os.waitpid(child, 0)[1]).encode()
    elif path == "server":
        body = repr((scope["server"], scope["client"])).encode()
    await send({"type": "http.response.start", "status": 200, "headers": PLAIN})
    await send({"type": "http.response.body", "body": body})
    if path == "after":
        await asyncio.sleep(float(seconds))
        print("afterwards", flush=True)
"""


class Printing(Process):
    """Its application prints lines of its own between the records."""

    def lines(self) -> list[dict[str, Any]]:
        lines = self._out.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("\n")]

    def printed(self) -> list[str]:
        return [line for line in self._out.read_text().splitlines() if not line.startswith("{")]

    def everything(self) -> str:
        return self._out.read_text() + self._err.read_text()


def served(
    directory: Path, *arguments: str, ready: bool = True, **environ: str
) -> contextlib.AbstractContextManager[Printing]:
    found = running(directory, APPLICATION, *arguments, ready=ready, kind=Printing, PKG_ADMIN="off", **environ)
    return cast("contextlib.AbstractContextManager[Printing]", found)


def end(process: Process) -> int:
    return process.stop(signal.SIGTERM, 15 * SLOWNESS)


def test_start_requests_and_end(tmp_path: Path) -> None:
    """The end of the application comes after the last request, and what it does after a response."""
    with served(tmp_path) as process, Connection(process.address) as c:
        answer = c.request("GET", "/")
        assert (answer.status, answer.body) == (200, b"pool")
        assert answer.header("x-request-id")
        wait_for(lambda: any(line.get("logger") == "pkg.access" for line in process.lines()))
        (record,) = (line for line in process.lines() if line.get("logger") == "pkg.access")
        assert record["request_id"] == answer.header("x-request-id")
        assert get(process.address, "/after/0.3").status == 200
        threading.Thread(target=get, args=(process.address, "/wait/0.5"), daemon=True).start()
        time.sleep(0.2)
        assert end(process) == 0
        assert process.printed() == ["starting", "afterwards", "shut down"]
        assert any("1 served while draining, 0 aborted" in text for text in process.messages())


def test_a_failed_startup_is_exit_3_with_its_message(tmp_path: Path) -> None:
    with served(tmp_path, ready=False, FAIL="1") as process:
        assert process.process.wait(15 * SLOWNESS) == 3
        assert "the application's startup failed: no such queue" in process.everything()


CANCELS = """
import asyncio
async def app(scope, receive, send):
    assert scope["type"] == "lifespan"
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.sleep(0.1)
    print("shut down", flush=True)
    await send({"type": "lifespan.shutdown.complete"})
"""


EXITS = """
import asyncio, os, sys
import pkg

async def exits():
    sys.exit(os.environ["TEXT"] if "TEXT" in os.environ else 0)

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body"})
        return
    await receive()
    if os.environ["WHEN"] == "startup":
        await exits()
    if os.environ["WHEN"] == "task":
        task = asyncio.create_task(exits())
        await asyncio.sleep(60)
    await send({"type": "lifespan.startup.complete"})
    if os.environ["WHEN"] == "serving":
        await exits()
    await receive()
    if os.environ["WHEN"] == "shutdown":
        await exits()
    await send({"type": "lifespan.shutdown.complete"})

try:
    import contextlib
    from starlette.applications import Starlette

    @contextlib.asynccontextmanager
    async def lifespan(_):
        await exits()
        yield

    starlette = Starlette(lifespan=lifespan)
except ImportError:
    pass
"""
LOOPS = pytest.mark.parametrize("loop", ["asyncio", "uvloop"])


@contextlib.contextmanager
def exiting(directory: Path, when: str, loop: str, ready: bool, **options: str) -> Iterator[Process]:
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    options = {"PKG_ADMIN": "off", "PKG_LOOP": loop, "WHEN": when, **options}
    with running(directory, EXITS, ready=ready, **options) as process:
        yield process


@LOOPS
@pytest.mark.parametrize("when", ["startup", "task", "starlette"])
@pytest.mark.parametrize("text", ["", "X is not set"])
def test_a_startup_that_exits_is_exit_3_with_its_text(tmp_path: Path, when: str, loop: str, text: str) -> None:
    """Whatever its own exit code is, as for an application that exits while it is imported."""
    options = {"TEXT": text} if text else {}
    if when == "starlette":
        pytest.importorskip("starlette")
        options["app"] = "application:starlette"  # its message is a stack
        when = "startup"
    with exiting(tmp_path, when, loop, False, **options) as process:
        assert process.process.wait(15 * SLOWNESS) == 3
        what = "the application's startup failed:"
        if when == "task":
            what = "a callback or task of the application has raised"
        line, *more = process.errors().splitlines()
        assert line == f"pkg: {what} SystemExit: {text or 0}"
        assert more == [] or when == "task", "asyncio may tell of a task that nobody has awaited"
        (record,) = (line for line in process.lines() if line["severity"] == "CRITICAL")
        assert (record["exception.type"], record["exception.message"]) == ("SystemExit", text or "0")
        assert "in exits" in record["exception.stacktrace"]


@LOOPS
@pytest.mark.parametrize(("when", "level"), [("serving", "CRITICAL"), ("shutdown", "ERROR")])
def test_a_lifespan_that_exits_later_is_logged(tmp_path: Path, when: str, level: str, loop: str) -> None:
    """And, like one that raises, does not change the exit code."""
    with exiting(tmp_path, when, loop, True, TEXT="X is not set") as process:
        assert get(process.address, "/").status == 200
        assert end(process) == 0, process.errors()
        record, *_ = (line for line in process.lines() if line["severity"] not in ("INFO", "WARNING"))
        words = {"serving": "requests are served on", "shutdown": "the application's shutdown raised"}
        assert record["severity"] == level and words[when] in record["message"], record
        assert record["exception.message"] == "X is not set"
        assert [text for text in process.messages() if "served on" in text and when == "shutdown"] == []
        assert process.errors() == ""


def test_a_shutdown_that_cancels_all_tasks_is_waited_for(tmp_path: Path) -> None:
    with running(tmp_path, CANCELS, kind=Printing, PKG_ADMIN="off") as process:
        assert end(process) == 0
        assert process.printed() == ["shut down"]
        assert all(line["severity"] == "INFO" for line in process.lines())


def test_without_a_lifespan_the_setting_decides(tmp_path: Path) -> None:
    source = "async def app(scope, receive, send):\n    assert scope['type'] == 'http'\n"
    with running(tmp_path, source, "--lifespan", "on", ready=False, PKG_ADMIN="off") as process:
        assert process.process.wait(15 * SLOWNESS) == 3
        assert any("the application has no lifespan" in text for text in [*process.messages(), process.errors()])
    with running(tmp_path, source, PKG_ADMIN="off") as process:
        assert "the application has no lifespan" in process.messages()
        assert get(process.address, "/").status == 500  # it returns nothing
        assert end(process) == 0


def test_sigterm_ends_a_startup_that_hangs(tmp_path: Path) -> None:
    port = free_port()
    with served(tmp_path, ready=False, SLOW_START="1", PORT=str(port), PKG_DRAIN_TIMEOUT="2s") as process:
        wait_for(lambda: "starting" in process.printed(), 15)
        assert ask(("127.0.0.1", port), "/healthz")[0] == 200
        assert ask(("127.0.0.1", port), "/readyz")[0] == 503
        began = time.monotonic()
        assert end(process) == 0
        assert time.monotonic() - began < 5 * SLOWNESS


def test_a_shutdown_that_hangs_ends_with_the_drain(tmp_path: Path) -> None:
    with served(tmp_path, SLOW_END="60", PKG_DRAIN_TIMEOUT="1s") as process:
        began = time.monotonic()
        end(process)
        assert time.monotonic() - began < 5 * SLOWNESS
        assert "the application has not shut down in time" in process.messages()


def test_probes_are_answered_while_the_event_loop_is_blocked(tmp_path: Path) -> None:
    """By a sleep, by callbacks of 0.1 to 10 ms, and by calls that hold the interpreter lock.  (`python -m bench --only
    latency` measures how fast; here a wide margin is enough to tell that nobody waits for the event loop.)
    """
    with served(tmp_path) as process:
        for trouble in ("/block/1.5", "/callbacks/1", "/lock/1"):
            blocked = threading.Thread(target=get, args=(process.address, trouble), daemon=True)
            blocked.start()
            time.sleep(0.1)
            times = []
            while blocked.is_alive():
                began = time.monotonic()
                for page in ("/healthz", "/readyz"):
                    assert ask(process.address, page)[0] == 200
                times.append(time.monotonic() - began)
                time.sleep(0.01)
            times.sort()
            assert len(times) > 20 and times[len(times) // 2] < 0.02 * SLOWNESS, trouble
        assert get(process.address, "/").body == b"pool"
        assert end(process) == 0


@pytest.mark.slow
def test_a_blocked_event_loop_counts_as_stuck(tmp_path: Path) -> None:
    """Requests that wait for something else do not, however many they are."""
    with served(tmp_path, PKG_STUCK_TIMEOUT="1s", PKG_THREADS="1") as process:
        for target, status in (("/wait/2.5", 200), ("/block/2.5", 503)):
            waits = threading.Thread(target=get, args=(process.address, target), daemon=True)
            waits.start()
            seen = set()
            while waits.is_alive():
                seen.add(ask(process.address, "/healthz")[0])
                time.sleep(0.05)
            assert (503 in seen) == (status == 503), target
        assert any("the event loop has been blocked for more than 1 s" in text for text in process.messages())
        wait_for(lambda: ask(process.address, "/healthz")[0] == 200)
        assert end(process) == 0


def test_the_application_is_told_that_a_client_has_left(tmp_path: Path) -> None:
    with served(tmp_path) as process:
        c = Connection(process.address)
        c.send(b"GET /left HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.1)
        c.close()
        wait_for(lambda: "left" in process.printed())
        assert end(process) == 0


def test_streams_are_told_to_end_before_the_deadline_of_the_drain(tmp_path: Path) -> None:
    """Their responses can still be completed; a request that goes on is aborted at the deadline."""
    with served(tmp_path, PKG_DRAIN_TIMEOUT="1s") as process, Connection(process.address) as c:
        c.send(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(c._fill)
        assert end(process) == 0
        assert c.receive().body == b"begun, ended"
        assert process.printed()[-1] == "shut down"
    with served(tmp_path, PKG_DRAIN_TIMEOUT="1s") as process, Connection(process.address) as c:
        c.send(b"GET /wait/60 HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.1)
        assert end(process) == 1


def test_server_and_client_of_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with served(tmp_path, "--listen", f"unix:{path}", ready=False) as process:
        process.await_message("^serving ")
        with socket.socket(socket.AF_UNIX) as c:
            c.settimeout(10 * SLOWNESS)
            c.connect(path)
            c.sendall(b"GET /server HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = b"".join(iter(lambda: c.recv(65536), b""))
        assert answer.endswith(repr(((path, None), None)).encode())
        assert end(process) == 0


def test_a_stream_may_ask_whether_it_should_end(tmp_path: Path) -> None:
    with served(tmp_path) as process, Connection(process.address) as c:
        c.send(b"GET /asks HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: c._fill() and b"." in c._buffer)
        began = time.monotonic()
        assert end(process) == 0
        assert time.monotonic() - began < 5 * SLOWNESS
        assert c.receive().body.endswith(b".ended")


def test_a_process_that_a_request_forks_does_not_serve_on(tmp_path: Path) -> None:
    with served(tmp_path) as process, Connection(process.address) as c:
        assert c.request("GET", "/fork").body == b"0"
        assert c.request("GET", "/").body == b"pool"
        assert end(process) == 0


@pytest.mark.parametrize(("interface", "code"), [("wsgi", 3), ("asgi", 0)])
def test_the_setting_decides_what_an_application_is(tmp_path: Path, interface: str, code: int) -> None:
    with served(tmp_path, "--interface", interface, ready=code == 0) as process:
        if code == 0:
            assert get(process.address, "/server").body.startswith(f"({process.address!r}, ('127.0.0.1', ".encode())
            assert end(process) == 0
        else:
            assert process.process.wait(15 * SLOWNESS) == code
            assert "the interface is set to wsgi" in process.everything()
