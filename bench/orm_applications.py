"""The same one-row queries through ORMs, for the section `orm`.  It imports nothing else of bench/.

    /core     SQLAlchemy Core     WSGI
    /orm      SQLAlchemy ORM      WSGI
    /django   Django's ORM        WSGI
    /fastapi  async psycopg       ASGI, in FastAPI

Under our server the connections are the service's own (`pkg.connect`, `pkg.aconnection`, `pkg.integrations.django`);
elsewhere they are those of the library's usual pool: SQLAlchemy's QueuePool, Django's `OPTIONS["pool"]`,
`psycopg_pool.AsyncConnectionPool`, each of at most 10 connections, which it keeps open.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any
from urllib.parse import unquote, urlsplit

from bench.aconnections import connection, pool

OURS = os.environ.get("BENCH_SERVER") == "pkg"
NUMBER = 42  # of the row that is asked for
SETUP = """
    create table item (id integer primary key, name text not null, price integer not null);
    insert into item select n, 'item ' || n, n * 10 from generate_series(1, 100) as n;
    grant select on item to public
"""
SELECT = "select id, name, price from item where id = %s"


def _json(number: int, name: str, price: int) -> bytes:
    return json.dumps({"id": number, "name": name, "price": price}).encode()


def _once(make: Callable[[], Any]) -> Callable[[], Any]:
    """functools.cache would let each of the first requests make one, and Django can be set up only once."""
    made: list[Any] = []
    lock = threading.Lock()

    @functools.wraps(make)
    def get() -> Any:
        if not made:
            with lock:
                if not made:
                    made.append(make())
        return made[0]

    return get


@_once
def _engine() -> Any:
    from sqlalchemy import create_engine

    if OURS:
        import pkg
        from pkg.integrations.sqlalchemy_pool import ServicePool

        return create_engine("postgresql+psycopg://", creator=pkg.connect, poolclass=ServicePool)
    url = os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:")
    return create_engine(url, pool_size=10, max_overflow=0)


@_once
def _core() -> Callable[[], bytes]:
    from sqlalchemy import Column, Integer, MetaData, Table, Text, select

    item = Table(
        "item", MetaData(), Column("id", Integer, primary_key=True), Column("name", Text), Column("price", Integer)
    )

    def query() -> bytes:
        with _engine().connect() as connection:
            return _json(*connection.execute(select(item).where(item.c.id == NUMBER)).one())

    return query


@_once
def _orm() -> Callable[[], bytes]:
    from sqlalchemy import Integer, Text
    from sqlalchemy.orm import DeclarativeBase, Session, mapped_column

    class Base(DeclarativeBase):
        pass

    class Item(Base):
        __tablename__ = "item"
        id = mapped_column(Integer, primary_key=True)
        name = mapped_column(Text)
        price = mapped_column(Integer)

    def query() -> bytes:
        with Session(_engine()) as session:
            item = session.get_one(Item, NUMBER)
            return _json(item.id, item.name, item.price)

    return query


def _django_database() -> dict[str, Any]:
    if OURS:
        from pkg.integrations.django import database

        return database()
    url = urlsplit(os.environ["DATABASE_URL"])
    return {
        "ENGINE": "django.db.backends.postgresql", "NAME": url.path.lstrip("/"),
        "HOST": url.hostname or "", "PORT": url.port or "",
        "USER": unquote(url.username or ""), "PASSWORD": unquote(url.password or ""),
        "OPTIONS": {"pool": {"min_size": 2, "max_size": 10}},
    }  # fmt: skip


@_once
def _django() -> Callable[..., Any]:
    """Django's WSGI handler."""
    import django
    from django.conf import settings

    settings.configure(
        DATABASES={"default": _django_database()}, ROOT_URLCONF="bench.orm_applications", ALLOWED_HOSTS=["*"],
        DEBUG=False, MIDDLEWARE=[], SECRET_KEY="of a benchmark", LOGGING_CONFIG=None,
    )  # fmt: skip
    django.setup()
    from django.core.handlers.wsgi import WSGIHandler
    from django.db import models
    from django.http import HttpResponse
    from django.urls import path

    class Item(models.Model):
        id = models.IntegerField(primary_key=True)
        name = models.TextField()
        price = models.IntegerField()

        class Meta:
            app_label = "bench"
            db_table = "item"

    def view(request: Any) -> Any:
        item = Item.objects.get(id=NUMBER)
        return HttpResponse(_json(item.id, item.name, item.price), content_type="application/json")

    urlpatterns.append(path("django", view))
    return WSGIHandler()


urlpatterns: list[Any] = []  # of Django, which looks for this name


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    path = environ["PATH_INFO"]
    if path == "/django":
        return _django()(environ, start_response)  # type: ignore[no-any-return]
    body = _core()() if path == "/core" else _orm()() if path == "/orm" else b"ok"
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]


def _fastapi() -> Any:
    """The ASGI application."""
    from fastapi import FastAPI

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        async with pool():
            yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    @app.get("/fastapi")
    async def query() -> dict[str, Any]:
        async with connection() as lent:
            number, name, price = await (await lent.execute(SELECT, (NUMBER,))).fetchone()
            return {"id": number, "name": name, "price": price}

    return app


def __getattr__(name: str) -> Any:
    if name == "asgi":  # made when a server asks for it: those of WSGI need not have FastAPI in memory
        globals()[name] = _fastapi()
        return globals()[name]
    raise AttributeError(name)
