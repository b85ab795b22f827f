"""WebSocketExchange: `receive` and `send` of one WebSocket (RFC 6455; ASGI's WebSocket messages, 2.5).

      CONNECTING --accept--> OPEN --close frame of either side--> CLOSING --the other's--> CLOSED
          |                    `------------- the connection breaks, a violation -----------^
          `--close, or http.response.start--> DENYING --last part of the response--> CLOSED

`websockets` reads frames and knows the rules; whole messages that come by themselves are read without it.  What comes
is read whether or not the application receives it, as pings and close frames must be seen, until so much waits for the
application that the client has to wait.
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

MOST_HELD = 65536  # bytes of messages that wait for the application; a longer message waits alone
MOST_MESSAGES = 32
MOST_AT_ONCE = 65536  # bytes of one read
MOST_PACKED = 16384  # the same of what may be compressed, and unpack to a thousand times as much
FREE = 4096  # bytes of messages that are not with the application; what is beyond counts against buffer_size
MOST_IN_A_TURN = 64  # messages, in both directions; a long one counts as several
DEFLATE_FROM = 1024  # bytes; compressing a shorter message takes more than it saves
MOST_REASON = 123  # bytes; RFC 6455 5.5

TEXT, BINARY, CONTINUATION = Opcode.TEXT, Opcode.BINARY, Opcode.CONT
FINAL_TEXT, FINAL_BINARY, COMPRESSED = 0x81, 0x82, 0x40  # the first byte of a frame


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
        "_farewell",
        "_has_closed",
        "_has_connected",
        "_held",
        "_is_text",
        "_late",
        "_message",
        "_messages",
        "_protocol",
        "_state",
        "_turn",
        "_was_heard",
        "_will_read",
        "has_failed",
    )

    def __init__(self, request: _core.Request, tasks: _core.Tasks) -> None:
        self._state = State.CONNECTING
        self._accepting: list[tuple[bytes, bytes]] = []  # fields of the response that accepts
        self._protocol: Protocol
        self._deflate: Any = None
        self._messages: list[dict[str, Any]] = []  # for the application
        self._held = 0  # bytes of them
        self._has_connected = False  # the application has been told
        self._farewell: dict[str, Any] | None = None  # its last message
        self._has_closed = False  # the application has closed it, or denied it
        self._message: bytearray | None = None  # the fragments of a message so far
        self._is_text = False
        self._late: bytes | None = None  # a control frame that follows what the client has not taken yet
        self._turn = 0
        self._was_heard = True
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
        self._protocol = Protocol(
            Side.SERVER, state=OPEN, max_size=self.tasks.host.websocket_rules.max_size, logger=_quiet
        )
        self._protocol.extensions = negotiation.extensions
        self._deflate = negotiation.extensions[0] if negotiation.extensions else None
        return None

    async def refuse(self, status: int, headers: list[tuple[bytes, bytes]], text: bytes) -> None:
        """Responds instead of the application."""
        await self.send({"type": "websocket.http.response.start", "status": status, "headers": headers})
        await self.send({"type": "websocket.http.response.body", "body": text})

    def conclude(self) -> None:
        """The application has returned.  Raises ResponseError if it should not have."""
        if self._state in (State.CONNECTING, State.DENYING) and self._farewell is None:
            raise ResponseError("the application has returned without accepting or denying the WebSocket")

    @property
    def is_over(self) -> bool:
        """Whether it has ended, and not by the application."""
        return self._farewell is not None and not self._has_closed

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
        self._state = State.OPEN
        self.tasks.host.keepalive.add(self)
        self._read()

    # -------------------------------------------------------------- the application's side

    async def receive(self) -> dict[str, Any]:
        """The next message.  The last one, websocket.disconnect, is said again whenever it is asked for."""
        if not self._has_connected:
            self._has_connected = True
            return {"type": "websocket.connect"}
        while True:
            if self._messages:
                if self._has_had_its_turn(0):
                    await asyncio.sleep(0)
                    continue
                message = self._messages.pop(0)
                if not self._messages:
                    self._held = 0
                    if self.reserved:
                        self._reserve()
                    if not self.is_waiting:
                        self._read_soon()
                return message
            if self._farewell is not None:
                return self._farewell.copy()
            if self._state in (State.CONNECTING, State.DENYING) and self.has_gone():
                self._farewell = _disconnect(1006)
            else:
                await self._wait()

    async def send(self, message: dict[str, Any]) -> None:
        """Sends a message; waits until the client, or its buffer, has taken all of it.

        Raises ClientDisconnected, an OSError, if the WebSocket is closed, and ResponseError for a message that does not
        fit, of which nothing has been sent then.
        """
        if self.is_full:  # another task is sending
            await self._drain()
        kind = message.get("type")
        if self._state is State.OPEN and kind == "websocket.send":
            self._put_message(message)
        else:
            self._put_other(message, kind)
        if self.is_full:
            await self._drain()
        elif self._has_had_its_turn(len(message.get("bytes") or message.get("text") or "")):
            await asyncio.sleep(0)

    def _has_had_its_turn(self, size: int) -> bool:
        """Whether others have to run first: with a fast client an application would never have to wait."""
        self._turn += 1 + size // 4096
        if self._turn < MOST_IN_A_TURN:
            return False
        self._turn = 0
        return True

    def _put_message(self, message: dict[str, Any]) -> None:
        data, first = message.get("bytes"), FINAL_BINARY
        if data is None:
            data, first = message.get("text"), FINAL_TEXT
            if not isinstance(data, str):
                raise ResponseError("websocket.send has neither bytes nor text")
        elif not isinstance(data, (bytes, bytearray, memoryview)):
            raise ResponseError(f"the bytes of websocket.send are {type(data).__name__}")
        if self._deflate is not None and len(data) >= DEFLATE_FROM:
            packed = data.encode() if isinstance(data, str) else bytes(data)
            data = self._deflate.encode(Frame(BINARY, packed)).data
            first |= COMPRESSED
        try:
            self.put_frame(first, data)
        except ClientDisconnected:
            self._break_off()
            raise
        if self.is_full:
            self._hold()

    def _put_other(self, message: dict[str, Any], kind: object) -> None:
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
            self._state = State.DENYING
        elif state is State.DENYING and kind == "websocket.http.response.body":
            self._put_denial(message | {"type": "http.response.body"})
        elif state is State.OPEN and kind == "websocket.close":
            code, reason = message.get("code"), message.get("reason") or ""
            code = 1000 if code is None else code
            if not isinstance(code, int) or not isinstance(reason, str):
                raise ResponseError("the code of websocket.close is not int, or its reason not str")
            self._close(code, reason)
            self._has_closed = True
            self._messages.clear()
        else:
            raise ResponseError(f"{kind!r} is not a message for a WebSocket that is {state.value}")

    def _put_denial(self, part: dict[str, Any]) -> None:
        self.put(part)
        if self.has_ended:
            self._state = State.CLOSED
            self._has_closed = True
            self._farewell = _disconnect(1006)
            self._notify()

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
            self._hold()
        try:
            await future
        except BaseException:  # cancelled, as by a timeout
            if future in self.waiting:
                self.waiting.remove(future)
            raise

    def _notify(self) -> None:
        """Lets all that wait try again."""
        super().wake()

    # -------------------------------------------------------------- the client's side

    def wake(self) -> None:
        """The connection can go on.  Raises nothing, as its caller waits for all connections."""
        self.is_waiting = False  # for reading; it is said again by read()
        try:
            if self.is_full:
                self.flush()
            if self._late is not None and not self.is_full:
                late, self._late = self._late, None
                if self._state is State.CLOSED:
                    self._give_back(late)
                else:
                    self.put_bytes(late)
            self._read()
        except ClientDisconnected:
            self._break_off()
        except Exception:
            self._fail()
        self._notify()

    def _read(self) -> None:
        """Takes what has come, once; more of it in the next turn, as others have their turn as well."""
        if self._state not in (State.OPEN, State.CLOSING) or self._is_laden():
            return
        is_between = self._state is State.OPEN and self._message is None
        max_size = self.tasks.host.websocket_rules.max_size if is_between else 0
        data = self.read(MOST_AT_ONCE if self._deflate is None else MOST_PACKED, max_size)
        if data is None:
            return
        if not data:
            self._break_off()
            return
        self._was_heard = True
        if isinstance(data, list):
            self._messages += data
            self._held += self.read_size
        else:
            self._take(data)
        if self._messages:
            self._notify()
        if not self.is_waiting and not self._is_laden():
            self._read_soon()

    def _read_soon(self) -> None:
        if not self._will_read:
            self._will_read = True
            self.tasks.host.loop.call_soon(self._read_now)

    def _read_now(self) -> None:
        self._will_read = False
        try:
            self._read()
        except Exception:
            self._fail()

    def _is_laden(self) -> bool:
        """Whether the application has to receive before more is read."""
        return self._state is State.OPEN and (self._held >= MOST_HELD or len(self._messages) >= MOST_MESSAGES)

    def _take(self, data: bytes) -> None:
        protocol = self._protocol
        protocol.receive_data(data)
        for frame in protocol.events_received():
            assert isinstance(frame, Frame)
            opcode = frame.opcode
            if opcode is TEXT or opcode is BINARY:
                self._is_text = opcode is TEXT
                if not frame.fin:
                    self._message = bytearray(frame.data)
                elif not self._deliver(frame.data):
                    break
            elif opcode is CONTINUATION and self._message is not None:
                self._message += frame.data
                if frame.fin:
                    whole, self._message = self._message, None
                    if not self._deliver(whole):
                        break
        if not self._reserve() and not protocol.eof_sent:
            self.tasks.host.keepalive.tell_of_room(self.request)
            protocol.fail(1013, "no buffer is free")
        frames = b"".join(protocol.data_to_send())
        if protocol.eof_sent:
            self._end_by_client(frames)
        elif frames and self._state is State.OPEN:
            self._put_control(frames)

    def _reserve(self) -> bool:
        """Counts what is held of its messages, complete or not.  False: there is no room for it."""
        if self._state is State.CLOSED and self.is_closed:
            return self.reserve(0)
        size = len(self._protocol.reader.buffer) + self._held - FREE
        if self._message is not None:
            size += len(self._message)
        return self.reserve(max(0, size))

    def _end_by_client(self, frames: bytes) -> None:
        """It has sent a close frame, or has violated the protocol; `frames` has the answer."""
        protocol = self._protocol
        if self._state is State.OPEN:
            by_itself = protocol.parser_exc is None and protocol.close_rcvd is not None
            close = protocol.close_rcvd if by_itself else protocol.close_sent
            assert close is not None
            self._farewell = _disconnect(close.code, close.reason)
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
        self._messages.append(message)
        self._held += len(data)
        return True

    def _put_control(self, frame: bytes) -> None:
        """Sends a ping, pongs or a close frame; only the last of them, if the client has not taken all before it."""
        if self.is_full:
            self._late = frame
            return
        try:
            self.put_bytes(frame)
        except ClientDisconnected:
            self._break_off()
        if self.is_full:
            self._hold()

    # -------------------------------------------------------------- the end

    def _close(self, code: int, reason: str) -> None:
        """Sends a close frame; from now on the client's is awaited."""
        if len(reason) > MOST_REASON // 4:
            reason = reason.encode()[:MOST_REASON].decode(errors="ignore")
        try:
            self._protocol.send_close(code, reason)
        except ProtocolError:
            raise ResponseError(f"{code!r} is not a close code that may be sent") from None
        self._state = State.CLOSING
        self._farewell = _disconnect(code, reason)
        self.tasks.host.keepalive.close(self)
        self._put_control(b"".join(self._protocol.data_to_send()))
        if not self.is_waiting:  # what is left is read, and not held, up to the client's close frame
            self._held = 0
            self._read_soon()
        self._notify()

    def _end(self, last: bytes = b"") -> None:
        """Nothing more is read; after what the client has not taken yet, and `last`, the connection is given back."""
        self._state = State.CLOSED
        self._message = None
        if self.is_full:
            self._late = last
        else:
            self._give_back(last)
        self._notify()

    def _give_back(self, last: bytes = b"") -> None:
        self._state = State.CLOSED
        self._late = self._message = None
        if self.reserved:
            self._reserve()
        self.end(last)
        self.tasks.host.keepalive.discard(self)

    def _break_off(self) -> None:
        """The client has left without a close frame, or does not read."""
        if self._farewell is None:
            self._farewell = _disconnect(1006)
        self._give_back()
        self._notify()

    def _fail(self) -> None:
        """Something is wrong here, or with the system: no descriptor of epoll, no memory."""
        _log.exception("%s %s: the WebSocket is cut off", self.request.method, self.request.target)
        self._break_off()

    def finish(self) -> None:
        """The application has returned, or raised."""
        if self._state is State.OPEN:
            self._close(1011 if self.has_failed else 1000, "")
        elif self._state is not State.CLOSING and self._late is None:
            self._state = State.CLOSED
            super().finish()

    def close(self) -> None:
        """The end of the task."""
        self.finish()
        super().close()
        if self.reserved:
            self._reserve()

    def dismiss(self) -> None:
        """For a drain that comes to its end."""
        if self._state is State.OPEN:
            self.go_away()
        elif self._farewell is None:
            self._farewell = _disconnect(1001)

    # -------------------------------------------------------------- what the clock does

    def ping(self) -> None:
        """Sends a ping."""
        if self._state is State.OPEN and not self.is_full:
            self._was_heard = False
            self._protocol.send_ping(b"")
            self._put_control(b"".join(self._protocol.data_to_send()))

    def check(self) -> bool:
        """Ends the connection if nothing has been heard since the ping; whether it goes on."""
        if self._state is not State.OPEN or self._was_heard or not self.is_waiting:
            return True
        self._protocol.fail(1011, "no answer to a ping")
        self._farewell = _disconnect(1006)
        self._give_back(b"".join(self._protocol.data_to_send()))
        self._notify()
        return False

    def give_up(self) -> None:
        """The client has not answered the close frame in time."""
        self._give_back()

    def go_away(self) -> None:
        """Begins to close the WebSocket, because the server ends."""
        if self._state is State.OPEN:
            self._close(1001, "")

    def _hold(self) -> None:
        self.begin_period()
        self.tasks.host.watch(self)


def _disconnect(code: int, reason: str = "") -> dict[str, Any]:
    return {"type": "websocket.disconnect", "code": int(code), "reason": reason}
