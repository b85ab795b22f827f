"""The pages of tests/http/test_frameworks.py in Django, as WSGI and as ASGI."""

from __future__ import annotations

import asyncio
import atexit
import functools
import hashlib
import itertools
import json as json_module
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import (
    FileResponse,
    Http404,
    HttpRequest,
    HttpResponse,
    HttpResponseRedirect,
    JsonResponse,
    StreamingHttpResponse,
)
from django.urls import path as url
from psycopg.conninfo import conninfo_to_dict

import pkg
from tests.support.apps.events import happened, note


def index(request: HttpRequest) -> HttpResponse:
    return HttpResponse("hello", content_type="text/plain")


def form(request: HttpRequest) -> JsonResponse:
    return JsonResponse(
        {"name": request.POST["name"], "tags": request.POST.getlist("tag"), "query": request.GET.get("q")}
    )


def upload(request: HttpRequest) -> JsonResponse:
    file = request.FILES["file"]
    digest, size = hashlib.sha256(), 0
    for data in file.chunks():
        digest.update(data)
        size += len(data)
    return JsonResponse(
        {"note": request.POST["note"], "filename": file.name, "size": size, "sha256": digest.hexdigest()}
    )


def raw(request: HttpRequest) -> JsonResponse:
    digest, size = hashlib.sha256(), 0
    while data := request.read(65536):
        digest.update(data)
        size += len(data)
    return JsonResponse({"size": size, "sha256": digest.hexdigest()})


def stream(request: HttpRequest) -> StreamingHttpResponse:
    def lines() -> Iterator[str]:
        for number in range(int(request.GET["n"])):
            yield f"line {number}\n"

    return StreamingHttpResponse(lines(), content_type="text/plain")


def file(request: HttpRequest) -> FileResponse:
    return FileResponse(open(__file__, "rb"), content_type="text/x-python")


def cookies(request: HttpRequest) -> JsonResponse:
    response = JsonResponse({"seen": request.COOKIES})
    response.set_cookie("first", "one two", httponly=True)
    response.set_cookie("second", "2", max_age=60)
    return response


def redirected(request: HttpRequest) -> HttpResponse:
    return HttpResponseRedirect("/form?a=b")


def missing(request: HttpRequest) -> HttpResponse:
    raise Http404


def fail(request: HttpRequest) -> HttpResponse:
    raise RuntimeError("secret")


def json(request: HttpRequest) -> JsonResponse:
    numbers = json_module.loads(request.body)["numbers"]
    return JsonResponse({"doubled": [2 * n for n in numbers], "text": "gr\u00fc\u00df \u20ac"})


def path(request: HttpRequest, text: str) -> JsonResponse:
    return JsonResponse({"text": text})


def database(request: HttpRequest) -> JsonResponse:
    with pkg.connection(timeout=5) as conn:
        return JsonResponse({"sum": conn.execute("select %s::int + %s::int", (40, 2)).fetchone()[0]})


async def rows(request: HttpRequest) -> JsonResponse:
    """Django's own asynchronous queries, over its connections to DATABASE_URL."""
    names = [row.name async for row in database_model().objects.order_by("name")]
    return JsonResponse({"names": names})


async def pooled(request: HttpRequest) -> JsonResponse:
    """A pool beside Django's, opened with the first request, as there is no lifespan."""
    import psycopg_pool

    if "pool" not in _kept:
        pool = psycopg_pool.AsyncConnectionPool(os.environ["DATABASE_URL"], min_size=2, max_size=4, open=False)
        _kept["pool"] = asyncio.ensure_future(_opened(pool))
    pool = await _kept["pool"]
    async with pool.connection() as conn:
        cursor = await conn.execute("SELECT %s::int + 1, pg_backend_pid(), pg_sleep(0.02)", [request.GET["n"]])
        number, pid, _ = await cursor.fetchone()
        return JsonResponse({"number": number, "pid": pid})


async def _opened(pool: Any) -> Any:
    await pool.open()
    return pool


_kept: dict[str, Any] = {}


async def ticks(request: HttpRequest) -> StreamingHttpResponse:
    """Server-sent events without an end; Django cancels the task when the client leaves."""

    async def parts() -> AsyncIterator[str]:
        try:
            for number in itertools.count():
                yield f"data: {number}\n\n"
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            note("cancelled")
            raise

    return StreamingHttpResponse(parts(), content_type="text/event-stream")


async def told(request: HttpRequest) -> JsonResponse:
    return JsonResponse(happened(), safe=False)


urlpatterns = [
    url("", index),
    *(url(v.__name__, v) for v in (form, upload, raw, stream, file, cookies, missing, fail, json, database)),
    url("redirect", redirected),
    *(url(v.__name__, v) for v in (rows, pooled, ticks)),
    url("events", told),
    url("path/<str:text>", path),
]


def _databases(address: str | None) -> dict[str, Any]:
    if address is None:
        return {}
    parts = conninfo_to_dict(address)
    given = {name.upper(): parts[key] for name, key in (("user", "user"), ("password", "password"), ("host", "host"))}
    own = {"ENGINE": "django.db.backends.postgresql", "NAME": parts["dbname"], "PORT": parts["port"]}
    return {"default": given | own | {"OPTIONS": {"pool": {"min_size": 1, "max_size": 4}}}}


@functools.cache
def database_model() -> Any:
    """A table that every PostgreSQL has; a model can be declared when Django is set up."""
    from django.db import models

    class Database(models.Model):
        name = models.CharField(db_column="datname", primary_key=True)

        class Meta:
            app_label = "tests"
            db_table = "pg_database"
            managed = False

    return Database


def _configure() -> None:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES=_databases(os.environ.get("DATABASE_URL")),
        DATA_UPLOAD_MAX_MEMORY_SIZE=100 << 20,
        LOGGING_CONFIG=None,
        MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
        ROOT_URLCONF=__name__,
        SECRET_KEY="of a test",
        USE_TZ=True,
    )
    django.setup()
    database_model()  # now, as two requests at the same time would declare it twice
    # Python 3.13 waits 5 s for each thread of a psycopg_pool that is still open when it ends, whatever serves it.
    atexit.register(_close_pool)


def _close_pool() -> None:
    from django.db import connections

    if "default" in connections.settings and connections["default"].vendor == "postgresql":
        connections["default"].close_pool()


def create_app() -> Any:
    _configure()
    return get_wsgi_application()


def create_asgi() -> Any:
    from django.core.asgi import get_asgi_application

    _configure()
    return get_asgi_application()
