"""Clients of an ASGI application that do what none should; afterwards nothing of them is left."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from pkg import _core
from pkg.http.server import Server
from tests.support.client import SLOWNESS, Connection, get, wait_for
from tests.support.servers import serving_asgi

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


def part(data: bytes = b"", more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """/read: the length of the body; /echo: the body as it comes; /big: 5 MB; /watch: until the client leaves."""
    path = scope["path"]
    start = {"type": "http.response.start", "status": 200}
    if path in ("/read", "/echo"):
        size, more = 0, True
        if path == "/echo":
            await send(start)
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size, more = size + len(message["body"]), message["more_body"]
            if path == "/echo":
                await send(part(message["body"], more))
        if path == "/read":
            await send(start)
            await send(part(b"%d" % size))
    elif path == "/watch":
        while (await receive())["type"] != "http.disconnect":
            pass
    elif path == "/big":
        await send(start)
        for i in range(50):
            await send(part(b"x" * 100_000, i < 49))
    else:
        if path == "/wait":
            await asyncio.sleep(0.3)
        await send(start)
        await send(part(b"ok"))


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    before[0] = exchanges()
    with serving_asgi(app, body_timeout=0.5, write_timeout=5, max_connections=100) as server:
        yield server
        nothing_is_left(server)


def exchanges() -> int:
    gc.collect()
    return sum(issubclass(type(o), _core.Exchange) for o in gc.get_objects())


before = [0]  # exchanges that other tests of this process have left to whoever reports on them


def nothing_is_left(server: Server) -> None:
    front = server.front
    assert front is not None

    def is_clean() -> bool:
        n = front.stats()
        return (
            n.connections == n.in_flight == n.queued == n.buffered == 0
            and n.accepted == n.closed
            and n.requests == n.served + n.aborted == n.finished
        )

    wait_for(is_clean, 10, "the end of all connections")

    # What waits for a slow client is looked at once in a while.
    wait_for(lambda: exchanges() <= before[0], 10, "the end of all exchanges")


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"POST /%s HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"


def in_pieces(c: Connection, data: bytes, seed: int) -> None:
    choice = random.Random(seed)
    while data:
        n = choice.randrange(1, 60)
        c.send(data[:n])
        data = data[n:]


def reset(c: Connection) -> None:
    c.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    c.close()


def test_a_hundred_pipelined_requests_of_all_kinds_in_pieces(server: Server) -> None:
    body = CHUNKED % b"read" + b"5;a=b\r\nabcde\r\n1\r\nx\r\n0\r\nTrailer: yes\r\n\r\n"
    sized = b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    unread = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"
    with Connection(server.server_address) as c:
        sender = threading.Thread(target=in_pieces, args=(c, (body + GET + sized + GET) * 25, 1))
        sender.start()
        for _ in range(25):
            assert [c.receive().body for _ in range(4)] == [b"6", b"ok", b"3", b"ok"]
        sender.join()
        c.send(unread + GET)  # a body that is there, and is not read, is not taken for a request
        assert [c.receive().body for _ in range(2)] == [b"ok", b"ok"]


def test_a_body_that_comes_after_the_response_is_no_request(server: Server) -> None:
    with Connection(server.server_address) as c:
        c.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(GET))
        assert not c.receive().closes
        c.send(GET)
        assert not select.select([c.socket], [], [], 0.1)[0]
        assert c.request("GET", "/").status == 200
        c.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n")
        assert c.receive().closes
        with contextlib.suppress(OSError):
            c.send(GET)
        assert c.is_closed()


def test_old_clients(server: Server) -> None:
    with Connection(server.server_address) as c:
        for target, body in (("/", b"ok"), ("/read", b"3")):
            answer = c.request("POST", target, "Connection: keep-alive\r\n", b"abc", version="1.0")
            assert (answer.body, answer.header("connection")) == (body, "keep-alive")
        answer = c.request("GET", "/big", "Connection: keep-alive\r\n", version="1.0")
        assert (len(answer.body), answer.closes, answer.header("transfer-encoding")) == (5_000_000, True, None)
    with Connection(server.server_address) as c:
        assert c.request("GET", "/", version="1.0").closes and c.is_closed()


@pytest.mark.parametrize(
    "rest", [b"zz\r\n", b"-1\r\n", b"3\r\nabcX", b"f" * 20 + b"\r\n", b"3;\0\r\n", b"0\r\nno trailer\r\n\r\n", b""]
)
def test_a_body_that_goes_wrong_in_the_response_cuts_it_off(server: Server, rest: bytes) -> None:
    """Nothing: it is late.  The client can tell that the response is not complete."""
    with Connection(server.server_address) as c:
        c.send(CHUNKED % b"echo" + b"3\r\nabc\r\n")
        wait_for(lambda: c._fill() and b"abc" in c._buffer)
        c.send(rest)
        with pytest.raises((EOFError, ConnectionResetError)):
            c.receive()


def test_reading_and_writing_at_the_same_time(server: Server) -> None:
    with Connection(server.server_address) as c:
        c.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 20000000\r\n\r\n")
        sender = threading.Thread(target=c.send, args=(b"e" * 20_000_000,))
        sender.start()
        assert c.receive().body == b"e" * 20_000_000
        sender.join()


def test_a_half_closed_client_gets_all_responses(server: Server) -> None:
    with Connection(server.server_address) as c:
        c.send(GET * 30 + b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        c.socket.shutdown(socket.SHUT_WR)
        assert [c.receive().body for _ in range(30)] == [b"ok"] * 30
        assert len(c.receive().body) == 5_000_000
        assert c.is_closed()
    with Connection(server.server_address) as c:
        c.send(b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        c.socket.shutdown(socket.SHUT_WR)
        assert c.receive().status == 400


def test_requests_wait_behind_a_response_that_is_read_late(server: Server) -> None:
    with Connection(server.server_address) as c:
        c.send(b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" * 3 + GET)
        time.sleep(0.2)
        assert [len(c.receive().body) for _ in range(4)] == [5_000_000] * 3 + [2]


REQUESTS = [
    GET * 3,
    b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nabc",
    CHUNKED % b"echo" + b"fff\r\nabc",
    b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n" * 2,
    b"GET /watch HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n" + GET,
    b"POST /read HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n",
]


def test_clients_that_leave_at_any_moment(server: Server) -> None:
    """With a FIN or a reset, anywhere in a request or its response."""
    choice = random.Random(1)
    for _ in range(300):
        c = Connection(server.server_address)
        data = choice.choice(REQUESTS)
        c.send(data[: choice.choice([len(data), choice.randrange(1, len(data))])])
        time.sleep(choice.choice([0, 0, 0.001, 0.005]))
        if choice.randrange(3) == 0:
            c.socket.setblocking(False)
            with contextlib.suppress(OSError):
                c.socket.recv(choice.randrange(1, 100_000))
        reset(c) if choice.randrange(2) else c.close()
    assert get(server.server_address, "/").body == b"ok"


def test_more_clients_than_connections(server: Server) -> None:
    """Those that wait for their response keep their place, and the others are told to go."""
    nothing_is_left(server)  # of the tests before
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(Connection(server.server_address)) for _ in range(60)]
        for c in idle:
            assert c.request("GET", "/").body == b"ok"
        busy = [stack.enter_context(Connection(server.server_address)) for _ in range(150)]
        for c in busy:
            c.send(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n")
        answers = [c.receive() for c in busy]
        assert {(a.status, a.body) for a in answers} <= {(200, b"ok"), (503, b"too many connections\n")}
        assert sum(a.status == 200 for a in answers) >= 100
    assert get(server.server_address, "/").body == b"ok"


@pytest.mark.parametrize("count", [3000, pytest.param(200_000, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_many_requests_leave_no_memory(server: Server, count: int) -> None:
    """Of all kinds, pipelined, completed or reset.  The memory of this process, in which the server is."""

    def resident() -> int:
        gc.collect()
        with open("/proc/self/statm") as f:
            return int(f.read().split()[1]) * 4096

    def send_some(seed: int, n: int) -> None:
        choice = random.Random(seed)
        body = CHUNKED % b"read" + b"5\r\nabcde\r\n0\r\n\r\n"
        while n > 0:
            with Connection(server.server_address) as c:
                for _ in range(5):
                    requests = choice.choices([GET, body, CHUNKED % b"echo" + b"1\r\nx\r\n0\r\n\r\n"], k=20)
                    c.send(b"".join(requests))
                    for _ in requests:
                        assert c.receive().status == 200
                c.send(choice.choice(REQUESTS))
                c.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            n -= 100

    def run() -> None:
        senders = [threading.Thread(target=send_some, args=(i, count // 8)) for i in range(4)]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join(300 * SLOWNESS)

    run()
    nothing_is_left(server)
    before = resident()
    run()
    nothing_is_left(server)
    assert resident() - before < 8_000_000  # of 100 bytes a request 200,000 would leave more
