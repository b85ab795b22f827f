"""The trace and request to which a log record belongs: ids from the client, and the ids now in force.

It does not take part in tracing: it creates no spans and sends nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextvars import ContextVar, Token
from re import ASCII
from re import compile as compile_pattern
from typing import NamedTuple

from pkg.logs.records import Ids

__all__ = [
    "ID_HEADERS",
    "TraceParent",
    "bind",
    "bound",
    "deadline",
    "ids_now",
    "parse_amzn_trace",
    "parse_cloud_trace",
    "parse_request_id",
    "parse_traceparent",
    "request_id",
    "set_deadline",
    "trace_parent",
]


class TraceParent(NamedTuple):
    """The content of W3C Trace Context's `traceparent`: lowercase hexadecimal ids, and flags (bit 0: sampled).

    `span_id` is "" if a load balancer of AWS or Google began the trace without a span.
    """

    trace_id: str
    span_id: str
    flags: int

    @property
    def is_sampled(self) -> bool:
        return bool(self.flags & 1)


_TRACEPARENT = compile_pattern(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-[\x20-\x7e]*)?", ASCII
)
# The fields that load balancers add: Root=1-(8 digits of time)-(24 digits);Parent=(16 digits);Sampled=1, other parts
# between them (docs.aws.amazon.com, "Request tracing for your Application Load Balancer"), and TRACE/SPAN;o=1 with a
# decimal span (cloud.google.com, "Trace context").
_AMZN_TRACE = compile_pattern(
    r"(?:[^;]*;)*?Root=1-([0-9a-f]{8})-([0-9a-f]{24})(?:;(?:[^;]*;)*?Parent=([0-9a-f]{16}))?(?:;[^;]*)*", ASCII
)
_CLOUD_TRACE = compile_pattern(r"(?!0{32})([0-9a-f]{32})(?:/([0-9]{1,20}))?(?:;o=([0-9]))?", ASCII)
_REQUEST_ID = compile_pattern(r"[\x21-\x7e]{1,128}")


def parse_traceparent(value: str | None) -> TraceParent | None:
    """The ids of the field, or None if it is malformed, which counts as absent (W3C Trace Context, 3.2.2 and 4.3)."""
    match = _TRACEPARENT.fullmatch(value.strip(" \t")) if value else None
    # Version 00 ends after the flags; a later one may go on after a dash.
    if match is None or (match[5] is not None and match[1] == "00"):
        return None
    return TraceParent(match[2], match[3], int(match[4], 16))


def parse_amzn_trace(value: str | None) -> TraceParent | None:
    """`X-Amzn-Trace-Id`, with its root as one id of 32 digits, as X-Ray's exporters write it; None if it is
    malformed."""
    match = _AMZN_TRACE.fullmatch(value) if value and len(value) <= 512 else None
    if match is None:
        return None
    return TraceParent(match[1] + match[2], match[3] or "", int("Sampled=1" in match[0]))


def parse_cloud_trace(value: str | None) -> TraceParent | None:
    """`X-Cloud-Trace-Context`, with its span in hexadecimal; None if it is malformed."""
    match = _CLOUD_TRACE.fullmatch(value) if value else None
    if match is None:
        return None
    span = int(match[2] or 0)
    return TraceParent(match[1], f"{span:016x}" if 0 < span < 1 << 64 else "", int(match[3] == "1"))


ID_HEADERS = (b"x-request-id", b"traceparent", b"x-cloud-trace-context", b"x-amzn-trace-id")


def trace_parent(header: Callable[[bytes], str | None]) -> TraceParent | None:
    """The trace to which a request belongs, from the first of these fields that is well-formed.

    `header` looks a field up.  It must return None if a request has two such fields: whoever added the second has not
    read the first.
    """
    return (
        parse_traceparent(header(b"traceparent"))
        or parse_cloud_trace(header(b"x-cloud-trace-context"))
        or parse_amzn_trace(header(b"x-amzn-trace-id"))
    )


def parse_request_id(value: str | None) -> str | None:
    """A client's `X-Request-Id` if it is 1 to 128 visible ASCII characters, else None."""
    return value if value and _REQUEST_ID.fullmatch(value) else None


_deadline: ContextVar[float | None] = ContextVar("pkg.deadline", default=None)


def set_deadline(at: float) -> None:
    """Sets the deadline, in monotonic time, of the request that this thread serves."""
    _deadline.set(at)


deadline = _deadline.get  # returns this deadline, or None; without a frame of its own, as each use of a connection asks


bound: ContextVar[Ids] = ContextVar("pkg.context", default=("", "", ""))


def bind(trace_id: str = "", span_id: str = "", request_id: str = "") -> Token[Ids]:
    """Gives every log record of this context these ids, until `bound` is reset with the returned token."""
    return bound.set((trace_id, span_id, request_id))


def request_id() -> str:
    """The id of the request that is being served, as its response and its records have it; "" where none is.

    For what else is told of a request: a span, an error report, a call of another service.
    """
    return bound.get()[2]


def ids_now() -> Ids:
    """Trace id, span id and request id of this context; "" for an unknown one.

    With the trace and span of OpenTelemetry if one of its spans is active.

    OpenTelemetry is not imported for this: an application or agent that creates spans has imported it.
    """
    found = bound.get()
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return found
    try:
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            return f"{span.trace_id:032x}", f"{span.span_id:016x}", found[2]
    except Exception:  # partly imported, or another library of that name; the record matters more than its ids
        return found
    return found
