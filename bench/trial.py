"""What is measured of several servers in turn, in rounds, and the medians of the rounds.

All servers are started anew for each round: two processes of the same server, with the same load, differ by up to 5 %
in CPU time, and a single start would count that as a difference between servers.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from bench.load import Sample
from bench.peers import Peer
from bench.servers import Running
from bench.session import Session


@dataclass
class Trial:
    """One measurement of each server, `rounds` times; a quick run has one round.

    `labels` are put into its rows; `names`: the servers that take part, None for all; `prepare`: measures once more
    before each round and forgets that, because the first requests import, connect and fill caches.
    """

    title: str
    labels: dict[str, Any]
    measure: Callable[[Running], Sample]
    rounds: int
    names: Collection[str] | None = None
    prepare: bool = True
    _samples: dict[str, list[Sample]] = field(default_factory=dict)

    def round(self, session: Session, number: int, servers: list[Running]) -> None:
        """Round `number`, from 0: A B C, so that a temporary disturbance of the machine affects all servers.

        It does nothing if the trial has no round of that number.
        """
        if number >= self.rounds:
            return
        here = [s for s in servers if s.is_alive() and (self.names is None or s.peer.name in self.names)]
        for server in here if self.prepare else ():
            session.say(f"{self.title}, warming up: {server.peer.title}")
            self.measure(server)
        for server in here:
            session.say(f"{self.title}, round {number + 1} of {self.rounds}: {server.peer.title}")
            self._samples.setdefault(server.peer.name, []).append(self.measure(server))

    def rows(self) -> list[dict[str, Any]]:
        """Rows of {labels, "server", "cpu_us", "rate", ...}, without servers that gave no 2xx response."""
        rows = [{**self.labels, "server": name, **summary(found)} for name, found in self._samples.items()]
        return [row for row in rows if row["cpu_us"]]


def in_turn(
    session: Session,
    peers: list[Peer],
    trials: list[Trial],
    extra: dict[str, str] | None = None,
    after: Callable[[Running], None] = lambda server: None,
) -> list[dict[str, Any]]:
    """The rows of all trials.  `extra`: environment of the servers; `after`: called with each at the end of a round."""
    for number in range(max((trial.rounds for trial in trials), default=0)):
        with session.all_running(peers, extra) as servers:
            for trial in trials:
                trial.round(session, number, servers)
            for server in servers:
                after(server)
    return [row for trial in trials for row in trial.rows()]


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
