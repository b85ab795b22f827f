"""The admin listener: shows over HTTP what an engineer would look at with a shell, which the image does not have.

It is not a public interface, cannot run code, and shows no heap, no environment and no secret.

The rules:
- It has its own threads, all started in advance, which wait in accept(): so it responds when every worker is stuck,
  when no thread can be started, and when no descriptor is free (the kernel reserves one for a waiting accept()).
- It is open to loopback only, or with a token.  Without a token, a request must name a loopback host, so that no
  web page can reach it through a host name that points here (DNS rebinding), and a request that changes something must
  not come from another site.
- Health pages are open to whoever can connect, as on the service's own listeners.
- A connection carries one request; head and body are limited in size and time.
- A client that is slow to send gives way when another connection waits and no thread is free, the slowest first.
  Otherwise clients without a token could occupy every thread.
"""

from __future__ import annotations

import contextlib
import errno
import io
import ipaddress
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from pkg.admin.reply import Problem, Reply, text

if TYPE_CHECKING:
    from pkg.admin.health import HealthPages
    from pkg.admin.pages import Pages

__all__ = ["Admin"]

_log = logging.getLogger("pkg.admin")

THREADS = 4
BACKLOG = 128  # clients without a token may fill it; further ones wait a second for the kernel's next attempt
MAX_HEAD_SIZE = 16384
MAX_BODY_SIZE = 4096
READ_TIMEOUT = 5.0  # for the whole request
UNDISTURBED = 0.03  # seconds that a client has to send its request before it may have to give way
GLANCE = 0.01  # seconds between two polls of the listener, so that waiting does not spin
WRITE_TIMEOUT = 10.0
NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class GivesWay(TimeoutError):
    """Raised for a slow client while another connection waits for a thread."""


class Admin:
    """The listener at `address`; start() starts it, close() ends it.

    `pages()` creates the pages on first use, so that the start does not wait for them.  `token`: required of every
    request for one of them, unless empty.  `health`: answers requests for health pages, whoever sends them.  Raises
    OSError if the address cannot be bound.
    """

    def __init__(
        self,
        address: tuple[str, int],
        *,
        pages: Callable[[], Pages],
        token: str = "",
        health: HealthPages | None = None,
    ) -> None:
        self._make_pages = pages
        self._health = health
        self._made_pages: Pages | None = None
        self._lock = threading.Lock()
        self._lock_served = threading.Lock()
        self._token = token
        self._refusals = _Refusals()
        self._closing = False
        # Connections that have a thread, with the time since when it waits for the client, or None if it does not.
        self._served: dict[socket.socket, float | None] = {}
        self._host = address[0]
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind(address)
            self._socket.listen(BACKLOG)
        except OSError:
            self._socket.close()
            raise
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._threads = [threading.Thread(target=self._run, name=f"admin-{n}", daemon=True) for n in range(THREADS)]

    # -------------------------------------------------------------- life

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def pages(self) -> Pages:
        with self._lock:
            if self._made_pages is None:
                pages = self._make_pages()
                pages.prime()
                self._made_pages = pages
            return self._made_pages

    def prime(self) -> None:
        """Creates the pages now, since later there may be no free descriptor for imports."""
        try:
            _ = self.pages
        except Exception:  # the service must not fail because of its admin pages
            _log.exception("cannot create the admin pages")

    def in_child(self) -> None:
        """Called in a forked process: closes its copy of the socket, so that it does not keep the port."""
        self._socket.close()

    def close(self) -> None:
        """Ends the listener; pages in progress get one second to finish."""
        self._closing = True
        if self._made_pages is not None:
            self._made_pages.close()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes the threads that wait in accept()
        deadline = time.monotonic() + 1.0
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - time.monotonic()))
        self._socket.close()

    def _run(self) -> None:
        spare = _spare()
        while not self._closing:
            try:
                connection, peer = self._socket.accept()
            except OSError as error:
                if error.errno in NO_DESCRIPTOR and not self._closing:
                    if spare is not None:
                        os.close(spare)  # the next accept() takes it and keeps it while it waits
                        spare = None
                    else:
                        time.sleep(0.2)
                    continue
                if error.errno in (errno.ECONNABORTED, errno.EPROTO, errno.EINTR):
                    continue
                break
            with connection:
                with self._lock_served:
                    self._served[connection] = None
                try:
                    _Handler(connection, peer, self)
                except OSError:
                    pass  # the client is gone
                except Exception:
                    _log.exception("the admin listener failed to serve a connection")
                finally:
                    with self._lock_served:
                        self._served.pop(connection, None)
            if spare is None:
                spare = _spare()
        if spare is not None:
            os.close(spare)

    # -------------------------------------------------------------- waiting for clients

    def receive(self, connection: socket.socket, size: int, deadline: float) -> bytes:
        """The next bytes from the client, b"" at the end.

        Raises TimeoutError if nothing arrives before the deadline, GivesWay if another connection needs the thread.
        """
        began = time.monotonic()
        with self._lock_served:
            if self._served.get(connection) is None:
                self._served[connection] = began
            since = self._served[connection] or began
        poller = select.poll()
        poller.register(connection, select.POLLIN)
        while True:
            now = time.monotonic()
            left = deadline - now
            undisturbed = since + UNDISTURBED - now
            if poller.poll(max(0.0, min(left, undisturbed if undisturbed > 0 else GLANCE)) * 1000):
                return connection.recv(size)
            if left <= 0:
                raise TimeoutError
            if undisturbed <= 0:
                if self._gives_way(connection):
                    raise GivesWay
                # Wait until this client or the next one does something.
                both = select.poll()
                both.register(connection, select.POLLIN)
                both.register(self._socket, select.POLLIN)
                both.poll(max(0.0, left) * 1000)

    def arrived(self, connection: socket.socket) -> None:
        """Notes that the request has arrived, so the thread no longer waits for the client."""
        with self._lock_served:
            self._served[connection] = None

    def _gives_way(self, connection: socket.socket) -> bool:
        """Whether another connection waits, no thread is free, and this client has been waited for longest."""
        waiting = select.poll()
        waiting.register(self._socket, select.POLLIN)
        if not waiting.poll(0):
            return False
        with self._lock_served:
            slow = {c: since for c, since in self._served.items() if since is not None}
            if len(self._served) < THREADS or min(slow, key=slow.__getitem__, default=None) is not connection:
                return False
            del self._served[connection]
            return True

    # -------------------------------------------------------------- access control

    def answer(self, method: str, target: str, headers: Any, peer: str) -> Reply:
        """The requested page.  Raises Problem if there is none, or if this request is refused."""
        # Health pages need no token: they tell nothing else than the service tells everybody, and a probe could have
        # only the file's present token, while the listener keeps the one that it has read at start.
        if self._health is not None and (reply := self._health.answer(method, target, headers.get("Accept", ""))):
            return reply
        self._admit(headers, method, peer, target.partition("?")[0][:100])
        return self.pages.answer(method, target, headers.get("Accept", ""))

    def _admit(self, headers: Any, method: str, peer: str, path: str) -> None:
        """Raises Problem if this request must not be served."""
        host = headers.get("Host")
        if self._token:
            if not _has_token(headers.get("Authorization", ""), self._token):
                if suppressed := self._refusals.note():
                    more = f" ({suppressed - 1} more before)" if suppressed > 1 else ""
                    _log.warning("admin listener: wrong or missing token from %s for %s %s%s", peer, method, path, more)
                raise Problem(401, "a token is required", WWW_Authenticate='Bearer, Basic realm="admin"')
        elif host is not None and not _is_local(host, self._host):
            _log.warning("admin listener: refused %s %s because of its Host header %.100r", method, path, host)
            raise Problem(403, "the Host header names neither a loopback address nor this listener")
        if method not in ("GET", "HEAD"):
            origin, site = headers.get("Origin"), headers.get("Sec-Fetch-Site", "none")
            if site not in ("none", "same-origin") or (origin is not None and origin.partition("://")[2] != host):
                _log.warning("admin listener: refused %s %s from another site", method, path)
                raise Problem(403, "requests from other sites are refused")


class _Refusals:
    """Counts refusals and limits them to one log line per second, in case somebody tries many tokens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._due = 0.0

    def note(self) -> int:
        """The number of refusals since the last line, including this one, or 0 if no line is due."""
        with self._lock:
            self._count += 1
            now = time.monotonic()
            if now < self._due:
                return 0
            self._due = now + 1.0
            count, self._count = self._count, 0
            return count


def _spare() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _has_token(authorization: str, token: str) -> bool:
    """Accepts Bearer, or Basic with the token as password, which a browser can send."""
    import hmac  # imports OpenSSL, which not every process needs

    scheme, _, given = authorization.strip().partition(" ")
    given = given.strip()
    if scheme.lower() == "basic":
        import base64

        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except ValueError:
            given = ""
    elif scheme.lower() != "bearer":
        given = ""
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _is_local(host: str, own: str) -> bool:
    """Whether a Host header names a loopback address or the address of this listener."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.strip("[]").rstrip(".").lower()
    if name in ("localhost", own.lower()) or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


class _Handler(BaseHTTPRequestHandler):
    """Serves one connection: one request and one response."""

    protocol_version = "HTTP/1.1"

    def __init__(self, connection: socket.socket, peer: Any, admin: Admin) -> None:
        self._admin = admin
        self._unread = False
        super().__init__(connection, peer, None)  # type: ignore[arg-type]

    def setup(self) -> None:
        self.connection = self.request
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.wfile = self._out = io.BytesIO()

    def handle(self) -> None:
        self.requestline, self.request_version, self.command = "", "HTTP/1.1", ""
        self.close_connection = True
        deadline = time.monotonic() + READ_TIMEOUT
        try:
            head, rest = self._read_head(deadline)
            if not head:
                return
            self.rfile = io.BufferedReader(io.BytesIO(head))
            self.raw_requestline = self.rfile.readline(MAX_HEAD_SIZE)
            if not self.parse_request():  # it has sent the reason
                self._flush()
                return
            self.close_connection = True
            self._read_body(rest, deadline)
            self._admin.arrived(self.connection)
            reply = self._answer()
        except Problem as problem:
            self._unread = True
            reply = Reply(f"{problem}\n".encode(), status=problem.status, headers=problem.headers)
        except TimeoutError as error:
            self._unread = not isinstance(error, GivesWay)
            reply = text("the request did not arrive in time\n", 408)
        self._reply(reply)
        self._flush()

    def _answer(self) -> Reply:
        try:
            return self._admin.answer(self.command, self.path, self.headers, self.client_address[0])
        except Problem:
            raise
        except Exception as error:
            _log.exception("admin page %s %.100s failed", self.command, self.path)
            return text(f"this page failed ({type(error).__name__}); see the log\n", 500)

    def _read_head(self, deadline: float) -> tuple[bytes, bytes]:
        data = b""
        while b"\r\n\r\n" not in data and b"\n\n" not in data:
            if len(data) >= MAX_HEAD_SIZE:
                raise Problem(431, "the request's head is too large")
            if not (more := self._receive(deadline)):
                return b"", b""
            data += more
        end = min(at + len(mark) for mark in (b"\r\n\r\n", b"\n\n") if (at := data.find(mark)) >= 0)
        return data[:end], data[end:]

    def _read_body(self, data: bytes, deadline: float) -> None:
        """Reads and discards the body, because closing a socket with unread bytes would reset the connection."""
        if "Transfer-Encoding" in self.headers:
            raise Problem(411, "a body requires a Content-Length")
        length = self.headers.get("Content-Length", "0")
        if not length.isascii() or not length.isdigit():
            raise Problem(400, "Content-Length is not a number")
        if len(length) > 20 or int(length) > MAX_BODY_SIZE:
            raise Problem(413, "the body is too large")
        left = int(length) - len(data)
        while left > 0 and (more := self._receive(deadline)):
            left -= len(more)

    def _receive(self, deadline: float) -> bytes:
        return self._admin.receive(self.connection, 8192, deadline)

    def _reply(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.media_type)
        self.send_header("Content-Length", str(len(reply.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Content-Security-Policy", _POLICY)
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Connection", "close")
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def _flush(self) -> None:
        self.connection.settimeout(WRITE_TIMEOUT)  # for the whole response
        self.connection.sendall(self._out.getvalue())
        if self._unread:
            # With unread bytes, close() would reset the connection, and the client could lose the response.
            self.connection.shutdown(socket.SHUT_WR)
            deadline = time.monotonic() + 1.0  # for everything that arrives
            while self._admin.receive(self.connection, 16384, deadline):
                pass

    def version_string(self) -> str:
        return "pkg-admin"

    def finish(self) -> None:
        """Does nothing: there is nothing left to flush."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Sends an error that `parse_request` has found, as text."""
        self._unread = True
        self.request_version = "HTTP/1.1"  # so that the response has a head even if the request named no version
        self._reply(text(f"{message or HTTPStatus(code).phrase}\n", code))

    def log_message(self, format: str, *args: Any) -> None:
        """Does nothing: metrics are scraped every few seconds."""


# Forbids scripts, external resources and framing; the pages need none of these.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
