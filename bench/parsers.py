"""Measures request parsers in one interpreter and prints JSON:  python -m bench.parsers SECONDS.

It runs in the peers' environment, started by `parsing`.  What is timed is bytes in, a request one can ask out: method,
target, and every header as Python objects; `lazy` stops at what the parser hands out before anybody asks for more.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

PROBE = (
    b"GET /healthz HTTP/1.1\r\nHost: 10.244.1.7:8080\r\nUser-Agent: kube-probe/1.29\r\nAccept: */*\r\n"
    b"Connection: close\r\n\r\n"
)
BROWSER = (
    b"GET /articles/2024/how-to-measure?utm_source=feed&page=2 HTTP/1.1\r\nHost: www.example.com\r\n"
    b"Connection: keep-alive\r\nUpgrade-Insecure-Requests: 1\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64) "
    b"AppleWebKit/537.36 (KHTML, like Gecko) Chrome/124.0.0.0 Safari/537.36\r\n"
    b"Referer: https://www.example.com/articles/2024/index.html\r\n"
    b"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9,de;q=0.8\r\n"
    b"Cookie: session=8f14e45fceea167a5a36dedd4bea2543; theme=dark; consent=yes\r\n\r\n"
)
Parse = Callable[[bytes], object]


def ours_lazy() -> Parse:
    from pkg import _core

    return _core.parse_head


def ours() -> Parse:
    from pkg import _core

    def parse(data: bytes) -> object:
        request = _core.parse_head(data)
        assert request is not None
        return request.method, request.target, request.headers

    return parse


def h1c_lazy() -> Parse:
    import gunicorn_h1c

    def parse(data: bytes) -> object:
        return gunicorn_h1c.parse_request(data)

    return parse


def h1c_full() -> Parse:
    import gunicorn_h1c

    def parse(data: bytes) -> object:
        found = gunicorn_h1c.parse_request(data)
        return found["method"], found["path"], list(found["headers"])

    return parse


def httptools_full() -> Parse:
    import httptools

    class Request:
        def __init__(self) -> None:
            self.headers: list[tuple[bytes, bytes]] = []

        def on_url(self, url: bytes) -> None:
            self.url = url

        def on_header(self, name: bytes, value: bytes) -> None:
            self.headers.append((name, value))

    def parse(data: bytes) -> object:
        request = Request()
        parser = httptools.HttpRequestParser(request)
        parser.feed_data(data)
        return parser.get_method(), request.url, request.headers

    return parse


def h11_full() -> Parse:
    import h11

    def parse(data: bytes) -> object:
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(data)
        request: Any = connection.next_event()
        return request.method, request.target, request.headers

    return parse


def http_server() -> Parse:
    from http.server import BaseHTTPRequestHandler

    class Handler(BaseHTTPRequestHandler):
        def __init__(self, data: bytes) -> None:
            self.rfile = io.BytesIO(data)
            self.wfile = io.BytesIO()
            self.raw_requestline = self.rfile.readline()
            self.parse_request()

    def parse(data: bytes) -> object:
        handler = Handler(data)
        return handler.command, handler.path, handler.headers.items()

    return parse


PARSERS: dict[str, Callable[[], Parse]] = {
    "pkg, lazy": ours_lazy,
    "pkg": ours,
    "gunicorn_h1c, lazy": h1c_lazy,
    "gunicorn_h1c": h1c_full,
    "httptools": httptools_full,
    "h11": h11_full,
    "http.server": http_server,
}


def main(seconds: float) -> dict[str, Any]:
    out: dict[str, Any] = {"rows": [], "missing": {}}
    parsers: dict[str, Parse] = {}
    for name, make in PARSERS.items():
        try:
            parsers[name] = make()
            parsers[name](PROBE)
        except Exception as error:
            parsers.pop(name, None)
            out["missing"][name] = f"{type(error).__name__}: {error}"
    for case, data in (("probe", PROBE), ("browser", BROWSER)):
        counts = {}
        for name, parse in parsers.items():
            begin, n = time.perf_counter(), 0
            while time.perf_counter() - begin < 0.02:
                parse(data)
                n += 1
            counts[name] = max(n // 2, 1)
        times: dict[str, list[float]] = {name: [] for name in parsers}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            for name, parse in parsers.items():
                count = counts[name]
                begin = time.perf_counter()
                for _ in range(count):
                    parse(data)
                times[name].append((time.perf_counter() - begin) / count)
        for name, found in times.items():
            ns = statistics.median(found) * 1e9
            out["rows"].append({"level": "Python", "case": case, "parser": name, "ns": round(ns, 1)})
    return out


if __name__ == "__main__":
    print(json.dumps(main(float(sys.argv[1]))))
