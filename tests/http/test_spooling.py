"""Request bodies that fit into no buffer, through the real process: gathered in their socket, spooled, or refused."""

from __future__ import annotations

import http.client
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Connection, get, wait_for
from tests.support.ports import free_port
from tests.support.processes import Process, ask, open_files, running

MIB = 1 << 20

# As most frameworks do it: without a length there is no body.
APPLICATION = """
import hashlib

def app(environ, start_response):
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(length)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{len(body)} {hashlib.sha256(body).hexdigest()} {environ.get('HTTP_TRANSFER_ENCODING')}".encode()]
"""

HANDLER = """
import http.server

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        n = 0
        while part := self.rfile.read(min(65536, length - n)):
            n += len(part)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"{n} {self.headers.get('Transfer-Encoding')}".encode())
"""


def pattern(size: int) -> bytes:
    return (b"".join(b"%07d\n" % i for i in range(0, min(size, MIB), 8)) * (size // MIB + 1))[:size]


def digest(body: bytes) -> str:
    import hashlib

    return f"{len(body)} {hashlib.sha256(body).hexdigest()} None"


def chunks(body: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(body), size):
        yield body[at : at + size]


def answer(client: socket.socket) -> tuple[int, str]:
    response = http.client.HTTPResponse(client)
    response.begin()
    try:
        return response.status, response.read().decode()
    finally:
        response.close()


ADMIN = free_port()


def serving(directory: Path, source: str, **settings: Any) -> AbstractContextManager[Process]:
    return running(directory, source, PKG_ADMIN=f"127.0.0.1:{ADMIN}", **settings)


def counter(name: str) -> float:
    text = ask(("127.0.0.1", ADMIN), "/metrics")[2]
    match = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert match, name
    return float(match[1])


def dial(process: Process, data: bytes = b"") -> socket.socket:
    client = socket.create_connection(process.address, 20)
    client.sendall(data)
    return client


def head(length: int | None, more: str = "") -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST / HTTP/1.1\r\nHost: x\r\n{framing}\r\n{more}\r\n".encode()


SIZES = (65535, 65536, 65537, 66000, MIB, 5 * MIB)


@pytest.mark.parametrize("kind", ["length", "chunked", "expect"])
def test_a_body_of_any_size_is_whole(tmp_path: Path, kind: str) -> None:
    with serving(tmp_path, APPLICATION) as process:
        connection = http.client.HTTPConnection(*process.address, timeout=30)
        for size in SIZES:
            body = pattern(size)
            headers = {"Expect": "100-continue"} if kind == "expect" else {}
            if kind == "length":
                connection.request("POST", "/", body)
            else:
                connection.request("POST", "/", chunks(body, 50_000), headers, encode_chunked=True)
            response = connection.getresponse()
            assert (response.status, response.read().decode()) == (200, digest(body)), size
        connection.close()


def test_a_handler_class_sees_a_length(tmp_path: Path) -> None:
    with serving(tmp_path, HANDLER, app="application:Handler") as process:
        connection = http.client.HTTPConnection(*process.address, timeout=30)
        for size in SIZES:
            connection.request("POST", "/", chunks(b"z" * size, 9999), encode_chunked=True)
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, b"%d None" % size)
        connection.close()


def test_slow_uploads_hold_no_worker(tmp_path: Path) -> None:
    """Two workers, and twelve clients in the middle of a body each: those that are read, and those that gather."""
    with serving(tmp_path, APPLICATION, PKG_THREADS="2") as process:
        slow = [dial(process, head(None if i % 3 == 0 else (i % 3) * 300_000)) for i in range(12)]
        bodies = [pattern(300_000 if i % 3 == 0 else (i % 3) * 300_000) for i in range(12)]
        sent = [0] * 12
        while any(sent[i] < len(bodies[i]) for i in range(12)):
            for i, client in enumerate(slow):
                part = bodies[i][sent[i] : sent[i] + 50_000]
                if part:
                    client.sendall(b"%x\r\n%b\r\n" % (len(part), part) if i % 3 == 0 else part)
                    sent[i] += len(part)
            assert get(process.address, "/", "Connection: close\r\n").status == 200
            time.sleep(0.2)  # in all longer than a body may gather
        for i, client in enumerate(slow):
            if i % 3 == 0:
                client.sendall(b"0\r\n\r\n")
            assert answer(client) == (200, digest(bodies[i]))
            client.close()
        assert counter("pkg_bodies_spooled_total") >= 12
        wait_for(lambda: counter("pkg_spool_bytes") == 0, 10, "every file is gone")
        wait_for(lambda: counter("pkg_buffered_bytes") == 0, 10, "every buffer is gone")


def test_a_request_behind_a_chunked_body_is_the_next(tmp_path: Path) -> None:
    body = pattern(200_000)
    request = head(None) + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks(body, 70_000)) + b"0\r\n\r\n"
    with serving(tmp_path, APPLICATION) as process, Connection(process.address) as client:
        client.send(request * 3 + b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        for expected in (body, body, body, b""):
            assert client.receive().body.decode() == digest(expected)


def test_an_unread_body_is_not_the_next_request(tmp_path: Path) -> None:
    application = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
    with serving(tmp_path, application) as process, dial(process) as client:
        body = b"GET / HTTP/1.1\r\nHost: y\r\n\r\n" * 9000
        for _ in range(3):  # spooled whole, so the connection goes on
            client.sendall(head(None) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
            assert answer(client) == (200, "ok")


@pytest.mark.parametrize("memory", [False, True], ids=["disk", "memory"])
def test_the_limits_of_the_spool(tmp_path: Path, memory: bool) -> None:
    settings = {"TMPDIR": str(tmp_path / "none") if memory else str(tmp_path), "PKG_BUFFER_SIZE": "2MiB"}
    with serving(tmp_path, APPLICATION, PKG_BODY_SPOOL_SIZE="1MiB", PKG_MAX_BODY_SIZE="8MiB", **settings) as process:
        body = pattern(3 * MIB)
        with dial(process, head(len(body)) + body) as client:  # streams
            assert answer(client) == (200, digest(body))
        chunked = head(None) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
        with dial(process) as client:
            sender = threading.Thread(target=send_as_far_as_it_goes, args=(client, chunked))
            sender.start()
            assert answer(client) == (503, "no room for the body\n")
            sender.join()
        body = pattern(900_000)
        with dial(process, head(None) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)) as client:
            assert answer(client) == (200, digest(body))
        assert counter("pkg_spool_failures_total") == 2
        assert counter("pkg_bodies_spooled_total") == 1
        wait_for(lambda: "2 request bodies could not be spooled" in " ".join(process.messages()), 10, "the log says so")
        wait_for(lambda: counter("pkg_spool_bytes") == 0, 10, "every file is gone")
    assert not list(tmp_path.glob("pkg-body*"))


def send_as_far_as_it_goes(client: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        client.sendall(data)


def test_a_full_disk(tmp_path: Path) -> None:
    """A file system of 4 MiB of its own, where mounting one is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,mode=1777", "none", str(disk)]
    if subprocess.run(["unshare", "--mount", "--map-root-user", *mount], capture_output=True).returncode != 0:
        pytest.skip("no user namespaces here")
    settings = {"PKG_BODY_SPOOL": str(disk), "PKG_BODY_SPOOL_SIZE": "1GiB", "PKG_BUFFER_SIZE": "1MiB"}

    class OnDisk(Process):
        def command(self, arguments: tuple[str, ...]) -> list[str]:
            script = f'{shlex.join(mount)} && exec "$@"'
            return ["unshare", "--mount", "--map-root-user", "sh", "-c", script, "sh", *super().command(arguments)]

    with serving(tmp_path, APPLICATION, kind=OnDisk, **settings) as process:
        bodies = [pattern((2 + i) * MIB) for i in range(6)]
        slow = [dial(process, head(len(body)) + body[:MIB]) for body in bodies]
        senders = [
            threading.Thread(target=client.sendall, args=(body[MIB:],))
            for client, body in zip(slow, bodies, strict=True)
        ]
        for sender in senders:
            sender.start()
        for client, sender, body in zip(slow, senders, bodies, strict=True):
            assert answer(client) == (200, digest(body))
            sender.join()
            client.close()
        assert counter("pkg_spool_failures_total") >= 1
        wait_for(lambda: "No space left on device" in " ".join(process.messages()), 10, "the log says why")
        assert get(process.address, "/").status == 200


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "pkg"],
        env={**os.environ, "PKG_BODY_SPOOL": str(tmp_path / "none")},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert "PKG_BODY_SPOOL" in run.stderr and "is not a directory" in run.stderr


def test_stream_bodies_gives_them_as_they_come(tmp_path: Path) -> None:
    application = """
def app(environ, start_response):
    write = start_response("200 OK", [("Content-Type", "text/plain")])
    source = environ["wsgi.input"]
    while part := source.read1(65536) if hasattr(source, "read1") else source.read(1000):
        write(b"%d\\n" % len(part))
    return []
"""
    with serving(tmp_path, application, PKG_STREAM_BODIES="true") as process, dial(process, head(200_000)) as client:
        client.sendall(b"z" * 100_000)
        wait_for(lambda: len(client.recv(1000, socket.MSG_PEEK)) > 0, 10, "a response to the beginning of the body")
        client.sendall(b"z" * 100_000)
        status, text = answer(client)
        assert status == 200 and sum(map(int, text.split())) == 200_000


LENGTHS = (None, 300_000, 50 * MIB)


def test_clients_that_break_off_leave_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, APPLICATION, PKG_BODY_TIMEOUT="2s") as process:
        for reset in (False, True):
            for length in LENGTHS:
                client = dial(process, head(length) + (b"" if length else b"20000\r\n") + b"z" * 100_000)
                time.sleep(0.2)
                if reset:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                else:
                    client.shutdown(socket.SHUT_WR)
                    assert answer(client) == (400, "body cut short\n"), length
                client.close()
        silent = [dial(process, head(n) + (b"" if n else b"20000\r\n") + b"z" * 66_000) for n in LENGTHS]
        for client in silent:  # and those that say nothing more
            assert answer(client) == (408, "the body did not arrive in time\n")
            client.close()
        with dial(process, head(None) + b"20000\r\n" + b"z" * 0x20000 + b"nonsense") as client:
            assert answer(client)[0] == 400
        wait_for(lambda: counter("pkg_connections") == 0, 10, "every connection is gone")
        assert counter("pkg_spool_bytes") == counter("pkg_buffered_bytes") == 0
        accepted, closed = (counter(f"pkg_connections_{n}_total") for n in ("accepted", "closed"))
        assert accepted == closed
        names = open_files(process.process.pid)
        assert not [n for n in names if "deleted" in n or "memfd" in n]


def test_the_drain_waits_for_a_body(tmp_path: Path) -> None:
    with serving(tmp_path, APPLICATION, PKG_DRAIN_DELAY="0s") as process:
        body = pattern(400_000)
        client = dial(process, head(None) + b"%x\r\n" % len(body) + body[:200_000])
        time.sleep(0.3)
        process.process.terminate()
        time.sleep(0.5)
        client.sendall(body[200_000:] + b"\r\n0\r\n\r\n")
        assert answer(client) == (200, digest(body))
        client.close()
        assert process.process.wait(20) == 0


def test_a_forked_child_keeps_no_body(tmp_path: Path) -> None:
    application = """
import os

def link(number):
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return ""  # that of the listing itself

def app(environ, start_response):
    length = int(environ.get("CONTENT_LENGTH") or 0)
    body = environ["wsgi.input"].read(length)
    names = ""
    if environ["PATH_INFO"] == "/fork":
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            links = [link(n) for n in os.listdir("/proc/self/fd")]
            os.write(write, repr([name for name in links if "deleted" in name]).encode())
            os._exit(0)
        os.close(write)
        names = os.read(read, 10000).decode()
        os.waitpid(pid, 0)
        os.close(read)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{len(body)} {names}".encode()]
"""
    with serving(tmp_path, application, TMPDIR=str(tmp_path)) as process:
        slow = dial(process, head(None) + b"40000\r\n" + b"z" * 0x30000)
        wait_for(lambda: counter("pkg_spool_bytes") > 0, 10, "a body is being spooled")
        assert get(process.address, "/fork").body == b"0 []"
        slow.sendall(b"z" * 0x10000 + b"\r\n0\r\n\r\n")
        assert answer(slow) == (200, "262144 ")
        slow.close()
