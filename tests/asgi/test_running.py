"""`pkg.running()` around an ASGI application, which the test client of its framework calls."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

import pkg
from pkg import api
from tests.support.client import wait_for

pytest.importorskip("httpx")
testclient: Any = pytest.importorskip("starlette.testclient")


def application() -> Any:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[dict[str, list[str]]]:
        yield {"rows": ["one"]}

    async def index(request: Request) -> JSONResponse:
        pkg.set_ready(False, "busy")
        return JSONResponse({"rows": request.state.rows, "draining": pkg.draining()})

    return Starlette(routes=[Route("/", index)], lifespan=lifespan)


def test_an_asgi_application_is_exercised_by_its_own_test_client() -> None:
    before = set(threading.enumerate())
    runs = threading.Event()

    with pkg.running():

        @pkg.check("upstream", interval=0.1)
        async def upstream() -> bool:
            runs.set()
            return True

        assert runs.wait(10)
        with testclient.TestClient(application()) as client:
            assert client.get("/").json() == {"rows": ["one"], "draining": False}
        assert api.current() is not None
    wait_for(lambda: set(threading.enumerate()) <= before, 10, "its threads to end")


async def app(scope: Any, receive: Any, send: Any) -> None: ...


def test_a_server_made_by_hand_says_that_it_serves_no_asgi() -> None:
    """pkg.Server stands for the standard library's, whose handlers are classes."""
    for handler in (app, application()):
        with pytest.raises(pkg.StartupError, match="does not serve ASGI applications"):
            pkg.Server(("127.0.0.1", 0), handler)
