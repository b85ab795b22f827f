"""What the front refuses, row by row of the table in docs/behaviour.md, on running services with narrow limits."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.client import Answer, Connection, wait_for
from tests.support.ports import free_port
from tests.support.processes import Process, ask, running
from tests.support.tables import names, tables

SOURCE = """
import os, time

def app(environ, start_response):
    if environ["PATH_INFO"] == "/hold":
        open("held", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.01)
    environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", "5")])
    return [b"hello"]
"""
HEAD = "GET / HTTP/1.1\r\nHost: a\r\n"
POST = "POST / HTTP/1.1\r\nHost: a\r\n"
HOLD = "GET /hold HTTP/1.1\r\nHost: a\r\n\r\n"
UNKNOWN = "PROXY UNKNOWN\r\n"
BUFFERS = 1 << 20  # bytes, of all buffers together

NARROW = {
    "PKG_THREADS": "1",
    "PKG_MAX_QUEUE": "1",
    "PKG_QUEUE_TIMEOUT": "1m",
    "PKG_HEADER_TIMEOUT": "300ms",
    "PKG_MAX_BODY_SIZE": "1KiB",
    "PKG_HEALTH": "127.0.0.1:0",
}
HASTY = {
    "PKG_THREADS": "1",
    "PKG_QUEUE_TIMEOUT": "300ms",
    "PKG_REQUEST_TIMEOUT": "1s",
    "PKG_BODY_TIMEOUT": "300ms",
    "PKG_BUFFER_SIZE": str(BUFFERS),
    "PKG_BODY_BUFFER_SIZE": "1KiB",
    "PKG_BODY_SPOOL_SIZE": "0",
}
PROXIED = {
    "PKG_THREADS": "1",
    "PKG_MAX_CONNECTIONS": "1",
    "PKG_TRUSTED_PROXIES": "127.0.0.0/8",
    "PKG_PROXY_PROTOCOL": "true",
}


class Client:
    """Connections to one service, closed at the end of a test."""

    def __init__(self, process: Process, folder: Path, stack: contextlib.ExitStack) -> None:
        self._process, self._folder, self._stack = process, folder, stack

    @property
    def health_address(self) -> tuple[str, int]:
        match = self._process.await_message(r" health pages on (.*):(\d+) after")
        return match[1], int(match[2])

    def connect(self, text: str = "", address: tuple[str, int] | None = None) -> Connection:
        connection = self._stack.enter_context(Connection(address or self._process.address))
        connection.send(text.encode("latin-1"))
        return connection

    def ask(self, text: str, address: tuple[str, int] | None = None) -> Answer:
        return self.connect(text, address).receive()

    def hold(self, text: str = HOLD) -> Connection:
        """A request that its worker keeps until the end of the test."""
        held, go = self._folder / "held", self._folder / "go"
        go.unlink(missing_ok=True)
        self._stack.callback(self._release)
        connection = self.connect(text)

        def is_held() -> bool:
            nonlocal connection
            if held.exists():
                return True
            if select.select([connection.socket], [], [], 0)[0]:  # what came before it was still there
                connection = self.connect(text)
            return False

        wait_for(is_held, 10, "the request to be with its worker")
        return connection

    def _release(self) -> None:
        (self._folder / "held").unlink()
        (self._folder / "go").touch()


def first_of(connections: list[Connection]) -> Answer:
    """The answer of whichever gets one first."""
    poller = select.poll()
    by_number = {connection.socket.fileno(): connection for connection in connections}
    for number in by_number:
        poller.register(number, select.POLLIN)
    ((number, _), *_) = poller.poll(30_000)
    return by_number[number].receive()


def cut_short(client: Client) -> Answer:
    connection = client.connect(f"{POST}Content-Length: 5\r\n\r\nab")
    connection.socket.shutdown(socket.SHUT_WR)
    return connection.receive()


def one_too_many_waits(client: Client) -> Answer:
    client.hold()
    return first_of([client.connect(f"{HEAD}\r\n") for _ in range(2)])


def nobody_is_free(client: Client) -> Answer:
    client.hold()
    return client.ask(f"{HEAD}\r\n")


def too_long(client: Client) -> Answer:
    return client.hold().receive()


def no_buffer(client: Client) -> Answer:
    """Heads that do not end: 8 KiB each, of which the first 2 do not count."""
    many = [client.connect(f"{HEAD}X: {'a' * 7000}") for _ in range(BUFFERS // 6144 + 5)]
    return first_of(many)


def one_connection_too_many(client: Client) -> Answer:
    client.hold(f"{UNKNOWN}{HOLD}")
    return client.ask(f"{UNKNOWN}{HEAD}\r\n")


def nothing_but_health(client: Client) -> Answer:
    return client.ask(f"{HEAD}\r\n", client.health_address)


# By the text of the refusal: which service, and what brings it about.
CAUSES: dict[str, tuple[str, Callable[[Client], Answer]]] = {
    "invalid Host": ("narrow", lambda client: client.ask("GET / HTTP/1.1\r\nHost: a b\r\n\r\n")),
    "malformed chunked body": (
        "narrow",
        lambda client: client.ask(f"{POST}Transfer-Encoding: chunked\r\n\r\nx\r\n"),
    ),
    "body cut short": ("narrow", cut_short),
    "malformed PROXY header": ("proxied", lambda client: client.ask(f"PROXY TCP4 a b c d\r\n{HEAD}\r\n")),
    "the PROXY header is missing": ("proxied", lambda client: client.ask(f"{HEAD}\r\n")),
    "the request did not arrive in time": ("narrow", lambda client: client.ask(HEAD)),
    "the body did not arrive in time": ("hasty", lambda client: client.ask(f"{POST}Content-Length: 5\r\n\r\nab")),
    "body too large": ("narrow", lambda client: client.ask(f"{POST}Content-Length: 1025\r\n\r\n")),
    "not found": ("narrow", nothing_but_health),
    "no tunnels here": ("narrow", lambda client: client.ask("CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n")),
    "no room for the body": (
        "hasty",
        lambda client: client.ask(f"{POST}Transfer-Encoding: chunked\r\n\r\n800\r\n{'x' * 0x800}\r\n"),
    ),
    "too many connections": ("proxied", one_connection_too_many),
    "too many requests waiting": ("narrow", one_too_many_waits),
    "no worker became free in time": ("hasty", nobody_is_free),
    "no buffer is free": ("hasty", no_buffer),
    "the request took too long": ("hasty", too_long),
}
ROWS = [(row["status"], names(row["text"])[0]) for row in tables("behaviour.md", "status", "text", "when")]


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Process, Path]]]:
    with contextlib.ExitStack() as stack:
        found = {}
        for name, environ in {"narrow": NARROW, "hasty": HASTY, "proxied": PROXIED}.items():
            folder = tmp_path_factory.mktemp(name)
            found[name] = stack.enter_context(running(folder, SOURCE, PKG_ADMIN="off", **environ)), folder
        yield found


def test_each_row_has_a_cause() -> None:
    assert {text for _, text in ROWS} == set(CAUSES)


@pytest.mark.parametrize(("status", "text"), ROWS, ids=lambda value: value)
def test_a_refusal(services: dict[str, tuple[Process, Path]], status: str, text: str) -> None:
    name, cause = CAUSES[text]
    with contextlib.ExitStack() as stack:
        answer = cause(Client(*services[name], stack))
    assert (str(answer.status), answer.body.decode()) == (status, f"{text}\n")
    assert answer.closes
    assert (answer.header("retry-after") == "1") == (status == "503")


def test_refused_heads_are_counted(tmp_path: Path) -> None:
    heads = (
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/9.9\r\nHost: a\r\n\r\n",
    )
    admin = free_port()
    with running(tmp_path, SOURCE, PKG_ADMIN=f"127.0.0.1:{admin}") as process:
        for head in heads:
            with Connection(process.address) as connection:
                connection.send(head.encode())
                assert connection.receive().status in {400, 501, 505}
        text = ask(("127.0.0.1", admin), "/metrics")[2]
        assert f"\npkg_requests_rejected_total {len(heads)}\n" in text


@pytest.mark.parametrize("rest", [" folded", "na me", "na\xe4me"])
def test_an_error_in_the_last_bytes_before_the_end(services: dict[str, tuple[Process, Path]], rest: str) -> None:
    """A long head is not parsed again for each byte, but it is when no more will come."""
    process, _ = services["narrow"]
    with Connection(process.address) as connection:
        for part in (f"{HEAD}A: {'a' * 300}\r\n", rest):
            connection.send(part.encode("latin-1"))
            time.sleep(0.02)  # so that they arrive one by one
        connection.socket.shutdown(socket.SHUT_WR)
        assert connection.receive().status == 400
