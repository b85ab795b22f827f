"""The kernel's queue of connections that wait to be accepted."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from pkg.http import accept_queue, listeners
from tests.support.client import wait_for
from tests.support.listeners import accept, client_of, opened, tcp, unix


def fill(address: Any, n: int) -> contextlib.ExitStack:
    stack = contextlib.ExitStack()
    for _ in range(n):
        stack.enter_context(client_of(address))
    return stack


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_connections_that_wait(tmp_path: Path, family: str) -> None:
    """This kernel tells both numbers; where one does not, there is None."""
    with opened(tcp() if family == "tcp" else unix(tmp_path / "app.sock")) as (listener,):
        limit = min(listeners.BACKLOG, int(Path("/proc/sys/net/core/somaxconn").read_text()))
        if listener.pending() is None:
            assert not kernel_tells(family)
            return
        assert listener.pending() == (0, limit)
        with fill(listener.socket.getsockname(), 5):
            wait_for(lambda: listener.pending() == (5, limit))
            wait_for(lambda: accept(listener.socket)).close()
            assert listener.pending() == (4, limit)
        listener.close()
        assert listener.pending() is None


def kernel_tells(family: str) -> bool:
    """Whether ss(8) would know the queue: by another way than the code that is tested."""
    if family == "tcp":
        return "gVisor" not in Path("/proc/version").read_text()
    return Path("/sys/module/unix_diag").exists()


def test_sockets_without_a_queue() -> None:
    with opened(tcp()) as (listener,), client_of(listener.socket.getsockname()) as client:
        assert accept_queue.of_tcp(client) is None
        assert accept_queue.of_unix(os.fstat(client.fileno()).st_ino) is None
    assert accept_queue.of_tcp(client) is None
    for inode in (0, 1, 2**32 - 1, 2**32, 2**63):
        assert accept_queue.of_unix(inode) is None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        assert accept_queue.of_tcp(s) is None


def test_an_answer_that_is_cut_off() -> None:
    head = accept_queue._HEADER.pack(16 + 16 + 8 + 12, accept_queue.SOCK_DIAG_BY_FAMILY, 0, 0, 0)
    message = b"\x01\x01\x0a\x00" + (4711).to_bytes(4, sys.byteorder) + bytes(8)
    other = accept_queue._ATTRIBUTE.pack(5, 6) + b"\x00" * 4
    counts = accept_queue._ATTRIBUTE.pack(12, accept_queue.UNIX_DIAG_RQLEN) + b"".join(
        n.to_bytes(4, sys.byteorder) for n in (3, 128)
    )
    whole = head + message + other + counts
    assert accept_queue._counts(whole, 4711) == (3, 128)
    assert accept_queue._counts(whole, 4712) is None
    for n in range(len(whole)):
        assert accept_queue._counts(whole[:n], 4711) is None
        changed = whole[:n] + b"\x00" + whole[n + 1 :]
        accept_queue._counts(changed, 4711)  # ends, and raises nothing
