"""Exemplars: the trace of a request in each bucket of how long requests take.

That Prometheus takes them is shown in tests/prometheus/test_overlay.py.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics import parser

from tests.support.client import wait_for
from tests.support.ports import free_port
from tests.support.processes import Process, ask, running

DURATION = "http_server_request_duration_seconds"
WSGI = """
import time

def app(environ, start_response):
    time.sleep(float(environ["QUERY_STRING"] or 0))
    start_response("500 Oh" if environ["PATH_INFO"] == "/fails" else "200 OK", [])
    return [b"ok"]
"""
ASGI = """
import asyncio

async def app(scope, receive, send):
    await asyncio.sleep(float(scope["query_string"] or 0))
    await send({"type": "http.response.start", "status": 500 if scope["path"] == "/fails" else 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""


def trace(number: int) -> str:
    return f"{number:032x}"


def send(process: Process, target: str, number: int, flags: str = "01") -> int:
    return ask(process.address, target, traceparent=f"00-{trace(number)}-{1:016x}-{flags}")[0]


def exemplars(port: int) -> dict[tuple[str, str], Any]:
    """By status and bucket."""
    text = ask(("127.0.0.1", port), "/metrics", accept="application/openmetrics-text")[2]
    (family,) = (f for f in parser.text_string_to_metric_families(text) if f.name == DURATION)
    return {
        (sample.labels["http_response_status_code"], sample.labels["le"]): sample.exemplar
        for sample in family.samples
        if sample.exemplar is not None
    }


@pytest.mark.parametrize("source, interface", [(WSGI, "wsgi"), (ASGI, "asgi")])
def test_each_bucket_has_the_last_trace(tmp_path: Path, source: str, interface: str) -> None:
    port = free_port()
    environ = {"PKG_ADMIN": f"127.0.0.1:{port}", "PKG_INTERFACE": interface, "PKG_REQUEST_TIMEOUT": "1s"}
    with running(tmp_path, source, **environ) as process:
        begin = time.time()
        assert ask(process.address, "/")[0] == 200
        assert send(process, "/", 1, flags="00") == 200
        assert ask(process.address, "/", traceparent="nonsense")[0] == 200
        text = ask(("127.0.0.1", port), "/metrics", accept="application/openmetrics-text")[2]
        assert "# {" not in text, "of a request without a sampled trace"
        assert [send(process, "/?0.11", 2), send(process, "/?0.12", 3), send(process, "/fails?0.13", 4)] == [
            200,
            200,
            500,
        ]
        assert send(process, "/?1.2", 5) == 504

        found = wait_for(lambda: len(here := exemplars(port)) >= 3 and here, 10)
        assert {key: e.labels for key, e in found.items()} == {
            ("200", "0.25"): {"trace_id": trace(3)},
            ("500", "0.25"): {"trace_id": trace(4)},
            ("504", "2.5"): {"trace_id": trace(5)},
        }
        for (_, bound), exemplar in found.items():
            assert 0.11 <= exemplar.value <= float(bound)
            assert begin - 0.01 <= float(exemplar.timestamp) <= time.time() + 0.01
        assert "# {" not in ask(("127.0.0.1", port), "/metrics")[2], "the text format has none"
