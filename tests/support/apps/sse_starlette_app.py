"""Server-sent events of sse-starlette, without an end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route


async def ticks(request: Request) -> EventSourceResponse:
    async def events() -> AsyncIterator[dict[str, int]]:
        for number in itertools.count():
            yield {"data": number}
            await asyncio.sleep(0.01)

    return EventSourceResponse(events())


app = Starlette(routes=[Route("/ticks", ticks)])
