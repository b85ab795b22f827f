"""Litestar and Quart on the event loop, as processes of their own (tests/support/apps)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import pytest
import websockets.sync.client

from tests.support.client import SLOWNESS, Connection, wait_for
from tests.support.processes import Process, ask


@pytest.fixture(scope="module", params=["litestar", "quart"])
def framework(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Process]]:
    pytest.importorskip(request.param)
    environ = {"PKG_ADMIN": "off", "PKG_DRAIN_TIMEOUT": "3s"}
    directory = tmp_path_factory.mktemp(request.param)
    process = Process(directory, "", (f"tests.support.apps.{request.param}_app",), environ)
    try:
        match = process.await_message(r"^serving .* on (.*):(\d+) after", 30)
        process.address = (match[1], int(match[2]))
        yield request.param, process
    finally:
        process.kill()


def test_requests(framework: tuple[str, Process]) -> None:
    name, process = framework
    with Connection(process.address) as c:
        answer = c.request("GET", "/")
        assert (answer.status, answer.body) == (200, f"hello from {name}".encode())
        assert c.request("HEAD", "/nothing").status == 404
        assert c.request("GET", "/thread").body != b"event-loop"
        assert c.request("GET", "/raise").status == 500
        assert c.request("GET", "/").status == 200
    assert ask(process.address, "/healthz")[2] != "of the application"
    process.await_message(".*application.*/healthz")


@pytest.mark.parametrize("size", [10, 5_000_000])
def test_uploads(framework: tuple[str, Process], size: int) -> None:
    _, process = framework
    data = b"x" * size
    with Connection(process.address) as c:
        for headers in ("", "Expect: 100-continue\r\n"):
            answer = c.request("POST", "/upload", headers, data)
            assert json.loads(answer.body) == {"size": size, "sha256": hashlib.sha256(data).hexdigest()}
        c.send(b"POST /refuse HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        assert c.receive().status == 401
        c.send(b"12345")
        assert c.request("GET", "/").status == 200


def test_websockets(framework: tuple[str, Process]) -> None:
    name, process = framework
    url = f"ws://127.0.0.1:{process.address[1]}"
    with websockets.sync.client.connect(f"{url}/echo", subprotocols=["a", "b"]) as client:  # type: ignore[list-item]
        assert client.subprotocol == "b"
        for text in ("x", "é" * 10_000):
            client.send(text)
            assert client.recv(10 * SLOWNESS) == text
        client.close(4000)
    wait_for(lambda: ("left 4000" if name == "litestar" else "left") in process.errors().splitlines())
    with websockets.sync.client.connect(f"{url}/shout") as client:
        client.send("abc")
        assert client.recv(10 * SLOWNESS) == "ABC"


def test_the_drain_ends_a_stream_in_order(framework: tuple[str, Process]) -> None:
    """Ends the service."""
    name, process = framework
    with Connection(process.address) as c:
        c.send(b"GET /ticks HTTP/1.1\r\nHost: x\r\n\r\n")
        head = c.receive_head()
        process.process.terminate()
        assert b"data: 3" in b"".join(c.parts(head))
    assert process.process.wait(15 * SLOWNESS) == 0, process.everything()
    assert "shut down" in process.errors().splitlines()
    assert [text for text in process.faults() if "/raise" not in text and "/healthz" not in text] == []
    assert "0 aborted" in process.messages()[-1], name
