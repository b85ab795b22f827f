"""Real frameworks on the event loop, as processes of their own (tests/support/apps)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import SLOWNESS, Answer, Connection, wait_for
from tests.support.faults.postgres import Postgres
from tests.support.processes import POOLS, Process, ask, in_one_process

websockets = pytest.importorskip("websockets.sync.client")
exceptions = pytest.importorskip("websockets.exceptions")

BOUNDARY = "boundary-of-this-test"


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


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@contextlib.contextmanager
def with_pool(database: Postgres, directory: Path, app: str, name: str, **environ: str) -> Iterator[Process]:
    """Its connections have that name, and are closed at the end."""
    with served(directory, app, DATABASE_URL=f"{database.url}?application_name={name}", **environ) as process:
        yield process
    wait_for(lambda: database.sql("select count(*) from pg_stat_activity where application_name = %s", name) == 0)


@pytest.fixture(scope="module", params=["app", "plain"])
def starlette(
    request: pytest.FixtureRequest, database: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """With BaseHTTPMiddleware, which runs the application in a task of its own, and the service's pool beside its own;
    and without either."""
    pytest.importorskip("starlette")
    folder, environ = tmp_path_factory.mktemp("starlette"), {"PKG_POOL": "off"} if request.param == "plain" else {}
    with with_pool(database, folder, f"starlette_app:{request.param}", "starlette", **environ) as process:
        yield process


@pytest.fixture(scope="module")
def fastapi(database: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    pytest.importorskip("fastapi")
    folder = tmp_path_factory.mktemp("fastapi")
    with with_pool(database, folder, "fastapi_app:app", "fastapi", PKG_POOL="off") as process:
        yield process


@pytest.fixture(scope="module")
def django(database: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """Its ASGI handler, and Channels for WebSockets."""
    pytest.importorskip("channels")
    with with_pool(database, tmp_path_factory.mktemp("django"), "channels_app:create()", "django") as process:
        yield process


def post_form(address: tuple[str, int], target: str, data: bytes, *, chunked: bool = False) -> Answer:
    """Sends a field and a file as multipart/form-data."""
    body = b"".join(
        (
            f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=note\r\n\r\na note\r\n".encode(),
            f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="n\u00e4me.bin"\r\n'.encode(),
            b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n",
            f"--{BOUNDARY}--\r\n".encode(),
        )
    )
    kind = f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
    with Connection(address) as c:
        if not chunked:
            return c.request("POST", target, kind, body)
        c.send(f"POST {target} HTTP/1.1\r\nHost: x\r\n{kind}Transfer-Encoding: chunked\r\n\r\n".encode())
        for begin in range(0, len(body), 50_000):
            part = body[begin : begin + 50_000]
            c.send(b"%x\r\n%s\r\n" % (len(part), part))
        c.send(b"0\r\n\r\n")
        return c.receive()


def uploads(address: tuple[str, int], target: str, *, chunked: bool = True) -> None:
    """Small, and larger than what a framework keeps in memory."""
    for size in (0, 1000, 3_000_000):
        data = hashlib.shake_128(b"upload").digest(size)
        for is_chunked in {False, chunked}:
            answer = post_form(address, target, data, chunked=is_chunked)
            assert (answer.status, json.loads(answer.body)) == (
                200,
                {
                    "note": "a note",
                    "filename": "n\u00e4me.bin",
                    "size": size,
                    "sha256": hashlib.sha256(data).hexdigest(),
                },
            )


def queries(address: tuple[str, int], target: str) -> set[int]:
    """Twenty at the same time, through a pool of at most four connections; the backends that have answered."""
    with ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(lambda n: ask(address, f"{target}?n={n}"), range(20)))
    assert [(status, json.loads(text)["number"]) for status, _, text in answers] == [(200, n + 1) for n in range(20)]
    return {json.loads(text)["pid"] for _, _, text in answers}


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


def test_a_stream_with_nothing_to_send_ends_when_the_client_leaves(starlette: Process) -> None:
    """No send() of it could fail, so that Starlette has to listen for http.disconnect, which it does below 2.4."""
    before = json.loads(ask(starlette.address, "/events")[2]).count("quiet ended")
    with Connection(starlette.address) as c:
        c.send(b"GET /quiet HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: c._fill() and b"data: 0" in c._buffer)
        assert json.loads(ask(starlette.address, "/events")[2]).count("quiet ended") == before
    wait_for(lambda: json.loads(ask(starlette.address, "/events")[2]).count("quiet ended") == before + 1)


def test_background_tasks_run_after_the_response(starlette: Process) -> None:
    with Connection(starlette.address) as c:
        assert c.request("GET", "/background").body == b"at once"
        assert c.request("GET", "/").status == 200
        wait_for(lambda: "background" in json.loads(c.request("GET", "/events").body))


def test_an_exception_is_500_and_a_record(starlette: Process) -> None:
    assert ask(starlette.address, "/fails")[0] == 500
    wait_for(lambda: any("ValueError: no" in str(line) for line in starlette.lines()))
    assert ask(starlette.address, "/")[0] == 200


@in_one_process
def test_queries_through_a_pool_of_starlette_s_lifespan(starlette: Process, database: Postgres) -> None:
    """It has its connections again after the server has lost them all."""
    assert 1 < len(queries(starlette.address, "/database")) <= 4
    query = "select count(pg_terminate_backend(pid, 5000)) from pg_stat_activity where application_name = 'starlette'"
    assert database.sql(query) > 0
    wait_for(lambda: ask(starlette.address, "/database?n=1")[0] == 200)
    wait_for(lambda: ask(starlette.address, "/readyz")[0] == 200)  # of the service's own pool, if there is one
    assert 1 < len(queries(starlette.address, "/database")) <= 4


def test_starlette_reads_forms(starlette: Process) -> None:
    uploads(starlette.address, "/form")


def test_starlette_streams_what_a_thread_makes(starlette: Process) -> None:
    with Connection(starlette.address) as c:
        for count in (0, 1, 500):
            expected = "".join(f"line {n}\n" for n in range(count)).encode()
            assert c.request("GET", f"/lines?n={count}").body == expected


def test_starlette_sends_files(starlette: Process) -> None:
    text = Path(__file__).parents[1].joinpath("support/apps/starlette_app.py").read_bytes()
    with Connection(starlette.address) as c:
        whole = c.request("GET", "/file")
        assert (whole.status, whole.body, whole.header("content-length")) == (200, text, str(len(text)))
        assert c.request("HEAD", "/file").header("content-length") == str(len(text))
        part = c.request("GET", "/file", "Range: bytes=3-9\r\n")
        assert (part.status, part.body) == (206, text[3:10])
        parts = c.request("GET", "/file", "Range: bytes=0-1,5-6\r\n")
        assert (parts.status, parts.body.count(text[5:7]) > 0) == (206, True)
        assert c.request("GET", "/file", f"Range: bytes={len(text)}-\r\n").status == 416


def test_a_mounted_application_below_a_proxy(tmp_path: Path, database: Postgres) -> None:
    pytest.importorskip("starlette")
    with served(tmp_path, "starlette_app:app", SCRIPT_NAME="/v1", DATABASE_URL=database.url) as process:
        for target in ("/v1/", "/", "/v1/mounted/", "/mounted/"):
            status, headers, text = ask(process.address, target)
            path = target if target.startswith("/v1") else f"/v1{target}"
            assert (status, text) == (200, f"hello from starlette at {path}"), target
            assert headers["x-stamp"] == "stamped"


def test_fastapi(fastapi: Process) -> None:
    with Connection(fastapi.address) as c:
        assert json.loads(c.request("GET", "/").body) == {"hello": "fastapi"}
        item = json.dumps({"name": "milk", "price": 1.5}).encode()
        answer = c.request("POST", "/items", "Content-Type: application/json\r\n", item)
        assert (answer.status, json.loads(answer.body)) == (201, {"name": "milk", "price": 1.5})
        assert c.request("POST", "/items", "Content-Type: application/json\r\n", b"{}").status == 422
        assert c.request("GET", "/missing").status == 404
        assert "/items" in json.loads(c.request("GET", "/openapi.json").body)["paths"]


def test_functions_of_fastapi_run_in_threads_at_the_same_time(fastapi: Process) -> None:
    with ThreadPoolExecutor(20) as clients:
        began = time.monotonic()
        answers = list(clients.map(lambda _: ask(fastapi.address, "/thread"), range(20)))
        assert time.monotonic() - began < 0.9 * SLOWNESS
        assert {(status, json.loads(text)["main"]) for status, _, text in answers} == {(200, False)}


def test_a_dependency_of_fastapi_that_yields_a_connection(fastapi: Process) -> None:
    assert 1 < len(queries(fastapi.address, "/database")) <= 4 * POOLS
    wait_for(lambda: json.loads(ask(fastapi.address, "/events")[2]).count("returned") == 20)


def test_fastapi_reads_forms(fastapi: Process) -> None:
    uploads(fastapi.address, "/form")
    assert ask(fastapi.address, "/form", "POST", body=b"note=a")[0] == 422


def test_fastapi_streams(fastapi: Process) -> None:
    with Connection(fastapi.address) as c:
        assert c.request("GET", "/lines?n=2").body == b"line 0\nline 1\n"
        answer = c.request("GET", "/sse", "Last-Event-ID: 6\r\n")
        assert answer.header("content-type") == "text/event-stream; charset=utf-8"
        assert [line for line in answer.body.split(b"\n") if line.startswith(b"id:")] == [b"id: 7", b"id: 8", b"id: 9"]


def test_background_tasks_of_fastapi(fastapi: Process) -> None:
    assert ask(fastapi.address, "/notify/me", "POST")[0] == 200
    wait_for(lambda: "mail to me" in json.loads(ask(fastapi.address, "/events")[2]))


def test_django(django: Process) -> None:
    """Which has no lifespan."""
    with Connection(django.address) as c:
        assert "the application has no lifespan" in django.messages()
        for _ in range(2):
            assert c.request("GET", "/").body == b"hello"
        data = b"x" * 3_000_000
        answer = json.loads(c.request("POST", "/raw", body=data).body)
        assert answer == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert json.loads(c.request("GET", "/path/a%20b").body) == {"text": "a b"}
        assert c.request("GET", "/missing").status == 404
        assert c.request("GET", "/fail").status == 500
        assert c.request("GET", "/stream?n=2").body == b"line 0\nline 1\n"
        text = Path(__file__).parents[1].joinpath("support/apps/django_app.py").read_bytes()
        assert c.request("GET", "/file").body == text
        assert ask(django.address, "/")[0] == 200


def test_asynchronous_queries_of_django(django: Process) -> None:
    with ThreadPoolExecutor(10) as clients:
        answers = list(clients.map(lambda _: ask(django.address, "/rows"), range(10)))
    assert {(status, text) for status, _, text in answers} == {
        (200, json.dumps({"names": ["postgres", "template0", "template1"]}))
    }


def test_a_pool_that_django_opens_with_the_first_request(django: Process) -> None:
    assert 1 < len(queries(django.address, "/pooled")) <= 4 * POOLS


def test_django_reads_forms(django: Process) -> None:
    """Not those in chunks: its parser wants a length (MultiPartParser)."""
    uploads(django.address, "/upload", chunked=False)


def test_django_cancels_a_view_whose_client_has_left(django: Process) -> None:
    with Connection(django.address) as c:
        c.send(b"GET /ticks HTTP/1.1\r\nHost: x\r\n\r\n")
        wait_for(lambda: c._fill() and b"data: 3" in c._buffer)
    wait_for(lambda: json.loads(ask(django.address, "/events")[2]) == ["cancelled"])


def dial(process: Process, target: str, **options: Any) -> Any:
    """A WebSocket."""
    return websockets.connect(f"ws://127.0.0.1:{process.address[1]}{target}", close_timeout=5 * SLOWNESS, **options)


def test_websockets_of_starlette(starlette: Process) -> None:
    """They pass BaseHTTPMiddleware by, and have the lifespan's state; a part of the application may be mounted."""
    for target in ("/socket", "/mounted/socket"):
        with dial(starlette, target, subprotocols=["other", "chat"]) as socket:
            assert socket.subprotocol == "chat"
            for text in ("a", "\u20ac" * 30_000):
                socket.send(text)
                assert json.loads(socket.recv()) == {"text": text, "of": "starlette", "at": target}
            socket.send(bytes(range(256)))
            assert socket.recv() == bytes(reversed(range(256)))
            socket.close(4321, "enough")
        wait_for(lambda: "disconnected 4321" in json.loads(ask(starlette.address, "/events")[2]))
    with pytest.raises(exceptions.InvalidStatus) as refused:
        dial(starlette, "/socket?deny=1")
    answer = refused.value.response
    assert (answer.status_code, answer.headers["www-authenticate"], answer.body) == (401, "Basic", b"not you")
    with pytest.raises(exceptions.InvalidStatus) as refused:
        dial(starlette, "/nothing")
    assert refused.value.response.status_code == 403
    assert ask(starlette.address, "/socket")[0] == 404


@in_one_process
def test_a_chat_of_fastapi(fastapi: Process) -> None:
    with dial(fastapi, "/chat/ann?token=t") as ann, dial(fastapi, "/chat/bob?token=u") as bob:
        for said, heard in (("hello", "hello"), ("query", "answer")):
            ann.send(said)
            assert ann.recv() == bob.recv() == f"ann (t): {heard}"
        bob.close()
        assert ann.recv() == "bob has left"
    with pytest.raises(exceptions.InvalidStatus) as refused:
        dial(fastapi, "/chat/carl")
    assert refused.value.response.status_code == 403


@in_one_process
def test_a_room_of_channels(django: Process) -> None:
    with dial(django, "/room/one") as first, dial(django, "/room/one") as second, dial(django, "/room/two"):
        first.send('"hello"')
        assert json.loads(first.recv()) == json.loads(second.recv()) == {"text": "hello", "databases": 3}
        assert ask(django.address, "/path/beside")[2] == '{"text": "beside"}'
        second.send('"bye"')
        with pytest.raises(exceptions.ConnectionClosed) as closed:
            second.recv()
        assert closed.value.rcvd.code == 4001
        assert json.loads(first.recv()) == {"text": "one has left with 4001"}
    with dial(django, "/echo") as socket:
        socket.send(b"\0\1")
        assert socket.recv() == b"\0\1"
    with pytest.raises(exceptions.InvalidStatus) as refused:
        dial(django, "/room/closed")
    assert refused.value.response.status_code == 403


@in_one_process
def test_socket_io(tmp_path: Path) -> None:
    """By a WebSocket from the start, and by one that follows long polling."""
    socketio = pytest.importorskip("socketio")

    async def main(url: str) -> None:
        for transports in (["websocket"], ["polling", "websocket"]):
            async with socketio.AsyncSimpleClient() as one, socketio.AsyncSimpleClient() as other:
                await one.connect(url, transports=transports)
                await other.connect(url, transports=transports)
                assert (one.transport, other.transport) == ("websocket", "websocket")
                assert await one.call("say", {"bytes": b"\0"}) == "passed on"
                assert await other.receive(5 * SLOWNESS) == ["said", {"bytes": b"\0"}]

    with served(tmp_path, "socketio_app:app") as process:
        assert ask(process.address, "/echo/beside")[2] == "GET beside 0"
        asyncio.run(main(f"http://127.0.0.1:{process.address[1]}"))


ENDLESS = {
    "starlette": ("starlette_app:plain", "/sse"),
    "BaseHTTPMiddleware": ("starlette_app:app", "/sse"),
    "fastapi": ("fastapi_app:app", "/ticks"),
    "sse-starlette": ("sse_starlette_app:app", "/ticks"),
    "django": ("django_app:create_asgi()", "/ticks"),
}


def test_events_without_an_end_are_ended_in_order_by_the_drain(tmp_path: Path, database: Postgres) -> None:
    """None of these frameworks ends them by itself: some never ask, and some leave a response whose client has left.

    The application shuts down after them, and there is nothing to warn of.
    """
    for module in ("starlette", "fastapi", "sse_starlette", "django"):
        pytest.importorskip(module)
    with contextlib.ExitStack() as stack:
        processes = {}
        for name, (app, _) in ENDLESS.items():
            (tmp_path / name).mkdir()
            environ = {"PKG_ADMIN": "off", "PKG_POOL": "off", "PKG_DRAIN_TIMEOUT": "3s", "DATABASE_URL": database.url}
            processes[name] = Process(tmp_path / name, "", (f"tests.support.apps.{app}",), environ)
            stack.callback(processes[name].kill)
        streams, heads = {}, {}
        for name, process in processes.items():
            match = process.await_message(r"^serving .* on (.*):(\d+) after", 30)
            streams[name] = c = stack.enter_context(Connection((match[1], int(match[2]))))
            c.send(f"GET {ENDLESS[name][1]} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            heads[name] = c.receive_head()
        for process in processes.values():
            process.process.terminate()
        for name, c in streams.items():
            assert b"data: 3" in b"".join(c.parts(heads[name])), name  # with the last chunk
            c.close()
        for name, process in processes.items():
            assert process.process.wait(15 * SLOWNESS) == 0, (name, process.messages())
            assert process.faults() == [], name
            assert "1 served while draining, 0 aborted" in process.messages()[-1], name
