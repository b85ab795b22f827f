"""The line between process 1 and one worker: messages both ways over a pair of Unix sockets.

Each message is one JSON object in a line.  A worker reports its state; process 1 asks for pages of the worker's admin
listener.  A line that has ended means that the other process has.
"""

from __future__ import annotations

import json
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ["Line"]

LONGEST = 64 << 20  # bytes of a message; a page of thousands of stacks has fewer


class Line:
    """One end.  Any thread may send; one receives."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._lock = threading.Lock()
        self._parts = bytearray()

    def fileno(self) -> int:
        return self._end.fileno()

    def send(self, **message: Any) -> None:
        """Raises OSError if the line has ended, or the other process does not read for too long."""
        with self._lock:
            self._end.sendall(json.dumps(message).encode() + b"\n")

    def messages(self) -> Iterator[dict[str, Any]]:
        """Those that come, until the line ends."""
        while (arrived := self.receive()) is not None:
            yield from arrived

    def receive(self, *, wait: bool = True) -> list[dict[str, Any]] | None:
        """Waits for a part of one; those that are complete, or None at the end of the line."""
        try:
            if not wait and not self._has_some():
                return []
            part = self._end.recv(65536)
        except OSError:
            return None
        self._parts += part
        if not part or len(self._parts) > LONGEST:
            return None
        *complete, rest = self._parts.split(b"\n")
        self._parts = bytearray(rest)
        return [json.loads(line) for line in complete]

    def _has_some(self) -> bool:
        poll = select.poll()  # recv() with MSG_DONTWAIT waits as well, for the timeout of the socket
        poll.register(self._end, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        self._end.close()
