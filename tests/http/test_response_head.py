"""A head that is out is out: nothing changes it, its framing, or what is being sent of it, whoever tries and when."""

from __future__ import annotations

import socket
import sys
import threading
from typing import Any

import pytest

from pkg import _core
from pkg.errors import ClientDisconnected, ResponseError
from tests.support.client import Connection, wait_for
from tests.support.servers import serving, serving_app


def test_headers_of_another_thread_while_the_head_is_being_sent() -> None:
    """The head lies in memory which a send reads without the interpreter lock (AddressSanitizer sees it move)."""
    refused: list[BaseException] = []
    overlapped = threading.Event()

    def slow(request: Any, client_address: Any, server: Any) -> None:
        response = _core.Response(request)
        response.start(200, "OK")
        for i in range(13):
            response.add_header(f"X-{i}", "h" * 30_000)
        written = threading.Event()

        def other() -> None:
            wait_for(lambda: response.sent, message="the head on its way")
            for call, arguments in (
                (response.add_header, ("X-Other", "z" * 30_000)),
                (response.add_header, ("Content-Length", "1")),
                (response.start, (404, "Not Found")),
            ) * 5:
                try:
                    call(*arguments)
                except ResponseError as error:
                    refused.append(error)
            if not written.is_set():
                overlapped.set()

        thread = threading.Thread(target=other)
        thread.start()
        response.write(b"b")
        written.set()
        response.end()
        request.finish()
        thread.join()

    with serving(slow, threads=1) as server, socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.settimeout(10)
        s.connect(server.server_address)
        # So many that one of them finds the socket full.
        s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 30 + b"GET / HTTP/1.0\r\n\r\n")
        assert overlapped.wait(20)
        out = bytearray()
        while data := s.recv(1 << 20):
            out += data
        heads = [response.partition(b"\r\n\r\n")[0] for response in bytes(out).split(b"HTTP/1.1 200 OK\r\n")[1:]]
        assert len(heads) == 31 and {head.count(b"h" * 30_000) for head in heads} == {13} and b"zzz" not in out
        assert len(refused) == 31 * 15


def test_responses_that_replace_a_failed_head_start_anew() -> None:
    """Whatever the head that failed had said of its framing is forgotten."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        path = environ["PATH_INFO"]
        if path == "/chunked":  # room for Transfer-Encoding, none for Date
            big = [("A", "x" * 30_000)] * 34
            headers = [*big, ("B", "y" * (1_048_545 - 17 - 34 * 30_005 - 5))]
        elif path == "/close":
            headers = [("Connection", "close"), ("Content-Length", "1")]
        else:
            headers = [("Content-Length", "5"), ("Date", "x"), ("X-Request-Id", "y")]
        write = start_response("200 OK", headers)
        for _ in range(2):  # nor does a second attempt find the lines of the first
            with pytest.raises(ResponseError):
                write(b"x" * 9)
        try:
            raise ValueError
        except ValueError:
            start_response("200 OK", [("Content-Length", "11")], sys.exc_info())
        return [b"hello", b" world"]

    with serving_app(app) as server, Connection(server.server_address) as c:
        for target in ("/chunked", "/close", "/length"):
            answer = c.request("GET", target)
            assert answer.body == b"hello world"
            assert answer.header("transfer-encoding") is None and answer.header("content-length") == "11"
            assert not answer.closes and answer.header("date") != "x" and answer.header("x-request-id") is None


def test_a_stream_with_a_gap_is_not_continued() -> None:
    """An application that takes a lost part for nothing: its client must not take the rest for the whole."""
    refused: list[BaseException] = []

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        length = [("Content-Length", "16000003")] if environ["PATH_INFO"] == "/length" else []
        write = start_response("200 OK", length)
        for data in (b"1", b"x" * 16_000_000, b"2", b"3"):
            try:
                write(data)
            except ClientDisconnected as error:
                refused.append(error)
        return []

    with serving_app(app, write_timeout=0.3) as server:
        for number, target in enumerate(("/chunked", "/length"), 1):
            with Connection(server.server_address) as c:
                c.socket.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                wait_for(lambda n=number: server.front.stats().aborted == n, message="the abort")  # type: ignore[union-attr,misc]
                got = bytearray()
                with pytest.raises(ConnectionError):
                    while data := c.socket.recv(1 << 20):
                        got += data
                assert not got.endswith((b"2", b"3", b"0\r\n\r\n"))
        assert len(refused) == 6
        assert server.front is not None and server.front.stats().served == 0


def test_what_another_thread_was_not_let_write_is_not_counted() -> None:
    """A length that counted bytes which nobody has sent would end the response before its end."""
    size = 16_000_000
    refused: list[BaseException] = []
    blocked = threading.Event()

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [("Content-Length", str(size + 3))])

        def other() -> None:
            wait_for(lambda: server.front.stats().bytes_out > 0)  # type: ignore[union-attr]
            try:
                write(b"bbb")
            except RuntimeError as error:
                refused.append(error)
            blocked.set()

        thread = threading.Thread(target=other)
        thread.start()
        write(b"x" * size)
        thread.join()
        write(b"aaa")
        return []

    with serving_app(app) as server, Connection(server.server_address) as c:
        c.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert blocked.wait(10)
        answer = c.receive()
        assert len(answer.body) == size + 3 and answer.body.endswith(b"xaaa") and not answer.closes
    assert len(refused) == 1
