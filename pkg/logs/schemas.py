"""The names of the fields of a JSON line: OpenTelemetry's, or those to which a collector gives a meaning of its own.

    gcp    Google Cloud's structured logging (cloud.google.com/logging/docs/structured-logging): its agents make them a
           LogEntry with time, severity, request and trace; Error Reporting reads `stack_trace`
    ecs    the Elastic Common Schema, as ecs-logging writes it: dotted names, levels in lower case, nanoseconds

It is data only: `records` renders.  ext/http/access_record.c has the names of access records once more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["ECS", "GCP", "OTEL", "Schema", "schema_of"]


class Schema(NamedTuple):
    number: int
    """As in `enum access_record_schema`."""
    begin: str
    """The members that each line begins with, for str.format(): at, severity, message, logger."""
    first: frozenset[str]
    """The names of these."""
    access: str
    """Those of an access record that follow: method, path, status, duration in seconds, nanoseconds, received, sent,
    client, agent (a whole member, or nothing)."""
    agent: str
    names: Mapping[str, str] = {}
    """Other fields that OpenTelemetry calls otherwise, by its names."""
    lowers: bool = False
    """Whether severities are in lower case."""
    trace_prefix: str = ""
    """What comes before a trace id."""

    def name(self, name: str) -> str:
        return self.names.get(name, name)


OTEL = Schema(
    number=0,
    begin='{{"timestamp":"{at}","severity":{severity},"message":{message},"logger":{logger}',
    first=frozenset(("timestamp", "severity", "message", "logger")),
    access=',"http.request.method":{method},"url.path":{path},"http.response.status_code":{status}'
    ',"duration":{duration:.6f},"http.request.body.size":{received},"http.response.body.size":{sent}'
    ',"client.address":{client}{agent}',
    agent="user_agent.original",
)
GCP = Schema(
    number=1,
    begin='{{"time":"{at}","severity":{severity},"message":{message},"logger":{logger}',
    first=frozenset(("time", "severity", "message", "logger")),
    access=',"httpRequest":{{"requestMethod":{method},"requestUrl":{path},"status":{status},"latency":"{duration:.6f}s"'
    ',"requestSize":"{received}","responseSize":"{sent}","remoteIp":{client}{agent}}}',
    agent="userAgent",
    names={
        "trace_id": "logging.googleapis.com/trace",
        "span_id": "logging.googleapis.com/spanId",
        "exception.stacktrace": "stack_trace",
    },
)
ECS = Schema(
    number=2,
    begin='{{"@timestamp":"{at}","log.level":{severity},"message":{message},"ecs.version":"8.11.0","log.logger":{logger}',
    first=frozenset(("@timestamp", "log.level", "message", "ecs.version", "log.logger")),
    access=',"http.request.method":{method},"url.path":{path},"http.response.status_code":{status}'
    ',"event.duration":{nanoseconds},"http.request.body.bytes":{received},"http.response.body.bytes":{sent}'
    ',"client.address":{client}{agent}',
    agent="user_agent.original",
    names={
        "trace_id": "trace.id",
        "span_id": "span.id",
        "request_id": "http.request.id",
        "exception.type": "error.type",
        "exception.message": "error.message",
        "exception.stacktrace": "error.stack_trace",
    },
    lowers=True,
)


def schema_of(name: str, environ: Mapping[str, str]) -> Schema:
    """The schema of that name: otel, gcp or ecs.

    Google Cloud links log lines to their trace if GOOGLE_CLOUD_PROJECT names the project, as for its own libraries.
    """
    if name != "gcp":
        return ECS if name == "ecs" else OTEL
    project = environ.get("GOOGLE_CLOUD_PROJECT", "")
    if not re.fullmatch(r"[a-z0-9.:-]{1,64}", project):  # of a domain: example.com:project
        return GCP
    return GCP._replace(trace_prefix=f"projects/{project}/traces/")
