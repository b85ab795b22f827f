"""request_timeout with an event loop: the client gets 504, the task is cancelled, and one record says so."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.client import Connection, get, wait_for
from tests.support.ports import free_port
from tests.support.processes import Process, ask, running

APPLICATION = """
import asyncio, time

heard = []

async def app(scope, receive, send):
    assert scope["type"] == "http"
    path = scope["path"]
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
    if path == "/heard":
        await send(start)
        await send({"type": "http.response.body", "body": " ".join(heard).encode()})
        return
    try:
        if path == "/wait":
            await waits()
        elif path == "/stubborn":
            try:
                await waits()
            except asyncio.CancelledError:
                await asyncio.sleep(0.7)
        elif path == "/block":
            time.sleep(1.7)
        elif path == "/begun":
            await send(start)
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            await waits()
        elif path == "/after":
            await send(start)
            await send({"type": "http.response.body", "body": b"at once"})
            await asyncio.sleep(1.5)
            heard.append("after-whole")
            return
        await send(start)
        await send({"type": "http.response.body", "body": b"late"})
    except BaseException as error:
        heard.append(path[1:] + "-" + type(error).__name__)
        raise
    finally:
        heard.append(path[1:] + "-finally")

async def waits():
    await asyncio.sleep(60)
"""


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def late(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Process, int]]:
    pytest.importorskip(request.param)
    port = free_port()
    with running(
        tmp_path_factory.mktemp("late"),
        APPLICATION,
        PKG_REQUEST_TIMEOUT="1s",
        PKG_LOOP=request.param,
        PKG_ADMIN=f"127.0.0.1:{port}",
    ) as process:
        yield process, port
        assert process.stop() == 0
        assert "Traceback" not in process.errors()


def test_what_becomes_of_each(late: tuple[Process, int]) -> None:
    """All at the same time, so that it takes two seconds."""
    process, port = late
    connections = {path: Connection(process.address) for path in ("wait", "stubborn", "begun", "after")}
    for path, connection in connections.items():
        connection.send(f"GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = connections["wait"].receive()
    assert (answer.status, answer.body, answer.closes) == (504, b"the request took too long\n", True)
    assert connections["stubborn"].receive().status == 504
    with pytest.raises((EOFError, ConnectionError)):
        connections["begun"].receive()
    assert connections["after"].receive().body == b"at once"

    def heard() -> list[str]:
        return get(process.address, "/heard").body.decode().split()

    wait_for(lambda: "stubborn-finally" in heard() and "after-whole" in heard())
    told = heard()
    assert told.index("wait-CancelledError") < told.index("wait-finally")
    assert "begun-CancelledError" in told
    # It has caught its cancellation, once, and could go on; only its response was in vain.
    assert "stubborn-ClientDisconnected" in told
    assert get(process.address, "/block").status == 504  # which only its end shows to the task
    wait_for(lambda: any(text.startswith("1 requests took longer than 1 s") for text in process.messages()))

    for path in ("wait", "stubborn", "begun"):
        records = [line for line in process.lines() if line["message"].startswith(f"GET /{path} ")]
        assert [line["message"] for line in records if line.get("logger") == "pkg.lastwords"] == [
            f"GET /{path} took longer than 1 s (request_timeout); its task is cancelled"
        ]
        assert "asyncio.sleep(60)" in str(records)
    assert not any("has been cancelled" in text for text in process.messages())
    statuses = {line["url.path"]: line["http.response.status_code"] for line in process.lines() if "url.path" in line}
    assert statuses == {"/wait": 504, "/stubborn": 504, "/begun": 200, "/after": 200, "/block": 504, "/heard": 200}
    assert "\npkg_request_timeouts_total 4\n" in ask(("127.0.0.1", port), "/metrics")[2]
    for connection in connections.values():
        connection.close()
