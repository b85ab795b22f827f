"""python-socketio's ASGIApp beside another application."""

from __future__ import annotations

from typing import Any

import socketio

from tests.support import rolling_application

server = socketio.AsyncServer(async_mode="asgi")
app = socketio.ASGIApp(server, rolling_application.asgi)


@server.event  # type: ignore[untyped-decorator]
async def say(sid: str, data: Any) -> str:
    """All others get it."""
    await server.emit("said", data, skip_sid=sid)
    return "passed on"
