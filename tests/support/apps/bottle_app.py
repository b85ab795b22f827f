"""The pages of tests/http/test_frameworks.py in Bottle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any

from bottle import Bottle, HTTPResponse, abort, redirect, request, response, static_file

import pkg

app = Bottle()


@app.get("/")
def index() -> str:
    return "hello"


@app.post("/form")
def form() -> dict[str, Any]:
    return {"name": request.forms.name, "tags": request.forms.getall("tag"), "query": request.query.q}


@app.post("/upload")
def upload() -> dict[str, Any]:
    file = request.files["file"]
    data = file.file.read()
    return {
        "note": request.forms.note,
        "filename": file.raw_filename,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


@app.put("/raw")
def raw() -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    body = request.body  # at each access it begins anew
    while data := body.read(65536):
        digest.update(data)
        size += len(data)
    return {"size": size, "sha256": digest.hexdigest()}


@app.get("/stream")
def stream() -> Iterator[str]:
    response.content_type = "text/plain; charset=utf-8"
    for number in range(int(request.query.n)):
        yield f"line {number}\n"


@app.get("/file")
def file() -> HTTPResponse:
    return static_file(os.path.basename(__file__), os.path.dirname(__file__), mimetype="text/x-python")


@app.get("/cookies")
def cookies() -> dict[str, Any]:
    response.set_cookie("first", "one two", httponly=True)
    response.set_cookie("second", "2", max_age=60)
    return {"seen": dict(request.cookies)}


@app.get("/redirect")
def redirected() -> Any:
    redirect("/form?a=b", 302)


@app.get("/missing")
def missing() -> Any:
    abort(404)


@app.get("/fail")
def fail() -> Any:
    raise RuntimeError("secret")


@app.post("/json")
def json_() -> str:
    response.content_type = "application/json"
    return json.dumps({"doubled": [2 * n for n in request.json["numbers"]], "text": "gr\u00fc\u00df \u20ac"})


@app.get("/path/<text>")
def path(text: str) -> dict[str, str]:
    return {"text": text}


@app.get("/database")
def database() -> dict[str, Any]:
    with pkg.connection(timeout=5) as conn:
        return {"sum": conn.execute("select %s::int + %s::int", (40, 2)).fetchone()[0]}
