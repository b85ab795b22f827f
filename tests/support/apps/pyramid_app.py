"""The pages of tests/http/test_frameworks.py in Pyramid."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from typing import Any

import pkg

with warnings.catch_warnings():  # pyramid 2.1 still imports pkg_resources
    warnings.simplefilter("ignore")
    from pyramid.config import Configurator
    from pyramid.httpexceptions import HTTPFound, HTTPNotFound
    from pyramid.request import Request
    from pyramid.response import FileResponse, Response


def index(request: Request) -> Response:
    return Response("hello", content_type="text/plain")


def form(request: Request) -> dict[str, Any]:
    return {
        "name": request.POST["name"],
        "tags": request.POST.getall("tag"),
        "query": request.GET.get("q"),
    }


def upload(request: Request) -> dict[str, Any]:
    file = request.POST["file"]
    data = file.file.read()
    return {
        "note": request.POST["note"],
        "filename": file.filename,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


def raw(request: Request) -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    while data := request.body_file.read(65536):
        digest.update(data)
        size += len(data)
    return {"size": size, "sha256": digest.hexdigest()}


def stream(request: Request) -> Response:
    def lines() -> Iterator[bytes]:
        for number in range(int(request.GET["n"])):
            yield f"line {number}\n".encode()

    return Response(app_iter=lines(), content_type="text/plain")


def file(request: Request) -> Response:
    return FileResponse(__file__, request=request, content_type="text/x-python")


def cookies(request: Request) -> Response:
    response = Response(json={"seen": dict(request.cookies)})
    response.set_cookie("first", "one two", httponly=True)
    response.set_cookie("second", "2", max_age=60)
    return response


def redirected(request: Request) -> Response:
    raise HTTPFound("/form?a=b")


def missing(request: Request) -> Response:
    raise HTTPNotFound


def fail(request: Request) -> Response:
    raise RuntimeError("secret")


def json(request: Request) -> dict[str, Any]:
    return {"doubled": [2 * n for n in request.json_body["numbers"]], "text": "gr\u00fc\u00df \u20ac"}


def path(request: Request) -> dict[str, str]:
    return {"text": request.matchdict["text"]}


def database(request: Request) -> dict[str, Any]:
    with pkg.connection(timeout=5) as conn:
        return {"sum": conn.execute("select %s::int + %s::int", (40, 2)).fetchone()[0]}


def create_app() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = Configurator()
    for view in (index, form, upload, raw, stream, file, cookies, redirected, missing, fail, json, path, database):
        name = {"index": "", "redirected": "redirect", "path": "path/{text}"}.get(view.__name__, view.__name__)
        config.add_route(view.__name__, f"/{name}")
        config.add_view(view, route_name=view.__name__, renderer="json")
    return config.make_wsgi_app()
