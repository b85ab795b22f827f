"""Real frameworks, each with a small application of the same pages (tests/support/apps), as processes of their own.

What the frameworks do beyond talking to their server is not looked at.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Connection, wait_for
from tests.support.faults.postgres import NoServer, Postgres
from tests.support.processes import Process

APPS = {
    "flask": "tests.support.apps.flask_app:app",
    "django": "tests.support.apps.django_app:create_app()",
    "falcon": "tests.support.apps.falcon_app:create_app()",
    "bottle": "tests.support.apps.bottle_app:app",
    "pyramid": "tests.support.apps.pyramid_app:create_app()",
}
BOUNDARY = "boundary-of-this-test"


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres | None]:
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(Postgres())
        except NoServer:
            server = None
        yield server


@pytest.fixture(scope="module", params=APPS)
def process(
    request: pytest.FixtureRequest, database: Postgres | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Process]:
    """One process for each framework, with a pool if there is a PostgreSQL; it has to end cleanly."""
    pytest.importorskip(request.param)
    environ = {"PKG_ADMIN": "off", "PKG_POOL_MIN_SIZE": "1", "PKG_POOL_MAX_SIZE": "2"}
    if database is not None:
        environ["DATABASE_URL"] = database.url
    process = Process(tmp_path_factory.mktemp(request.param), "", (APPS[request.param],), environ)
    try:
        match = process.await_message(r"^serving .* on (.*):(\d+) after", 30)
        process.address = (match[1], int(match[2]))
        yield process
        assert process.stop() == 0, process.errors()
        assert "Traceback" not in process.errors()
    finally:
        process.kill()


def ask(
    process: Process, method: str, target: str, body: Any = None, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    with contextlib.closing(http.client.HTTPConnection(*process.address, timeout=20)) as connection:
        connection.request(method, target, body, {n.replace("_", "-"): v for n, v in headers.items()})
        response = connection.getresponse()
        return response, response.read()


def multipart(filename: str, data: bytes) -> bytes:
    lines = [
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; name=note\r\n\r\na note\r\n".encode(),
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{filename}"\r\n'.encode(),
        b"Content-Type: application/octet-stream\r\n\r\n" + data + b"\r\n",
        f"--{BOUNDARY}--\r\n".encode(),
    ]
    return b"".join(lines)


def test_hello(process: Process) -> None:
    response, body = ask(process, "GET", "/")
    assert (response.status, body) == (200, b"hello")
    assert response.getheader("Content-Length") == "5"
    assert len(response.headers.get_all("Date", [])) == 1
    head, body = ask(process, "HEAD", "/")
    assert body == b""
    assert head.status in (200, 404, 405)  # bottle answers HEAD by GET, pyramid and falcon need not


def test_form(process: Process) -> None:
    fields = urllib.parse.urlencode([("name", "J\u00fcrgen & co"), ("tag", "a"), ("tag", "b")])
    response, body = ask(process, "POST", "/form?q=%C3%A4", fields, Content_Type="application/x-www-form-urlencoded")
    assert response.status == 200, body
    assert json.loads(body) == {"name": "J\u00fcrgen & co", "tags": ["a", "b"], "query": "\u00e4"}


@pytest.mark.parametrize("size", [0, 1000, 65_536, 5_000_000])
def test_multipart_upload(process: Process, size: int) -> None:
    data = hashlib.shake_128(b"upload").digest(size)
    response, body = ask(
        process,
        "POST",
        "/upload",
        multipart("n\u00e4me.bin", data),
        Content_Type=f"multipart/form-data; boundary={BOUNDARY}",
    )
    assert response.status == 200, body
    answer = json.loads(body)
    assert (answer["note"], answer["size"]) == ("a note", size)
    assert answer["sha256"] == hashlib.sha256(data).hexdigest()
    assert answer["filename"].encode() in ("n\u00e4me.bin".encode(), "n\u00e4me.bin".encode("latin-1"))


@pytest.mark.parametrize("size", [0, 100, 4_000_000])
def test_a_body_as_a_stream(process: Process, size: int) -> None:
    data = hashlib.shake_128(b"stream").digest(size)
    response, body = ask(process, "PUT", "/raw", data)
    assert response.status == 200, body
    assert json.loads(body) == {"size": size, "sha256": hashlib.sha256(data).hexdigest()}


def test_a_chunked_request(process: Process) -> None:
    """Buffered whole, so every framework sees a length, as most of them read no further than that."""
    data = hashlib.shake_128(b"chunks").digest(20_000)
    with contextlib.closing(http.client.HTTPConnection(*process.address, timeout=20)) as connection:
        connection.request("PUT", "/raw", iter([data[:7000], data[7000:]]), encode_chunked=True)
        response = connection.getresponse()
        body = response.read()
    assert response.status == 200, body
    assert json.loads(body) == {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


@pytest.mark.parametrize("count", [0, 1, 100, 20_000])
def test_streaming(process: Process, count: int) -> None:
    with Connection(process.address) as c:
        for _ in range(2):
            answer = c.request("GET", f"/stream?n={count}")
            assert answer.status == 200
            assert answer.body == b"".join(b"line %d\n" % n for n in range(count))
            assert (answer.header("transfer-encoding") == "chunked") == (answer.header("content-length") is None)


def test_a_file(process: Process) -> None:
    name = process_name(process)
    response, body = ask(process, "GET", "/file")
    assert response.status == 200
    assert body == (Path(__file__).parents[1] / "support" / "apps" / f"{name}_app.py").read_bytes()


def process_name(process: Process) -> str:
    arguments = process.process.args
    assert isinstance(arguments, list)
    module: str = arguments[-1].partition(":")[0]
    return module.rpartition(".")[2].removesuffix("_app")


def test_cookies(process: Process) -> None:
    response, body = ask(process, "GET", "/cookies", Cookie='a=b; c="d e"')
    assert response.status == 200
    assert json.loads(body)["seen"]["a"] == "b"
    cookies = response.headers.get_all("Set-Cookie", [])
    assert [c.partition("=")[0] for c in cookies] == ["first", "second"]
    assert "httponly" in cookies[0].lower()
    assert "one two" in cookies[0] or "one\\040two" in cookies[0]


def test_redirect(process: Process) -> None:
    response, _ = ask(process, "GET", "/redirect")
    assert response.status == 302
    assert (response.getheader("Location") or "").endswith("/form?a=b")


def test_errors(process: Process) -> None:
    assert ask(process, "GET", "/missing")[0].status == 404
    assert ask(process, "GET", "/no/such/page")[0].status == 404
    with Connection(process.address) as c:
        assert c.request("GET", "/missing").status == 404
        assert c.request("GET", "/").body == b"hello"
    response, body = ask(process, "GET", "/fail")
    assert response.status == 500
    assert b"secret" not in body
    wait_for(lambda: any("secret" in json.dumps(line) for line in process.lines()), message="the log's traceback")


def test_json(process: Process) -> None:
    response, body = ask(process, "POST", "/json", json.dumps({"numbers": [1, 2]}), Content_Type="application/json")
    assert response.status == 200, body
    assert (response.getheader("Content-Type") or "").startswith("application/json")
    assert json.loads(body) == {"doubled": [2, 4], "text": "gr\u00fc\u00df \u20ac"}


def test_paths_in_utf_8(process: Process) -> None:
    response, body = ask(process, "GET", "/path/gr%C3%BC%C3%9F%20%E2%82%AC")
    assert response.status == 200, body
    assert json.loads(body) == {"text": "gr\u00fc\u00df \u20ac"}
    with Connection(process.address) as c:  # as some clients send it
        answer = c.request("GET", "/path/gr\u00fc\u00df%20\u20ac".encode().decode("latin-1"))
        assert json.loads(answer.body) == {"text": "gr\u00fc\u00df \u20ac"}


def test_a_query(process: Process, database: Postgres | None) -> None:
    if database is None:
        pytest.skip("no PostgreSQL here")
    for _ in range(5):
        response, body = ask(process, "GET", "/database")
        assert (response.status, json.loads(body)) == (200, {"sum": 42})
    response, body = ask(process, "GET", "/readyz")
    assert (response.status, body) == (200, b"ok")
