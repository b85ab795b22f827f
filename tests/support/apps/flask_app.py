"""The pages of tests/http/test_frameworks.py in Flask."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response, abort, make_response, redirect, request

import pkg

app = Flask(__name__)


@app.get("/")
def index() -> str:
    return "hello"


@app.post("/form")
def form() -> dict[str, Any]:
    return {"name": request.form["name"], "tags": request.form.getlist("tag"), "query": request.args.get("q")}


@app.post("/upload")
def upload() -> dict[str, Any]:
    file = request.files["file"]
    data = file.read()
    return {
        "note": request.form["note"],
        "filename": file.filename,
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }


@app.put("/raw")
def raw() -> dict[str, Any]:
    digest, size = hashlib.sha256(), 0
    while data := request.stream.read(65536):
        digest.update(data)
        size += len(data)
    return {"size": size, "sha256": digest.hexdigest()}


@app.get("/stream")
def stream() -> Response:
    count = int(request.args["n"])

    def lines() -> Iterator[str]:
        for number in range(count):
            yield f"line {number}\n"

    return Response(lines(), mimetype="text/plain")


@app.get("/file")
def file() -> Response:
    from flask import send_file

    return send_file(__file__, mimetype="text/x-python")


@app.get("/cookies")
def cookies() -> Response:
    response = make_response({"seen": dict(request.cookies)})
    response.set_cookie("first", "one two", httponly=True)
    response.set_cookie("second", "2", max_age=60)
    return response


@app.get("/redirect")
def redirected() -> Any:
    return redirect("/form?a=b")


@app.get("/missing")
def missing() -> Any:
    abort(404)


@app.get("/fail")
def fail() -> Any:
    raise RuntimeError("secret")


@app.post("/json")
def json() -> Any:
    return {"doubled": [2 * n for n in request.get_json()["numbers"]], "text": "gr\u00fc\u00df \u20ac"}


@app.get("/path/<text>")
def path(text: str) -> dict[str, str]:
    return {"text": text}


@app.get("/database")
def database() -> dict[str, Any]:
    with pkg.connection(timeout=5) as conn:
        return {"sum": conn.execute("select %s::int + %s::int", (40, 2)).fetchone()[0]}
