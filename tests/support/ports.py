"""Ports of 127.0.0.1 for servers that a test starts, stops and starts again."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

__all__ = ["free_port", "free_ports"]


def free_port() -> int:
    """A port as free_ports() gives it."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Ports outside the range of ephemeral ports, so that nobody is given one of them while its server is down."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        while len(ports) < count:
            port = random.randrange(min(10_000, lowest - 1000), lowest)
            with contextlib.suppress(OSError):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
                ports.append(port)
    return ports
