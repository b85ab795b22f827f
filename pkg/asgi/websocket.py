"""WebSocketExchange: `receive` and `send` of one WebSocket (RFC 6455; ASGI's WebSocket messages, 2.5).

      CONNECTING --accept--> OPEN --close frame of either side--> CLOSING --the other's--> CLOSED
          |                    `------------- the connection breaks, a violation -----------^
          `--close, or http.response.start--> DENYING --last part of the response--> CLOSED

`websockets` reads frames and knows the rules; whole messages that come by themselves are read without it.  As long as
it is OPEN and nothing has to be waited for, data passes through `_core.Channel`, and nothing here is called.  What
comes is read whether or not the application receives it, as pings and close frames must be seen, until so much waits
for the application that the client has to wait.
"""

from __future__ import annotations

import asyncio
import enum
import logging
from typing import Any

from websockets.datastructures import Headers
from websockets.exceptions import ProtocolError
from websockets.frames import Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.protocol import OPEN, Protocol, Side
from websockets.server import ServerProtocol

from pkg import _core
from pkg.asgi.deflate import DEFLATE
from pkg.errors import ClientDisconnected, ResponseError

__all__ = ["WebSocketExchange"]

_log = logging.getLogger("pkg.asgi")
_quiet = logging.Logger("of websockets", logging.CRITICAL + 1)  # the library logs each connection

MOST_PACKED = 16384  # bytes of one read of what may be compressed, and unpack to a thousand times as much
FREE = 4096  # bytes of messages that are not with the application; what is beyond counts against buffer_size
DEFLATE_FROM = 1024  # bytes; compressing a shorter message takes more than it saves
MOST_REASON = 123  # bytes; RFC 6455 5.5

TEXT, BINARY, CONTINUATION = Opcode.TEXT, Opcode.BINARY, Opcode.CONT
COMPRESSED = 0x40  # in the first byte of a frame


class State(enum.Enum):
    CONNECTING = "connecting"
    DENYING = "denying"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"


class WebSocketExchange(_core.Channel):
    """One WebSocket of an event loop, which calls wake() when the front says that the connection can go on."""

    __slots__ = (
        "_accepting",
        "_deflate",
        "_has_closed",
        "_is_text",
        "_protocol",
        "_state",
        "_will_read",
        "has_failed",
    )

    def __init__(self, request: _core.Request, tasks: _core.Tasks) -> None:
        self._state = State.CONNECTING
        self._accepting: list[tuple[bytes, bytes]] = []  # fields of the response that accepts
        self._protocol: Protocol
        self._deflate: Any = None
        self._has_closed = False  # the application has closed it, or denied it
        self._is_text = False  # the message of which there are fragments
        self._will_read = False
        self.has_failed = False

    # -------------------------------------------------------------- the handshake

    def refusal(self) -> tuple[int, list[tuple[bytes, bytes]], bytes] | None:
        """Status, header and text for a request that is no handshake; None: it is one (RFC 6455 4.2.1)."""
        request = self.request
        if request.method != "GET":
            return 405, [(b"allow", b"GET")], b"a WebSocket begins with GET\n"
        if request.version != "HTTP/1.1":
            return 400, [], b"a WebSocket needs HTTP/1.1\n"
        if request.chunked or request.content_length:
            return 400, [], b"the handshake of a WebSocket has no body\n"
        if request.only_header(b"sec-websocket-version") != "13":
            return 426, [(b"sec-websocket-version", b"13")], b"WebSocket version 13 is needed\n"
        negotiation = ServerProtocol(
            extensions=[DEFLATE] if self.tasks.host.websocket_rules.compression else None, logger=_quiet
        )
        response = negotiation.accept(Handshake(request.target, Headers(request.headers)))
        if response.status_code != 101:
            kept = [
                (name.encode(), value.encode())
                for name, value in response.headers.raw_items()
                if name.lower() in ("upgrade", "content-type")
            ]
            return response.status_code, kept, bytes(response.body or b"")
        self._accepting = [
            (name.encode(), value.encode())
            for name, value in response.headers.raw_items()
            if name.lower() not in ("date", "connection")
        ]
        self.max_size = self.tasks.host.websocket_rules.max_size
        self._protocol = Protocol(Side.SERVER, state=OPEN, max_size=self.max_size, logger=_quiet)
        self._protocol.extensions = negotiation.extensions
        if negotiation.extensions:
            self._deflate = negotiation.extensions[0]
            self.most = MOST_PACKED
            self.pack_from = DEFLATE_FROM
        return None

    async def refuse(self, status: int, headers: list[tuple[bytes, bytes]], text: bytes) -> None:
        """Responds instead of the application."""
        await self.send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await self.send({"type": "websocket.http.response.body", "body": text})

    def _enter(self, state: State) -> None:
        self._state = state
        self.is_ready = state is State.OPEN

    def conclude(self) -> None:
        """The application has returned.  Raises ResponseError if it should not have."""
        if self._state in (State.CONNECTING, State.DENYING) and self.farewell is None:
            raise ResponseError("the application has returned without accepting or denying the WebSocket")

    @property
    def is_over(self) -> bool:
        """Whether it has ended, and not by the application."""
        return self.farewell is not None and not self._has_closed

    @property
    def was_accepted(self) -> bool:
        """Whether 101 has been sent, so that it is too late for another response."""
        return self.request.status == 101

    def _deny(self, start: dict[str, Any]) -> None:
        """The connection ends with the response: its client may have sent frames already, which are no requests."""
        self.request.keep_alive = False
        self.put(start)

    def _accept(self, message: dict[str, Any]) -> None:
        headers = list(self._accepting)
        subprotocol = message.get("subprotocol")
        if subprotocol:
            if not isinstance(subprotocol, str) or not subprotocol.isascii():
                raise ResponseError(f"the subprotocol {subprotocol!r} is no name")
            headers.append((b"Sec-WebSocket-Protocol", subprotocol.encode()))
        for name, value in message.get("headers") or ():
            if isinstance(name, bytes) and name.lower().startswith(b"sec-websocket-"):
                raise ResponseError(f"the header {name!r} is part of the handshake; `subprotocol` names a subprotocol")
            headers.append((name, value))
        self.switch(headers)
        self._accepting = []
        self._enter(State.OPEN)
        self.tasks.host.keepalive.add(self)
        self._read()

    # -------------------------------------------------------------- the application's side

    async def finish_send(self, message: dict[str, Any] | None) -> None:
        """Waits until the client, or its buffer, has taken what was sent, or for its next turn; then `message`."""
        if not self.is_full:
            await asyncio.sleep(0)
            return
        await self._drain()
        if message is not None:
            await self.send(message)

    def pack(self, first: int, data: str | bytes | bytearray | memoryview) -> tuple[int, Any]:
        """The first byte and the compressed payload of its frame."""
        packed = data.encode() if isinstance(data, str) else bytes(data)
        return first | COMPRESSED, self._deflate.encode(Frame(BINARY, packed)).data

    def put_other(self, message: dict[str, Any], kind: object) -> None:
        state = self._state
        if self._has_closed:
            raise ResponseError(f"{kind!r} was sent after the application had closed the WebSocket")
        if state in (State.CLOSING, State.CLOSED):
            raise ClientDisconnected("the WebSocket is closed")
        if state is State.CONNECTING and kind == "websocket.accept":
            self._accept(message)
        elif state is State.CONNECTING and kind == "websocket.close":
            self._deny({"type": "http.response.start", "status": 403, "headers": []})
            self._put_denial({"type": "http.response.body"})
        elif state is State.CONNECTING and kind == "websocket.http.response.start":
            self._deny(message | {"type": "http.response.start"})
            self._enter(State.DENYING)
        elif state is State.DENYING and kind == "websocket.http.response.body":
            self._put_denial(message | {"type": "http.response.body"})
        elif state is State.OPEN and kind == "websocket.close":
            code, reason = message.get("code"), message.get("reason") or ""
            code = 1000 if code is None else code
            if not isinstance(code, int) or not isinstance(reason, str):
                raise ResponseError("the code of websocket.close is not int, or its reason not str")
            self._close(code, reason)
            self._has_closed = True
            self.messages.clear()
        else:
            raise ResponseError(f"{kind!r} is not a message for a WebSocket that is {state.value}")

    def _put_denial(self, part: dict[str, Any]) -> None:
        self.put(part)
        if self.has_ended:
            self._enter(State.CLOSED)
            self._has_closed = True
            self.farewell = _disconnect(1006)
            self.notify()

    async def _drain(self) -> None:
        """Waits until the client has taken what has been sent."""
        while self._state is not State.CLOSED or self._has_closed:
            if not self.is_full or self.flush():
                return
            await self._wait()
        raise ClientDisconnected("the WebSocket is closed")

    async def _wait(self) -> None:
        future = self.tasks.host.loop.create_future()
        self.waiting.append(future)
        if self.is_full:
            self.hold()
        try:
            await future
        except BaseException:  # cancelled, as by a timeout
            if future in self.waiting:
                self.waiting.remove(future)
            raise

    # -------------------------------------------------------------- the client's side

    def has_ended_early(self) -> bool:
        """Whether the client has left before there was an answer."""
        if self._state not in (State.CONNECTING, State.DENYING) or not self.has_gone():
            return False
        self.farewell = _disconnect(1006)
        return True

    def go_on(self) -> None:
        """What the connection can do: it takes more, or has more to read."""
        if self.is_full:
            self.flush()
        if self.late is not None and not self.is_full:
            late, self.late = self.late, None
            if self._state is State.CLOSED:
                self._give_back(late)
            else:
                self.put_bytes(late)
        self._read()

    def _read(self) -> None:
        """Takes what has come, once; more of it in the next turn, as others have their turn as well."""
        if self._state not in (State.OPEN, State.CLOSING) or self.is_laden:
            return
        self.take_in(self.read(self.most, self.max_size if self.is_ready and self.fragments is None else 0))

    def take_in(self, data: bytes | list[dict[str, Any]] | None) -> None:
        """Takes what read() has returned."""
        if data is None:
            return
        if not data:
            self.break_off()
            return
        self.was_heard = True
        if isinstance(data, list):
            self.add_messages(data)
        else:
            self._take(data)
        if self.messages:
            self.notify()
        if not self.is_waiting and not self.is_laden:
            self.read_soon()

    def read_soon(self) -> None:
        if not self._will_read:
            self._will_read = True
            self.tasks.host.loop.call_soon(self._read_now)

    def _read_now(self) -> None:
        self._will_read = False
        try:
            self._read()
        except Exception:
            self.fail()

    def _take(self, data: bytes) -> None:
        protocol = self._protocol
        protocol.receive_data(data)
        for frame in protocol.events_received():
            assert isinstance(frame, Frame)
            opcode = frame.opcode
            if opcode is TEXT or opcode is BINARY:
                self._is_text = opcode is TEXT
                if not frame.fin:
                    self.fragments = bytearray(frame.data)
                elif not self._deliver(frame.data):
                    break
            elif opcode is CONTINUATION and self.fragments is not None:
                self.fragments += frame.data
                if frame.fin:
                    whole, self.fragments = self.fragments, None
                    if not self._deliver(whole):
                        break
        if not self.count_held() and not protocol.eof_sent:
            self.tasks.host.keepalive.tell_of_room(self.request)
            protocol.fail(1013, "no buffer is free")
        frames = b"".join(protocol.data_to_send())
        if protocol.eof_sent:
            self._end_by_client(frames)
        elif frames and self._state is State.OPEN:
            self._put_control(frames)

    def count_held(self) -> bool:
        """Counts what is held of its messages, complete or not.  False: there is no room for it."""
        if self._state is State.CLOSED and self.is_closed:
            return self.reserve(0)
        size = len(self._protocol.reader.buffer) + self.held - FREE
        if self.fragments is not None:
            size += len(self.fragments)
        return self.reserve(max(0, size))

    def _end_by_client(self, frames: bytes) -> None:
        """It has sent a close frame, or has violated the protocol; `frames` has the answer."""
        protocol = self._protocol
        if self._state is State.OPEN:
            by_itself = protocol.parser_exc is None and protocol.close_rcvd is not None
            close = protocol.close_rcvd if by_itself else protocol.close_sent
            assert close is not None
            self.farewell = _disconnect(close.code, close.reason)
            self._end(frames)
        else:
            self._end()

    def _deliver(self, data: bytes | bytearray | memoryview) -> bool:
        """Puts a message into the queue for the application.  False: it was no text."""
        if self._state is not State.OPEN:
            return True
        message: dict[str, Any] = {"type": "websocket.receive"}
        if self._is_text:
            try:
                message["text"] = str(data, "utf-8")
            except UnicodeDecodeError as error:
                if self._protocol.state is OPEN:
                    self._protocol.fail(1007, f"{error.reason} at position {error.start}")
                return False
        else:
            message["bytes"] = bytes(data)
        self.add_messages([message], len(data))
        return True

    def _put_control(self, frame: bytes) -> None:
        """Sends a ping, pongs or a close frame; only the last of them, if the client has not taken all before it."""
        if self.is_full:
            self.late = frame
            return
        try:
            self.put_bytes(frame)
        except ClientDisconnected:
            self.break_off()
        if self.is_full:
            self.hold()

    # -------------------------------------------------------------- the end

    def _close(self, code: int, reason: str) -> None:
        """Sends a close frame; from now on the client's is awaited."""
        if len(reason) > MOST_REASON // 4:
            reason = reason.encode()[:MOST_REASON].decode(errors="ignore")
        try:
            self._protocol.send_close(code, reason)
        except ProtocolError:
            raise ResponseError(f"{code!r} is not a close code that may be sent") from None
        self._enter(State.CLOSING)
        self.farewell = _disconnect(code, reason)
        self.tasks.host.keepalive.close(self)
        self._put_control(b"".join(self._protocol.data_to_send()))
        if not self.is_waiting:  # what is left is read, and not held, up to the client's close frame
            self.forget_held()
            self.read_soon()
        self.notify()

    def _end(self, last: bytes = b"") -> None:
        """Nothing more is read; after what the client has not taken yet, and `last`, the connection is given back."""
        self._enter(State.CLOSED)
        self.fragments = None
        if self.is_full:
            self.late = last
        else:
            self._give_back(last)
        self.notify()

    def _give_back(self, last: bytes = b"") -> None:
        self._enter(State.CLOSED)
        self.late = self.fragments = None
        if self.reserved:
            self.count_held()
        self.end(last)
        self.tasks.host.keepalive.discard(self)

    def break_off(self) -> None:
        """The client has left without a close frame, or does not read."""
        if self.farewell is None:
            self.farewell = _disconnect(1006)
        self._give_back()
        self.notify()

    def fail(self) -> None:
        """Something is wrong here, or with the system: no descriptor of epoll, no memory."""
        _log.exception("%s %s: the WebSocket is cut off", self.request.method, self.request.target)
        self.break_off()

    def finish(self) -> None:
        """The application has returned, or raised."""
        if self._state is State.OPEN:
            self._close(1011 if self.has_failed else 1000, "")
        elif self._state is not State.CLOSING and self.late is None:
            self._enter(State.CLOSED)
            super().finish()

    def close(self) -> None:
        """The end of the task."""
        self.finish()
        super().close()
        if self.reserved:
            self.count_held()

    def dismiss(self) -> None:
        """For a drain that comes to its end."""
        if self._state is State.OPEN:
            self.go_away()
        elif self.farewell is None:
            self.farewell = _disconnect(1001)

    # -------------------------------------------------------------- what the clock does

    def ping(self) -> None:
        """Sends a ping."""
        if self._state is State.OPEN and not self.is_full:
            self.was_heard = False
            self._protocol.send_ping(b"")
            self._put_control(b"".join(self._protocol.data_to_send()))

    def check(self) -> bool:
        """Ends the connection if nothing has been heard since the ping; whether it goes on."""
        if self._state is not State.OPEN or self.was_heard or not self.is_waiting:
            return True
        self._protocol.fail(1011, "no answer to a ping")
        self.farewell = _disconnect(1006)
        self._give_back(b"".join(self._protocol.data_to_send()))
        self.notify()
        return False

    def give_up(self) -> None:
        """The client has not answered the close frame in time."""
        self._give_back()

    def go_away(self) -> None:
        """Begins to close the WebSocket, because the server ends."""
        if self._state is State.OPEN:
            self._close(1001, "")

    def hold(self) -> None:
        self.begin_period()
        self.tasks.host.watch(self)


def _disconnect(code: int, reason: str = "") -> dict[str, Any]:
    return {"type": "websocket.disconnect", "code": int(code), "reason": reason}
