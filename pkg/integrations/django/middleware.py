"""Answers 503 with Retry-After where Django would answer 500 since the database cannot be used."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import psycopg
from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.core.signals import got_request_exception
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse

import pkg

__all__ = ["Unavailable"]


def _is_outage(error: BaseException | None) -> bool:
    if pkg.outage(error) is not None:
        return True
    cause = error.__cause__ if isinstance(error, OperationalError | InterfaceError) else None
    # Without SQLSTATE libpq has lost the connection, or got none; class 57P is a server that shuts down or starts.
    return isinstance(cause, psycopg.OperationalError) and (cause.sqlstate is None or cause.sqlstate[:3] == "57P")


def _note(request: Any = None, **_: Any) -> None:
    """Django turns what a middleware has raised into a 500 before another middleware sees it."""
    if request is not None and _is_outage(sys.exc_info()[1]):
        request.is_outage = True


class Unavailable:
    """The first one of MIDDLEWARE: errors of views and of the other middleware that an outage has caused become 503."""

    sync_capable = async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self._get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)
        got_request_exception.connect(_note, dispatch_uid=__name__)

    def __call__(self, request: HttpRequest) -> Any:
        if iscoroutinefunction(self):
            return self._call_async(request)
        return self._finish(request, self._get_response(request))

    async def _call_async(self, request: HttpRequest) -> Any:
        return self._finish(request, await self._get_response(request))

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponse | None:
        return _unavailable() if _is_outage(exception) else None

    def _finish(self, request: HttpRequest, response: Any) -> Any:
        if response.status_code == 500 and getattr(request, "is_outage", False):
            return _unavailable()
        return response


def _unavailable() -> HttpResponse:
    return HttpResponse("Service Unavailable\n", status=503, headers={"Retry-After": "1"}, content_type="text/plain")
