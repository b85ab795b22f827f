"""Finds out which interface an application has: WSGI, ASGI, or that of a handler class.

It calls nothing; what it cannot see, the setting `interface` says.
"""

from __future__ import annotations

import functools
from socketserver import BaseRequestHandler
from typing import Any, Literal

__all__ = ["Interface", "interface_of"]

Interface = Literal["wsgi", "asgi", "handler"]

CO_VARARGS, CO_COROUTINE = 0x04, 0x80  # as in inspect, whose import would take time


def interface_of(app: Any) -> Interface:
    """ASGI is a coroutine function or a callable that needs exactly three positional arguments, or an instance whose
    `__call__` is one.  What is no handler class and not that is WSGI."""
    given = 0  # positional arguments that functools.partial supplies
    while isinstance(app, functools.partial):
        given += len(app.args)
        app = app.func
    if isinstance(app, type):
        return "handler" if issubclass(app, BaseRequestHandler) else "wsgi"
    function = app if hasattr(app, "__code__") or hasattr(app, "__func__") else app.__call__
    if hasattr(function, "__func__"):  # a bound method, whose first argument is supplied
        function = function.__func__
        given += 1
    code = getattr(function, "__code__", None)
    while (
        code is not None and code.co_flags & CO_VARARGS and hasattr(function, "__wrapped__")
    ):  # a decorator's function
        function = function.__wrapped__
        code = getattr(function, "__code__", None)
    if code is None:
        return "wsgi"
    needed = code.co_argcount - given - len(function.__defaults__ or ())
    return "asgi" if code.co_flags & CO_COROUTINE or needed == 3 else "wsgi"
