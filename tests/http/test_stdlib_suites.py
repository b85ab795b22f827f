"""CPython's own tests of `http.server` and `wsgiref`, run on our Server, RequestHandler and Application.

It repeats none of them; what differs on purpose is DIFFERENCES, each with its reason.

Each suite runs in a process of its own, where the standard library's classes are replaced before the tests are
imported:

    server      http.server.HTTPServer is Server; handlers are the standard library's (adapted, or replayed)
    handler     BaseHTTPRequestHandler is RequestHandler too, and the handlers made of it are made anew
    wsgiref     WSGIServer is a Server, its handler the standard library's (replayed)
    wsgi        the requests of wsgiref's integration tests go to Server and Application through a real socket
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any

import pytest

SUITES = ("server", "handler", "wsgiref", "wsgi")

_SOCKETLESS = "builds the handler on a mock of a socket; RequestHandler serves what the front has parsed"
_HEAD = "compares the whole head byte by byte; ours says HTTP/1.1, Date and framing, and no Server"
_ERROR_TEXT = "compares wsgiref's own error page and traceback on stderr; ours is terse, the traceback is logged"

# What fails on purpose: a pattern of "suite Class.test", matched whole, and why.  Whatever is not listed has to pass,
# and what is listed has to fail.
DIFFERENCES = {
    r"(server|handler) BaseHTTPServerTestCase\.test_send_error": (
        "wants 205 without any framing, and 101 and 102 as only response; RFC 9110 15.3.6 has 205 with Content-Length: "
        "0, and after 102 a final response must follow"
    ),
    r"(server|handler) BaseHTTPServerTestCase\.test_request_line_trimming": (
        "ends a line with LF LF; bare LF is refused (RFC 9112 2.2)"
    ),
    r"(server|handler) BaseHTTPServerTestCase\.test_return_header_keep_alive": (
        "wants Connection: keep-alive in HTTP/1.1, where persistence is the default and the server's to say"
    ),
    r"(server|handler) BaseHTTPServerTestCase\.test_version_digits": (
        "HTTP/9.9.9 is 505 here: the major version is judged first; both are refusals"
    ),
    r"(server|handler) BaseHTTPServerTestCase\.test_version_none_get": "HTTP/0.9 is not served",
    r"(server|handler) SimpleHTTPServerTestCase\.test_path_without_leading_slash": (
        "a target that is in none of the four forms is refused (RFC 9112 3.2)"
    ),
    r"(server|handler) RequestHandlerLoggingTestCase\.test_(get|err)": (
        "wants lines on stderr; ours go to logging, and the access line is the server's"
    ),
    r"(server|handler) MiscTestCase\.test_all": "the classes put into http.server for this run come from elsewhere",
    r"handler BaseHTTPRequestHandlerTestCase\..*": _SOCKETLESS,
    r"handler SimpleHTTPRequestHandlerTestCase\..*": _SOCKETLESS,
    r"wsgi IntegrationTests\.test_(plain|validated)_hello": _HEAD,
    r"wsgi IntegrationTests\.test_bytes_validation": "wants wsgiref's access line on stderr",
    r"wsgi IntegrationTests\.test_(simple_validation_error|status_validation_errors|wsgi_input)": _ERROR_TEXT,
    r"wsgi IntegrationTests\.test_request_length": "the reason phrase of 414 is RFC 9110's",
    r"wsgi IntegrationTests\.test_cp1252_url": "a byte above 127 in the target is refused (RFC 9112 3.2, RFC 3986 2)",
}

# How many tests there have to be, so that a suite which is not found does not count as passed.
AT_LEAST = {"server": 60, "handler": 60, "wsgiref": 30, "wsgi": 9}


@pytest.mark.parametrize("suite", SUITES)
def test_suite(suite: str, tmp_path: Path) -> None:
    pytest.importorskip("test.test_wsgiref", reason="this Python comes without its own tests")
    run = subprocess.run(
        [sys.executable, "-m", "tests.http.test_stdlib_suites", suite],
        cwd=tmp_path,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    outcomes: dict[str, str] = json.loads(run.stdout)
    assert len(outcomes) >= AT_LEAST[suite]
    listed = {name for name in outcomes if any(re.fullmatch(p, f"{suite} {name}") for p in DIFFERENCES)}
    failed = {name: text for name, text in outcomes.items() if text not in ("passed", "skipped")}
    wrong = [f"{name}\n{text}" for name, text in failed.items() if name not in listed]
    assert not wrong, "\n".join(wrong)
    assert not {name for name in listed - set(failed) if outcomes[name] == "passed"}, "listed as different, but passed"


# ------------------------------------------------------------------ in the process of a suite


def _replace_server() -> None:
    import http.server

    from pkg.http.server import Server

    http.server.HTTPServer = Server  # type: ignore[misc]
    http.server.ThreadingHTTPServer = Server  # type: ignore[misc]


def _replace_handler() -> None:
    import http.server

    from pkg.http.handler import RequestHandler

    class SimpleHTTPRequestHandler(http.server.SimpleHTTPRequestHandler, RequestHandler):
        pass

    http.server.BaseHTTPRequestHandler = RequestHandler  # type: ignore[misc]
    http.server.SimpleHTTPRequestHandler = SimpleHTTPRequestHandler  # type: ignore[misc]


def _close_after_each(module: Any) -> None:
    """Our responses say HTTP/1.1 and persist; what else the tests of SimpleHTTPRequestHandler say is to count."""
    request = module.BaseTestCase.request
    check = module.SimpleHTTPServerTestCase.check_status_and_reason

    def closing_request(self: Any, uri: str, method: str = "GET", body: Any = None, headers: Any = None) -> Any:
        return request(self, uri, method, body, {**(headers or {}), "Connection": "close"})

    def check_as_1_0(self: Any, response: Any, status: int, data: Any = None) -> Any:
        assert response.version == 11
        response.version = 10
        return check(self, response, status, data)

    module.SimpleHTTPServerTestCase.request = closing_request
    module.SimpleHTTPServerTestCase.check_status_and_reason = check_as_1_0


def _hello(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain"), ("Date", "Mon, 05 Jun 2006 18:49:54 GMT")])
    return [b"Hello, world!"]


def _through_a_socket(app: Any = _hello, data: bytes = b"GET / HTTP/1.0\n\n") -> tuple[bytes, str]:
    """wsgiref's `run_amock`: the response to the bytes of a request, and what was logged."""
    import io
    import logging
    import socket

    from tests.support.servers import serving_app

    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    logging.getLogger().addHandler(handler)
    head, blank, body = data.partition(b"\n\n")  # these tests send bare LF, which is refused on purpose
    data = head.replace(b"\n", b"\r\n") + blank.replace(b"\n", b"\r\n") + body
    try:
        with serving_app(app) as server, socket.create_connection(server.server_address, 10) as client:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
            out = b"".join(iter(lambda: client.recv(65536), b""))
    finally:
        logging.getLogger().removeHandler(handler)
    return out, stream.getvalue()


def _load(suite: str) -> unittest.TestSuite:
    loader = unittest.defaultTestLoader
    if suite in ("server", "handler", "wsgiref"):
        _replace_server()
    if suite == "handler":
        _replace_handler()
    if suite in ("server", "handler"):
        import test.test_httpservers as suites

        _close_after_each(suites)
        return loader.loadTestsFromModule(suites)
    import test.test_wsgiref as module

    if suite == "wsgi":
        module.run_amock = _through_a_socket
        return loader.loadTestsFromTestCase(module.IntegrationTests)
    return loader.loadTestsFromModule(module)


class _Result(unittest.TextTestResult):
    """Says what became of each test; a subtest that fails is a failure of its test."""

    def startTest(self, test: unittest.TestCase) -> None:
        self.outcome = "passed"
        self.outcomes: dict[str, str] = getattr(self, "outcomes", {})
        super().startTest(test)

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self.outcome = "skipped"
        super().addSkip(test, reason)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        self.outcome = self._exc_info_to_string(err, test)
        super().addFailure(test, err)

    addError = addFailure

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self.outcome = self._exc_info_to_string(err, test)

    def stopTest(self, test: unittest.TestCase) -> None:
        self.outcomes[".".join(test.id().split(".")[-2:])] = self.outcome
        super().stopTest(test)


def _run(suite: str) -> None:
    result = unittest.TextTestRunner(stream=sys.stderr, resultclass=_Result, verbosity=2).run(_load(suite))
    assert isinstance(result, _Result)
    print(json.dumps(result.outcomes))


if __name__ == "__main__":
    _run(sys.argv[1])
