"""Clients of a Unix socket that leave, through the real process: what docs/behaviour.md says about them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import Connection, dial, wait_for
from tests.support.processes import Process, running

APPLICATION = """
import os

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/cut"):
        write = start_response("200 OK", [("Content-Length", "10")] if path == "/cut/length" else [])
        write(b"hello")
        raise RuntimeError
    n = len(environ["wsgi.input"].read())
    with open("served", "a") as file:
        file.write(f"{n}\\n")
    start_response("200 OK", [("Content-Length", str(len(str(n))))])
    return [str(n).encode()]
"""


@contextlib.contextmanager
def serving(folder: Path, **settings: str) -> Iterator[Process]:
    listen = "127.0.0.1:0,unix:app.sock"
    with running(folder, APPLICATION, PKG_LISTEN=listen, PKG_ADMIN="off", **settings) as process:
        yield process


def post(size: int, more: str = "") -> bytes:
    return f"POST / HTTP/1.1\r\nHost: x\r\n{more}Content-Length: {size}\r\n\r\n".encode() + b"z" * size


@pytest.mark.parametrize("streams", ["false", "true"])
def test_who_has_sent_its_request_may_close(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streams: str) -> None:
    monkeypatch.chdir(tmp_path)  # the name of the folder may be too long for a socket
    sizes = [0, 3, 60_000, 70_000, 300_000, 1 << 20]
    with serving(tmp_path, PKG_STREAM_BODIES=streams, PKG_THREADS="2") as process:
        for size in sizes:
            with dial("app.sock") as client:
                client.sendall(post(size))
        served = tmp_path / "served"
        wait_for(lambda: served.exists() and len(served.read_text().split()) == len(sizes))
        assert sorted(map(int, served.read_text().split())) == sizes
        assert process.stop() == 0  # it is not the drain that has cut them off
        process.await_message(r", 0 aborted, ")


def test_half_a_request_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with serving(tmp_path) as process:
        for data in (b"", b"GET /", post(100)[:-1], post(100_000)[:-1]):
            with dial("app.sock") as client:
                client.sendall(data)
        with Connection("app.sock") as client:
            assert client.request("POST", "/", body=b"abc").body == b"3"
        assert process.stop() == 0
        assert (tmp_path / "served").read_text() == "3\n"


def test_who_has_ended_its_side_gets_the_response(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with serving(tmp_path), Connection("app.sock") as client:
        client.send(post(1 << 20))
        client.socket.shutdown(socket.SHUT_WR)
        assert client.receive().body == b"%d" % (1 << 20)
        assert client.is_closed()


@pytest.mark.parametrize("target", ["/cut/length", "/cut/chunked"])
def test_a_cut_response_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    monkeypatch.chdir(tmp_path)
    with serving(tmp_path), Connection("app.sock") as client:
        client.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        with pytest.raises(EOFError):
            client.receive()
