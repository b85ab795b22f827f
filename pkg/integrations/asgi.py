"""Answers 503 with Retry-After where a framework would answer 500 since the database cannot be used.

Starlette and FastAPI answer an unknown exception with 500 before it reaches the server; middleware is asked earlier.
"""

from __future__ import annotations

import logging
from typing import Any

from pkg.errors import outage

__all__ = ["Unavailable"]

_log = logging.getLogger("pkg.database")


class Unavailable:
    """ASGI middleware: `app.add_middleware(pkg.integrations.asgi.Unavailable)`.

    It answers if the application raises DatabaseUnavailable, or an exception whose cause is one, and has not begun to
    respond.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_begun = False

        async def send_on(message: Any) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        except Exception as error:
            unavailable = outage(error)
            if unavailable is None or has_begun:
                raise
            _log.warning("%s %s: %s", scope["method"], scope["path"], unavailable)
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"retry-after", b"1")]
            await send({"type": "http.response.start", "status": 503, "headers": headers})
            await send({"type": "http.response.body", "body": b"Service Unavailable\n"})
