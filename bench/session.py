"""Shared by the sections: the servers, whether the run is a quick one, the progress line.

It measures nothing itself.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from bench.environment import Missing
from bench.peers import BY_NAME, Peer
from bench.servers import SERVER_CORES, Running


@dataclass
class Session:
    """One run of the benchmark."""

    quick: bool
    peers: list[Peer]
    missing: dict[str, str]  # what is not available, and why
    started: float = field(default_factory=time.monotonic)
    _shown: int = 0

    def say(self, text: str) -> None:
        """Prints progress: on a terminal the line replaces itself, otherwise each is a new line."""
        line = f"[{time.monotonic() - self.started:5.0f} s] {text}"
        if sys.stderr.isatty():
            sys.stderr.write("\r" + line[:118].ljust(self._shown))
            self._shown = min(len(line), 118)
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write("\r" + " " * self._shown + "\r")
            self._shown = 0

    def choose(self, *, hosts: bool, quick: str = "") -> list[Peer]:
        """The servers that take part; in a quick run only those named in `quick`, if any."""
        names = quick.split() if self.quick and quick else list(BY_NAME)
        return [peer for peer in self.peers if peer.name in names and (peer.hosts or not hosts)]

    def start(self, peer: Peer, extra: dict[str, str] | None = None, cores: set[int] = SERVER_CORES) -> Running | None:
        """The started server, or None if it does not start; then the reason is noted."""
        try:
            return Running(peer, extra, cores=cores)
        except Missing as error:
            self.missing[peer.name] = str(error)
            return None

    @contextlib.contextmanager
    def all_running(
        self, peers: list[Peer], extra: dict[str, str] | None = None, cores: set[int] = SERVER_CORES
    ) -> Iterator[list[Running]]:
        """All servers, one started after the other; they end with the block."""
        with contextlib.ExitStack() as stack:
            running = []
            for peer in peers:
                self.say(f"starting {peer.title}")
                server = self.start(peer, extra, cores)
                if server is not None:
                    running.append(stack.enter_context(server))
            yield running
