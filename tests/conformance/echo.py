"""Applications that say what request they were given, as JSON: the echo contract of raw-socket test drivers."""

from __future__ import annotations

import itertools
import json
from typing import Any

_calls = itertools.count(1)


def _render(method: str, target: str, body: bytes, headers: list[tuple[str, str]]) -> bytes:
    text = body.decode("latin-1")
    return json.dumps(
        {"method": method, "target": target, "body": text, "headers": headers, "n": next(_calls)}
    ).encode()


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """WSGI.  Reading may raise: whatever is wrong with the body is then the host's to answer."""
    body = environ["wsgi.input"].read()
    headers = [
        (name.removeprefix("HTTP_").replace("_", "-").lower(), value)
        for name, value in environ.items()
        if name.startswith("HTTP_") or name in ("CONTENT_TYPE", "CONTENT_LENGTH")
    ]
    out = _render(environ["REQUEST_METHOD"], environ["RAW_URI"], body, headers)
    start_response("200 OK", [("Content-Type", "application/json"), ("X-Echo", "1"), ("Content-Length", str(len(out)))])
    return [b"" if environ["REQUEST_METHOD"] == "HEAD" else out]


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """ASGI.  A body that is not what it should be is the host's to answer as well."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        more = message["more_body"]
    headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
    target = scope["raw_path"] + (b"?" + scope["query_string"] if scope["query_string"] else b"")
    out = _render(scope["method"], target.decode("latin-1"), body, headers)
    fields = [(b"content-type", b"application/json"), (b"X-Echo", scope["method"].encode("latin-1"))]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": out})


def handler(request: Any, client_address: Any, server: Any) -> None:
    """The same for `Server`, without WSGI in between."""
    from pkg import _core

    body = request.body.read()
    out = _render(request.method, request.target, body, request.headers)
    response = _core.Response(request)
    response.start(200, "OK")
    response.add_header("Content-Type", "application/json")
    response.add_header("X-Echo", request.method)
    response.end(out)
    request.finish()
