"""`pkg.aconnection` and `pkg.aconnect` under attack: cancelled at each step, forgotten, forked, left behind."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from typing import Any

import psycopg
import pytest
import uvloop

from pkg.database.connection import Connection
from pkg.database.database import Database
from tests.support.client import wait_for
from tests.support.faults.postgres import Postgres

RUNNERS: dict[str, Callable[[Coroutine[Any, Any, None]], None]] = {"asyncio": asyncio.run, "uvloop": uvloop.run}


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@pytest.fixture(scope="module", params=RUNNERS)
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    return RUNNERS[request.param]


@contextlib.contextmanager
def database_of(server: Postgres, size: int = 1) -> Iterator[Database]:
    """With one connection, whoever borrows gets the session of the one before."""
    database = Database(url=server.url, min_size=size, max_size=size, pool_timeout=10)
    database.open()
    try:
        wait_for(lambda: database.stats()["pool_available"] == size, 10, "the connections")
        yield database
    finally:
        database.close()


async def one(conn: psycopg.AsyncConnection[Any], query: str, *parameters: object) -> Any:
    row = await (await conn.execute(query, parameters or None)).fetchone()
    assert row is not None
    return row[0]


def is_quiet(server: Postgres) -> bool:
    """Whether no session runs or keeps anything."""
    return server.sql("select count(*) from pg_stat_activity where state <> 'idle' and pid <> pg_backend_pid()") == 0


class CancelledAt:
    """A coroutine that is cancelled at its n-th step, and again at those after it, `times` in all."""

    def __init__(self, coroutine: Coroutine[Any, Any, None], step: int, times: int) -> None:
        self._iterator = coroutine.__await__()
        self._step = step
        self._times = times
        self.is_reached = False

    def __await__(self) -> Generator[Any, Any, None]:
        left = self._step
        try:
            future = next(self._iterator)
            while True:
                left -= 1
                if left <= 0 and self._times > 0:
                    self.is_reached = True
                    self._times -= 1
                    future = self._iterator.throw(asyncio.CancelledError())
                else:
                    yield future
                    future = next(self._iterator)
        except StopIteration:
            pass


async def everything(connecting: Callable[[], contextlib.AbstractAsyncContextManager[Any]]) -> None:
    async with connecting() as conn:
        assert await one(conn, "select %s::int", 7) == 7
        await conn.execute("create temporary table numbers (n int) on commit drop")
        await conn.cursor().executemany("insert into numbers values (%s)", [(1,), (2,)])
        async with conn.transaction():
            await conn.execute("select 1; select 2")
        async with conn.cursor().copy("copy numbers from stdin") as copy:
            await copy.write_row((1,))
        async with conn.cursor().copy("copy numbers to stdout") as copy:
            assert len([block async for block in copy]) == 3
        async with conn.cursor("named") as named:
            await named.execute("select n from numbers")
            assert len(await named.fetchall()) == 3
        async with conn.pipeline():
            await conn.execute("select 3")
        assert len([row async for row in conn.cursor().stream("select generate_series(1, 3)")]) == 3


@contextlib.asynccontextmanager
async def borrowed(database: Database) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
    conn = await database.aconnect()
    try:
        yield conn
        await conn.commit()
    finally:
        await conn.close()


@pytest.mark.parametrize("how", ["block", "borrowed"])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_task_that_is_cancelled_at_any_step_loses_no_connection(
    server: Postgres, run: Callable[..., None], times: int, how: str
) -> None:
    async def main(database: Database) -> None:
        step, is_reached = 0, True
        while is_reached:
            step += 1
            task = CancelledAt(
                everything(database.aconnection if how == "block" else lambda: borrowed(database)), step, times
            )
            with contextlib.suppress(asyncio.CancelledError):
                await task
            is_reached = task.is_reached
            assert database.stats()["connections_used"] == 0, step
            async with database.aconnection() as conn:
                assert await one(conn, "select %s::int", step) == step, step
        assert step > 10
        assert database.stats()["pool_size"] == 1

    with database_of(server) as database:
        run(main(database))
        wait_for(lambda: is_quiet(server), 10, "the end of what was cancelled")


@pytest.mark.parametrize("step", range(1, 4))
def test_a_task_that_is_cancelled_in_the_queue_loses_no_connection(server: Postgres, step: int) -> None:
    async def main(database: Database) -> None:
        async def use() -> int:
            async with database.aconnection() as conn:
                return int(await one(conn, "select 1"))

        for turns in range(12):
            async with database.aconnection():
                tasks = [asyncio.create_task(use()) for _ in range(4)]
                await asyncio.sleep(0)
                if step == 1:
                    tasks[0].cancel()
            for _ in range(turns):
                await asyncio.sleep(0)
            tasks[1].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert results[2:] == [1, 1]
            assert database.stats()["connections_used"] == database.stats()["requests_waiting"] == 0

    with database_of(server) as database:
        asyncio.run(main(database))


def test_a_coroutine_in_the_queue_may_be_garbage_anywhere(server: Postgres) -> None:
    """Such as where the same thread holds the pool's lock, which would wait for itself."""

    async def main(database: Database) -> None:
        for has_got_one in (False, True):
            async with database.aconnection():
                waiting = database.aconnection().__aenter__()
                waiting.send(None)  # type: ignore[attr-defined]
            if has_got_one:  # a thread of the pool gives it what was returned
                await asyncio.to_thread(wait_for, lambda: not database._pool._waiting)
            with database._pool._lock:
                waiting.close()  # type: ignore[attr-defined]
            async with database.aconnection(timeout=5) as conn:
                assert await one(conn, "select 1") == 1
            assert database.stats()["connections_used"] == database.stats()["requests_waiting"] == 0

    with database_of(server) as database:
        asyncio.run(main(database))


def test_cancelling_a_query_ends_it_on_the_server(server: Postgres, run: Callable[..., None]) -> None:
    async def main(database: Database) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2), database.aconnection() as conn:
                await conn.execute("select pg_sleep(60)")
        assert database.stats()["connections_used"] == 0

    with database_of(server) as database:
        run(main(database))
        wait_for(lambda: is_quiet(server), 10, "the end of the query")


def test_many_tasks_and_threads_share_few_connections(server: Postgres, run: Callable[..., None]) -> None:
    out: set[int] = set()

    async def main(database: Database) -> None:
        async def use(n: int) -> int:
            async with database.aconnection() as conn:
                assert conn.info.backend_pid not in out
                out.add(conn.info.backend_pid)
                found = await one(conn, "select %s::int", n)
                out.discard(conn.info.backend_pid)
            return int(found)

        def use_too(n: int) -> int:
            with database.connection() as conn:
                assert conn.info.backend_pid not in out
                out.add(conn.info.backend_pid)
                row = conn.execute("select %s::int", (n,)).fetchone()
                out.discard(conn.info.backend_pid)
            assert row is not None
            return int(row[0])

        calls = [use(n) if n % 4 else asyncio.to_thread(use_too, n) for n in range(200)]
        assert sorted(await asyncio.gather(*calls)) == list(range(200))

    with database_of(server, 3) as database:
        run(main(database))
        assert database.stats()["connections_used"] == 0
        assert database.stats()["pool_available"] == 3


def test_loops_one_after_another_use_one_pool(server: Postgres) -> None:
    pids: set[int] = set()

    async def main(database: Database) -> None:
        async with database.aconnection() as conn:
            pids.add(await one(conn, "select pg_backend_pid()"))

    with database_of(server) as database:
        for runner in (*RUNNERS.values(), *RUNNERS.values()):
            runner(main(database))
    assert len(pids) == 1


def test_a_task_left_behind_does_not_reach_the_next_borrower(server: Postgres, run: Callable[..., None]) -> None:
    async def main(database: Database) -> None:
        with pytest.raises(ZeroDivisionError):
            async with database.aconnection() as conn:
                left = asyncio.create_task(conn.execute("select pg_sleep(60)"))
                await asyncio.sleep(0.1)
                raise ZeroDivisionError
        with pytest.raises(psycopg.OperationalError):
            await left
        async with database.aconnection() as other:
            assert await one(other, "select 1") == 1

    with database_of(server) as database:
        run(main(database))
        wait_for(lambda: is_quiet(server), 10, "the end of the query")
        assert database.stats()["connections_used"] == 0


def test_the_loop_turns_while_tasks_wait(server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but `await` waits on the loop's thread, and no synchronous exchange runs there."""
    here = threading.get_ident()
    wait = Connection.wait

    def guarded(self: Connection, *arguments: Any, **options: Any) -> Any:
        assert threading.get_ident() != here
        return wait(self, *arguments, **options)

    monkeypatch.setattr(Connection, "wait", guarded)

    async def main(database: Database) -> None:
        async def use() -> None:
            with contextlib.suppress(psycopg.Error):
                async with database.aconnection(timeout=5) as conn:
                    await conn.execute("select pg_sleep(0.01)")
                    await conn.execute("select 1/0")

        await asyncio.gather(*(use() for _ in range(10)))

    with database_of(server) as database:
        asyncio.run(main(database))


def test_a_task_left_behind_does_not_touch_what_has_its_descriptor_next(server: Postgres) -> None:
    """The number of a descriptor is given again at once; the event loop knows readers by it."""

    async def main(database: Database) -> None:
        loop = asyncio.get_running_loop()
        seen = 0
        for _ in range(10):
            with contextlib.ExitStack() as opened:
                with contextlib.suppress(GeneratorExit):
                    async with database.aconnection() as conn:
                        number = conn.fileno()
                        left = asyncio.create_task(conn.execute("select pg_sleep(60)"))
                        await asyncio.sleep(0.02)
                        raise GeneratorExit  # as in a generator that is closed: nothing may be awaited
                pairs = [socket.socketpair() for _ in range(4)]
                for end in (end for pair in pairs for end in pair):
                    opened.enter_context(end)
                found = next(((a, b) for pair in pairs for a, b in (pair, pair[::-1]) if a.fileno() == number), None)
                if found is not None:
                    seen += 1
                    ready = loop.create_future()
                    loop.add_reader(number, ready.set_result, None)
                with pytest.raises(psycopg.OperationalError):
                    await left
                if found is not None:
                    found[1].send(b"x")
                    await asyncio.wait_for(ready, 5)
                    loop.remove_reader(number)
        assert seen  # otherwise the pool itself was always faster

    with database_of(server) as database:
        asyncio.run(main(database))
