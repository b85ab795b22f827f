"""Servers for tests: any handler on a free loopback port, in a thread of this process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from pkg.http.server import Server
from pkg.http.wsgi import Application
from tests.support.client import SLOWNESS


@contextlib.contextmanager
def serving(handler: Any, **options: Any) -> Iterator[Server]:
    """Runs a Server with `handler`; at the end all workers and connections must have ended."""
    server = Server(("127.0.0.1", 0), handler, **options)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join(10 * SLOWNESS)
        server.server_close()
        assert not thread.is_alive()


@contextlib.contextmanager
def serving_app(app: Any, script_name: str = "", **options: Any) -> Iterator[Server]:
    """The same with a WSGI application."""
    with serving(Application(app, name="127.0.0.1", port=80, script_name=script_name), **options) as server:
        yield server
