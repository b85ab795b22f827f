"""What psycopg and psycopg_pool keep for themselves and we use all the same: one list, with the reason for each.

    python -m tests.support.psycopg_privates

compares it with the versions that are installed, without a server, prints what differs, and exits with 1 if something
does.  A new version of psycopg is allowed when this and the tests of the database pass with
it.  CONTRIBUTING.md says what we ask of psycopg, so that the list can become shorter.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

__all__ = ["PRIVATES", "Private", "differences"]


class Private(NamedTuple):
    """One name.

    `owner`: a key of `_owners()`.  `form`: the parameters of a function after `self`, in the form `f(a, b=, *, c=)`;
    for anything else the name of its type, alternatives separated by `|`.  `use`: `override` or `read` (also calls).
    `why` we need it, and what `breaks` when it means something else.
    """

    owner: str
    name: str
    form: str
    use: str
    why: str
    breaks: str


_BEGIN = "BEGIN goes with the first statement, which saves a round trip in each block"
_TWO_TRIPS = "a block takes a round trip more, or its first statement runs outside a transaction"
_UNDO = "what a block has set on its connection is undone; the public properties cost too much at the end of each block"
_LEAK = "the next block inherits what an earlier one has set"
_BORROW = "a dead connection is recognised without a query, and without psycopg_pool's pauses of 1, 2, 4 .. s"
_WAIT = "callers meet dead connections, or wait for seconds although the database is back"
_TASK = "a task waits for a connection in the queue of the threads, and does not block its event loop"
_LOST = "a connection is lost from the pool, or a task waits for ever"
_ROLLBACK = "a rollback at the end of a loan is sent, and its response read by the next borrower"
_COUNT = "the check and the metrics know how many connections there are, without the lock"
_WRONG = "the check refills too few or too many, and its decisions are wrong"

PRIVATES: tuple[Private, ...] = (
    Private("cursor", "_execute_gen", "f(query, params=, *, prepare=, binary=)", "override", _BEGIN, _TWO_TRIPS),
    Private("connection", "_start_query", "f()", "override", _BEGIN, "BEGIN is sent twice"),
    Private("cursor", "_closed", "bool", "read", _BEGIN, "a closed cursor sends a statement"),
    Private("cursor", "_pgconn", "PGconn", "read", _BEGIN, _TWO_TRIPS),
    Private("cursor", "_conn", "Connection", "read", _BEGIN, _TWO_TRIPS),
    Private("cursor", "_start_query", "f(query=)", "read", _BEGIN, "results of the last statement are kept"),
    Private("cursor", "_convert_query", "f(query, params=)", "read", _BEGIN, "parameters are not adapted"),
    Private("cursor", "_get_prepared", "f(pgq, prepare=)", "read", _BEGIN, "repeated statements are not prepared"),
    Private("cursor", "_check_results", "f(results)", "read", _BEGIN, "an error of the server is not raised"),
    Private("cursor", "_set_results", "f(results)", "read", _BEGIN, "rows do not reach the caller"),
    Private("cursor", "_maybe_prepare_gen", "f(pgq, *, prepare=, binary=)", "read", _BEGIN, _TWO_TRIPS),
    Private("cursor", "_last_query", "NoneType", "read", _BEGIN, "the cursor sets a stale row factory up"),
    Private("cursor", "_send_query_prepared", "f(name, pgq, *, binary=)", "read", _BEGIN, _TWO_TRIPS),
    Private("cursor", "_execute_send", "f(query, *, force_extended=, binary=)", "read", _BEGIN, _TWO_TRIPS),
    Private("connection", "_pipeline", "NoneType", "read", _BEGIN, "a statement leaves the caller's pipeline"),
    Private("connection", "_get_tx_start_command", "f()", "read", _BEGIN, "the isolation level is not sent"),
    Private("connection", "_prepared", "PrepareManager", "read", _BEGIN, "repeated statements are not prepared"),
    Private("prepared", "maybe_add_to_cache", "f(query, prep, name)", "read", _BEGIN, "statements are prepared twice"),
    Private("prepared", "validate", "f(key, prep, name, results)", "read", _BEGIN, "statements are prepared twice"),
    Private("prepared", "maintain_gen", "f(conn)", "read", _BEGIN, "prepared statements pile up on the server"),
    Private("prepared", "clear", "f()", "read", _ROLLBACK, "statements that were rolled back are used"),
    Private("prepared", "prepare_threshold", "int", "read", _UNDO, _LEAK),
    Private("prepared", "prepared_max", "int", "read", _UNDO, _LEAK),
    Private("preparing", "Prepare", "EnumMeta|EnumType", "read", _BEGIN, _TWO_TRIPS),
    Private("preparing", "PrepareManager", "type", "read", _UNDO, _LEAK),
    Private("queries", "PostgresQuery", "type", "read", "its type is named", "the type check fails"),
    Private("connection", "_adapters", "AdaptersMap", "override", _UNDO, _LEAK),
    Private("types", "_registry", "dict", "read", _UNDO, _LEAK),
    Private("connection", "_num_transactions", "int", "read", _UNDO, "a block that was left open reaches the next one"),
    Private("connection", "_tpc", "NoneType", "read", _UNDO, "a block that was left open reaches the next one"),
    Private("connection", "_autocommit", "bool", "read", _UNDO, _LEAK),
    Private("connection", "_isolation_level", "NoneType", "read", _UNDO, _LEAK),
    Private("connection", "_read_only", "NoneType", "read", _UNDO, _LEAK),
    Private("connection", "_deferrable", "NoneType", "read", _UNDO, _LEAK),
    Private("connection", "_notice_handlers", "list", "read", _UNDO, "the last word of the server is not heard"),
    Private("connection", "_notify_handlers", "list", "read", _UNDO, _LEAK),
    # psycopg 3.2.2 does not have it, and then there is nothing to undo.
    Private("connection", "_notifies_backlog", "deque|missing", "override", _UNDO, _LEAK),
    Private(
        "connection",
        "wait",
        "f(gen, interval=, timeout=)|f(gen, interval=)",
        "override",
        "after a deadline nothing more is sent; every exchange passes this public method, which is not documented",
        "a block goes on after its deadline",
    ),
    Private("pool", "_stats", "Counter", "read", _BORROW, "requests are not counted"),
    Private("pool", "_REQUESTS_NUM", "str", "read", _BORROW, "requests are not counted"),
    Private("pool", "_CONNECTIONS_LOST", "str", "read", _BORROW, "connections that were found dead are not counted"),
    Private("pool", "_closed", "bool", "read", _BORROW, "a closed pool lends"),
    Private("pool", "_check_open_getconn", "f()", "read", _BORROW, "a closed pool lends"),
    Private("pool", "_getconn_unchecked", "f(timeout)", "read", _BORROW, _WAIT),
    Private("pool", "_get_ready_connection", "f(timeout)", "read", _TASK, _LOST),
    Private("pool", "_return_connection", "f(conn, from_getconn)", "read", _TASK, _LOST),
    Private("pool", "_reset_connection", "f(conn)", "override", _ROLLBACK, "each such connection is closed"),
    Private("pool", "_REQUESTS_QUEUED", "str", "read", _TASK, "requests that wait are not counted"),
    Private("pool", "_REQUESTS_WAIT_MS", "str", "read", _TASK, "requests that wait are not counted"),
    Private("pool", "_REQUESTS_ERRORS", "str", "read", _TASK, "requests that wait in vain are not counted"),
    Private("waiting", "_cond", "Condition", "read", _TASK, _LOST),
    Private("connection", "_should_cancel", "f()", "read", _BORROW, "a task cancels a query that there is not"),
    Private("pool", "_pool", "deque", "read", _BORROW, _WAIT),
    Private("pool", "_lock", "Lock|RLock|lock", "read", _BORROW, "two threads change the pool at once"),
    Private("pool", "_close_connection", "f(conn)", "read", _BORROW, "descriptors leak"),
    Private("pool", "run_task", "f(task)", "read", _BORROW, _WAIT),
    Private("pool", "_maybe_grow_pool", "f()", "read", _BORROW, _WAIT),
    Private("pool tasks", "AddConnection", "ABCMeta|type", "read", _BORROW, _WAIT),
    Private("pool", "_nconns", "int", "read", _COUNT, _WRONG),
    Private("pool", "_waiting", "deque", "read", _COUNT, _WRONG),
)


def _owners() -> dict[str, Any]:
    """What the names belong to; objects, because many are set only when one is made.  No server is needed."""
    import psycopg
    import psycopg_pool
    from psycopg import _preparing, _queries

    pool: Any = psycopg_pool.ConnectionPool("", open=False, min_size=0, max_size=1)
    pool.open()  # its lock is made then; with min_size 0 nothing connects
    pool.close()
    connection: Any = psycopg.Connection(psycopg.pq.PGconn.connect_start(b"host=/nonexistent"))
    return {
        "connection": connection,
        "cursor": psycopg.Cursor(connection),
        "prepared": connection._prepared,
        "preparing": _preparing,
        "queries": _queries,
        "types": psycopg.adapters.types,
        "pool": pool,
        "pool tasks": psycopg_pool.pool,
        "waiting": psycopg_pool.pool.WaitingClient(),
    }


def _form_of(owner: object, name: str) -> str:
    found = getattr(owner, name, _MISSING)
    if found is _MISSING:
        return "missing"
    if not inspect.isroutine(found):
        return type(found).__name__
    parts: list[str] = []
    for parameter in inspect.signature(found).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in parts:
            parts.append("*")
        parts.append(parameter.name + ("" if parameter.default is parameter.empty else "="))
    return f"f({', '.join(parts)})"


_MISSING = object()


def differences() -> Iterator[str]:
    """One line for each name that the installed versions have in another form, or not at all."""
    owners = _owners()
    for private in PRIVATES:
        form = _form_of(owners[private.owner], private.name)
        if form not in private.form.split("|"):
            yield f"{private.owner}: {private.name} is {form}, not {private.form}; then {private.breaks}"


def main() -> int:
    import psycopg
    import psycopg_pool

    found = list(differences())
    pair = f"psycopg {psycopg.__version__}, psycopg_pool {psycopg_pool.__version__}"
    print(pair, *found or [f"all {len(PRIVATES)} names are as expected"], sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
