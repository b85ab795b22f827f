"""A client that sends requests at a constant rate, whatever becomes of earlier ones.

    python -m bench.openloop PORT RATE SECONDS PATH:WEIGHT ...

Requests come at random moments (a Poisson process, the same one in each run) on connections that are kept, and their
latency counts from the moment at which they were due, also if all connections were busy then.  RATE 0 is a closed loop
in place of it: each connection asks again at once, which shows how many requests a second the server is capable of.

Prints JSON: {"rate": responses per second, "failed": a number, "latencies": {path: [seconds, ...]}}.
"""

from __future__ import annotations

import contextlib
import json
import random
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator

CONNECTIONS, CLOSED = 64, 32  # of the open loop, and of the closed one
DRAIN = 5.0  # seconds for the last responses; then they count as failed
NEVER = float("inf")


class Connection:
    """It has at most one request under way: `path`, which was due at `at`."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.path, self.at = "", 0.0
        self._received = b""
        self.connect()

    def connect(self) -> None:
        """Raises OSError if the server takes no connection for seconds; the time until then counts."""
        end = time.monotonic() + 5
        while True:
            try:
                self.socket = socket.create_connection(("127.0.0.1", self._port), timeout=10)
                break
            except ConnectionError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._received = b""

    def send(self, path: str, at: float) -> None:
        self.path, self.at = path, at
        with contextlib.suppress(OSError):  # receive() sees it
            self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    def receive(self) -> int | None:
        """The status of the response; 0 if the connection ends before; None: it is not complete."""
        try:
            part = self.socket.recv(1 << 16)
        except OSError:
            part = b""
        if not part:
            return 0
        self._received += part
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return None
        fields = head.lower()
        _, _, length = fields.partition(b"\r\ncontent-length:")
        if len(body) < int(length.partition(b"\r\n")[0]):
            return None
        self._received = b""
        return int(head.split()[1]) if b"\r\nconnection: close" not in fields else -int(head.split()[1])


def schedule(rate: float, seconds: float, mix: dict[str, float]) -> Iterator[tuple[float, str]]:
    """When each request is due, in seconds from the beginning, and its path."""
    dice = random.Random(rate)
    paths, weights = list(mix), list(mix.values())
    at = dice.expovariate(rate) if rate else 0.0
    while at < seconds:
        yield at, dice.choices(paths, weights)[0]
        at += dice.expovariate(rate) if rate else 0.0


class Client:
    """`latencies` in seconds, by path; `failed`: requests without a response of status 200."""

    def __init__(self, port: int, rate: float, seconds: float, mix: dict[str, float]) -> None:
        self.latencies: dict[str, list[float]] = {path: [] for path in mix}
        self.failed = 0
        self._rate, self._seconds = rate, seconds
        self._requests = schedule(rate, seconds, mix)
        self._connections = {
            c.socket.fileno(): c for c in (Connection(port) for _ in range(CONNECTIONS if rate else CLOSED))
        }
        self._idle = list(self._connections.values())
        self._due: deque[tuple[float, str]] = deque()
        self._poll = select.epoll()
        for number in self._connections:
            self._poll.register(number, select.EPOLLIN)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._poll.close()
        for connection in self._connections.values():
            connection.socket.close()

    def run(self) -> float:
        """Returns responses per second.  If the server takes no connections any more, what is left has failed."""
        begin = time.perf_counter()
        try:
            self._run(begin)
        except OSError:
            waits = len(self._due) + len(self._connections) - len(self._idle)
            self.failed += 1 + waits + sum(1 for _ in self._requests)
        return sum(map(len, self.latencies.values())) / (time.perf_counter() - begin)

    def _run(self, begin: float) -> None:
        at, path = next(self._requests)
        while True:
            now = time.perf_counter() - begin
            while at <= now and (self._rate or self._idle):
                if not self._rate:
                    at = now
                if at >= self._seconds:
                    at = NEVER
                    break
                self._give(at + begin, path)
                at, path = next(self._requests, (NEVER, ""))
            if at == NEVER and not self._due and len(self._idle) == len(self._connections):
                break
            if now > self._seconds + DRAIN:
                self.failed += len(self._due) + len(self._connections) - len(self._idle)
                break
            left = at - now
            self._take(0 if left < 0.002 else min(left - 0.001, 0.1))

    def _give(self, at: float, path: str) -> None:
        if self._idle:
            self._idle.pop().send(path, at)
        else:
            self._due.append((at, path))

    def _take(self, timeout: float) -> None:
        for number, _ in self._poll.poll(timeout):
            connection = self._connections[number]
            status = connection.receive()
            if status is None:
                continue
            if abs(status) == 200 and connection.path:
                self.latencies[connection.path].append(time.perf_counter() - connection.at)
            elif connection.path:
                self.failed += 1
            was_idle = not connection.path
            connection.path = ""
            if status <= 0:
                self._connect_again(number)
            if was_idle:
                continue
            if self._due:
                at, path = self._due.popleft()
                connection.send(path, at)
            else:
                self._idle.append(connection)

    def _connect_again(self, number: int) -> None:
        connection = self._connections.pop(number)
        self._poll.unregister(number)
        connection.socket.close()
        connection.connect()
        self._connections[connection.socket.fileno()] = connection
        self._poll.register(connection.socket.fileno(), select.EPOLLIN)


def main() -> None:
    port, rate, seconds, *words = sys.argv[1:]
    mix = {path: float(weight) for path, _, weight in (word.partition(":") for word in words)}
    with Client(int(port), float(rate), float(seconds), mix) as client:
        done = client.run()
    print(json.dumps({"rate": done, "failed": client.failed, "latencies": client.latencies}))


if __name__ == "__main__":
    main()
