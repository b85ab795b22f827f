"""The pool class of an engine of SQLAlchemy whose connections are those of the service.

It keeps no connection: the service's pool does.
"""

from __future__ import annotations

from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from pkg.database.borrowed import BorrowedConnection

__all__ = ["ServicePool"]


class ServicePool(NullPool):
    """NullPool for a `creator` that calls `pkg.connect`: what SQLAlchemy calls opening and closing borrows and returns.

    SQLAlchemy rolls back and then closes.  So a rollback only sends ROLLBACK; the server's response is read when the
    session is next used, by whoever borrows it.
    """

    def _do_get(self) -> ConnectionPoolEntry:
        record = super()._do_get()
        connection = record.dbapi_connection
        if isinstance(connection, BorrowedConnection):
            connection.ends_unheard = True
        return record
