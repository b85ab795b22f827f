"""Runs one of the servers that have no command line:  python -m bench.hosts NAME PORT.

It is started by `peers` in the peers' environment, so it may import nothing else of the benchmark but applications.
"""

from __future__ import annotations

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from bench.applications import WORK, asgi, wsgi


def run_fastpysgi(port: int, app: Any = wsgi) -> None:
    import fastpysgi

    fastpysgi.server.max_content_length = 8 << 20
    fastpysgi.run(app, "127.0.0.1", port, loglevel=fastpysgi.LL_FATAL_ERROR)


def run_fastpysgi_asgi(port: int) -> None:
    """It sees by itself which of the two an application is."""
    run_fastpysgi(port, asgi)


def run_bjoern(port: int) -> None:
    import bjoern

    bjoern.run(wsgi, "127.0.0.1", port)


class Handler(BaseHTTPRequestHandler):
    """The standard library as its documentation shows it, with keep-alive on."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(WORK[self.path]())

    def do_POST(self) -> None:
        self._answer(b"%d" % len(self.rfile.read(int(self.headers["Content-Length"]))))

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Standard(ThreadingHTTPServer):
    request_queue_size = 2048  # the default of 5 would lose connections and distort the measurement
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass


def run_stdlib(port: int) -> None:
    Standard(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    globals()[f"run_{sys.argv[1]}"](int(sys.argv[2]))
