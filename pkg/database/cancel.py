"""A request to cancel what a session runs, by PostgreSQL's cancel protocol (protocol-flow, "Canceling Requests in
Progress").

It contains the session's number and the secret that the client got at its login, so that it can only end a query of
that session, whichever server a balancer sends it to; PgBouncer gives its clients its own secrets and forwards the
request.  `select pg_cancel_backend(pid)` over a new connection would hit any session with that number there.

    libpq 17 and later   PQcancelCreate and related functions: they do not block and use the connection's TLS
    before               libpq's PQcancel has no time limit, and psycopg_c calls it with the interpreter lock held, so a
                         stopped server would stop this whole process.  Instead this module sends the same sixteen
                         bytes, unencrypted like PQcancel, with the secret from PQgetCancel

It does not decide when to cancel.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import select
import socket
import struct
from time import monotonic
from typing import Any

import psycopg
from psycopg import capabilities

__all__ = ["Cancel", "PlainCancel", "SafeCancel", "prepare"]

_log = logging.getLogger("pkg.database")

_ACTIVE = psycopg.pq.TransactionStatus.ACTIVE
_CANCEL_REQUEST = 80877102  # defined by the protocol
_POLL = psycopg.pq.PollingStatus

# Settings that require every byte to be encrypted, including the secret.
_ENCRYPTED = {"sslmode": ("require", "verify-ca", "verify-full"), "gssencmode": ("require",)}


class SafeCancel:
    """A request through libpq 17 or later.  It must be created while the connection is open.

    `is_tls`: whether the connection is encrypted.  `is_active`: whether a statement runs, whose end the server will
    announce on the connection.
    """

    def __init__(self, pgconn: Any) -> None:
        self.is_tls = bool(pgconn.ssl_in_use)
        self.is_active = pgconn.transaction_status == _ACTIVE
        self._cancel = pgconn.cancel_conn()

    def send(self, timeout: float) -> None:
        """Returns when the server or pooler has received it; raises OSError after `timeout` seconds."""
        # Not by psycopg's own generator and loop, which take the limit in another place in each of its versions.
        cancel, end = self._cancel, monotonic() + timeout
        try:
            cancel.start()
            while (status := cancel.poll()) != _POLL.OK:
                if status == _POLL.FAILED:
                    raise psycopg.OperationalError(cancel.get_error_message())
                poll = select.poll()
                poll.register(cancel.socket, select.POLLIN if status == _POLL.READING else select.POLLOUT)
                if not poll.poll(max(0.0, end - monotonic()) * 1000):
                    raise TimeoutError("the server has not taken the cancel request in time")
        finally:
            self._cancel.reset()  # so that it can be sent again


class PlainCancel:
    """A request with libpq before 17, never encrypted.  It must be created while the connection is open."""

    def __init__(self, pgconn: Any) -> None:
        self.is_tls = bool(pgconn.ssl_in_use)
        self.is_active = pgconn.transaction_status == _ACTIVE
        number, secret = _secret(pgconn)
        self._request = struct.pack("!IIii", 16, _CANCEL_REQUEST, number, secret)
        with socket.socket(fileno=os.dup(pgconn.socket)) as ours:
            self._family, self._peer = ours.family, ours.getpeername()

    def send(self, timeout: float) -> None:
        """Returns when the server or pooler has received it; raises OSError after `timeout` seconds."""
        end = monotonic() + timeout
        with socket.socket(self._family, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect(self._peer)
            connection.sendall(self._request)
            connection.settimeout(max(0.001, end - monotonic()))
            connection.recv(1)  # the server closes the connection when it has received the request


Cancel = SafeCancel | PlainCancel


def prepare(pgconn: Any) -> Cancel | None:
    """A request to cancel what this open connection runs, or None if that is impossible; the log says why, once."""
    try:
        if capabilities.has_cancel_safe():
            return SafeCancel(pgconn)
        for option in pgconn.info:
            name, value = option.keyword.decode(), (option.val or b"").decode()
            if value in _ENCRYPTED.get(name, ()):
                _say_once(f"{name}={value} is set, but this libpq (before 17) sends cancel requests unencrypted")
                return None
        return PlainCancel(pgconn)
    except OSError as error:
        _say_once(str(error))
        return None
    except psycopg.Error:
        return None  # the connection has just been lost


_said = False


def _say_once(why: str) -> None:
    global _said
    if not _said:
        _said = True
        _log.warning("queries are not cancelled on the server when their deadline passes: %s", why)


class _Request(ctypes.Structure):
    """libpq's `struct pg_cancel`, as far as it is the same in all versions up to 16 (fe-connect.c, pqcomm.h)."""

    _fields_ = (
        ("address", ctypes.c_byte * 128),  # struct sockaddr_storage
        ("address_size", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),  # the address is aligned to 8 bytes
        ("number", ctypes.c_int32),
        ("secret", ctypes.c_int32),
    )


def _secret(pgconn: Any) -> tuple[int, int]:
    """The session's number and secret.  Raises OSError for an unknown libpq, psycopg.Error for a lost connection."""
    libpq = _load_libpq()
    request = libpq.PQgetCancel(pgconn.pgconn_ptr)
    if not request:
        raise psycopg.OperationalError("libpq returned no cancel request for this connection")
    try:
        found = _Request.from_buffer_copy(ctypes.string_at(request, ctypes.sizeof(_Request)))
    finally:
        libpq.PQfreeCancel(request)
    if found.number != pgconn.backend_pid:
        raise OSError("this libpq stores the connection's secret in an unknown layout")
    return found.number, found.secret


@functools.cache
def _load_libpq() -> ctypes.CDLL:
    """The libpq that psycopg has loaded into this process.  Raises OSError if it cannot be found."""
    with open("/proc/self/maps") as maps:
        paths = (line.split(maxsplit=5)[-1].strip() for line in maps if "/libpq" in line)
        path = next((path for path in paths if path.rpartition("/")[2].startswith(("libpq.", "libpq-"))), None)
    if path is None:
        raise OSError("libpq was not found among the libraries of this process")
    libpq = ctypes.CDLL(path)
    libpq.PQgetCancel.argtypes, libpq.PQgetCancel.restype = [ctypes.c_void_p], ctypes.c_void_p
    libpq.PQfreeCancel.argtypes, libpq.PQfreeCancel.restype = [ctypes.c_void_p], None
    return libpq
