"""Clients that hold streams and WebSockets open, and record how each of them ends.

They are those of `tests.support.streaming_application`, and begin anew when one has ended, as EventSource does.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.support.client import Connection

TIMEOUT = 15.0  # seconds; longer than any timeout of a balancer in front
AGAIN = 0.05  # seconds until the next try


@dataclass
class Streamed:
    """The outcome of the streams of one path."""

    begun: int = 0
    events: int = 0  # or messages that came back
    ended: Counter[str] = field(default_factory=Counter)  # by the server: `in order`, or the close code of a WebSocket
    lost: Counter[str] = field(default_factory=Counter)  # otherwise
    refused: int = 0  # connections, while nobody listened

    def __add__(self, other: Streamed) -> Streamed:
        return Streamed(
            self.begun + other.begun,
            self.events + other.events,
            self.ended + other.ended,
            self.lost + other.lost,
            self.refused + other.refused,
        )

    def __str__(self) -> str:
        ended, lost = (", ".join(f"{n} x {how}" for how, n in sorted(c.items())) for c in (self.ended, self.lost))
        return f"{self.begun} begun, {self.events} events; ended: {ended or 'none'}; lost: {lost or 'none'}"


class Streams:
    """Some clients for each path of a server or balancer, in threads."""

    def __init__(self, address: tuple[str, int], paths: tuple[str, ...], *, each: int = 2) -> None:
        self._address = address
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._tallies = {path: Streamed() for path in paths}
        self._threads = [
            threading.Thread(target=self._client, args=(path,), name=f"stream{path}", daemon=True)
            for path in paths
            for _ in range(each)
        ]
        for thread in self._threads:
            thread.start()

    def finish(self) -> dict[str, Streamed]:
        """Leaves all streams; returns the outcome by path."""
        self._over.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT)
            assert not thread.is_alive(), f"{thread.name} does not end"
        return self._tallies

    def _client(self, path: str) -> None:
        while not self._over.is_set():
            tally = Streamed()
            try:
                if path == "/socket":
                    self._talk(path, tally)
                else:
                    self._follow(path, tally)
            except ConnectionRefusedError:
                tally.refused += 1
            except (OSError, EOFError, AssertionError, ValueError) as error:
                tally.lost[f"{type(error).__name__}: {error}"[:100]] += 1
            with self._lock:
                self._tallies[path] += tally
            self._over.wait(AGAIN)

    def _follow(self, path: str, tally: Streamed) -> None:
        """An event may arrive in parts, or together with others."""
        with Connection(self._address, TIMEOUT) as c:
            c.send(f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            head = c.receive_head()
            assert head.status == 200, f"status {head.status}"
            tally.begun += 1
            text, is_last = b"", False
            for part in c.parts(head):
                text += part
                while b"\n\n" in text:
                    event, _, text = text.partition(b"\n\n")
                    assert not is_last, f"{event!r} after the last event"
                    is_last = event == b"data: end"
                    if not is_last:
                        assert event == b"data: %d" % tally.events, f"{event!r} instead of {tally.events}"
                        tally.events += 1
                if self._over.is_set():
                    return
            assert is_last and not text, "the end of the body without the last event"
            tally.ended["in order"] += 1

    def _talk(self, path: str, tally: Streamed) -> None:
        """One message at a time; what was sent when the server closes is sent again to the next one."""
        from websockets.exceptions import ConnectionClosed, InvalidHandshake
        from websockets.sync.client import connect

        url = f"ws://{self._address[0]}:{self._address[1]}{path}"
        try:
            with connect(url, open_timeout=TIMEOUT, ping_interval=None, compression=None) as socket:
                tally.begun += 1
                while not self._over.is_set():
                    socket.send(str(tally.events))
                    answer = socket.recv(TIMEOUT)
                    assert answer == str(tally.events), f"{answer!r} instead of {tally.events}"
                    tally.events += 1
                    time.sleep(0.02)
        except InvalidHandshake as error:
            raise ValueError(str(error)) from error
        except ConnectionClosed as error:
            if error.rcvd is None:
                raise EOFError("closed without a close frame") from error
            tally.ended[str(error.rcvd.code)] += 1


@contextlib.contextmanager
def streaming(address: tuple[str, int], paths: tuple[str, ...], *, each: int = 2) -> Iterator[Streams]:
    streams = Streams(address, paths, each=each)
    try:
        yield streams
    finally:
        streams.finish()
