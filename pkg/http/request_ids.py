"""What happens to each request before its handler and at its end: client address, ids, access record.

It only combines the parts: the server calls it, and `forwarded` and `logs` do the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from pkg import _core
from pkg.logs import context, sink

__all__ = ["observers"]

Observer = Callable[[Any], object]


def observers(
    *,
    access_log: bool,
    proxies: Sequence[Any],
    unix: bool = False,
    on_trusted: Observer | None = None,
    request_timeout: float = 0.0,
) -> tuple[Observer, Observer | None]:
    """The arguments `on_request` and `on_response` of a Server.

    `proxies`: the networks whose X-Forwarded headers are trusted; `unix`: whether those of peers on Unix sockets are.
    `on_trusted`: called with each request that such a peer has sent.  `request_timeout`: seconds, 0 for none.
    """
    # Ids are needed with and without access records.
    on_request: Observer = _core.NewIds(context.bound, context.ID_HEADERS, _read_ids)
    if request_timeout:
        on_request = _after(lambda request: context.set_deadline(monotonic() + request_timeout), on_request)
    if proxies or unix:
        from pkg.http.forwarded import Forwarded

        on_request = _after(Forwarded(proxies, unix=unix, on_trusted=on_trusted), on_request)
    if access_log:
        schema = sink.schema()
        _core.set_access_schema(schema.number, schema.trace_prefix)
    return on_request, sink.access_of if access_log else None


def _read_ids(request: Any) -> None:
    """Gives the ids that a client sends to its request, and to every record that is logged while it is served."""
    request_id = context.parse_request_id(request.header(b"x-request-id")) or _core.new_request_id()
    parent = context.trace_parent(request.only_header)
    trace_id, span_id = (parent.trace_id, parent.span_id) if parent else ("", "")
    if parent and parent.is_sampled:
        request.trace(bytes.fromhex(trace_id))
    request.request_id = request_id.encode()
    request.context = trace_id, span_id, request_id
    context.bind(trace_id, span_id, request_id)  # not unbound, because the worker's next request binds its own


def _after(first: Observer, then: Observer) -> Observer:
    def both(request: Any) -> None:
        first(request)
        then(request)

    return both
