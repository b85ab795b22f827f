"""Ports of 127.0.0.1 for servers that a test starts, stops and starts again."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

__all__ = ["free_port", "free_ports"]

SHARES = 24  # runs of tests that may go on side by side


def free_port() -> int:
    """A port as free_ports() gives it."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Ports that nobody else is given while their server is down: they are outside the range of ephemeral ports, and
    other runs of tests have other ones.  This run gives one again when it has given all of its own."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            port = next(_own(os.getpid()))
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.append(port)
    return ports


@functools.cache
def _own(pid: int) -> Iterator[int]:
    """The ports of this process, from the share that it reserves until it ends."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    first = min(10_000, lowest - 1000)
    each = (lowest - first) // SHARES
    for share in range(SHARES):
        reserved = socket.socket(socket.AF_UNIX)
        try:
            reserved.bind(f"\0pkg-tests-ports-{share}")
        except OSError:
            reserved.close()
            continue
        _reserved.append(reserved)
        start = first + share * each
        return itertools.cycle(range(start, start + each))
    raise RuntimeError(f"{SHARES} runs of tests are going on")


_reserved: list[socket.socket] = []
