"""Connections that make the server wait give way to those with a request, once max_connections is reached."""

from __future__ import annotations

from pathlib import Path

from tests.support.client import Connection, get, wait_for
from tests.support.processes import running

APPLICATION = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def test_a_request_displaces_silent_connections_before_kept_alive_ones(tmp_path: Path) -> None:
    with running(tmp_path, APPLICATION, PKG_MAX_CONNECTIONS="20") as process:
        kept = [Connection(process.address) for _ in range(5)]
        for c in kept:
            assert c.request("GET", "/").status == 200
        silent = [Connection(process.address) for _ in range(15)]
        for _ in range(20):  # each leaves again
            answer = get(process.address, "/", "Connection: close\r\n")
            assert answer.status == 200
        for c in kept:  # nobody who had sent a request was displaced
            assert c.request("GET", "/").status == 200
        assert silent[0].is_closed()
        for c in kept + silent:
            c.close()


def test_the_longest_idle_connection_is_displaced_where_none_is_silent(tmp_path: Path) -> None:
    with running(tmp_path, APPLICATION, PKG_MAX_CONNECTIONS="5") as process:
        kept = [Connection(process.address) for _ in range(5)]
        for c in kept:
            assert c.request("GET", "/").status == 200
        with Connection(process.address) as late:
            assert late.request("GET", "/").status == 200
            assert late.request("GET", "/").status == 200  # it has taken the place for good
            assert kept[0].is_closed()
            assert kept[4].request("GET", "/").status == 200
        for c in kept:
            c.close()


def test_a_part_of_a_request_displaces_nobody(tmp_path: Path) -> None:
    with running(tmp_path, APPLICATION, PKG_MAX_CONNECTIONS="5") as process:
        kept = [Connection(process.address) for _ in range(5)]
        for c in kept:
            assert c.request("GET", "/").status == 200
        slow = [Connection(process.address) for _ in range(5)]
        for c in slow:
            c.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        for c in kept:
            assert c.request("GET", "/").status == 200
        slow[0].send(b"67890")  # now it is a whole one
        assert slow[0].receive().status == 200
        assert kept[0].is_closed()
        for c in kept + slow:
            c.close()


def test_half_a_body_gives_way_and_is_told_why(tmp_path: Path) -> None:
    with running(tmp_path, APPLICATION, PKG_MAX_CONNECTIONS="1") as process, Connection(process.address) as slow:
        slow.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        assert get(process.address, "/healthz").status == 200  # by now it has been read
        assert get(process.address, "/").status == 200
        answer = slow.receive()
        assert (answer.status, answer.body) == (503, b"too many connections\n")
        assert slow.is_closed()


def test_a_body_that_is_being_spooled_gives_way(tmp_path: Path) -> None:
    with running(tmp_path, APPLICATION, PKG_MAX_CONNECTIONS="1") as process, Connection(process.address) as slow:
        slow.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n20000\r\n" + bytes(100_000))
        wait_for(lambda: get(process.address, "/").status == 200, 10, "the body to be in the spool's hands")
        answer = slow.receive()
        assert (answer.status, answer.body) == (503, b"too many connections\n")


def test_who_has_been_refused_holds_no_place(tmp_path: Path) -> None:
    with running(tmp_path, APPLICATION, PKG_MAX_CONNECTIONS="3") as process:
        refused = [Connection(process.address) for _ in range(10)]
        for c in refused:
            c.send(b"nonsense\r\n\r\n")
            assert c.receive().status == 400
        kept = [Connection(process.address) for _ in range(3)]  # while those are read on
        for _ in range(2):
            for c in kept:
                assert c.request("GET", "/").status == 200
        for c in kept + refused:
            c.close()
