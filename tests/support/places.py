"""Where an instance of a server serves, as its clients and the balancers in front have to know it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.support.client import Address
from tests.support.load import is_listening
from tests.support.ports import free_ports


class Place(NamedTuple):
    """A port of 127.0.0.1, or the `path` of a Unix socket.

    `health_port`: the port of the health pages; 0 if they are where the rest is.
    """

    port: int = 0
    path: str = ""
    health_port: int = 0

    @property
    def name(self) -> str:
        """A word that tells it from the others."""
        return f"s{self.port or Path(self.path).stem}"

    @property
    def address(self) -> Address:
        return self.path or ("127.0.0.1", self.port)

    @property
    def health_address(self) -> Address:
        return ("127.0.0.1", self.health_port) if self.health_port else self.address

    @property
    def is_free(self) -> bool:
        """Whether the next instance can start here.  It makes no connection."""
        if self.health_port and is_listening(self.health_port):
            return False
        return not os.path.lexists(self.path) if self.path else not is_listening(self.port)


def tcp_places(count: int) -> list[Place]:
    return [Place(port) for port in free_ports(count)]


def unix_places(count: int, folder: str | Path, *, has_health_port: bool = False) -> list[Place]:
    """Paths in the folder; with `has_health_port` each has a port for its health pages as well."""
    ports: Sequence[int] = free_ports(count) if has_health_port else [0] * count
    return [Place(path=f"{folder}/{number}.sock", health_port=port) for number, port in enumerate(ports)]
