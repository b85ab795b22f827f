"""Lets tests reach their servers over a Unix socket instead of TCP, without a word about it: TEST_OVER_UNIX=1.

Servers then listen on a Unix socket as well, and connections to their TCP address are made to that: create_connection()
takes the place of socket's.  Clients that call socket.connect(), and proxies, go on to use TCP.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

ON = "TEST_OVER_UNIX" in os.environ

made = 0  # connections that were made to Unix sockets
_paths: dict[tuple[str, int], str] = {}  # by the TCP address
_tcp_connection = socket.create_connection


class _Connection(socket.socket):
    """Like a TCP connection for clients that set its options."""

    def setsockopt(self, level: int, *arguments: Any) -> None:
        if level != socket.IPPROTO_TCP:
            super().setsockopt(level, *arguments)


def new_path() -> Path:
    """In a new directory, as tests' own have names that are too long for a socket, or users that may not enter."""
    return Path(tempfile.mkdtemp(prefix="pkg-")) / "app.sock"


def remember(address: tuple[str, int], path: Path) -> None:
    _paths[address] = str(path)


def forget(path: Path) -> None:
    for address in [address for address, known in _paths.items() if known == str(path)]:
        del _paths[address]
    shutil.rmtree(path.parent, ignore_errors=True)


def create_connection(address: tuple[str, int], timeout: Any = None, *arguments: Any, **options: Any) -> socket.socket:
    global made
    path = _paths.get(tuple(address[:2]))  # type: ignore[arg-type]
    if path is None:
        return _tcp_connection(address, timeout, *arguments, **options)
    connection = _Connection(socket.AF_UNIX)
    connection.settimeout(timeout if isinstance(timeout, int | float) else None)
    try:
        connection.connect(path)
    except FileNotFoundError:  # its server has stopped
        connection.close()
        raise ConnectionRefusedError(path) from None
    except BaseException:
        connection.close()
        raise
    made += 1
    return connection


def install() -> None:
    socket.create_connection = create_connection  # type: ignore[assignment]
