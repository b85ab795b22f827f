"""log_schema: lines of the real process whose fields have the names that a collector knows, read as it reads them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import ecs_logging
import pytest
from google.logging.type.http_request_pb2 import HttpRequest
from google.protobuf import json_format

from tests.support.client import get, wait_for
from tests.support.load import is_listening
from tests.support.ports import free_port
from tests.support.processes import Process, running

APPLICATION = """
import logging
log = logging.getLogger("shop")
def app(environ, start_response):
    if environ["PATH_INFO"] == "/broken":
        raise ValueError("no such article")
    more = {"article": 4711, "time": "noon", "@timestamp": "noon", "timestamp": "noon"}
    log.warning("stock is %s", "low", extra=more)
    start_response("200 OK", [("Content-Length", "6")])
    return [b"orders"]
"""
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
HEADERS = f"traceparent: 00-{TRACE}-{SPAN}-01\r\nX-Request-Id: mine\r\nUser-Agent: "


def run(folder: Path, schema: str, **environ: str) -> tuple[Process, list[dict[str, Any]]]:
    """All lines of a service that has answered /order twice, once rendered in C and once in Python, and /broken."""
    with running(folder, APPLICATION, PKG_ADMIN="off", PKG_LOG_SCHEMA=schema, **environ) as process:
        for target, agent in (("/order?secret", "curl/8"), ("/order?secret", 'a "quoted" one'), ("/broken", "curl/8")):
            get(process.address, target, f"{HEADERS}{agent}\r\n")
        assert process.stop() == 0
        return process, process.lines()


def only(lines: list[dict[str, Any]], name: str, logger: str, message: str = "") -> list[dict[str, Any]]:
    return [line for line in lines if line.get(name) == logger and line["message"].startswith(message)]


def test_google_cloud_reads_the_request_and_the_trace(tmp_path: Path) -> None:
    _, lines = run(tmp_path, "gcp", GOOGLE_CLOUD_PROJECT="shop-1234")
    assert all(list(line)[:4] == ["time", "severity", "message", "logger"] for line in lines)
    plain, escaped, broken = only(lines, "logger", "pkg.access")
    for line, agent in ((plain, "curl/8"), (escaped, 'a "quoted" one')):
        request = json_format.ParseDict(line["httpRequest"], HttpRequest())  # raises for a name that it does not know
        assert (request.request_method, request.request_url, request.status) == ("GET", "/order", 200)
        assert (request.request_size, request.response_size, request.remote_ip) == (0, 6, "127.0.0.1")
        assert request.user_agent == agent and 0 < request.latency.ToMicroseconds() < 60e6
        assert line["logging.googleapis.com/trace"] == f"projects/shop-1234/traces/{TRACE}"
        assert len(line["logging.googleapis.com/spanId"]) == 16 and line["request_id"] == "mine"
        assert line["severity"] == "INFO"
    assert broken["severity"] == "ERROR" and broken["httpRequest"]["status"] == 500
    (failed,) = only(lines, "logger", "pkg.server")
    assert failed["stack_trace"].endswith("ValueError: no such article")
    warning = only(lines, "logger", "shop")[0]
    assert warning["logging.googleapis.com/trace"] == f"projects/shop-1234/traces/{TRACE}"
    assert (warning["article"], warning["extra.time"], warning["timestamp"]) == (4711, "noon", "noon")


@pytest.mark.parametrize("project", [None, "", 'no "project"'])
def test_a_trace_without_its_project(tmp_path: Path, project: str | None) -> None:
    environ = {} if project is None else {"GOOGLE_CLOUD_PROJECT": project}
    _, lines = run(tmp_path, "gcp", **environ)
    assert {line["logging.googleapis.com/trace"] for line in only(lines, "logger", "pkg.access")} == {TRACE}


def flat(record: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A record of ecs-logging, which nests some of the names that have dots."""
    found: dict[str, Any] = {}
    for name, value in record.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def test_the_elastic_common_schema(tmp_path: Path) -> None:
    _, lines = run(tmp_path, "ecs")
    first = ["@timestamp", "log.level", "message", "ecs.version", "log.logger"]
    assert all(list(line)[:5] == first for line in lines)
    plain, escaped, broken = only(lines, "log.logger", "pkg.access")
    for line, agent in ((plain, "curl/8"), (escaped, 'a "quoted" one')):
        assert line["log.level"] == "info" and 0 < line["event.duration"] < 60e9
        assert (line["http.request.method"], line["url.path"], line["http.response.status_code"]) == (
            "GET",
            "/order",
            200,
        )
        assert (line["http.request.body.bytes"], line["http.response.body.bytes"]) == (0, 6)
        assert (line["client.address"], line["user_agent.original"]) == ("127.0.0.1", agent)
        assert (line["trace.id"], len(line["span.id"]), line["http.request.id"]) == (TRACE, 16, "mine")
    assert broken["log.level"] == "error"
    (failed,) = only(lines, "log.logger", "pkg.server")
    theirs = flat(json.loads(ecs_logging.StdlibFormatter().format(of("pkg.server", logging.ERROR))))
    for name in ("log.level", "log.logger", "error.type", "error.message"):
        assert failed[name] == theirs[name]
    assert "error.stack_trace" in theirs and list(theirs)[:4] == first[:4]
    assert failed["error.stack_trace"].endswith("ValueError: no such article")
    warning = only(lines, "log.logger", "shop")[0]
    assert (warning["article"], warning["extra.@timestamp"], warning["time"]) == (4711, "noon", "noon")


def of(logger: str, level: int) -> logging.LogRecord:
    """A record of the same exception, made here."""
    try:
        raise ValueError("no such article")
    except ValueError as error:
        return logging.LogRecord(logger, level, __file__, 1, "failed", (), (type(error), error, error.__traceback__))


def test_text_has_no_schema(tmp_path: Path) -> None:
    port = free_port()
    with running(
        tmp_path, APPLICATION, PKG_ADMIN="off", PKG_LOG_SCHEMA="ecs", LOG_FORMAT="text", PORT=str(port), ready=False
    ) as process:
        wait_for(lambda: is_listening(port))
        get(("127.0.0.1", port), "/order", f"{HEADERS}curl/8\r\n")
        assert process.stop() == 0
    text = (tmp_path / "stdout").read_text()
    assert "pkg.access: GET /order 200 " in text and "log.level" not in text
