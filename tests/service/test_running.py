"""`pkg.running()`: code that uses the pool works without a server, in tests, scripts and task queues."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from flask import Flask
from flask.typing import ResponseReturnValue

import pkg
from pkg import api
from pkg.health.report import CheckState
from tests.support.client import get, wait_for
from tests.support.faults.postgres import Postgres
from tests.support.processes import running

app = Flask(__name__)
app.testing = True


@app.get("/")
def index() -> ResponseReturnValue:
    with pkg.connection(timeout=5) as connection:
        row = connection.execute("select 1").fetchone()
    assert row is not None
    return {"one": row[0]}


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


def sessions(server: Postgres) -> int:
    clients = "from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid()"
    with psycopg.connect(server.url) as connection:
        row = connection.execute(f"select count(*) {clients}").fetchone()
    assert row is not None
    count: int = row[0]
    return count


def test_an_application_is_exercised_by_its_own_test_client(postgres: Postgres) -> None:
    before = set(threading.enumerate())
    with pkg.running(DATABASE_URL=postgres.url, PKG_POOL_MIN_SIZE="1", PKG_POOL_MAX_SIZE="2"):
        assert app.test_client().get("/").get_json() == {"one": 1}
        assert 1 <= sessions(postgres) <= 3  # the pool's, and perhaps the check's own
    with pytest.raises(pkg.NotRunningError, match=r"pkg\.running"):
        app.test_client().get("/")
    wait_for(lambda: sessions(postgres) == 0, 10, "the pool's connections to end")
    wait_for(lambda: set(threading.enumerate()) <= before, 10, "its threads to end")


def report() -> list[CheckState]:
    checker = api.current().checker
    assert checker is not None
    return list(checker.report().readiness)


def test_checks_run_and_readiness_can_be_set(postgres: Postgres) -> None:
    ran = threading.Event()
    with pkg.running(DATABASE_URL=postgres.url):

        @pkg.check("mine", interval=1)
        def mine() -> None:
            ran.set()

        assert ran.wait(10)
        pkg.set_ready(False, "maintenance")


def test_there_is_one_at_a_time(postgres: Postgres) -> None:
    with pkg.running(DATABASE_URL=postgres.url):
        with pytest.raises(pkg.NotRunningError, match="has a service already"), pkg.running():
            pass
        assert app.test_client().get("/").get_json() == {"one": 1}


def test_without_a_database_there_is_no_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    with pkg.running(), pytest.raises(pkg.NotRunningError, match="DATABASE_URL is not set"):
        app.test_client().get("/")


def test_wrong_settings_are_told_of() -> None:
    with pytest.raises(TypeError, match="does not exist: DATABASE_URI"), pkg.running(DATABASE_URI="postgresql://x/y"):
        pass
    with pytest.raises(TypeError, match="DATABASE_URL as NoneType"), pkg.running(DATABASE_URL=None):  # type: ignore[arg-type]
        pass
    with pytest.raises(pkg.ConfigurationError, match="PKG_POOL_MAX_SIZE"), pkg.running(PKG_POOL_MAX_SIZE="many"):
        pass
    with pytest.raises(pkg.ConfigurationError), pkg.running(DATABASE_URL="mysql://user:secret@host/db"):
        pass
    with pytest.raises(pkg.NotRunningError):
        pkg.connection()


def test_a_database_that_is_away_is_unavailable() -> None:
    with (
        pkg.running(DATABASE_URL="postgresql://127.0.0.1:1/x", PKG_POOL_TIMEOUT="1"),
        pytest.raises(pkg.DatabaseUnavailable),
        pkg.connection(timeout=1),
    ):
        pass


def test_a_script(postgres: Postgres, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("""
import pkg
with pkg.running(), pkg.connection() as connection:
    print(connection.execute("select 40 + 2").fetchone()[0])
""")
    environ = {**os.environ, "DATABASE_URL": postgres.url}
    out = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (out.returncode, out.stdout, out.stderr) == (0, "42\n", "")


def test_a_served_application_has_its_pool_already(postgres: Postgres, tmp_path: Path) -> None:
    source = """
import pkg
def app(environ, start_response):
    try:
        with pkg.running():
            text = b"twice"
    except pkg.NotRunningError as error:
        text = str(error).encode()
    start_response("200 OK", [("Content-Length", str(len(text)))])
    return [text]
"""
    with running(tmp_path, source, DATABASE_URL=postgres.url) as process:
        assert b"has a service already" in get(process.address, "/").body


def test_a_check_of_an_imported_module_begins_anew_in_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "early_checks", [])
    blocks: list[int] = []
    ran: set[int] = set()
    broken = threading.Event()

    @pkg.check("early", interval=0.1)
    def early() -> bool:
        ran.add(len(blocks))
        return not broken.is_set()

    for number in (1, 2):
        blocks.append(number)
        broken.clear()
        with pkg.running(DATABASE_URL=""):
            wait_for(lambda: [s for s in report() if s.name == "early" and s.status == "ok"], 10, "a pass")
            broken.set()
            wait_for(lambda: [s for s in report() if s.name == "early" and s.status == "failed"], 10, "a failure")
    assert ran == {1, 2}


SUITE = {
    "shop.py": """
from flask import Flask
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.orm import Session

import pkg

app = Flask(__name__)
engine = create_engine("postgresql+psycopg://", creator=lambda: pkg.connect(deadline=10), poolclass=NullPool)


@app.get("/")
def answer():
    with Session(engine) as session:
        return {"pid": session.scalar(text("select pg_backend_pid()"))}
""",
    "library.py": """
import django
from django.conf import settings
from django.db import connection
from django.http import JsonResponse
from django.urls import path

from pkg.integrations.django import database

settings.configure(
    DATABASES={"default": database(deadline=10)}, ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="of a test"
)
django.setup()


def answer(request):
    with connection.cursor() as cursor:
        cursor.execute("select pg_backend_pid()")
        return JsonResponse({"pid": cursor.fetchone()[0]})


urlpatterns = [path("", answer)]
""",
    "test_shop.py": """
import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest

import library
import pkg
import shop

pytestmark = pytest.mark.usefixtures("pkg_running")


def pids(get):
    with ThreadPoolExecutor(4) as threads:
        return set(threads.map(lambda _: get(), range(20)))


def test_one_pool_is_everyones():
    from django.db import connections
    from django.test import Client

    with contextlib.closing(pkg.connect()) as one, contextlib.closing(pkg.connect()) as two:
        both = {one.info.backend_pid, two.info.backend_pid}
    assert pids(lambda: shop.app.test_client().get("/").json["pid"]) <= both
    assert Client().get("/").json()["pid"] in both  # in one thread: Django's client lets each keep its connection
    connections.close_all()


def test_what_is_kept_until_the_end():
    shop.kept = pkg.connect()
    shop.kept.execute("select 1")
""",
    "test_then.py": """
import gc, os, threading

import pytest

import pkg
import shop


def test_nothing_is_left():
    with pytest.raises(pkg.DatabaseUnavailable):
        shop.kept.execute("select 1")
    shop.kept.close()
    gc.collect()
    assert threading.enumerate() == [threading.current_thread()]
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            pass
    assert not [name for name in found if name.startswith("socket:")]
    with pytest.raises(pkg.NotRunningError, match=r"with pkg\\.running"):
        pkg.connect()
""",
}


def test_the_suite_of_a_small_application(postgres: Postgres, tmp_path: Path) -> None:
    """By the fixture Flask's test client, Django's, sessions of SQLAlchemy and threads find the pool; after the module
    nothing is left of it."""
    for name, text in SUITE.items():
        (tmp_path / name).write_text(text)
    environ = {**os.environ, "DATABASE_URL": postgres.url, "PKG_POOL_MIN_SIZE": "2", "PKG_POOL_MAX_SIZE": "2"}
    environ.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_shop.py", "test_then.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
    assert (done.returncode, "3 passed" in done.stdout) == (0, True), done.stdout + done.stderr
