"""A steady load that records for each request whether it was sent, answered, or lost, and how.

It retries nothing, whatever a browser or a library would do: a request that a client has sent and that is not answered
with 200 and the right body is lost.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.support.client import Address, Connection, dial

KINDS = tuple((method, keep) for method in ("GET", "POST") for keep in (True, False))
TIMEOUT = 15.0  # seconds; longer than any timeout of a balancer in front


@dataclass
class Tally:
    """The outcome of the requests; `lost`: by the error that the client saw."""

    sent: int = 0
    answered: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)  # seconds, for answered requests

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.sent + other.sent, self.answered + other.answered, self.lost + other.lost, self.times + other.times
        )

    def quantile(self, share: float) -> float:
        times = sorted(self.times)
        return times[min(len(times) - 1, int(len(times) * share))] if times else 0.0


class Load:
    """Clients of each kind in threads, each with one request at a time and about `pause` seconds between two."""

    def __init__(self, address: Address, *, each: int = 2, pause: float = 0.01) -> None:
        self.address, self.pause = address, pause
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._tallies = {kind: Tally() for kind in KINDS}
        self._threads = [
            threading.Thread(target=self._client, args=kind, name=f"load-{kind[0]}", daemon=True)
            for kind in KINDS
            for _ in range(each)
        ]
        for thread in self._threads:
            thread.start()

    def _client(self, method: str, keep: bool) -> None:
        tally, pace = Tally(), random.Random()
        connection: Connection | None = None
        while not self._over.is_set():
            token = f"{pace.getrandbits(64):016x}"
            body = token.encode() * pace.choice((1, 1, 1, 2000)) if method == "POST" else b""
            began = time.monotonic()
            tally.sent += 1
            try:
                if connection is None:
                    connection = Connection(self.address, TIMEOUT)
                answer = connection.request(method, f"/echo/{token}", "" if keep else "Connection: close\r\n", body)
                closes = answer.closes
                if answer.status != 200:
                    tally.lost[f"{method} {answer.status}"] += 1
                elif answer.body != f"{method} {token} {len(body)}".encode():
                    tally.lost[f"{method} wrong body"] += 1
                else:
                    tally.answered += 1
                    tally.times.append(time.monotonic() - began)
            except (OSError, EOFError, AssertionError) as error:
                tally.lost[f"{method} {type(error).__name__}"] += 1
                closes = True
            if connection is not None and (closes or not keep):
                connection.close()
                connection = None
            self._over.wait(pace.uniform(0, 2 * self.pause))
        if connection is not None:
            connection.close()
        with self._lock:
            self._tallies[method, keep] += tally

    def finish(self) -> dict[tuple[str, bool], Tally]:
        """Ends the load; returns the outcome by kind: (method, whether connections are kept alive)."""
        self._over.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT)
        return self._tallies


@contextlib.contextmanager
def loading(address: Address, *, each: int = 2, pause: float = 0.01) -> Iterator[Load]:
    load = Load(address, each=each, pause=pause)
    try:
        yield load
    finally:
        load.finish()


def is_listening(port: int) -> bool:
    """Whether some process listens on the port; asks the kernel, so that no connection is needed."""
    with open("/proc/net/tcp") as table:
        return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in map(str.split, table))


def is_reachable(address: Address) -> bool:
    with contextlib.suppress(OSError), dial(address, 1):
        return True
    return False
