"""Servers for tests: any handler on a free loopback port, in a thread of this process."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from pkg.asgi.eventloop import EventLoop
from pkg.asgi.keepalive import WebSocketRules
from pkg.http.listeners import open_listeners
from pkg.http.request_ids import observers
from pkg.http.server import Server
from pkg.http.wsgi import Application
from pkg.settings.listen import Endpoint
from tests.support import over_unix
from tests.support.client import SLOWNESS


@contextlib.contextmanager
def serving(handler: Any, **options: Any) -> Iterator[Server]:
    """Runs a Server with `handler`; at the end all workers and connections must have ended."""
    path = over_unix.new_path() if over_unix.ON and "listeners" not in options else None
    if path is not None:
        endpoints = Endpoint("tcp", host="127.0.0.1", port=0), Endpoint("unix", path=str(path))
        options["listeners"] = listeners = open_listeners(endpoints)
        server = Server(listeners[0].socket.getsockname(), handler, **options)
        over_unix.remember(server.server_address, path)
    else:
        server = Server(("127.0.0.1", 0), handler, **options)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join(10 * SLOWNESS)
        server.server_close()
        if path is not None:
            over_unix.forget(path)
        assert not thread.is_alive()


@contextlib.contextmanager
def serving_app(app: Any, script_name: str = "", **options: Any) -> Iterator[Server]:
    """The same with a WSGI application."""
    with serving(Application(app, name="127.0.0.1", port=80, script_name=script_name), **options) as server:
        yield server


def loop_factory() -> Any:
    """What makes uvloop's event loop where TEST_LOOP names it; None: asyncio's."""
    if os.environ.get("TEST_LOOP") != "uvloop":
        return None
    import uvloop

    return uvloop.new_event_loop


@contextlib.contextmanager
def serving_asgi(
    app: Any,
    *,
    root_path: str = "",
    proxies: Any = (),
    websockets: WebSocketRules | None = None,
    prepare: Callable[[EventLoop], object] | None = None,
    **options: Any,
) -> Iterator[Server]:
    """The same with an ASGI application, whose event loop must have ended as well; `prepare` gets it first."""
    on_request, _ = observers(access_log=False, proxies=proxies)
    with serving(None, **options) as server:
        assert server.front is not None
        eventloop = EventLoop(
            app,
            server.front,
            addresses=[server.server_address],  # type: ignore[list-item]
            root_path=root_path,
            lifespan="off",
            on_request=on_request,
            failed=server.handle_error,
            body_timeout=options.get("body_timeout", 30.0),
            write_timeout=options.get("write_timeout", 30.0),
            new_loop=loop_factory(),
            websockets=websockets,
        )
        if prepare is not None:
            prepare(eventloop)
        eventloop.start()
        eventloop.startup()
        eventloop.open()
        try:
            yield server
        finally:
            eventloop.shutdown(5.0 * SLOWNESS)
            eventloop.end()
            assert not eventloop.thread.is_alive()
