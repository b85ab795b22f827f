"""The backend `pkg.integrations.django` in served applications, and where no service runs."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("django")
from tests.support.client import get, wait_for
from tests.support.faults.host import Host
from tests.support.faults.outage import RED, load, outage
from tests.support.faults.postgres import Postgres
from tests.support.processes import Process, ask, running

# CONN_MAX_AGE and ATOMIC_REQUESTS on purpose: both must not matter to the pool.
SHOP = """
import json, time
import django, pkg
from django.conf import settings
from pkg.integrations.django import database

settings.configure(
    DATABASES={
        "default": {**database(deadline=2), "CONN_MAX_AGE": 600, "ATOMIC_REQUESTS": True},
        "replica": database("replica", deadline=2),
        "direct": {**database(), "OPTIONS": {"application_name": "direct"}},
    },
    MIDDLEWARE=["pkg.integrations.django.middleware.Unavailable", "shop.reading_middleware"],
    ROOT_URLCONF="shop", SECRET_KEY="of a test", ALLOWED_HOSTS=["*"], USE_TZ=True, INSTALLED_APPS=[],
)
django.setup()
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from django.db import connections, models, transaction
from django.http import HttpResponse, JsonResponse
from django.urls import path
from django.utils.decorators import sync_and_async_middleware

class Book(models.Model):
    title = models.TextField()
    class Meta:
        app_label, db_table = "shop", "book"

class reading_middleware:
    sync_capable, async_capable = True, False
    def __init__(self, get_response):
        self.get_response = get_response
    def __call__(self, request):
        if request.path == "/middleware":
            Book.objects.count()
        return self.get_response(request)

def count(request):
    return JsonResponse({"count": Book.objects.count()})

def fail(request):
    Book.objects.create(title="rolled back")
    raise ValueError("on purpose")

kept = []

def some(request):  # a cursor on the server, not at its end, within and outside of a transaction
    books = Book.objects.order_by("id").iterator(chunk_size=10)
    outside = Book.objects.using("replica").order_by("id").iterator(chunk_size=10)
    kept.append(outside)  # as a stream does whose client has left
    return JsonResponse({"first": [next(books).title, next(outside).title]})

def aliases(request):
    def name(alias):
        with connections[alias].cursor() as cursor:
            cursor.execute("select current_setting('application_name')")
            return cursor.fetchone()[0]
    return JsonResponse({alias: name(alias) for alias in settings.DATABASES})

def clear(request):  # what is collected now must not reach the next borrower's session
    kept.clear()
    return HttpResponse()

def left(request):
    with pkg.connection("replica", timeout=2) as conn:
        portals = conn.execute("select count(*) from pg_cursors where is_holdable").fetchone()[0]
        factory = conn.cursor_factory.__module__
        return JsonResponse({"portals": portals, "autocommit": conn.autocommit, "factory": factory})

@transaction.non_atomic_requests  # Django has no others for coroutines
async def counted(request):
    return JsonResponse({"count": await Book.objects.acount()})

urlpatterns = [
    path("count", count), path("middleware", count), path("fail", fail), path("some", some),
    path("aliases", aliases), path("left", left), path("clear", clear), path("counted", counted),
]
wsgi, asgi = get_wsgi_application(), get_asgi_application()
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        server.sql("create table book (id bigserial primary key, title text not null)", database="postgres")
        server.sql("insert into book (title) select 't' || n from generate_series(1, 100) n", database="postgres")
        server.sql("grant all on all tables in schema public to app", database="postgres")
        server.sql("grant all on all sequences in schema public to app", database="postgres")
        yield server


def shop(folder: Path, server: Postgres, app: str) -> Any:
    (folder / "shop.py").write_text(SHOP)
    return running(
        folder, "", app=app,
        DATABASE_URL=server.url, DATABASE_URL_REPLICA=server.url + "?application_name=replica",
        PKG_POOL_MAX_SIZE="2", PKG_THREADS="6", PKG_ADMIN="off", PKG_DATABASE_CHECK_INTERVAL="500ms",
    )  # fmt: skip


def ready(process: Process) -> None:
    wait_for(lambda: ask(process.address, "/readyz")[0] == 200, 15, "readiness")


def test_requests_give_everything_back(tmp_path: Path, server: Postgres) -> None:
    """More threads than connections, each of which would keep one by CONN_MAX_AGE."""
    with shop(tmp_path, server, "shop:wsgi") as process, ThreadPoolExecutor(8) as clients:
        ready(process)
        answers = list(clients.map(lambda n: ask(process.address, ("/count", "/some", "/fail")[n % 3]), range(60)))
        assert {answer[0] for answer in answers[0::3] + answers[1::3]} == {200}
        assert {answer[0] for answer in answers[2::3]} == {500}, "Django's answer to an error of the view"
        assert answers[1][2] == '{"first": ["t1", "t1"]}'
        assert server.sql("select count(*) from book", database="postgres") == 100
        assert ask(process.address, "/aliases")[2] == '{"default": "pkg", "replica": "replica", "direct": "direct"}'
        for _ in range(2):
            left = '{"portals": 0, "autocommit": false, "factory": "pkg.database.connection"}'
            assert ask(process.address, "/left")[2] == left
            ask(process.address, "/clear")
        # Two pools of two; the connections of `direct` end with their requests.
        wait_for(lambda: server.backends() <= 4, 5, "no other connections")
        query = "select count(*) from pg_stat_activity where usename = 'app' and state like 'idle in%'"
        assert server.sql(query) == 0

        server.pause()
        try:
            begun = time.monotonic()
            outage = [clients.submit(ask, process.address, path) for path in ("/count", "/middleware")]
            for answer in outage:
                status, headers, _ = answer.result()
                assert (status, headers.get("retry-after")) == (503, "1")
            assert time.monotonic() - begun < 10, "two seconds, and what a busy machine needs"
        finally:
            server.resume()
        ready(process)
        wait_for(lambda: ask(process.address, "/count")[0] == 200, 10, "an answer")
        assert process.stop() == 0, process.errors()


def test_asynchronous_views(tmp_path: Path, server: Postgres) -> None:
    with shop(tmp_path, server, "shop:asgi") as process, ThreadPoolExecutor(8) as clients:
        ready(process)
        answers = list(clients.map(lambda n: ask(process.address, ("/counted", "/count")[n % 2])[::2], range(40)))
        assert set(answers) == {(200, '{"count": 100}')}
        server.stop()
        try:
            status, headers, _ = ask(process.address, "/counted")
            assert (status, headers.get("retry-after")) == (503, "1")
        finally:
            server.start()
        wait_for(lambda: ask(process.address, "/counted")[0] == 200, 10, "an answer")
        assert process.stop() == 0, process.errors()


TESTS = """
from concurrent.futures import ThreadPoolExecutor
import pkg
from django.db import connection
from django.test import TestCase
from library.models import Book

def where():
    with connection.cursor() as cursor:
        cursor.execute("select current_database()")
        found = cursor.fetchone()[0]
    connection.close()
    return found

class Tests(TestCase):
    def test_book(self):
        Book.objects.create(title="Emma")
        self.assertEqual(self.client.get("/").json(), {"titles": ["Emma"]})

    def test_the_pools_database_is_another(self):
        with pkg.running(), ThreadPoolExecutor(1) as executor:
            self.assertEqual(executor.submit(where).result(), "test_postgres")
"""


def test_commands_connect_by_themselves(tmp_path: Path, server: Postgres) -> None:
    """migrate beside a service that runs, and the test runner, which makes a database."""
    from tests.support.pages import ROOT, files_of

    for path, text in files_of(ROOT / "docs/databases.md").items():
        if path.startswith("library/"):
            (tmp_path / path).parent.mkdir(exist_ok=True)
            (tmp_path / path).write_text(text)
    (tmp_path / "library/tests.py").write_text(TESTS)
    server.sql("alter role app createdb")
    environ = {"DATABASE_URL": server.url, "PKG_ADMIN": "off"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "django", *command], cwd=tmp_path, capture_output=True, text=True, timeout=60,
            env={**environ, "DJANGO_SETTINGS_MODULE": "library.settings", "PYTHONPATH": str(tmp_path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    with running(tmp_path, "", app="library.wsgi", **environ) as process:
        ready(process)
        assert ask(process.address, "/")[0] == 500, "there is no table yet"
        run("makemigrations", "library")
        assert "Applying library.0001_initial... OK" in run("migrate")
        assert ask(process.address, "/")[::2] == (200, '{"titles": []}')
        assert "Ran 2 tests" in run("test")
        assert process.stop() == 0, process.errors()


WRAPPED = """
import time
import django
from django.conf import settings
from pkg.integrations.django import database

settings.configure(
    DATABASES={"default": {**database(), "ENGINE": "django.db.backends.postgresql", "OPTIONS": {}}},
    MIDDLEWARE=["wrapped.counting"],
    ROOT_URLCONF="wrapped", SECRET_KEY="of a test", ALLOWED_HOSTS=["*"], USE_TZ=True, INSTALLED_APPS=[],
    LOGGING_CONFIG=None,
)
django.setup()
from django.core.wsgi import get_wsgi_application
from django.db import connection
from django.http import HttpResponse
from django.urls import path
from pkg.integrations.django.readiness import check_database

def counting(get_response):
    def middleware(request):
        statements = []
        def count(execute, *arguments):
            statements.append(arguments[0])
            return execute(*arguments)
        with connection.execute_wrapper(count):
            response = get_response(request)
        response["statements"] = str(len(statements))
        response["wrappers"] = " ".join(wrapper.__qualname__ for wrapper in connection.execute_wrappers)
        return response
    return middleware

def query(request):
    with connection.cursor() as cursor:
        cursor.execute("select 42")
    return HttpResponse("ok")

def queries(request):
    end = time.monotonic() + 4
    with connection.cursor() as cursor:
        while time.monotonic() < end:
            cursor.execute("select 42")
            time.sleep(0.02)
    return HttpResponse("ok")

urlpatterns = [path("query", query), path("queries", queries)]
app = get_wsgi_application()
check_database(interval=0.5)
"""


def test_execute_wrappers_of_the_application_come_and_go(tmp_path: Path, server: Postgres) -> None:
    """Without CONN_MAX_AGE each request connects, within the block of its middleware.

    Its statements still show that the database responds, while no other connection could.
    """
    (tmp_path / "wrapped.py").write_text(WRAPPED)
    with (
        running(
            tmp_path, "", app="wrapped:app",
            DATABASE_URL=server.url, PKG_POOL="off", PKG_THREADS="1", PKG_ADMIN="off",
        ) as process,
        ThreadPoolExecutor(1) as client,
    ):  # fmt: skip
        ready(process)
        for _ in range(4):
            status, headers, _ = ask(process.address, "/query")
            assert (status, headers["statements"]) == (200, "1")
            assert headers["wrappers"] == "check_database.<locals>.executed"
        busy = client.submit(ask, process.address, "/queries")
        wait_for(lambda: server.backends() > 0, 5, "the connection of the request")
        server.refuse()  # whoever connects to ask
        try:
            while not busy.done():
                status, _, text = ask(process.address, "/readyz?verbose")
                assert (status, "[+]database ok" in text) == (200, True), text
                time.sleep(0.1)
            assert busy.result()[0] == 200
            wait_for(lambda: ask(process.address, "/readyz")[0] == 503, 10, "the check has nothing else to go by")
        finally:
            server.allow()
        assert process.stop() == 0, process.errors()


@pytest.mark.long
def test_readiness_from_djangos_own_connections() -> None:
    """With its pool and without.  psycopg_pool would next try to connect up to 16 s after an outage of 15 s."""
    with Postgres() as server, contextlib.ExitStack() as stack:
        hosts = [
            Host(
                server.url, app="tests.support.faults.django_application:app",
                PKG_POOL="off", PKG_THREADS="6", DJANGO_OPTIONS=json.dumps(options),
            )
            for options in ({"pool": {"min_size": 2, "max_size": 2, "timeout": 2}}, {})
        ]  # fmt: skip
        for host in hosts:
            stack.enter_context(host)
            host.wait_ready(200, 20)
            assert get(("127.0.0.1", host.port), "/query").status == 200
        outage(hosts, server.pause, server.resume)
        with load(hosts):
            outage(hosts, server.pause, server.resume)
            outage(hosts, server.stop, server.start, lasts=15.0)
        for host in hosts:
            with host.load("/query") as answers:
                wait_for(lambda answers=answers: answers.statuses[200] >= 4, 3, "answers, as soon as it is ready")
        begun = time.monotonic()
        with load(hosts, "/sleep?3", threads=2):
            wait_for(lambda: hosts[0].logged("readiness check database degraded: saturated"), 15, "degraded")
        with load(hosts):
            server.terminate()
            time.sleep(RED)
        for host in hosts:
            assert {p.status for p in host.probes if p.path == "/readyz" and p.at > begun} == {200}
