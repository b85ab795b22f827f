"""Clients that people write Python services with, before an ASGI application: httpx, aiohttp and websockets."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.support.processes import Process, in_one_process, running

client = pytest.importorskip("websockets.asyncio.client")
exceptions = pytest.importorskip("websockets.exceptions")
httpx = pytest.importorskip("httpx")
aiohttp = pytest.importorskip("aiohttp")

PART = hashlib.shake_128(b"upload").digest(100_000)
WHOLE = {"size": 30 * len(PART), "sha256": hashlib.sha256(30 * PART).hexdigest()}
NUMBERED = b"".join(b"%1023d\n" % number for number in range(1000))
PATIENCE = 20.0  # seconds


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("clients")
    environ = {"PKG_ADMIN": "off", "PKG_SLOW_CALLBACK_DURATION": "0s"}  # a busy machine is no fault
    with running(folder, "", app="tests.support.apps.clients_app:app", **environ) as process:
        yield process
        assert process.stop() == 0, process.errors()
        assert process.faults() == []


@pytest.fixture
def url(process: Process) -> str:
    return f"http://127.0.0.1:{process.address[1]}"


async def parts() -> AsyncIterator[bytes]:
    for _ in range(30):
        yield PART
        await asyncio.sleep(0)


def test_httpx(url: str) -> None:
    """It sends one request after the other on one connection, and a generator in chunks."""
    with httpx.Client(base_url=url, timeout=PATIENCE) as client:
        ports = set()
        for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS", "GET"):
            answer = client.request(method, "/hello?a=%20b")
            told = answer.json()
            assert (answer.http_version, told["method"], told["query"]) == ("HTTP/1.1", method, "a=%20b")
            assert answer.headers.get_list("set-cookie") == ["a=b", "c=d"]
            ports.add(told["port"])
        assert client.head("/hello").content == b""
        for body in (30 * PART, (PART for _ in range(30))):
            told = client.post("/upload", content=body).json()
            assert {name: told[name] for name in WHOLE} == WHOLE
            ports.add(told["port"])
        assert client.get("/stream/1000").content == NUMBERED
        with client.stream("GET", "/stream/1000") as answer:
            assert "content-length" not in answer.headers
            assert b"".join(answer.iter_raw(500)) == NUMBERED
        ports.add(client.get("/hello").json()["port"])
        assert len(ports) == 1
        assert client.post("/moved", content=PART, follow_redirects=True).json()["size"] == len(PART)


def test_asynchronous_httpx(url: str) -> None:
    """Uploads and downloads take turns on the connections of its pool."""

    async def main() -> None:
        limits = httpx.Limits(max_connections=4, max_keepalive_connections=4)
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE, limits=limits) as client:

            async def upload() -> int:
                told = (await client.post("/upload", content=parts())).json()
                assert {name: told[name] for name in WHOLE} == WHOLE
                return int(told["port"])

            async def download() -> None:
                async with client.stream("GET", "/stream/1000") as answer:
                    assert b"".join([part async for part in answer.aiter_bytes()]) == NUMBERED

            ports = await asyncio.gather(*(upload() for _ in range(12)), *(download() for _ in range(12)))
            assert 1 < len(set(ports) - {None}) <= 4

    asyncio.run(main())


@in_one_process
def test_a_client_that_does_not_read_a_stream_to_its_end(url: str) -> None:
    """Its connection is of no more use; the application is told."""
    with httpx.Client(base_url=url, timeout=PATIENCE) as client:
        before = client.get("/hello").json()
        with client.stream("GET", "/stream/100000") as answer:
            next(answer.iter_raw())
        while (after := client.get("/hello").json())["left"] != [*before["left"], "/stream/100000"]:
            assert after["left"] == before["left"]


def test_aiohttp(url: str) -> None:
    async def main() -> None:
        timeout = aiohttp.ClientTimeout(PATIENCE)
        connector = aiohttp.TCPConnector(limit=3)
        async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as session:

            async def told(method: str, path: str, **options: Any) -> dict[str, Any]:
                async with session.request(method, path, **options) as answer:
                    assert (answer.status, answer.headers.getall("set-cookie")) == (200, ["a=b", "c=d"])
                    found: dict[str, Any] = await answer.json()
                    return found

            async def upload(**options: Any) -> int:
                answer = await told("POST", "/upload", data=parts(), **options)
                assert {name: answer[name] for name in WHOLE} == WHOLE
                return int(answer["port"])

            async def download() -> None:
                async with session.get("/stream/1000") as answer:
                    whole = b"".join([part async for part in answer.content.iter_chunked(10_000)])
                    assert whole == NUMBERED

            ports = {(await told(method, "/hello"))["port"] for method in ("GET", "PATCH", "DELETE")}
            ports.add(await upload(expect100=True))
            assert len(ports) == 1
            several = await asyncio.gather(*(upload() for _ in range(6)), *(download() for _ in range(6)))
            assert 1 < len(set(several) - {None}) <= 3
            with aiohttp.MultipartWriter("form-data") as form:
                form.append(PART)
                form.append_json({"a": 1})
            assert (await told("POST", "/upload", data=form))["size"] > len(PART)

    asyncio.run(main())


def test_websockets_of_aiohttp(url: str) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(PATIENCE)) as session:
            # A heartbeat is a ping after which a pong has to come, and `compress` permessage-deflate.
            for options in ({}, {"compress": 15, "heartbeat": 0.2}):
                async with session.ws_connect("/socket", **options) as socket:
                    await socket.send_json({"a": [1] * 5000})
                    assert await socket.receive_json() == {"a": [1] * 5000}
                    await socket.send_bytes(PART)
                    assert await socket.receive_bytes() == PART
                    await socket.send_str("count 1000")
                    assert [await socket.receive_str() for _ in range(1001)] == [*map(str, range(1000)), "count 1000"]
                    await socket.ping(b"are you there")
                    await asyncio.sleep(0.5 if options else 0)
                    await socket.send_str("close 4321")
                    message = await socket.receive()
                    assert (message.type, message.data, message.extra) == (aiohttp.WSMsgType.CLOSE, 4321, "as asked")
            async with session.ws_connect("/aiohttp") as socket:
                await socket.close(code=4322, message=b"enough")
                assert socket.close_code == 4322
            while "/aiohttp 4322 enough" not in (await (await session.get("/hello")).json())["left"]:
                pass

    asyncio.run(main())


def test_the_client_of_websockets(url: str) -> None:
    """Many at a time, with pings of their own; one of them connects again whenever it is closed."""

    async def talk(number: int) -> None:
        async with client.connect(f"ws{url[4:]}/socket", ping_interval=0.1, ping_timeout=PATIENCE) as socket:
            assert socket.response.headers["set-cookie"] == "a=b"
            for count in range(10):
                await socket.send(f"{number} {count}")
                assert await socket.recv() == f"{number} {count}"
            await socket.send([PART, PART, b"end"])  # in fragments
            assert await socket.recv() == PART + PART + b"end"
            await (await socket.ping())

    async def again() -> None:
        codes = []
        async for socket in client.connect(f"ws{url[4:]}/again"):
            try:
                await socket.send(f"close {4000 + len(codes)}")
                await socket.recv()
            except exceptions.ConnectionClosed as closed:
                codes.append((closed.rcvd.code, closed.rcvd.reason))
                if len(codes) == 3:
                    break
        assert codes == [(code, "as asked") for code in (4000, 4001, 4002)]

    async def main() -> None:
        await asyncio.gather(again(), *(talk(number) for number in range(30)))

    asyncio.run(main())
