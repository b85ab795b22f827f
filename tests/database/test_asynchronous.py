"""`pkg.aconnection` and `pkg.aconnect`: the pool's connections in the hands of tasks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import psycopg
import pytest
from psycopg.types import TypeInfo
from psycopg.types.json import set_json_loads

from pkg.database.database import Database
from pkg.errors import DatabaseUnavailable, NotRunningError
from tests.support.client import wait_for
from tests.support.faults.postgres import Postgres

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


@contextlib.contextmanager
def database_of(server: Postgres, size: int = 1, **options: Any) -> Iterator[Database]:
    """With one connection, whoever borrows gets the session of the one before."""
    database = Database(url=server.url, min_size=size, max_size=size, pool_timeout=5, **options)
    database.open()
    try:
        yield database
    finally:
        database.close()


@pytest.fixture
def database(server: Postgres) -> Iterator[Database]:
    with database_of(server) as database:
        yield database


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    if request.param == "asyncio":
        return asyncio.run
    uvloop = pytest.importorskip("uvloop")
    return uvloop.run  # type: ignore[no-any-return]


def is_whole(database: Database) -> bool:
    """Whether its connections are back, and work."""
    if database.stats()["connections_used"] != 0:
        return False
    with database.connection() as conn:
        return conn.execute("select 1").fetchone() == (1,)


def test_a_block_commits_or_rolls_back(database: Database, run: Run) -> None:
    async def main() -> None:
        async with database.aconnection(timeout=5) as conn:
            assert isinstance(conn, psycopg.AsyncConnection)
            pid = conn.info.backend_pid
            await conn.execute("create table kept (n int)")
            await conn.execute("insert into kept values (%s)", (1,))
        with pytest.raises(ZeroDivisionError):
            async with database.aconnection() as conn:
                assert conn.info.backend_pid == pid
                await conn.execute("insert into kept values (2)")
                raise ZeroDivisionError
        async with database.aconnection() as conn:
            assert await (await conn.execute("select n from kept")).fetchall() == [(1,)]
            await conn.execute("drop table kept")
        for use in (conn.commit, conn.rollback, lambda: conn.execute("select 1")):
            with pytest.raises(psycopg.OperationalError, match="closed"):
                await use()

    run(main())
    assert is_whole(database)
    assert database.stats()["connections_num"] == 1


def test_close_gives_it_back_once(database: Database, run: Run) -> None:
    async def main() -> None:
        first = await database.aconnect()
        pid = first.info.backend_pid
        cursor = first.cursor()
        await cursor.execute("create temporary table uncommitted (n int)")
        await first.close()
        await first.close()
        assert first.closed and not first.broken
        assert database.stats()["connections_used"] == 0
        async with await database.aconnect() as second:
            assert second.info.backend_pid == pid
            assert await (await second.execute("select to_regclass('uncommitted')")).fetchone() == (None,)
            with pytest.raises(psycopg.OperationalError, match="closed"):
                await cursor.execute("select 1")
        assert second.closed

    run(main())
    assert is_whole(database)


def test_nothing_of_one_borrower_is_left_to_the_next(database: Database, run: Run) -> None:
    heard: list[str] = []

    async def main() -> None:
        for _ in range(20):
            conn = await database.aconnect()
            conn.add_notice_handler(lambda said: heard.append(said.message_primary or ""))
            conn.add_notify_handler(lambda _: None)
            set_json_loads(lambda _: "mine", conn)
            await conn.set_autocommit(True)
            conn.row_factory = psycopg.rows.dict_row
            conn.prepare_threshold = None
            assert await (await conn.execute("select '{}'::json as it")).fetchone() == {"it": "mine"}
            await conn.close()
            conn.prepare_threshold = 1
            set_json_loads(lambda _: "mine", conn)
        async with database.aconnection() as conn:
            assert await (await conn.execute("select '{}'::json")).fetchone() == ({},)
            assert conn.prepare_threshold == 5

    run(main())
    with database.connection() as block:
        assert block.execute("select '{}'::json").fetchone() == ({},)
        block.execute("do $$ begin raise notice 'later'; end $$")
        assert block.prepare_threshold == 5
    assert heard == []


def test_psycopg_takes_it_for_its_own(server: Postgres, database: Database, run: Run) -> None:
    def notify() -> None:
        with psycopg.connect(server.url, autocommit=True) as conn:
            conn.execute("notify told, 'it'")

    async def main() -> None:
        async with database.aconnection() as conn:
            info = await TypeInfo.fetch(conn, "text")
            assert info is not None and info.oid == 25
            async with conn.pipeline():
                cursor = await conn.execute("select 1")
            assert await cursor.fetchone() == (1,)
            async with conn.cursor("named") as named:
                await named.execute("select generate_series(1, 300)")
                assert len(await named.fetchall()) == 300
            async with conn.cursor().copy("copy (select 5) to stdout") as copy:
                assert [bytes(part) async for part in copy] == [b"5\n"]
            async with conn.transaction(), conn.cursor() as cursor:
                await cursor.executemany("select %s", [(1,), (2,)])
            assert [row async for row in conn.cursor().stream("select generate_series(1, 3)")] == [(1,), (2,), (3,)]
            async for _ in conn.cursor().stream("select generate_series(1, 100000)"):
                break
            await conn.rollback()
            await conn.set_autocommit(True)
            await conn.execute("listen told")
            await asyncio.to_thread(notify)  # psycopg 3.2.2 forgets what comes with the answer to a statement
            assert [note.payload async for note in conn.notifies(timeout=5, stop_after=1)] == ["it"]
            assert [note.payload async for note in conn.notifies(timeout=0.05)] == []
            await conn.execute("unlisten *")

    run(main())
    assert is_whole(database)


def test_statements_are_prepared_once_for_all_borrowers(database: Database, run: Run) -> None:
    async def main() -> None:
        for _ in range(10):
            async with database.aconnection() as conn:
                await conn.execute("select %s::int + 1", (1,))
            with database.connection() as block:
                block.execute("select %s::int + 1", (1,))

    run(main())
    with database.connection() as block:
        assert block.execute("select count(*) from pg_prepared_statements", prepare=False).fetchone() == (1,)


def test_begin_goes_with_the_first_statement(database: Database, run: Run) -> None:
    async def main() -> None:
        async with database.aconnection() as conn:
            sent = []
            wait = conn.wait

            async def counting(gen: Any, **options: Any) -> Any:
                sent.append(gen)
                return await wait(gen, **options)

            conn.wait = counting  # type: ignore[method-assign, assignment]
            await conn.execute("select %s", (1,))
            assert conn.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
            with pytest.raises(psycopg.errors.DivisionByZero):
                await conn.execute("select 1 / %s::int", (0,))
            assert len(sent) == 2

    run(main())
    assert is_whole(database)


def test_use_is_evidence(database: Database, run: Run) -> None:
    async def main() -> None:
        for autocommit in (False, True):
            assert database.check() is None
            asked = database.stats()["check_queries"]
            async with database.aconnection() as conn:
                await conn.set_autocommit(autocommit)
                await conn.execute("select 1")
            assert database.check() is None
            assert database.stats()["check_queries"] == asked

    run(main())


def test_tasks_and_threads_wait_in_one_queue(database: Database, run: Run) -> None:
    order: list[int] = []

    async def waits(number: int) -> None:
        async with database.aconnection(timeout=30) as conn:
            order.append(number)
            await conn.execute("select 1")

    def waits_in_thread(number: int) -> None:
        with database.connection(timeout=30) as conn:
            order.append(number)
            conn.execute("select 1")

    async def main() -> None:
        tasks: list[Awaitable[Any]] = []
        async with database.aconnection(timeout=30):
            for number in range(0, 10, 2):
                tasks.append(asyncio.create_task(waits(number)))
                while database.stats()["requests_waiting"] < number + 1:
                    await asyncio.sleep(0.001)
                tasks.append(asyncio.create_task(asyncio.to_thread(waits_in_thread, number + 1)))
                while database.stats()["requests_waiting"] < number + 2:
                    await asyncio.sleep(0.001)
        await asyncio.gather(*tasks)

    run(main())
    assert order == list(range(10))
    assert is_whole(database)


def test_the_wait_for_one_is_bounded(database: Database, run: Run) -> None:
    async def main() -> None:
        async with database.aconnection():
            with pytest.raises(DatabaseUnavailable, match=r"no connection within 0\.1 s; 1 of 1 are in use"):
                await database.aconnect(0.1)
            waiting = [asyncio.create_task(database.aconnect(5)) for _ in range(3)]
            await asyncio.sleep(0.01)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert database.stats()["requests_waiting"] == 0
        for wrong in (0, -1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="positive"):
                await database.aconnect(wrong)
            with pytest.raises(ValueError, match="positive"):
                database.aconnection(wrong)

    run(main())
    assert is_whole(database)


@pytest.mark.parametrize("how", ["waits", "blocks"])
def test_a_deadline_ends_the_query_on_the_server(server: Postgres, database: Database, run: Run, how: str) -> None:
    async def main() -> None:
        with pytest.raises(DatabaseUnavailable, match=r"not finished within 0\.3 s"):
            async with database.aconnection(timeout=0.3) as conn:
                pid = conn.info.backend_pid
                if how == "waits":
                    await conn.execute("select pg_sleep(60)")
                else:
                    query = asyncio.create_task(conn.execute("select pg_sleep(60)"))
                    busy = f"select count(*) from pg_stat_activity where pid = {pid} and state = 'active'"
                    while not await asyncio.to_thread(server.sql, busy):
                        await asyncio.sleep(0.001)
                    session = f"select count(*) from pg_stat_activity where pid = {pid} and state = 'active'"
                    wait_for(lambda: server.sql(session) == 0, 10, "the end of the query")  # blocks the loop
                    await query

    run(main())
    assert is_whole(database)


def test_a_deadline_between_two_statements(database: Database, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(DatabaseUnavailable, match=r"not finished within 0\.1 s"):
            async with database.aconnection(timeout=0.1) as conn:
                await conn.execute("select 1")
                await asyncio.sleep(0.3)
        with pytest.raises(DatabaseUnavailable, match=r"not finished within 0\.1 s"):
            async with database.aconnection(timeout=0.1) as conn:
                await conn.execute("select 1")
                await asyncio.sleep(0.3)
                await conn.execute("select 1")

    run(main())
    assert is_whole(database)


def test_a_lost_connection_is_unavailable_and_is_replaced(server: Postgres, database: Database, run: Run) -> None:
    async def main() -> None:
        with pytest.raises(DatabaseUnavailable) as caught:
            async with database.aconnection() as conn:
                await conn.execute("select 1")
                server.terminate()
                await conn.execute("select 1")
        assert isinstance(caught.value, psycopg.OperationalError)
        with pytest.raises(DatabaseUnavailable):
            async with database.aconnection() as conn:
                await conn.execute("select 1")
                server.terminate()
        with pytest.raises(DatabaseUnavailable):
            async with database.aconnection() as conn:
                server.terminate()
                with contextlib.suppress(psycopg.OperationalError):
                    await conn.execute("select 1")

    run(main())
    assert is_whole(database)


class Step:
    """Cancels a task at the n-th time that it lets others run."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], at: int) -> None:
        self.coroutine, self.at, self.steps = coroutine, at, 0

    def __await__(self) -> Any:
        thrown: BaseException | None = None
        while True:
            try:
                waited = self.coroutine.send(None) if thrown is None else self.coroutine.throw(thrown)
            except StopIteration as end:
                return end.value
            self.steps += 1
            if self.steps == self.at:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            thrown = None
            try:
                yield waited
            except BaseException as error:
                thrown = error


async def works(database: Database) -> None:
    async with database.aconnection(timeout=10) as conn:
        await conn.execute("insert into steps values (%s)", (1,))
        async with conn.transaction():
            await conn.execute("select pg_sleep(0.002)")
        async with conn.cursor() as cursor:
            await cursor.executemany("insert into steps values (%s)", [(2,), (3,)])
        async with conn.pipeline():
            await conn.execute("select 1")
    conn = await database.aconnect(5)
    try:
        await conn.execute("insert into steps values (4)")
    finally:
        await conn.close()


def test_a_task_is_cancelled_at_each_step(server: Postgres, run: Run) -> None:
    """Another task holds the only connection first, so that there is a wait for it as well."""
    with database_of(server) as database:
        with database.connection() as block:
            block.execute("create table steps (n int)")

        async def main(at: int) -> int:
            async with database.aconnection() as held:
                await held.execute("select 1")
                task = asyncio.create_task(_step(at))
                await asyncio.sleep(0.002)
            try:
                return await asyncio.wait_for(task, 10)
            except asyncio.CancelledError:
                return 0

        async def _step(at: int) -> int:
            step = Step(works(database), at)
            await step
            return step.steps

        at, ended = 1, 0
        while not ended:
            ended = run(main(at))
            assert database.stats()["connections_used"] == 0, at
            with database.connection(timeout=10) as block:
                counted = block.execute("select count(*) filter (where n = 1), count(*), pg_backend_pid() from steps")
                ones, all_of_them, pid = counted.fetchone() or (0, 0, 0)
                assert all_of_them == 3 * ones, at  # all or nothing
                block.execute("delete from steps")
            idle = f"select count(*) from pg_stat_activity where usename = 'app' and state <> 'idle' and pid <> {pid}"
            wait_for(lambda sql=idle: server.sql(sql) == 0, 10, f"the end of queries, at {at}")  # type: ignore[misc]
            at += 1
        assert at > 5  # with psycopg 3.2.2, which seldom waits when it writes, there are 7
        with database.connection() as block:
            block.execute("drop table steps")


def test_it_is_given_to_one_that_is_cancelled_at_that_moment(database: Database, run: Run) -> None:
    async def main() -> None:
        for _ in range(20):
            held = await database.aconnect()
            waiting = [asyncio.create_task(database.aconnect(5)) for _ in range(3)]
            await asyncio.sleep(0)
            await held.close()  # the first one has it now, and does not know
            waiting[0].cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting[0]
            await (await waiting[1]).close()
            await (await waiting[2]).close()

    run(main())
    assert is_whole(database)
    assert database.stats()["connections_num"] == 1


def test_those_who_wait_in_a_loop_that_has_ended_get_none(database: Database, run: Run) -> None:
    """Their coroutines live on, as a coroutine that somebody has stored does."""
    loop = asyncio.new_event_loop()
    with database.connection():
        task = loop.create_task(database.aconnect(30))
        loop.run_until_complete(asyncio.sleep(0.01))
        assert database.stats()["requests_waiting"] == 1
        loop.close()
    assert is_whole(database)
    with contextlib.suppress(RuntimeError):
        task.cancel()
    del task
    gc.collect()
    assert is_whole(database)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_query_in_a_loop_that_has_ended(server: Postgres, database: Database) -> None:
    loop = asyncio.new_event_loop()

    async def waits() -> None:
        async with database.aconnection() as conn:
            await conn.execute("select pg_sleep(60)")

    task = loop.create_task(waits())
    busy = "select count(*) from pg_stat_activity where usename = 'app' and state = 'active'"
    while not server.sql(busy):
        loop.run_until_complete(asyncio.sleep(0.01))
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    del task
    gc.collect()
    assert is_whole(database)
    wait_for(lambda: server.sql(busy) == 0, 10, "the end of the query")


def test_one_that_is_forgotten_comes_back(database: Database, caplog: pytest.LogCaptureFixture, run: Run) -> None:
    async def main() -> None:
        conn = await database.aconnect()
        await conn.execute("create table forgotten (n int)")
        del conn
        async with database.aconnection() as other:
            assert await (await other.execute("select to_regclass('forgotten')")).fetchone() == (None,)

    with caplog.at_level(logging.WARNING, "pkg.database"):
        run(main())
    (said,) = [record.getMessage() for record in caplog.records if "not closed" in record.getMessage()]
    assert "test_asynchronous.py" in said
    assert is_whole(database)


def test_another_task_closes_it(server: Postgres, database: Database, run: Run) -> None:
    async def main() -> None:
        conn = await database.aconnect()
        task = asyncio.create_task(conn.execute("select pg_sleep(60)"))
        await asyncio.sleep(0.05)
        await conn.close()
        with pytest.raises(psycopg.OperationalError):
            await task

    run(main())
    assert is_whole(database)
    busy = "select count(*) from pg_stat_activity where usename = 'app' and state = 'active'"
    wait_for(lambda: server.sql(busy) == 0, 10, "the end of the query")


@pytest.mark.parametrize("leave", ["transaction", "pipeline", "stream", "tpc"])
def test_a_connection_that_is_left_in_the_middle_is_replaced(database: Database, run: Run, leave: str) -> None:
    async def main() -> None:
        conn, left = await database.aconnect(), contextlib.AsyncExitStack()
        if leave == "transaction":
            await left.enter_async_context(conn.transaction())
            await conn.execute("select 1")
        elif leave == "pipeline":
            await left.enter_async_context(conn.pipeline())
            await conn.execute("select 1")
        elif leave == "stream":
            rows = conn.cursor().stream("select generate_series(1, 100000)")
            await rows.__anext__()
            left.push_async_callback(rows.aclose)
        else:
            await conn.tpc_begin("an id")
            await conn.execute("select 1")
        await conn.close()
        async with database.aconnection() as other:
            assert await (await other.execute("select 1")).fetchone() == (1,)
            with contextlib.suppress(psycopg.Error):
                await left.aclose()
            assert await (await other.execute("select 1")).fetchone() == (1,)

    run(main())
    assert is_whole(database)


def test_closing_the_pool_frees_those_who_wait_and_those_who_work(server: Postgres, run: Run) -> None:
    async def main() -> None:
        with database_of(server) as database:
            conn = await database.aconnect()
            works = asyncio.create_task(conn.execute("select pg_sleep(60)"))
            waits = asyncio.create_task(database.aconnect(60))
            while database.stats()["requests_waiting"] < 1:
                await asyncio.sleep(0.001)
            closing = asyncio.create_task(asyncio.to_thread(database.close))
            with pytest.raises(DatabaseUnavailable, match="closed"):
                await waits
            with pytest.raises(DatabaseUnavailable):
                await works
            await closing
            await conn.close()
            with pytest.raises(DatabaseUnavailable):
                await database.aconnect()

    run(main())


def test_while_the_database_is_down_nobody_waits_for_long(server: Postgres, run: Run) -> None:
    async def main() -> None:
        with database_of(server) as database:
            async with database.aconnection() as conn:
                await conn.execute("select 1")
            server.stop()
            for _ in range(3):
                with contextlib.suppress(DatabaseUnavailable):
                    await asyncio.to_thread(database.check)
            with pytest.raises(DatabaseUnavailable, match="within 1 s; the last check failed"):
                await database.aconnect()
            server.start()
            for _ in range(2):
                await asyncio.to_thread(database.check)
            async with database.aconnection() as conn:
                await conn.execute("select 1")

    try:
        run(main())
    finally:
        with contextlib.suppress(Exception):
            server.start()


def test_a_forked_child_leaves_it_to_the_parent(database: Database, run: Run) -> None:
    async def child() -> None:
        with pytest.raises(NotRunningError):
            await database.aconnect()
        with pytest.raises(NotRunningError):
            async with database.aconnection():
                pass

    async def main() -> None:
        async with database.aconnection() as conn:
            await conn.execute("select 1")
            pid = os.fork()
            if pid == 0:
                left: list[bool] = []
                thread = threading.Thread(target=lambda: left.append(asyncio.run(child()) is None))
                thread.start()
                thread.join()
                os._exit(0 if left else 1)
            assert await asyncio.to_thread(os.waitpid, pid, 0) == (pid, 0)
            assert await (await conn.execute("select 2")).fetchone() == (2,)

    run(main())
    assert is_whole(database)


def test_the_loop_runs_on_while_a_server_is_silent(server: Postgres, database: Database, run: Run) -> None:
    """Whatever a cancelled task needs: its rollback, its cancel request."""

    async def main() -> None:
        longest, done = 0.0, False

        async def ticks() -> None:
            nonlocal longest
            loop = asyncio.get_running_loop()
            while not done:
                begun = loop.time()
                await asyncio.sleep(0.001)
                longest = max(longest, loop.time() - begun)

        ticking = asyncio.create_task(ticks())
        async with database.aconnection() as conn:
            await conn.execute("select 1")
        for statement in ("select 2", ""):
            server.pause()
            try:
                with pytest.raises((TimeoutError, DatabaseUnavailable)):
                    async with asyncio.timeout(0.3), database.aconnection(timeout=5) as conn:
                        if statement:
                            await conn.execute(statement)
                        else:
                            rows = conn.cursor().stream("select 1")
                            await rows.__anext__()
            finally:
                server.resume()
            async with database.aconnection(timeout=5) as conn:
                await conn.execute("select 1")
        done = True
        await ticking
        assert longest < 1.0

    run(main())
    assert is_whole(database)
