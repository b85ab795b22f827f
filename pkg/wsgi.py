"""Hosts a WSGI application (PEP 3333): one call of it for each request.

The environ and the response are made in C (`_core.WSGIHandler`); here is what stays the same from request to request.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from typing import Any

from pkg import _core
from pkg.errors import StartupError

__all__ = ["Application"]

CO_COROUTINE = 0x80  # inspect.CO_COROUTINE, without the time that importing inspect takes


class _Errors(io.TextIOBase):
    """`wsgi.errors`: whole lines go to the log."""

    def __init__(self) -> None:
        self._log = logging.getLogger("wsgi.errors")
        self._partial = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        *lines, self._partial = (self._partial + text).split("\n")
        for line in lines:
            self._log.error("%s", line)
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        if self._partial:
            self.write("\n")


def _is_coroutine(app: Any) -> bool:
    code = getattr(app, "__code__", None) or getattr(app.__call__, "__code__", None)
    return bool(code is not None and code.co_flags & CO_COROUTINE)


class Application(_core.WSGIHandler):
    """A WSGI callable as the handler of a `Server`.  `name` and `port` are what the environ says of the server.

    StartupError: it is a coroutine function, so no WSGI callable.
    """

    def __init__(self, app: Callable[..., Any], *, name: str, port: int) -> None:
        if _is_coroutine(app):
            raise StartupError("the application is asynchronous (ASGI); this host serves WSGI and handler classes")
        environ: dict[str, Any] = {
            "SCRIPT_NAME": "",
            "SERVER_NAME": name,
            "SERVER_PORT": str(port),
            "SERVER_SOFTWARE": "pkg",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": _Errors(),
            "wsgi.file_wrapper": _core.FileWrapper,
            "wsgi.input_terminated": True,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        super().__init__(app, environ)
