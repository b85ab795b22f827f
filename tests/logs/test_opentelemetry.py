"""OpenTelemetry's agent, and its SDK in code, with a collector: the ids of spans are those of the log."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import get, wait_for
from tests.support.collector import Received, collecting
from tests.support.faults.postgres import Postgres
from tests.support.pages import files_of
from tests.support.ports import free_port
from tests.support.processes import running

ROOT = Path(__file__).parents[2]
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[tuple[int, Received]]:
    with collecting() as found:
        yield found


@contextmanager
def instrumented(folder: Path, collector: int, source: str, **environ: str) -> Iterator[tuple[str, int]]:
    """`opentelemetry-instrument python -m pkg`, to its end; its address.  Its log is the file `out`."""
    (folder / "application.py").write_text(source)
    own_port = free_port()
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PORT": str(own_port),
        "HOST": "127.0.0.1",
        "LOG_FORMAT": "json",
        "PKG_ADMIN": "off",
        "PKG_DRAIN_DELAY": "0",
        "OTEL_SERVICE_NAME": "shop",
        "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector}",
        "OTEL_LOGS_EXPORTER": "otlp",
        "OTEL_TRACES_EXPORTER": "otlp",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_PYTHON_LOGGING_AUTO_INSTRUMENTATION_ENABLED": "true",
        "OTEL_BLRP_SCHEDULE_DELAY": "100",
        "NO_PROXY": "127.0.0.1",
        **environ,
    }
    agent, out = Path(sys.executable).with_name("opentelemetry-instrument"), folder / "out"
    with open(out, "wb") as file, open(folder / "err", "wb") as err:
        command = [sys.executable, str(agent), sys.executable, "-m", "pkg", "application:app"]
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=file, stderr=err)
    try:
        wait_for(lambda: "serving application:app" in out.read_text(), 40, "the service")
        yield "127.0.0.1", own_port
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()


def test_opentelemetrys_agent_exports_logs_with_the_ids_of_its_spans(
    tmp_path: Path, collector: tuple[int, Received]
) -> None:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    source = """
from flask import Flask
app = Flask(__name__)
@app.route("/")
def view():
    app.logger.warning("in the view")
    return "hi"
"""
    port, received = collector
    with instrumented(tmp_path, port, source) as address:
        assert get(address, "/", f"traceparent: 00-{TRACE}-{SPAN}-01\r\n").status == 200

        def exported() -> Any:
            for path, data in list(received):
                if path == "/v1/logs":
                    for resource in ExportLogsServiceRequest.FromString(data).resource_logs:
                        for scope in resource.scope_logs:
                            for record in scope.log_records:
                                if record.body.string_value == "in the view":
                                    return record
            return None

        record = wait_for(exported, 20, "the record at the collector")
    lines = [json.loads(line) for line in (tmp_path / "out").read_text().splitlines()]
    [line] = [line for line in lines if line["message"] == "in the view"]
    assert record.trace_id.hex() == line["trace_id"] == TRACE
    # The span that was active, not the caller's.
    assert record.span_id.hex() == line["span_id"] != SPAN


def spans(received: Received) -> list[Any]:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    exported = [ExportTraceServiceRequest.FromString(data) for path, data in received if path == "/v1/traces"]
    return [s for e in exported for r in e.resource_spans for scope in r.scope_spans for s in scope.spans]


def test_readiness_checks_make_no_spans(tmp_path: Path, collector: tuple[int, Received]) -> None:
    """Although psycopg is instrumented, and a query of a request has one."""
    pytest.importorskip("opentelemetry.instrumentation.psycopg")
    source = """
from flask import Flask
import pkg
app = Flask(__name__)
@app.route("/")
def view():
    with pkg.connection() as connection:
        return str(connection.execute("SELECT 42").fetchone()[0])
"""
    port, received = collector
    with Postgres() as postgres, instrumented(tmp_path, port, source, DATABASE_URL=postgres.url) as address:
        wait_for(lambda: get(address, "/readyz").status == 200, 20, "readiness, which a check has to bring about")
        assert get(address, "/").body == b"42"
    assert sorted(span.name for span in spans(received)) == ["GET /", "SELECT"]


def test_spans_of_the_sdk_in_code(tmp_path: Path, collector: tuple[int, Received]) -> None:
    """The page's application: one span for a request, none for probes, and nothing lost at the end."""
    port, received = collector
    source = files_of(ROOT / "docs" / "logs-and-metrics.md")["traced.py"]
    environ = {"OTEL_SERVICE_NAME": "shop", "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
    with running(tmp_path, source, **environ, NO_PROXY="127.0.0.1", PKG_ADMIN="off") as process:
        for path in ("/healthz", "/readyz", "/"):
            answer = get(process.address, path, f"traceparent: 00-{TRACE}-{SPAN}-01\r\n")
            assert answer.status == 200
        assert process.stop(signal.SIGTERM) == 0
        [line] = [line for line in process.lines() if line["message"] == "in the view"]
        [access] = [line for line in process.lines() if line["logger"] == "pkg.access"]
    [span] = spans(received)
    assert span.name == "GET /" and span.parent_span_id.hex() == SPAN
    assert span.trace_id.hex() == line["trace_id"] == access["trace_id"] == TRACE
    assert span.span_id.hex() == line["span_id"]
    attributes = {attribute.key: attribute.value.string_value for attribute in span.attributes}
    assert attributes["request_id"] == access["request_id"] == answer.header("x-request-id")
