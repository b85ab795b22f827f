"""What an application sees of a request in a worker process, and its access record, are those of a single process."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.support.ports import free_port
from tests.support.processes import running

WSGI = """
import json
def app(environ, start_response):
    plain = (str, bool, tuple)
    seen = {key: value if isinstance(value, plain) else type(value).__name__ for key, value in environ.items()}
    start_response("200 OK", [])
    return [json.dumps(seen).encode()]
"""
ASGI = """
import json
async def app(scope, receive, send):
    seen = {key: repr(value) for key, value in scope.items()}
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": json.dumps(seen).encode()})
"""
HANDLER = """
import json
from http.server import BaseHTTPRequestHandler
class app(BaseHTTPRequestHandler):
    def do_GET(self):
        seen = {"client": str(self.client_address), "name": self.connection.getsockname()}
        seen["version"] = self.request_version
        seen |= {name: getattr(self.server, name) for name in ("server_address", "server_name", "server_port")}
        seen["families"] = int(self.server.address_family), int(self.connection.family)
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
"""
TRUSTED = "X-Forwarded-For: 203.0.113.9:99\r\nX-Forwarded-Proto: https\r\n"


def exchange(address: Any, request: str) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as client:
        client.settimeout(10)
        client.connect(address)
        client.sendall(request.encode())
        with client.makefile("rb") as file:
            seen: dict[str, Any] = json.loads(file.read().partition(b"\r\n\r\n")[2])
    seen.pop("REMOTE_PORT", None)
    return seen | {"client": re.sub(r"\('127.0.0.1', \d+\)", "a port", seen.get("client", ""))}


def observe(directory: Path, source: str, ports: tuple[int, int], workers: int) -> tuple[list[Any], list[Any]]:
    """What the application has seen of each request, and the access records."""
    directory.mkdir()
    unix = f"{directory.parent}/s"
    listen = f"127.0.0.1:{ports[0]},127.0.0.1:{ports[1]},unix:{unix}"
    environ = {"WEB_CONCURRENCY": str(workers), "PKG_LISTEN": listen, "PKG_TRUSTED_PROXIES": "127.0.0.1/32,unix"}
    seen = []
    with running(directory, source, **environ) as process:
        for address in (*(("127.0.0.1", port) for port in ports), unix):
            for version in ("1.0", "1.1"):
                for fields in ("", TRUSTED):
                    head = f"GET /a%20b?c HTTP/{version}\r\nHost: a.example:81\r\nConnection: close\r\n{fields}\r\n"
                    seen.append(exchange(address, head))
        assert process.stop() == 0
        records = [record for record in process.lines() if record["logger"] == "pkg.access"]
    for record in records:
        for key in ("timestamp", "duration", "request_id", "trace_id", "span_id", "http.response.body.size"):
            record[key] = bool(record.get(key))
    return seen, sorted(records, key=str)


@pytest.mark.parametrize("source", [WSGI, ASGI, HANDLER], ids=["wsgi", "asgi", "handler"])
def test_a_request_looks_the_same(tmp_path: Path, source: str) -> None:
    ports = free_port(), free_port()
    one, two = (observe(tmp_path / str(workers), source, ports, workers) for workers in (0, 2))
    if source is WSGI:
        assert {seen.pop("wsgi.multiprocess") for seen in one[0]} == {False}
        assert {seen.pop("wsgi.multiprocess") for seen in two[0]} == {True}
    assert two == one
    names = {f"127.0.0.1:{port}" for port in ports} | {f"unix:{tmp_path}/s"}
    assert {record["listener"] for record in two[1]} == names
    assert {record["client.address"] for record in two[1]} == {"127.0.0.1", "203.0.113.9", ""}
