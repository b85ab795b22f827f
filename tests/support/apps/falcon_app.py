"""The pages of tests/http/test_frameworks.py in Falcon."""

from __future__ import annotations

import hashlib
from typing import Any

import falcon

import pkg


class Index:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = falcon.MEDIA_TEXT
        resp.text = "hello"


class Form:
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        form = req.get_media()
        tags = form["tag"] if isinstance(form["tag"], list) else [form["tag"]]
        resp.media = {"name": form["name"], "tags": tags, "query": req.get_param("q")}


class Upload:
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        media: dict[str, Any] = {}
        for part in req.get_media():
            if part.name == "note":
                media["note"] = part.text
            else:
                digest, size = hashlib.sha256(), 0
                while data := part.stream.read(65536):
                    digest.update(data)
                    size += len(data)
                media |= {"filename": part.filename, "size": size, "sha256": digest.hexdigest()}
        resp.media = media


class Raw:
    def on_put(self, req: falcon.Request, resp: falcon.Response) -> None:
        digest, size = hashlib.sha256(), 0
        while data := req.bounded_stream.read(65536):
            digest.update(data)
            size += len(data)
        resp.media = {"size": size, "sha256": digest.hexdigest()}


class Stream:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = falcon.MEDIA_TEXT
        resp.stream = (f"line {number}\n".encode() for number in range(req.get_param_as_int("n")))


class File:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.content_type = "text/x-python"
        resp.stream = open(__file__, "rb")  # noqa: SIM115 - falcon closes it


class Cookies:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.set_cookie("first", "one two", secure=False, http_only=True)
        resp.set_cookie("second", "2", secure=False, max_age=60)
        resp.media = {"seen": dict(req.cookies)}


class Redirect:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        raise falcon.HTTPFound("/form?a=b")


class Fail:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        raise RuntimeError("secret")


class Json:
    def on_post(self, req: falcon.Request, resp: falcon.Response) -> None:
        resp.media = {"doubled": [2 * n for n in req.get_media()["numbers"]], "text": "gr\u00fc\u00df \u20ac"}


class Path:
    def on_get(self, req: falcon.Request, resp: falcon.Response, text: str) -> None:
        resp.media = {"text": text}


class Database:
    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        with pkg.connection(timeout=5) as conn:
            resp.media = {"sum": conn.execute("select %s::int + %s::int", (40, 2)).fetchone()[0]}


def create_app() -> falcon.App:
    app = falcon.App()
    for path, resource in {
        "/": Index(),
        "/form": Form(),
        "/upload": Upload(),
        "/raw": Raw(),
        "/stream": Stream(),
        "/file": File(),
        "/cookies": Cookies(),
        "/redirect": Redirect(),
        "/fail": Fail(),
        "/json": Json(),
        "/path/{text}": Path(),
        "/database": Database(),
    }.items():
        app.add_route(path, resource)
    return app
