"""Clients that announce long bodies and send nothing of them: they take no buffer and no file from anybody else."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

from tests.support.processes import Process, ask, open_files, running

APPLICATION = """
def app(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % len(body)]
"""
MIB = 1 << 20


def announce(process: Process, framing: str) -> socket.socket:
    client = socket.create_connection(process.address, 20)
    client.sendall(f"POST / HTTP/1.1\r\nHost: x\r\n{framing}\r\n\r\n".encode())
    return client


def ask_with_a_long_head(process: Process) -> tuple[int, str]:
    """A head of 8 KB needs a buffer of its own."""
    status, _, text = ask(process.address, "/", Cookie="c" * 8000)
    return status, text


def test_bodies_that_may_gather_take_no_buffer_from_others(tmp_path: Path) -> None:
    """40 MiB that could come within a second, and buffers of 32 MiB."""
    with running(tmp_path, APPLICATION) as process, ExitStack() as clients:
        for _ in range(40):
            clients.enter_context(announce(process, f"Content-Length: {MIB}"))
        assert ask_with_a_long_head(process) == (200, "0")


def test_bodies_that_may_be_spooled_take_no_buffer_and_no_file(tmp_path: Path) -> None:
    with running(tmp_path, APPLICATION, PKG_BUFFER_SIZE="1MiB") as process, ExitStack() as clients:
        for i in range(40):
            framing = f"Content-Length: {50 * MIB}" if i % 2 else "Transfer-Encoding: chunked"
            clients.enter_context(announce(process, framing))
        with announce(process, "Transfer-Encoding: chunked") as last:  # behind them in the spool, and then answered
            last.sendall(b"20000\r\n" + b"z" * 0x20000 + b"\r\n0\r\n\r\n")
            assert last.recv(12) == b"HTTP/1.1 200"
            names = open_files(process.process.pid)
            assert sum("deleted" in name for name in names) <= 1
        assert ask_with_a_long_head(process) == (200, "0")


def test_a_long_body_after_a_silence_is_whole(tmp_path: Path) -> None:
    """The file and the buffer are made when its first bytes come."""
    with running(tmp_path, APPLICATION) as process, announce(process, f"Content-Length: {20 * MIB}") as client:
        assert ask_with_a_long_head(process) == (200, "0")
        client.sendall(b"z" * 10 * MIB)
        client.sendall(b"z" * 10 * MIB)
        assert b"200 OK" in (response := client.recv(10000)), response
        assert response.endswith(b"%d" % (20 * MIB)), response
