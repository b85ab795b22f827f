"""A PostgreSQL server for the sections that need one, if this machine can run it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from bench.session import Session


@contextlib.contextmanager
def postgres(session: Session) -> Iterator[Any]:
    """The server (tests.support.faults.postgres.Postgres), or None; then the reason is noted."""
    try:
        from tests.support.faults.postgres import NoServer, Postgres
    except ImportError as error:
        session.missing["postgres"] = str(error)
        yield None
        return
    session.say("starting PostgreSQL")
    try:
        server = Postgres()
    except NoServer as error:
        session.missing["postgres"] = str(error)
        yield None
        return
    with server:
        yield server
