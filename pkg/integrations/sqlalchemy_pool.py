"""The pool class of an engine of SQLAlchemy whose connections are those of the service.

It keeps no connection: the service's pool does.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from pkg.database.borrowed import BorrowedConnection

__all__ = ["ServicePool"]


class ServicePool(NullPool):
    """NullPool for a `creator` that calls `pkg.connect`: what SQLAlchemy calls opening and closing borrows and returns.

    NullPool makes an entry for each connection, which takes as long as to borrow one.  Here entries are used again; to
    whoever listens to events each loan is a new connection, as in NullPool.

    SQLAlchemy rolls back and then closes.  So a rollback only sends ROLLBACK; the server's response is read when the
    session is next used, by whoever borrows it.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._entries: deque[ConnectionPoolEntry] = deque()  # not in use, without a connection

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            entry: ConnectionPoolEntry = self._entries.pop()
        except IndexError:
            entry = super()._do_get()
        else:
            self._fill(entry)
        connection = entry.dbapi_connection
        if isinstance(connection, BorrowedConnection):
            connection.ends_unheard = True
        return entry

    def _fill(self, entry: Any) -> None:
        """Borrows a connection for an entry that was in use before."""
        entry.__dict__.clear()  # its `info`
        entry.fresh = True
        entry.starttime = time.time()
        entry.dbapi_connection = self._invoke_creator(entry)
        try:
            self.dispatch.connect(entry.dbapi_connection, entry)
        except BaseException:
            entry.close()
            raise

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        connection = record.dbapi_connection
        if isinstance(connection, BorrowedConnection) and not self.dispatch.close:
            record.dbapi_connection = None
            connection.close()
        else:
            record.close()
        self._entries.append(record)
