"""A TCP proxy on loopback that does what bad networks do, one mode at a time, changed while it runs.

It does not understand what it carries.

    proxy = Proxy(5432)                 connect to 127.0.0.1:proxy.port
    proxy.mode = Mode.BLACK_HOLE        in force when the assignment returns
    proxy.delay = 0.2                   seconds that each chunk of bytes takes, each way
    proxy.cut_after = 100               a connection is reset once so many bytes have come back from the server
    proxy.beginnings                    what each client has sent first, up to 16 bytes
"""

from __future__ import annotations

import contextlib
import enum
import selectors
import socket
import struct
import threading
import time
from collections import deque

__all__ = ["Mode", "Proxy"]


class Mode(enum.Enum):
    PASS = "pass"
    REFUSE = "refuse"  # nobody listens; existing connections continue
    RESET = "reset"  # every connection is reset at once, each new one when it is accepted
    END = "end"  # the same with an orderly FIN
    BLACK_HOLE = "black hole"  # a lost route: no byte passes, a SYN gets no response
    HANG_NEW = "hang new"  # new connections are accepted and never served; others continue
    FORGET = "forget"  # a firewall lost its table: existing connections carry nothing any more, new ones work


class _Side:
    """One end of a proxied connection: its socket, and the data to be sent to it."""

    def __init__(self, end: socket.socket, *, is_server: bool) -> None:
        end.setblocking(False)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = end
        self.is_server = is_server
        self.out: deque[tuple[float, bytes]] = deque()  # due time, bytes
        self.other: _Side | None = None
        self.received = 0
        self.ended = False  # no more data comes from it


class Proxy:
    def __init__(self, target: int) -> None:
        self.target = target
        self.delay = 0.0
        self.cut_after = 0
        self.accepted = 0
        self.carried = 0  # bytes, in both directions
        self.beginnings: list[bytes] = []
        self._forgotten: set[_Side] = set()
        self._mode = Mode.PASS
        self._wanted: Mode | None = None
        self._applied = threading.Event()
        self._closed = False
        self._sides: set[_Side] = set()
        self._held: list[socket.socket] = []  # accepted and never served
        self._stuffing: list[socket.socket] = []  # these fill the backlog, so that the kernel drops further SYNs
        self._listener = self._listen(0)
        self.port = int(self._listener.getsockname()[1])
        self._selector = selectors.DefaultSelector()
        self._wake_out, self._wake_in = socket.socketpair()
        self._wake_out.setblocking(False)
        self._selector.register(self._wake_out, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()

    @property
    def mode(self) -> Mode:
        return self._mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self._applied.clear()
        self._wanted = mode
        self._wake_in.send(b"x")
        assert self._applied.wait(10)

    @property
    def open(self) -> int:
        """The number of open connections."""
        return len(self._sides) // 2 + len(self._held)

    def close(self) -> None:
        self._closed = True
        self._wake_in.send(b"x")
        self._thread.join(10)
        for side in list(self._sides):
            self._drop(side, reset=True)
        for end in (*self._held, *self._stuffing, self._listener, self._wake_out, self._wake_in):
            end.close()
        self._selector.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ the loop, in a thread of its own

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(128)
        listener.setblocking(False)
        return listener

    def _run(self) -> None:
        while not self._closed:
            for key, events in self._selector.select(self._pause()):
                end = key.fileobj
                if end is self._wake_out:
                    with contextlib.suppress(BlockingIOError):
                        self._wake_out.recv(4096)
                elif end is self._listener:
                    self._accept()
                elif key.data in self._sides and events & selectors.EVENT_READ:
                    self._read(key.data)
            if self._wanted is not None:
                self._apply(self._wanted)
                self._wanted = None
                self._applied.set()
            if self._mode is not Mode.BLACK_HOLE:
                for side in self._sides - self._forgotten:
                    self._write(side)

    def _pause(self) -> float | None:
        if self._mode is Mode.BLACK_HOLE:
            return None
        due = [side.out[0][0] for side in self._sides - self._forgotten if side.out]
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _apply(self, mode: Mode) -> None:
        former, self._mode = self._mode, mode
        if former is mode:
            return
        if former is Mode.REFUSE:
            self._listener = self._listen(self.port)
            self._selector.register(self._listener, selectors.EVENT_READ)
        if former is Mode.BLACK_HOLE:
            for end in self._stuffing:
                end.close()
            self._listener.listen(128)
            self._selector.register(self._listener, selectors.EVENT_READ)
            for side in self._sides:
                self._watch(side)
        if former is Mode.HANG_NEW:
            for end in self._held:
                end.close()
            self._held.clear()
        if former is Mode.FORGET:
            for side in list(self._forgotten):
                self._drop(side, reset=True)
            self._forgotten.clear()
        if mode is Mode.FORGET:
            self._forgotten = set(self._sides)
            for side in self._sides:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(side.socket)
        if mode is Mode.REFUSE:
            self._selector.unregister(self._listener)
            self._listener.close()
        if mode is Mode.BLACK_HOLE:
            self._selector.unregister(self._listener)
            for side in self._sides:
                with contextlib.suppress(KeyError):
                    self._selector.unregister(side.socket)
            # When a backlog of 0 is full, Linux drops SYNs without a response, like a firewall.
            self._listener.listen(0)
            self._stuffing = [socket.socket() for _ in range(2)]
            for end in self._stuffing:
                end.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    end.connect(("127.0.0.1", self.port))
        if mode in (Mode.RESET, Mode.END):
            for side in list(self._sides):
                self._drop(side, reset=mode is Mode.RESET)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        self.accepted += 1
        if self._mode in (Mode.RESET, Mode.END):
            _close(client, reset=self._mode is Mode.RESET)
            return
        if self._mode is Mode.HANG_NEW:
            self._held.append(client)
            return
        try:
            server = socket.create_connection(("127.0.0.1", self.target), 1.0)
        except OSError:
            _close(client, reset=True)
            return
        pair = _Side(client, is_server=False), _Side(server, is_server=True)
        pair[0].other, pair[1].other = pair[1], pair[0]
        for side in pair:
            self._sides.add(side)
            self._watch(side)

    def _watch(self, side: _Side) -> None:
        if not side.ended:
            self._selector.register(side.socket, selectors.EVENT_READ, side)

    def _read(self, side: _Side) -> None:
        other = side.other
        assert other is not None
        try:
            data = side.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            self._drop(side, reset=True)
            return
        if not data:
            side.ended = True
            self._selector.unregister(side.socket)
        elif not side.is_server and side.received == 0:
            self.beginnings.append(data[:16])
        side.received += len(data)
        self.carried += len(data)
        cut = self.cut_after if side.is_server else 0
        if cut and side.received >= cut:
            data = data[: max(0, len(data) - (side.received - cut))]
            with contextlib.suppress(OSError):
                other.socket.send(data)
            self._drop(side, reset=True)
            return
        other.out.append((time.monotonic() + self.delay, data))  # empty: the end

    def _write(self, side: _Side) -> None:
        now = time.monotonic()
        while side in self._sides and side.out and side.out[0][0] <= now:
            _, data = side.out.popleft()
            if not data:
                self._drop(side, reset=False)
                return
            try:
                sent = side.socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._drop(side, reset=True)
                return
            if sent < len(data):
                side.out.appendleft((now + 0.01, data[sent:]))

    def _drop(self, side: _Side, *, reset: bool) -> None:
        for end in (side, side.other):
            if end in self._sides:
                assert end is not None
                self._sides.discard(end)
                with contextlib.suppress(KeyError):
                    self._selector.unregister(end.socket)
                _close(end.socket, reset=reset)


def _close(end: socket.socket, *, reset: bool) -> None:
    if reset:
        with contextlib.suppress(OSError):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    end.close()
