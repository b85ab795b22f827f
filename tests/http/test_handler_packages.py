"""Handler classes that others have published, unmodified, each hosted by the service: range requests, uploads, WebDAV.

They are written against http.server and its privates: bases called by name, the buffer of header lines changed in
place, `rfile` given to parsers of forms, requests parsed by overridden methods, bodies in chunks by hand.
"""

from __future__ import annotations

import base64
import gzip
from pathlib import Path

import pytest

from tests.support.client import Connection, get
from tests.support.processes import Process, ask, running

LARGE = bytes(range(256)) * 4096  # a megabyte


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the packages serve: the current directory of the process."""
    (tmp_path / "page.html").write_text("<p>page</p>" * 200)
    (tmp_path / "large.bin").write_bytes(LARGE)
    (tmp_path / "folder").mkdir()
    return tmp_path


def assert_no_errors(process: Process) -> None:
    wrong = [line for line in process.lines() if line["severity"] in ("ERROR", "CRITICAL")]
    assert not wrong, wrong
    assert process.stop() == 0


def test_rangehttpserver(folder: Path) -> None:
    with running(folder, "", app="RangeHTTPServer:RangeRequestHandler") as process:
        with Connection(process.address) as c:
            for first, last in ((0, 9), (1000, 70_000), (len(LARGE) - 3, len(LARGE) - 1)):
                answer = c.request("GET", "/large.bin", f"Range: bytes={first}-{last}\r\n")
                assert (answer.status, answer.body) == (206, LARGE[first : last + 1])
                assert answer.header("content-range") == f"bytes {first}-{last}/{len(LARGE)}"
                assert answer.header("accept-ranges") == "bytes"
            answer = c.request("GET", "/large.bin")
            assert (answer.status, answer.body, answer.header("accept-ranges")) == (200, LARGE, "bytes")
            assert c.request("HEAD", "/page.html").header("accept-ranges") == "bytes"
        assert get(process.address, "/large.bin", f"Range: bytes={len(LARGE)}-\r\n").status == 416
        assert get(process.address, "/large.bin", "Range: bytes=9-1\r\n").status == 400
        assert get(process.address, "/missing", "Range: bytes=0-1\r\n").status == 404
        assert_no_errors(process)


UPLOADSERVER = """
import argparse, functools, uploadserver
uploadserver.args = argparse.Namespace(
    directory=".", theme="auto", allow_replace=False, basic_auth=None, basic_auth_upload=None
)
app = functools.partial(uploadserver.SimpleHTTPRequestHandler, directory=".")
"""


def form(name: str, content: bytes) -> tuple[str, bytes]:
    head = f'--limit\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    return "Content-Type: multipart/form-data; boundary=limit\r\n", head.encode() + content + b"\r\n--limit--\r\n"


def test_uploadserver(folder: Path) -> None:
    with running(folder, UPLOADSERVER) as process:
        with Connection(process.address) as c:
            for name, content in (("small", b"small"), ("long.bin", LARGE)):
                headers, body = form(name, content)
                assert c.request("POST", "/upload", headers, body).status == 204
                assert (folder / name).read_bytes() == content
            assert b"upload" in c.request("GET", "/upload").body.lower()
            listing = c.request("GET", "/folder/")  # whose length the package corrects among the header lines
            assert listing.status == 200
            assert b"/upload" in listing.body
            assert c.request("GET", "/small").body == b"small"
        assert get(process.address, "/elsewhere", method="POST", body=b"x").status == 404
        assert_no_errors(process)


def test_httpcompressionserver(folder: Path) -> None:
    (folder / "large.html").write_bytes(b"<p>" * 300_000)
    app = "httpcompressionserver:HTTPCompressionRequestHandler"
    with running(folder, "", app=app) as process:
        accept = "Accept-Encoding: gzip\r\n"
        for name in ("page.html", "large.html"):  # the second in chunks that the package makes itself
            answer = get(process.address, f"/{name}", accept)
            assert (answer.status, answer.header("content-encoding")) == (200, "gzip")
            assert gzip.decompress(answer.body) == (folder / name).read_bytes()
        assert get(process.address, "/page.html").body == (folder / "page.html").read_bytes()
        assert_no_errors(process)


SAUTH = """
import sauth
sauth.SimpleHTTPAuthHandler.username, sauth.SimpleHTTPAuthHandler.password = "somebody", "secret"
app = sauth.SimpleHTTPAuthHandler
"""


def test_sauth(folder: Path) -> None:
    with running(folder, SAUTH, LOG_FORMAT="json") as process:
        # It prints as it serves, so the log is not only JSON: what it answers is looked at.
        token = base64.b64encode(b"somebody:secret").decode()
        with Connection(process.address) as c:
            answer = c.request("GET", "/page.html")
            assert (answer.status, answer.header("www-authenticate")) == (401, 'Basic realm="Test"')
            assert answer.body.endswith(b"not authenticated")
            answer = c.request("GET", "/page.html", f"Authorization: Basic {token}\r\n")
            assert (answer.status, answer.body) == (200, (folder / "page.html").read_bytes())


PYWEBDAV = """
from pywebdav.server.fileauth import DAVAuthHandler
from pywebdav.server.fshandler import FilesystemHandler
from pywebdav.server.server import setupDummyConfig

app = DAVAuthHandler
app._config = setupDummyConfig(
    verbose=False, directory=".", user="somebody", password="secret", lockemulation=True, mimecheck=True, baseurl="",
    http_request_use_iterator=0, http_response_use_iterator=1, chunked_http_response=0,
)
app.IFACE_CLASS = FilesystemHandler(DIRECTORY, "http://127.0.0.1/")
app.IFACE_CLASS.mimecheck, app.IFACE_CLASS.baseurl = True, ""
"""


def test_pywebdav(folder: Path) -> None:
    """It checks passwords in an overridden parse_request(), so it reads its requests for itself."""
    source = PYWEBDAV.replace("DIRECTORY", repr(str(folder)))
    with running(folder, source) as process:
        authorization = {"Authorization": "Basic " + base64.b64encode(b"somebody:secret").decode()}

        def dav(method: str, target: str, body: bytes | None = None, **more: str) -> tuple[int, str]:
            status, _, text = ask(process.address, target, method, body=body, **authorization, **more)
            return status, text

        assert ask(process.address, "/page.html")[0] == 401
        assert dav("PUT", "/new.txt", b"written")[0] == 201
        assert (folder / "new.txt").read_bytes() == b"written"
        assert dav("GET", "/new.txt") == (200, "written")
        assert dav("GET", "/page.html") == (200, (folder / "page.html").read_text())
        status, text = dav("PROPFIND", "/", Depth="1")
        assert status == 207
        assert "new.txt" in text
        assert dav("MKCOL", "/made")[0] == 201
        assert dav("DELETE", "/new.txt")[0] == 204
        assert not (folder / "new.txt").exists()
        assert_no_errors(process)
