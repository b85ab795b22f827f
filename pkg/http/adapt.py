"""How any handler class is served:

- a subclass of `RequestHandler` is used as it is;
- another subclass of `BaseHTTPRequestHandler` gets `RequestHandler` behind it in its bases, so that it keeps what it
  overrides, and `RequestHandler` reads the requests;
- a class that overrides how requests are read (`handle`, `parse_request`, ...) gets a connection that replays the bytes
  of the request, and parses them by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from socketserver import BaseRequestHandler
from typing import Any

from pkg import _core
from pkg.errors import ResponseError, StartupError
from pkg.health.coroutines import is_coroutine_function
from pkg.http.handler import Adapted, Replayed, RequestHandler
from pkg.http.replay import ClientSocket

__all__ = ["adapt"]


def _serve_replayed(
    handler_class: Callable[..., object],
    request: _core.Request,
    client_address: Any,
    server: Any,
    *args: Any,
    **keywords: Any,
) -> None:
    connection = ClientSocket(request, server)
    handler_class(connection, client_address, server, *args, **keywords)
    if request.status == 0:
        raise ResponseError("the handler sent no response")
    request.finish(keep_alive=connection.replay.asked_for_more)


# A class that overrides one of these reads requests by itself.
_READING = ("setup", "handle", "handle_one_request", "parse_request", "finish")


def _overrides(cls: type, names: tuple[str, ...]) -> bool:
    known = {RequestHandler, SimpleHTTPRequestHandler, *BaseHTTPRequestHandler.__mro__}
    return any(name in vars(base) for base in cls.__mro__ if base not in known for name in names)


def adapt(handler: Any) -> Callable[[Any, Any, Any], object]:
    """A callable with the parameters (request, client_address, server) that serves one request with `handler`.

    Raises StartupError for a kind of handler that cannot be served.
    """
    if isinstance(handler, partial):
        return partial(adapt(handler.func), *handler.args, **handler.keywords)
    if not isinstance(handler, type) or not issubclass(handler, BaseRequestHandler):
        if is_coroutine_function(handler):  # it would be called, and never run
            raise StartupError("a server of worker threads does not serve ASGI applications: python -m pkg does")
        return handler
    if issubclass(handler, RequestHandler):
        return handler
    if not issubclass(handler, BaseHTTPRequestHandler):
        return partial(_serve_replayed, handler)
    if handler in RequestHandler.__mro__:
        return RequestHandler
    if hasattr(handler, "run_cgi"):
        raise StartupError(
            "CGI handlers are not supported: they need the client's socket, which belongs to the front; "
            "Python 3.15 has removed them"
        )
    if _overrides(handler, _READING):
        return partial(_serve_replayed, _with_base(handler, Replayed))
    return _with_base(handler, Adapted)


def _with_base(handler: type, base: type) -> type:
    """`handler` with `base` behind it: it keeps what it overrides, and inherits from `base` instead of http.server."""
    names = ("__module__", "__qualname__", "__doc__")
    return type(handler.__name__, (handler, base), {name: getattr(handler, name) for name in names})
