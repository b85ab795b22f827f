"""What the open file descriptors of this process are, so that a leak can be told from load.

It works when none is free as well: the name of a descriptor can be read without one, and the table of connections
over IPv4 is kept open.  That of IPv6 is not, since each process would have one more descriptor for it: without a free
one, connections over IPv6 are called sockets.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
from collections import Counter
from collections.abc import Iterable

__all__ = ["keep_table", "most"]

MAX_LOOKED_AT = 20_000  # 40 ms
MANY = 20  # of one kind, that is worth a word
_SOCKET = re.compile(r"socket:\[(\d+)\]")


def keep_table() -> None:
    """Opens what most() reads, for the time when no descriptor is free."""
    with contextlib.suppress(OSError):
        _ipv4()


def most(limit: int) -> str:
    """The most frequent kind, as in "930 of them are /app/prices.csv"; "" if none is frequent.

    `limit`: how many the process may open.
    """
    names = list(_names(limit))
    if len(names) < MANY:
        return ""
    peers = _peers() if any(map(_SOCKET.match, names)) else {}
    remote, local = (Counter(ends[side] for ends in peers.values()) for side in (1, 0))

    def kind(name: str) -> str:
        if (found := _SOCKET.match(name)) is None:
            return name.removesuffix(" (deleted)").partition(":[")[0]
        if found[1] not in peers:
            return "sockets"
        here, there = peers[found[1]]
        return f"connections to {there}" if remote[there] >= local[here] else f"connections at {here}"

    for what, times in Counter(map(kind, names)).most_common(1):
        if times >= MANY:
            return f"{times} of them are {what}"
    return ""


def _names(limit: int) -> Iterable[str]:
    folder = "/proc/self/fd"
    numbers: Iterable[object]
    try:
        numbers = os.listdir(folder)
    except OSError:
        numbers = range(limit)
    for number, _ in zip(numbers, range(MAX_LOOKED_AT), strict=False):
        with contextlib.suppress(OSError):
            yield os.readlink(f"{folder}/{number}")


def _peers() -> dict[str, tuple[str, str]]:
    """Both ends of each TCP connection, by the number of its socket."""
    found = {}
    for line in _lines_ipv4() + _lines_ipv6():
        _, here, there, *_, inode = line.split()[:10]
        if not there.endswith(":0000"):
            found[inode] = (_address(here), _address(there))
    return found


def _lines_ipv4() -> list[str]:
    """Read from the beginning, wherever other processes that have the same descriptor are."""
    parts: list[bytes] = []
    with contextlib.suppress(OSError):
        while part := os.pread(_ipv4(), 1 << 16, sum(map(len, parts))):
            parts.append(part)
    return b"".join(parts).decode().splitlines()[1:]


def _lines_ipv6() -> list[str]:
    with contextlib.suppress(OSError), open("/proc/self/net/tcp6") as table:
        return table.read().splitlines()[1:]
    return []


@functools.cache
def _ipv4() -> int:
    return os.open("/proc/self/net/tcp", os.O_RDONLY | os.O_CLOEXEC)


def _address(text: str) -> str:
    """An address of /proc/net/tcp: words of 32 bits in the machine's byte order, all of them little-endian here."""
    digits, _, port = text.partition(":")
    packed = b"".join(bytes.fromhex(digits[at : at + 8])[::-1] for at in range(0, len(digits), 8))
    if packed[:12] == bytes(10) + b"\xff\xff":
        packed = packed[12:]
    host = socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)
    return f"[{host}]:{int(port, 16)}" if ":" in host else f"{host}:{int(port, 16)}"
