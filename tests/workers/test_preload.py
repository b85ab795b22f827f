"""Frameworks in worker processes: Flask and Django, imported once before the workers are forked, and FastAPI without.

Pools and ORMs are opened by each worker, after the fork; memory that was written before it is shared.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.client import wait_for
from tests.support.faults.postgres import Postgres
from tests.support.ports import free_port
from tests.support.processes import Process, ask
from tests.workers.test_workers import rows

# Bytes; measured: 8.6 (10.1 on Python 3.13) and 5.7.  Without --preload it is 18 MB.
PRIVATE, IDLE = 12_000_000, 6_500_000


class Case(NamedTuple):
    framework: str
    app: str
    arguments: tuple[str, ...]
    answers: dict[str, object]  # of pages that need the database


CASES = {
    "flask": Case("flask", "flask_app:app", ("--preload",), {"/database": {"sum": 42}}),
    # Through pkg.connection(), and through the ORM with Django's own pool.
    "django": Case(
        "django",
        "django_app:create_app()",
        ("--preload",),
        {"/database": {"sum": 42}, "/rows": {"names": ["postgres", "template0", "template1"]}},
    ),
    # In a pool of its lifespan, and without --preload.
    "fastapi": Case("fastapi", "fastapi_app:app", (), {"/": {"hello": "fastapi"}}),
}


@contextlib.contextmanager
def two_workers(directory: Path, app: str, *arguments: str, **environ: str) -> Iterator[Process]:
    admin = free_port()
    arguments = (f"tests.support.apps.{app}", "--workers", "2", "--admin", f"127.0.0.1:{admin}", *arguments)
    process = Process(directory, "", arguments, environ)
    process.admin = ("127.0.0.1", admin)  # type: ignore[attr-defined]
    try:
        match = process.await_message(r"^serving .* on (.*):(\d+) after", 30)
        process.address = (match[1], int(match[2]))
        yield process
        assert process.stop(signal.SIGTERM) == 0
        assert "Traceback" not in process.errors()
        assert not process.faults()
    finally:
        process.kill()


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


def ask_all(process: Process, answers: dict[str, object]) -> None:
    """At the same time, and again until both workers have had requests: one may be faster than busy clients."""

    def all_serve() -> bool:
        targets = list(answers) * 20
        with ThreadPoolExecutor(8) as clients:
            replies = list(clients.map(lambda target: ask(process.address, target), targets))
        for target, (status, _, text) in zip(targets, replies, strict=True):
            assert (status, json.loads(text)) == (200, answers[target]), target
        return all(row["served"] > 0 for row in rows(process))

    wait_for(all_serve, 30, "both workers to serve")
    assert all(row["shared"] > 0 for row in rows(process))
    assert all(row["pool"] == "0 of 2" for row in rows(process))


@pytest.mark.parametrize("name", CASES)
def test_framework_with_a_database(tmp_path: Path, database: Postgres, name: str) -> None:
    case = CASES[name]
    pytest.importorskip(case.framework)
    pools = {"PKG_POOL_MIN_SIZE": "1", "PKG_POOL_MAX_SIZE": "2", "DATABASE_URL": database.url}
    with two_workers(tmp_path, case.app, *case.arguments, **pools) as process:
        ask_all(process, case.answers)
        before = {row["pid"] for row in rows(process)}
        process.process.send_signal(signal.SIGHUP)  # which imports the application once more
        wait_for(
            lambda: (
                not before & {row["pid"] for row in rows(process)} and all(row["is_ready"] for row in rows(process))
            ),
            30,
            "other workers",
        )
        ask_all(process, case.answers)


def private(process: Process) -> list[int]:
    """Bytes of each worker that no other process has, by smaps_rollup."""
    return [row["private"] for row in rows(process)]


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="the kernel does not tell what is private")
def test_private_memory_of_preloaded_workers(tmp_path: Path) -> None:
    pytest.importorskip("flask")
    with two_workers(tmp_path, "flask_app:app", "--preload") as process:
        idle = private(process)
        with ThreadPoolExecutor(8) as clients:
            list(clients.map(lambda _: ask(process.address, "/path/abc"), range(400)))
        served = private(process)
        print("\nprivate memory, MB: idle", *(f"{size / 1e6:.2f}" for size in idle), end="; ")
        print("after 400 requests", *(f"{size / 1e6:.2f}" for size in served))
        assert len(idle) == len(served) == 2
        assert all(0 < size < IDLE for size in idle)
        assert all(0 < size < PRIVATE for size in served)
