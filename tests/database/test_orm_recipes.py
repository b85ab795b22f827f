"""The recipes of docs/databases.md for SQLAlchemy and Django, as they stand there, through an outage.

That they can be followed in peace, test_docs.py shows.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from tests.support.client import wait_for
from tests.support.faults.postgres import Postgres
from tests.support.pages import ROOT, files_of
from tests.support.processes import Process, ask, running

FORM = {"Content_Type": "application/x-www-form-urlencoded"}
MODULES = {"sqlalchemy": "orm_shop:app", "flask_sqlalchemy": "flask_shop:app", "django": "library.wsgi"}
FIELDS = {"sqlalchemy": "title", "flask_sqlalchemy": "name", "django": "title"}


@contextlib.contextmanager
def library(name: str, folder: Path, database: Postgres) -> Iterator[Process]:
    pytest.importorskip(name)
    for path, text in files_of(ROOT / "docs/databases.md").items():
        (folder / path).parent.mkdir(exist_ok=True, parents=True)
        (folder / path).write_text(text)
    environ = {
        "DATABASE_URL": database.url,
        "PKG_ADMIN": "off",
        "PKG_POOL_MAX_SIZE": "2",
        "PKG_DATABASE_CHECK_INTERVAL": "500ms",
    }
    if name == "django":
        for command in (["makemigrations", "library"], ["migrate"]):
            subprocess.run(
                [sys.executable, "-m", "django", *command], cwd=folder, check=True, capture_output=True, timeout=60,
                env={**environ, "DJANGO_SETTINGS_MODULE": "library.settings", "PYTHONPATH": str(folder)},
            )  # fmt: skip
    with running(folder, "", app=MODULES[name], **environ) as process:
        wait_for(lambda: ask(process.address, "/readyz")[0] == 200, 15, "readiness")
        yield process


def add(process: Process, name: str, text: str) -> int:
    return ask(process.address, "/", "POST", body=f"{FIELDS[name]}={text}".encode(), **FORM)[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_an_outage_is_503_and_passes(name: str, tmp_path: Path) -> None:
    """More requests at a time than connections: each gives its own back, in peace and in an outage."""
    with Postgres() as database, library(name, tmp_path, database) as process, ThreadPoolExecutor(6) as clients:
        assert set(clients.map(lambda n: add(process, name, f"t{n}"), range(60))) == {201}
        assert ask(process.address, "/", "POST", body=b"no=title", **FORM)[0] in (400, 500)
        database.stop()
        wait_for(lambda: ask(process.address, "/readyz")[0] == 503, 15, "readiness to fail")
        for _ in range(2):
            status, headers, _ = ask(process.address, "/")
            assert (status, headers["retry-after"]) == (503, "1")
        database.start()
        wait_for(lambda: ask(process.address, "/readyz")[0] == 200, 15, "readiness")
        answers = list(clients.map(lambda n: ask(process.address, "/"), range(12)))
        assert {status for status, _, _ in answers} == {200}
        found = json.loads(answers[0][2])
        assert len(found["titles"] if name == "django" else found) == 60
        assert process.stop() == 0, process.errors()


@pytest.mark.parametrize("name", MODULES)
def test_connections_lost_at_once_cost_no_more_than_one_answer_each(name: str, tmp_path: Path) -> None:
    """A restart that readiness does not notice."""
    with Postgres() as database, library(name, tmp_path, database) as process:
        assert add(process, name, "one") == 201
        database.terminate()
        answers = [ask(process.address, "/")[0] for _ in range(6)]
        assert set(answers) <= {200, 503}
        assert answers[-1] == 200


LATE = """
import time

from orm_shop import Session, app, engine, select


@app.get("/late")
def late():
    with Session(engine) as session:
        session.scalar(select(1))
        time.sleep(0.8)
        return str(session.scalar(select(2)))
"""


def test_a_deadline_that_passes_is_503(tmp_path: Path) -> None:
    """Between two statements, when SQLAlchemy does not take the connection for lost, and on a server that hangs."""
    pytest.importorskip("sqlalchemy")
    for path, text in files_of(ROOT / "docs/databases.md").items():
        if path in ("engine.py", "orm_shop.py"):
            (tmp_path / path).write_text(text.replace("deadline=10", "deadline=0.4"))
    with Postgres() as database, running(tmp_path, LATE, DATABASE_URL=database.url, PKG_ADMIN="off") as process:
        wait_for(lambda: ask(process.address, "/readyz")[0] == 200, 15, "readiness")
        assert ask(process.address, "/")[0] == 200
        status, headers, _ = ask(process.address, "/late")
        assert (status, headers.get("retry-after")) == (503, "1")
        database.pause()
        status, headers, _ = ask(process.address, "/")
        assert (status, headers.get("retry-after")) == (503, "1")
        database.resume()


def test_a_hung_server_is_503_from_fastapi_within_the_time_of_the_request(tmp_path: Path) -> None:
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("fastapi")
    for path, text in files_of(ROOT / "docs/databases.md").items():
        if path in ("engine.py", "api_shop.py"):
            (tmp_path / path).write_text(text.replace("deadline=10", "deadline=0.4"))
    with (
        Postgres() as database,
        running(tmp_path, "", app="api_shop:app", DATABASE_URL=database.url, PKG_ADMIN="off") as process,
    ):
        wait_for(lambda: ask(process.address, "/readyz")[0] == 200, 15, "readiness")
        assert ask(process.address, "/")[::2] == (200, "42")
        database.pause()
        status, headers, _ = ask(process.address, "/")
        assert (status, headers.get("retry-after")) == (503, "1")
        database.resume()


OWN_ENGINE = """
import os

from alembic import context
from sqlalchemy import NullPool, create_engine

engine = create_engine(os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:", 1), poolclass=NullPool)
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""


def test_migrations_beside_a_running_service(tmp_path: Path) -> None:
    """Within `pkg.running()`, as the recipe is, and with an engine of its own."""
    pytest.importorskip("alembic")
    for path, text in files_of(ROOT / "docs/databases.md").items():
        if path == "alembic.ini" or path.startswith("migrations/") or path in ("engine.py", "orm_shop.py"):
            (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
            (tmp_path / path).write_text(text)

    def alembic(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "alembic", *command], cwd=tmp_path, capture_output=True, text=True, timeout=60,
            env={"DATABASE_URL": database.url, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    with (
        Postgres() as database,
        running(tmp_path, "", app="orm_shop:app", DATABASE_URL=database.url, PKG_ADMIN="off") as process,
    ):
        wait_for(lambda: ask(process.address, "/readyz")[0] == 200, 15, "readiness")
        alembic("upgrade", "head")
        with psycopg.connect(database.url) as conn:
            assert conn.execute("select count(*) from price").fetchone() == (0,)
        (tmp_path / "migrations/env.py").write_text(OWN_ENGINE)
        assert alembic("current") == "0001 (head)"
        assert ask(process.address, "/")[0] == 200


STARLETTE = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

import pkg
from pkg.integrations.asgi import Unavailable


async def answer(request):
    async with pkg.aconnection(timeout=2) as conn:
        row = await (await conn.execute("select '42'")).fetchone()
    return PlainTextResponse(row[0])


app = Starlette(routes=[Route("/", answer), Route("/core", answer)])
app.add_middleware(Unavailable)
"""


@pytest.mark.parametrize("framework", ["fastapi", "starlette"])
def test_an_outage_in_an_event_loop_is_503_and_passes(framework: str, tmp_path: Path) -> None:
    pytest.importorskip(framework)
    text = files_of(ROOT / "docs/databases.md")["api_async.py"] if framework == "fastapi" else STARLETTE
    (tmp_path / "served.py").write_text(text)
    environ = {"PKG_ADMIN": "off", "PKG_POOL_MAX_SIZE": "2", "PKG_DATABASE_CHECK_INTERVAL": "500ms"}
    with (
        Postgres() as database,
        running(tmp_path, "", app="served:app", DATABASE_URL=database.url, **environ) as process,
    ):
        wait_for(lambda: ask(process.address, "/readyz")[0] == 200, 15, "readiness")
        with ThreadPoolExecutor(6) as clients:
            paths = ["/", "/core"] * 20
            assert {status for status, _, _ in clients.map(lambda path: ask(process.address, path), paths)} == {200}
        database.terminate()  # a restart that readiness does not notice
        assert {ask(process.address, path)[0] for path in ["/", "/core"] * 2} <= {200, 503}
        database.stop()
        wait_for(lambda: ask(process.address, "/readyz")[0] == 503, 15, "readiness to fail")
        for path in ("/", "/core"):
            status, headers, _ = ask(process.address, path)
            assert (status, headers["retry-after"]) == (503, "1")
        database.start()
        wait_for(lambda: ask(process.address, "/readyz")[0] == 200, 15, "readiness")
        assert [ask(process.address, path)[0] for path in ("/", "/core")] == [200, 200]
        assert process.stop() == 0, process.errors()
