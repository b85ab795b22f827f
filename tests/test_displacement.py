"""Connections that say nothing give way to those with a request, once max_connections is reached."""

from __future__ import annotations

from pathlib import Path

from tests.client import Connection, get
from tests.processes import running

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
