"""Whose locks in PostgreSQL the statements of a pool wait for.

It asks; when it does, `check` decides.  It shows no text of a statement, which may hold secrets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pkg.database.connection import Connection

__all__ = ["blocker"]

# Along the chain, since who waits for one lock may hold another; at its end is one that waits for nobody.  State and
# time of another role's sessions are not told to all.
_QUERY = b"""
with recursive chain(waiter, pid) as (
    select waiter, unnest(pg_catalog.pg_blocking_pids(waiter)) from unnest('{%s}'::int[]) waiter
    union select waiter, unnest(pg_catalog.pg_blocking_pids(pid)) from chain
)
select pid, count(*), usename, application_name, state, extract(epoch from clock_timestamp() - state_change)::int
from chain left join pg_catalog.pg_stat_activity using (pid)
where pg_catalog.pg_blocking_pids(pid) = '{}' group by 1, 3, 4, 5, 6 order by 2 desc, 1 limit 1
"""


def blocker(conn: Connection, waiting: Sequence[int], places: Mapping[int, str]) -> str:
    """The session that keeps most of the server's processes `waiting`, and for how long; "" if none does.

    `places`: where the application has taken its own connections, by the process of the server.  Raises psycopg.Error.
    """
    conn.autocommit = True
    row = conn.execute(_QUERY % ",".join(map(str, waiting)).encode()).fetchone()
    conn.autocommit = False
    if row is None:
        return ""
    pid, count, role, name, state, seconds = row
    known = [f"role {role}" if role else "", name, f"{state} for {seconds} s" if state else ""]
    known.append(f"taken at {places[pid]}" if pid in places else "")
    what = "a statement waits" if count == 1 else f"{count} statements wait"
    whose = f"process {pid} of the server ({', '.join(filter(None, known))})" if pid else "a prepared transaction"
    return f"{what} for a lock of {whose}"
