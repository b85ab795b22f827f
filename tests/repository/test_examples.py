"""The examples run as their pages say, as processes of their own."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.client import wait_for
from tests.support.faults.postgres import Postgres
from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]


def ask(port: int, method: str, target: str, form: dict[str, str] | None = None, text: str = "") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    body = urllib.parse.urlencode(form) if form is not None else text or None
    headers = {"Content-Type": "application/x-www-form-urlencoded"} if form is not None else {}
    try:
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


@contextmanager
def example(app: str, **environ: str) -> Iterator[int]:
    port = free_port()
    settings = {"PORT": str(port), "HOST": "127.0.0.1", "PKG_ADMIN": "off", "PKG_DRAIN_DELAY": "0"}
    process = subprocess.Popen(
        [sys.executable, "-m", "pkg", app], cwd=ROOT, env=os.environ | settings | environ, stdout=subprocess.DEVNULL
    )

    def ready() -> bool:
        assert process.poll() is None
        try:
            return ask(port, "GET", "/readyz")[0] == 200
        except OSError:
            return False

    try:
        wait_for(ready, 20, "readiness")
        yield port
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)


def test_handler_app() -> None:
    with example("examples.handler_app:Handler") as port:
        assert ask(port, "GET", "/") == (200, "")
        assert ask(port, "POST", "/", text="milk") == (201, "/0\n")
        assert ask(port, "GET", "/0") == (200, "milk\n")
        assert ask(port, "GET", "/1")[0] == 404
        assert ask(port, "POST", "/", text=" ")[0] == 400
        assert ask(port, "DELETE", "/0")[0] == 501


def test_flask_app() -> None:
    pytest.importorskip("flask")
    with Postgres() as database, example("examples.flask_app:app", DATABASE_URL=database.url) as port:
        assert ask(port, "GET", "/notes") == (200, "[]\n")
        status, body = ask(port, "POST", "/notes", form={"text": "milk"})
        assert (status, json.loads(body)) == (201, {"id": 1, "text": "milk"})
        assert json.loads(ask(port, "GET", "/notes")[1]) == [{"id": 1, "text": "milk"}]
        assert ask(port, "POST", "/notes", form={})[0] == 400
