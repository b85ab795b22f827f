"""The pages of tests/http/test_frameworks.py in Django, as WSGI and as ASGI."""

from __future__ import annotations

import hashlib
import json as json_module
from collections.abc import Iterator
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

import pkg


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


urlpatterns = [
    url("", index),
    *(url(v.__name__, v) for v in (form, upload, raw, stream, file, cookies, missing, fail, json, database)),
    url("redirect", redirected),
    url("path/<str:text>", path),
]


def _configure() -> None:
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATA_UPLOAD_MAX_MEMORY_SIZE=100 << 20,
        LOGGING_CONFIG=None,
        MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
        ROOT_URLCONF=__name__,
        SECRET_KEY="of a test",
        USE_TZ=True,
    )
    django.setup()


def create_app() -> Any:
    _configure()
    return get_wsgi_application()


def create_asgi() -> Any:
    from django.core.asgi import get_asgi_application

    _configure()
    return get_asgi_application()
