"""Shared by the sections: the servers, number and duration of rounds, the progress line, interleaved rounds.

It measures nothing itself.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from bench.environment import Missing
from bench.load import Sample
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
        """Starts all servers at once; an idle one costs less than a start in each round."""
        with contextlib.ExitStack() as stack:
            running = []
            for peer in peers:
                self.say(f"starting {peer.title}")
                server = self.start(peer, extra, cores)
                if server is not None:
                    running.append(stack.enter_context(server))
            yield running

    def rounds(
        self, title: str, servers: list[Running], measure: Callable[[Running], Sample], *, rounds: int
    ) -> list[dict[str, Any]]:
        """A B C A B C ..., so that a temporary disturbance of the machine affects all servers."""
        samples: dict[str, list[Sample]] = {server.peer.name: [] for server in servers}
        for number in range(rounds):
            for server in servers:
                self.say(f"{title}, round {number + 1} of {rounds}: {server.peer.title}")
                if server.is_alive():
                    samples[server.peer.name].append(measure(server))
        return [{"server": name, **summary(found)} for name, found in samples.items() if found]


def summary(samples: list[Sample]) -> dict[str, Any]:
    """Medians, and the spread: half the distance between the extremes, as a share of the median."""

    def spread(what: str) -> float:
        values = [getattr(s, what) for s in samples]
        middle = statistics.median(values)
        return round((max(values) - min(values)) / 2 / middle, 4) if middle else 0.0

    def median(what: str) -> float:
        return float(statistics.median(getattr(s, what) for s in samples))

    return {
        "rate": round(median("rate"), 1),
        "rate_spread": spread("rate"),
        "cpu_us": round(median("cpu") * 1e6, 3),
        "cpu_spread": spread("cpu"),
        "busy": round(median("busy"), 3),
        "p99_ms": round(median("p99") * 1e3, 3),
        "failed": sum(s.failed for s in samples),
        "rounds": [[round(s.rate, 1), round(s.cpu * 1e6, 3)] for s in samples],
    }
