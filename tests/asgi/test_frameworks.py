"""Real frameworks on the event loop, as processes of their own (tests/support/apps)."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.client import SLOWNESS, Connection, wait_for
from tests.support.processes import Process, ask


@contextlib.contextmanager
def served(directory: Path, app: str, *arguments: str, **environ: str) -> Iterator[Process]:
    """It has to end cleanly."""
    process = Process(directory, "", (f"tests.support.apps.{app}", *arguments), {"PKG_ADMIN": "off", **environ})
    try:
        match = process.await_message(r"^serving .* on (.*):(\d+) after", 30)
        process.address = (match[1], int(match[2]))
        yield process
        assert process.stop() == 0, process.errors()
        assert "Traceback" not in process.errors()
    finally:
        process.kill()


@pytest.fixture(scope="module", params=["app", "plain"])
def starlette(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """With BaseHTTPMiddleware, which runs the application in a task of its own, and without any."""
    pytest.importorskip("starlette")
    with served(tmp_path_factory.mktemp("starlette"), f"starlette_app:{request.param}") as process:
        yield process


def test_starlette_answers(starlette: Process) -> None:
    with Connection(starlette.address) as c:
        for _ in range(3):
            answer = c.request("GET", "/")
            assert (answer.status, answer.body) == (200, b"hello from starlette at /")
        assert c.request("HEAD", "/").status == 200
        assert c.request("POST", "/").status == 405
        assert c.request("GET", "/nothing").status == 404


@pytest.mark.parametrize("size", [0, 10, 100_000, 5_000_000])
def test_starlette_reads_uploads_as_they_come(starlette: Process, size: int) -> None:
    data = b"x" * size
    with Connection(starlette.address) as c:
        for headers in ("", "Expect: 100-continue\r\n"):
            answer = c.request("POST", "/upload", headers, data)
            assert json.loads(answer.body) == {"size": size, "sha256": hashlib.sha256(data).hexdigest()}
        chunked = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (data[i : i + 7000] for i in range(0, size, 7000)))
        c.send(b"POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked + b"0\r\n\r\n")
        assert json.loads(c.receive().body)["size"] == size


def test_server_sent_events_end_when_the_client_leaves(starlette: Process) -> None:
    before = json.loads(ask(starlette.address, "/events")[2]).count("ended")
    with Connection(starlette.address) as c:
        c.send(b"GET /sse HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: c._fill() and b"data: 3" in c._buffer)
        assert b"text/event-stream" in c._buffer
    wait_for(lambda: json.loads(ask(starlette.address, "/events")[2]).count("ended") == before + 1)


def test_background_tasks_run_after_the_response(starlette: Process) -> None:
    with Connection(starlette.address) as c:
        assert c.request("GET", "/background").body == b"at once"
        assert c.request("GET", "/").status == 200
        wait_for(lambda: "background" in json.loads(c.request("GET", "/events").body))


def test_an_exception_is_500_and_a_record(starlette: Process) -> None:
    assert ask(starlette.address, "/fails")[0] == 500
    wait_for(lambda: any("ValueError: no" in str(line) for line in starlette.lines()))
    assert ask(starlette.address, "/")[0] == 200


def test_a_mounted_application_below_a_proxy(tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    with served(tmp_path, "starlette_app:app", SCRIPT_NAME="/v1") as process:
        for target in ("/v1/", "/", "/v1/mounted/", "/mounted/"):
            status, headers, text = ask(process.address, target)
            path = target if target.startswith("/v1") else f"/v1{target}"
            assert (status, text) == (200, f"hello from starlette at {path}"), target
            assert headers["x-stamp"] == "stamped"


def test_fastapi(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    with served(tmp_path, "fastapi_app:app") as process, Connection(process.address) as c:
        assert json.loads(c.request("GET", "/").body) == {"hello": "fastapi"}
        item = json.dumps({"name": "milk", "price": 1.5}).encode()
        answer = c.request("POST", "/items", "Content-Type: application/json\r\n", item)
        assert (answer.status, json.loads(answer.body)) == (201, {"name": "milk", "price": 1.5})
        assert c.request("POST", "/items", "Content-Type: application/json\r\n", b"{}").status == 422
        assert c.request("GET", "/missing").status == 404
        assert "/items" in json.loads(c.request("GET", "/openapi.json").body)["paths"]


def test_functions_of_fastapi_run_in_threads_at_the_same_time(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    with served(tmp_path, "fastapi_app:app") as process, ThreadPoolExecutor(20) as clients:
        began = time.monotonic()
        answers = list(clients.map(lambda _: ask(process.address, "/thread"), range(20)))
        assert time.monotonic() - began < 0.9 * SLOWNESS
        assert {(status, json.loads(text)["main"]) for status, _, text in answers} == {(200, False)}


def test_django(tmp_path: Path) -> None:
    """Which has no lifespan."""
    pytest.importorskip("django")
    with served(tmp_path, "django_app:create_asgi()") as process, Connection(process.address) as c:
        assert "the application has no lifespan" in process.messages()
        for _ in range(2):
            assert c.request("GET", "/").body == b"hello"
        data = b"x" * 3_000_000
        answer = json.loads(c.request("POST", "/raw", body=data).body)
        assert answer == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert json.loads(c.request("GET", "/path/a%20b").body) == {"text": "a b"}
        assert c.request("GET", "/missing").status == 404
        assert c.request("GET", "/fail").status == 500
        assert ask(process.address, "/")[0] == 200
