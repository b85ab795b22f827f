"""Hosts a WSGI application (PEP 3333): one call of it for each request.

C code makes the environ and the response (`_core.WSGIHandler`); this module has what is the same for all requests.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any

from pkg import _core
from pkg.errors import StartupError
from pkg.health.coroutines import is_coroutine_function

__all__ = ["Application"]

CO_VARARGS = 0x04  # as in inspect, whose import would take time


class _Errors(io.TextIOBase):
    """`wsgi.errors`: logs whole lines.  All requests share it, so each thread has its own unfinished line.

    A handler of `logging` may write here (Flask documents one for the root logger).  Its lines are logged once: what
    `logging` writes to this stream while a line of the stream is being logged is the same line again, and is ignored.
    """

    def __init__(self) -> None:
        self._log = logging.getLogger("wsgi.errors")
        self._line = threading.local()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        if getattr(self._line, "logging", False):
            return len(text)
        *lines, self._line.begun = (self._begun() + text).split("\n")
        if lines:
            self._line.logging = True
            try:
                for line in lines:
                    self._log.error("%s", line)
            finally:
                self._line.logging = False
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._begun():
            self.write("\n")

    def _begun(self) -> str:
        return getattr(self._line, "begun", "")


def _check(app: Any) -> None:
    """Raises StartupError for two common mistakes, with which every request would fail while every check passes."""
    if is_coroutine_function(app):
        raise StartupError("the application is asynchronous (ASGI), but the interface is set to wsgi")
    if isinstance(app, FunctionType) and not app.__code__.co_flags & CO_VARARGS:
        most = app.__code__.co_argcount
        if not most - len(app.__defaults__ or ()) <= 2 <= most:
            raise StartupError(
                f"{app.__qualname__}() cannot be called with (environ, start_response), as WSGI does;"
                f" if it creates the application, write module:{app.__qualname__}()"
            )


def _mounted(app: Callable[..., Any], script_name: str) -> Callable[..., Any]:
    """The application, with `script_name` removed from PATH_INFO; some proxies have removed it, others have not."""

    def call(environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        if path.startswith(script_name) and path[len(script_name) :][:1] in ("", "/"):
            environ["PATH_INFO"] = path[len(script_name) :]
        return app(environ, start_response)

    return call


class Application(_core.WSGIHandler):
    """A WSGI callable as the handler of a `Server`.

    `name` and `port` become SERVER_NAME and SERVER_PORT; `others`: those of listeners after the first.
    `script_name`: the path under which a proxy publishes the application, without a slash at its end.  `multiprocess`:
    whether other processes run the same application.

    Raises StartupError if `app` is not a WSGI callable: a coroutine function, or a function with other parameters.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        *,
        name: str,
        port: int,
        others: Iterable[tuple[str, int]] = (),
        script_name: str = "",
        multiprocess: bool = False,
    ) -> None:
        _check(app)
        if script_name:
            app = _mounted(app, script_name)
        environ: dict[str, Any] = {
            "SCRIPT_NAME": script_name,
            "SERVER_NAME": name,
            "SERVER_PORT": str(port),
            "SERVER_SOFTWARE": "pkg",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": _Errors(),
            "wsgi.file_wrapper": _core.FileWrapper,
            "wsgi.input_terminated": True,
            "wsgi.multithread": True,
            "wsgi.multiprocess": multiprocess,
            "wsgi.run_once": False,
        }
        super().__init__(app, environ, others)
