"""How many connections PostgreSQL has for a role, compared with those that a pool may want.

It asks once and counts nobody else's connections.  When it asks, `check` decides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pkg.database.connection import Connection

__all__ = ["shortage"]

# Limits of the role and of the database do not bind superusers, nor do the slots that are reserved for them; a negative
# limit is none.  `reserved_connections` is there from PostgreSQL 16 on; that some roles may use them is left out.
_QUERY = b"""
select pg_backend_pid(), rolname, rolsuper, rolconnlimit, datname, datconnlimit,
    current_setting('max_connections')::int,
    current_setting('superuser_reserved_connections')::int
    + coalesce(current_setting('reserved_connections', true)::int, 0)
from pg_catalog.pg_roles, pg_catalog.pg_database where rolname = session_user and datname = current_database()
"""


def shortage(conn: Connection, max_size: int, processes: int = 1) -> str:
    """Why pools of `max_size` connections in so many processes cannot get all of them, and what to set; "" if they can.

    Also "" behind a pooler, whose own limit counts, and which does not tell it: PgBouncer and others give their clients
    another process id at the login than that of the server's process.  Raises psycopg.Error.
    """
    conn.autocommit = True  # one round trip instead of three
    row = conn.execute(_QUERY).fetchone()
    conn.autocommit = False
    if row is None:
        return ""
    pid, role, is_superuser, of_role, database, of_database, of_server, reserved = row
    if pid != conn.pgconn.backend_pid:
        return ""
    if is_superuser:
        limits = [(of_server, f"the server has {of_server}", "max_connections")]
    else:
        free = of_server - reserved
        limits = [(free, f"the server has {free}, as {reserved} of {of_server} are reserved", "max_connections")]
        for limit, kind, name in ((of_role, "role", role), (of_database, "database", database)):
            if limit >= 0:
                change = f'the limit (alter {kind} "{name}" connection limit {max_size * processes})'
                limits.append((limit, f'the {kind} "{name}" may have {limit}', change))
    least, what, change = min(limits)
    if max_size * processes <= least:
        return ""
    size = f"pool_max_size is {max_size}"
    if processes > 1:
        size += f" in each of {processes} workers, {max_size * processes} together"
    return f"{size}, but {what}: lower pool_max_size to {least // processes} or less, or raise {change}"
