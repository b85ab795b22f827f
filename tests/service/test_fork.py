"""Processes that the application forks: what was opened before is the parent's, and the child ends as it should."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from tests.support.client import Connection, get, wait_for
from tests.support.faults.postgres import Postgres
from tests.support.ports import free_port
from tests.support.processes import ask, running

APPLICATION = """
import multiprocessing, os, sys, time
import pkg

serving = os.getpid()

def ends(environ, start_response, how):
    # Others queue up behind this request: there is one worker.
    time.sleep(0.3)
    child = os.fork()
    if child == 0:
        if how == "raise":
            raise ValueError("in the child")
        if how == "exit":
            sys.exit(7)
        start_response("200 OK", [("Content-Length", "6")])
        return [b"CHILD!"]
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return answer(start_response, str(code))

def answer(start_response, text):
    start_response("200 OK", [("Content-Length", str(len(text)))])
    return [text.encode()]

def lives(cut):
    child = os.fork()
    if child == 0:
        time.sleep(600)
        os._exit(0)
    yield str(child).encode()
    if cut:
        raise ValueError("cut off")

def use(results):
    try:
        with pkg.connection(timeout=2) as conn:
            results.put(f"got {conn.execute('select 1').fetchone()}")
    except Exception as error:
        results.put(type(error).__name__)

def inside(results, conn):
    try:
        results.put(f"got {conn.execute('select 1').fetchone()}")
    except Exception as error:
        results.put(type(error).__name__)
    conn.close()

def database(start_response):
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    said = []
    with pkg.connection(timeout=10) as conn:
        for child in context.Process(target=use, args=(results,)), context.Process(target=inside, args=(results, conn)):
            child.start()
            said.append(results.get())
            child.join()
            said.append(str(child.exitcode))
        child = os.fork()
        if child == 0:
            try:
                conn.__exit__(None, None, None)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        said.append(str(conn.execute("select 41 + 1").fetchone()[0]))
    child = os.fork()
    if child == 0:
        import gc
        gc.collect()
        sys.exit()
    os.waitpid(child, 0)
    for n in range(20):
        with pkg.connection(timeout=10) as conn:
            assert conn.execute("select %s::int", [n]).fetchone()[0] == n
    return answer(start_response, " ".join(said))

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path.startswith("/ends/"):
        return ends(environ, start_response, path.removeprefix("/ends/"))
    if path in ("/lives", "/cut"):
        start_response("200 OK", [] if path == "/lives" else [("Content-Length", "1000")])
        return lives(path == "/cut")
    if path == "/database":
        return database(start_response)
    return answer(start_response, "parent" if os.getpid() == serving else "CHILD!")
"""

ENDS = {"raise": "1", "exit": "7", "goes_on": "0"}


@pytest.mark.parametrize("how", ENDS)
def test_a_child_that_leaves_its_handler_ends(tmp_path: Path, how: str) -> None:
    with (
        running(tmp_path, APPLICATION, PKG_THREADS="1") as p,
        Connection(p.address) as forker,
        Connection(p.address) as other,
    ):
        forker.send(f"GET /ends/{how} HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        other.send(b"GET /other HTTP/1.1\r\nHost: t\r\n\r\n")
        # One answer each, the parent's; a second one would come ahead of that to the next request.
        assert forker.receive().body.decode() == ENDS[how]
        assert other.receive().body == b"parent"
        for connection in (forker, other):
            connection.send(b"GET /again HTTP/1.1\r\nHost: t\r\n\r\n")
            assert connection.receive().body == b"parent"
        assert ("ValueError: in the child" in p.errors()) == (how == "raise")
        assert p.stop() == 0


@pytest.mark.parametrize("path", ["/lives", "/cut"])
def test_the_end_of_a_response_does_not_wait_for_a_child(tmp_path: Path, path: str) -> None:
    with running(tmp_path, APPLICATION) as p, socket.create_connection(p.address, timeout=20) as client:
        version = b"HTTP/1.0" if path == "/lives" else b"HTTP/1.1"
        client.sendall(b"GET %s %s\r\nHost: t\r\n\r\n" % (path.encode(), version))
        received, ended = b"", ""
        while not ended:
            try:
                part = client.recv(65536)
                received, ended = received + part, "" if part else "closed"
            except ConnectionResetError:
                ended = "reset"
        child = int(received.rpartition(b"\r\n\r\n")[2])
        os.kill(child, 0)  # it lives
        try:
            assert ended == ("closed" if path == "/lives" else "reset")
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_child_that_lives_keeps_no_port(tmp_path: Path) -> None:
    admin = ("127.0.0.1", free_port())
    with running(tmp_path, APPLICATION, PKG_ADMIN=f"{admin[0]}:{admin[1]}") as p:
        assert ask(admin, "/metrics")[0] == 200
        child = int(ask(p.address, "/lives")[2])
        try:
            assert p.stop() == 0
            os.kill(child, 0)
            for address in (p.address, admin):
                with socket.socket() as s:
                    s.setsockopt(
                        socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
                    )  # for what is in TIME-WAIT; no listener may be
                    s.bind(address)
                    s.listen()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_child_gets_no_connection_and_leaves_the_parents_alone(tmp_path: Path) -> None:
    with Postgres() as server, running(tmp_path, APPLICATION, DATABASE_URL=server.url, PKG_THREADS="2") as p:
        wait_for(lambda: get(p.address, "/readyz").status == 200)
        for _ in range(3):
            status, _, text = ask(p.address, "/database", timeout=60)
            assert (status, text) == (200, "NotRunningError 0 OperationalError 0 42"), p.errors()
        assert p.stop() == 0


FORKS_AT_IMPORT = """
import os
child = os.fork()
if child == 0 and "{how}" == "raise":
    raise ValueError("in the child")
if child:
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "1")])
    return [str(code).encode()]
"""


@pytest.mark.parametrize(("how", "code"), [("raise", "1"), ("goes_on", "0")])
def test_a_child_of_the_import_does_not_serve(tmp_path: Path, how: str, code: str) -> None:
    with running(tmp_path, FORKS_AT_IMPORT.replace("{how}", how)) as p:
        assert ask(p.address, "/")[2] == code
        assert p.stop() == 0


PROBES = """
import os, sys
import pkg

codes = []

@pkg.check("forks", interval=0.2)
def forks():
    child = os.fork()
    if child == 0:
        sys.exit(5)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

def app(environ, start_response):
    text = ",".join(map(str, codes[:2])).encode()
    start_response("200 OK", [("Content-Length", str(len(text)))])
    return [text]
"""


def test_a_child_of_a_check_does_not_check(tmp_path: Path) -> None:
    with running(tmp_path, PROBES) as p:
        wait_for(lambda: ask(p.address, "/")[2] == "5,5")
        assert p.stop() == 0
