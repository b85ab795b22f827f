"""Which interface an application is found to have."""

from __future__ import annotations

import functools
import http.server
from typing import Any

import pytest

from pkg.service.interface import interface_of


async def coroutine(scope: Any, receive: Any, send: Any) -> None:
    pass


def returns_coroutine(scope: Any, receive: Any, send: Any) -> Any:
    return coroutine(scope, receive, send)


def prefixed(prefix: str, scope: Any, receive: Any, send: Any) -> Any:
    return coroutine(scope, receive, send)


def wsgi(environ: Any, start_response: Any) -> Any:
    return []


def wsgi_with_default(environ: Any, start_response: Any, prefix: str = "") -> Any:
    return []


def decorated(app: Any) -> Any:
    @functools.wraps(app)
    def call(*args: Any, **kwargs: Any) -> Any:
        return app(*args, **kwargs)

    return call


class Asynchronous:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        pass

    async def method(self, scope: Any, receive: Any, send: Any) -> None:
        pass

    @classmethod
    def made(cls, scope: Any, receive: Any, send: Any) -> Any:
        return coroutine(scope, receive, send)


class Synchronous:
    def __call__(self, environ: Any, start_response: Any) -> Any:
        return []


class Iterated:
    """The class that PEP 3333 has for an example."""

    def __init__(self, environ: Any, start_response: Any) -> None:
        pass


@pytest.mark.parametrize(
    "app",
    [
        coroutine,
        returns_coroutine,
        functools.partial(coroutine),
        functools.partial(prefixed, "/"),
        decorated(coroutine),
        decorated(returns_coroutine),
        Asynchronous(),
        Asynchronous().method,
        Asynchronous.made,
        lambda s, r, e: coroutine(s, r, e),
    ],
)
def test_asgi(app: Any) -> None:
    assert interface_of(app) == "asgi"


@pytest.mark.parametrize(
    "app",
    [
        wsgi,
        wsgi_with_default,
        functools.partial(wsgi_with_default, prefix="/"),
        decorated(wsgi),
        Synchronous(),
        Synchronous().__call__,
        Iterated,
        lambda *args: [],
        print,
    ],
)
def test_wsgi(app: Any) -> None:
    assert interface_of(app) == "wsgi"


def test_handler_classes() -> None:
    assert interface_of(http.server.BaseHTTPRequestHandler) == "handler"
    assert interface_of(functools.partial(http.server.SimpleHTTPRequestHandler, directory="/")) == "handler"
