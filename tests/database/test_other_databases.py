"""DATABASE_URL when it is not the pool's: another library's, of another database, or in another tool's spelling."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.client import wait_for
from tests.support.faults.postgres import Postgres
from tests.support.processes import ask, running

SOURCE = """
import os, pkg

def app(environ, start_response):
    try:
        pkg.connection()
        text = "a pool"
    except pkg.NotRunningError as error:
        text = str(error)
    body = (os.environ["DATABASE_URL"] + " " + text).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.mark.parametrize("url", ["mysql://u:p@h/shop", "sqlite:///shop.db", "postgresql://h/shop?schema=public"])
def test_a_url_of_the_applications_own(tmp_path: Path, url: str) -> None:
    with running(tmp_path, SOURCE, DATABASE_URL=url, PKG_POOL="off", PKG_ADMIN="off") as process:
        process.await_message("DATABASE_URL is left to the application")
        assert ask(process.address, "/readyz")[0] == 200
        assert (
            ask(process.address, "/")[2]
            == f"{url} the service has no pool: DATABASE_URL is not set, or PKG_POOL is off"
        )
        assert process.stop() == 0


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("mysql://u:p4ss@h/shop", "DATABASE_URL: the URL does not begin with postgresql://"),
        ("postgresql+asyncpg://u:p4ss@h/shop", "DATABASE_URL: the URL does not begin with postgresql://"),
        ("postgresql://u:p4ss@h/shop?schema=public", "DATABASE_URL: libpq has no parameter 'schema'"),
        (
            "postgresql://u:p4ss@h/shop?sslmode=require&pool_size=5",
            "DATABASE_URL: libpq has no parameter 'pool_size'",
        ),
    ],
)
def test_the_line_names_the_parameter_and_the_setting(tmp_path: Path, url: str, line: str) -> None:
    environ = {**os.environ, "DATABASE_URL": url, "PORT": "0", "HOST": "127.0.0.1", "PKG_ADMIN": "off"}
    done = subprocess.run(
        [sys.executable, "-m", "pkg"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    text = done.stdout + done.stderr
    assert line in text
    assert "set PKG_POOL=off" in text
    assert "p4ss" not in text
    assert "Traceback" not in text


def test_a_piece_of_a_password_is_no_parameter(tmp_path: Path) -> None:
    """Its ? was not percent-encoded, so what follows looks like one."""
    environ = {**os.environ, "DATABASE_URL": "postgresql://u:first?secret=x@h/shop", "PORT": "0", "PKG_ADMIN": "off"}
    done = subprocess.run(
        [sys.executable, "-m", "pkg"], cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert "secret" not in done.stdout + done.stderr


# ---------------------------------------------------------------------- frameworks that catch the exception

FLASK = """
import pkg
from flask import Flask
app = Flask(__name__)
app.config["PROPAGATE_EXCEPTIONS"] = True
@app.get("/db")
def db():
    with pkg.connection(timeout=1) as conn:
        return str(conn.execute("select 1").fetchone()[0])
"""
FLASK_500 = """
import pkg
from flask import Flask
app = Flask(__name__)
@app.errorhandler(500)
def failed(error):
    if pkg.outage(error.original_exception):
        return "Service Unavailable", 503, {"Retry-After": "1"}
    return "a page of my own", 500
@app.get("/db")
def db():
    with pkg.connection(timeout=1) as conn:
        return str(conn.execute("select 1").fetchone()[0])
"""
FASTAPI = """
import pkg
from fastapi import FastAPI
from pkg.integrations.asgi import Unavailable
app = FastAPI()
app.add_middleware(Unavailable)
@app.get("/db")
def db():
    try:
        with pkg.connection(timeout=1) as conn:
            return conn.execute("select 1").fetchone()[0]
    except pkg.DatabaseUnavailable as error:
        raise RuntimeError("as of an ORM") from error
"""
DJANGO = """
import django, pkg
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path

settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="of a test", DEBUG_PROPAGATE_EXCEPTIONS=True)

def db(request):
    with pkg.connection(timeout=1) as conn:
        return HttpResponse(str(conn.execute("select 1").fetchone()[0]))

urlpatterns = [path("db", db)]
app = get_wsgi_application()
"""


@pytest.mark.parametrize(
    "source", [FLASK, FLASK_500, DJANGO, FASTAPI], ids=["flask", "flask, with a page", "django", "fastapi"]
)
def test_an_outage_is_503_by_one_line(source: str, tmp_path: Path) -> None:
    with Postgres() as server, running(tmp_path, source, DATABASE_URL=server.url, PKG_ADMIN="off") as process:
        wait_for(lambda: ask(process.address, "/readyz")[0] == 200, 10, "readiness")
        assert ask(process.address, "/db")[::2] == (200, "1")
        server.stop()
        status, headers, _ = ask(process.address, "/db")
        assert (status, headers["retry-after"]) == (503, "1")
        assert process.stop() == 0
