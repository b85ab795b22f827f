"""What records, pages and metrics say is so: sizes, ids, counts, exceptions that nobody has caught."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pkg._core import Counters
from pkg.diagnostics.metrics import Exposition
from pkg.diagnostics.snapshot import _of_past
from pkg.logs.sink import LogLines
from tests.support.client import Connection, get
from tests.support.ports import free_port
from tests.support.processes import ask, running

TRACE = "0af7651916cd43dd8448eb211c80319c"
OTHER = "1af7651916cd43dd8448eb211c80319c"


def accesses(process: Any) -> list[dict[str, Any]]:
    return [line for line in process.lines() if line["logger"] == "pkg.access"]


def test_the_size_of_a_chunked_body(tmp_path: Path) -> None:
    """Whole when the request begins, or read as it comes; rendered in C, or in Python where it needs escapes."""
    source = """
def app(environ, start_response):
    size = len(environ["wsgi.input"].read())
    start_response("200 OK", [("Content-Length", "0"), ("X-Size", str(size))])
    return []
"""
    sizes = []
    with running(tmp_path, source, PKG_ADMIN="off", PKG_BODY_BUFFER_SIZE="1KiB") as process:
        for agent in ("plain", 'to be "escaped"'):
            for size in (10, 100_000):
                with Connection(process.address) as connection:
                    head = f"POST / HTTP/1.1\r\nHost: x\r\nUser-Agent: {agent}\r\n"
                    head += f"Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n"
                    connection.send(head.encode() + b"x" * size + b"\r\n0\r\n\r\n")
                    assert connection.receive().header("x-size") == str(size)
                    sizes.append(size)
        assert process.stop() == 0
        found = [line["http.request.body.size"] for line in accesses(process)]
    assert found == sizes


@pytest.mark.parametrize(
    ("lines", "trace"),
    [
        ((TRACE,), TRACE),
        ((TRACE, OTHER), None),
        ((TRACE, TRACE), None),
    ],
)
def test_two_traceparent_lines_count_as_none(tmp_path: Path, lines: tuple[str, ...], trace: str | None) -> None:
    source = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return []\n"
    headers = "".join(f"traceparent: 00-{line}-b7ad6b7169203331-01\r\n" for line in lines)
    with running(tmp_path, source, PKG_ADMIN="off") as process:
        assert get(process.address, "/", headers).status == 200
        assert process.stop() == 0
        assert accesses(process)[0].get("trace_id") == trace


def test_uncaught_exceptions_are_records(tmp_path: Path) -> None:
    source = """
import threading
class Broken(Exception):
    def __str__(self):
        raise RuntimeError("no text")
class Finalized:
    def __del__(self):
        raise ValueError("in a finalizer")
def fails():
    raise Broken
def app(environ, start_response):
    thread = threading.Thread(target=fails, name="mine")
    thread.start()
    thread.join()
    del thread
    Finalized()
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""
    with running(tmp_path, source, PKG_ADMIN="off") as process:
        assert get(process.address, "/").status == 200
        assert process.stop() == 0
        of_thread = next(x for x in process.lines() if x["message"] == "an uncaught exception ended the thread mine")
        of_finalizer = next(x for x in process.lines() if x.get("exception.message") == "in a finalizer")
        assert process.errors() == ""
    assert of_thread["exception.type"] == "application.Broken"
    assert "in fails" in of_thread["exception.stacktrace"]
    assert of_finalizer["logger"] == of_thread["logger"] == "pkg.uncaught"


def test_threads_of_the_application_are_no_workers(tmp_path: Path) -> None:
    source = """
import threading, time
for n in range(5):
    threading.Thread(target=time.sleep, args=(60,), name=f"worker-{n}", daemon=True).start()
def app(environ, start_response):
    start_response("200 OK", [])
    return []
"""
    port = free_port()
    with running(tmp_path, source, PKG_ADMIN=f"127.0.0.1:{port}", PKG_THREADS="2"):
        document = json.loads(ask(("127.0.0.1", port), "/statusz?format=json")[2])
    assert document["workers"]["alive"] == 2


def test_large_counts_are_written_in_full() -> None:
    front = Counters(**dict.fromkeys(Counters._fields, 0) | {"stale": 1234567})  # type: ignore[arg-type]
    past = SimpleNamespace(front=front, logs=LogLines(0, 7654321, 0))
    texts = [finding.text for finding in _of_past(past)]  # type: ignore[arg-type]
    assert texts[0].startswith("1234567 probes ") and texts[1].startswith("7654321 log lines ")


@pytest.mark.parametrize(
    ("accept", "is_json"),
    [
        ("application/json", True),
        ("text/plain, APPLICATION/health+json ; q=0.5", True),
        ("application/json;q=0", False),
        ("application/json; q=0.000, text/plain", False),
        ("application/json;q=0.001", True),
        ("application/json;q=0, application/health+json", True),
        ("application/jsonlines", False),
    ],
)
def test_a_quality_of_0_refuses(tmp_path_factory: pytest.TempPathFactory, accept: str, is_json: bool) -> None:
    port = free_port()
    source = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return []\n"
    with running(tmp_path_factory.mktemp("accept"), source, PKG_ADMIN=f"127.0.0.1:{port}") as process:
        answer = get(process.address, "/readyz", f"Accept: {accept}\r\n")
        assert ("json" in (answer.header("content-type") or "")) == is_json
        if "health" not in accept:
            _, headers, _ = ask(("127.0.0.1", port), "/statusz", Accept=accept)
            assert ("json" in headers["content-type"]) == is_json


def test_labels_leave_the_terminal_alone() -> None:
    page = Exposition()
    page.family("x", "gauge", "y", [("", {"name": "a\x1b[31m\u202e\x9b"}, 1)])
    assert page.text().splitlines()[-1] == r'x{name="a\\x1b[31m\\u202e\\x9b"} 1'
