"""OpenTelemetry's agent in an image of a user's own, on ours: the example, built, run, and what a collector gets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.image.conftest import needed
from tests.image.engine import ROOT, Engine
from tests.support.client import get
from tests.support.collector import collecting
from tests.support.faults.postgres import Postgres

EXAMPLE = ROOT / "examples/opentelemetry"
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture(scope="module")
def traced_image(engine: Engine, image: str, builder_image: str) -> str:
    return engine.build_on(image, builder_image, EXAMPLE, "traced")


@pytest.mark.long  # because of what pip installs
def test_the_agent_needs_no_code(engine: Engine, traced_image: str, postgres: Postgres) -> None:
    """Spans and logs go to the collector, also in the drain; health probes and readiness checks make no spans."""
    logs = needed("opentelemetry.proto.collector.logs.v1.logs_service_pb2").ExportLogsServiceRequest
    spans = needed("opentelemetry.proto.collector.trace.v1.trace_service_pb2").ExportTraceServiceRequest
    with collecting() as (port, received):
        environment = {"DATABASE_URL": postgres.url, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
        environment["PKG_DRAIN_DELAY"] = "0"
        # The process has 62 MB with the agent.
        with engine.container(traced_image, environment=environment, flags=("--memory=128m",)) as container:
            container.wait_until("/readyz", 200)
            header = f"traceparent: 00-{TRACE}-{SPAN}-01\r\nX-Request-Id: seven\r\n"
            assert get(("127.0.0.1", container.port), "/", header).status == 200
            container.signal("TERM")
            assert container.wait() == 0
            lines = [json.loads(line) for line in container.log().splitlines() if line.startswith("{")]

    def sent(path: str, message: Any, *levels: str) -> list[Any]:
        found: list[Any] = [message.FromString(data) for to, data in received if to == path]
        for level in levels:
            found = [inner for outer in found for inner in getattr(outer, level)]
        return found

    (span,) = sent("/v1/traces", spans, "resource_spans", "scope_spans", "spans")
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("GET /", TRACE, SPAN)
    attributes = {attribute.key: attribute.value for attribute in span.attributes}
    assert attributes["http.request.header.x_request_id"].array_value.values[0].string_value == "seven"
    records = {r.body.string_value: r for r in sent("/v1/logs", logs, "resource_logs", "scope_logs", "log_records")}
    (line,) = (line for line in lines if line["message"] == "in the view")
    assert records["in the view"].trace_id.hex() == line["trace_id"] == TRACE
    assert records["in the view"].span_id.hex() == line["span_id"] == span.span_id.hex()
    assert line["request_id"] == "seven"
    assert any(text.startswith("draining after SIGTERM") for text in records)
