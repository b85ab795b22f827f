"""Server: `http.server.ThreadingHTTPServer` whose loop is the C front and whose threads are a bounded pool.

It knows nothing of health, databases or settings: what a connection may do is given as keyword arguments.

The shape of `socketserver` stays.  `serve_forever()` is the loop (it holds no interpreter lock), the worker threads
are what makes the server "threading", `finish_request()` builds the handler.  What differs: a request, not a
connection, is what a worker is given, and a slow client costs no thread.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import Any

from pkg import _core
from pkg.errors import BodyError, ClientDisconnected, DatabaseUnavailable, ResponseError
from pkg.handler import adapt

__all__ = ["Server"]

_log = logging.getLogger(__name__)

Handler = Callable[[Any, Any, Any], object]

LOOK_EVERY = 0.05  # seconds; how soon handle_request() sees that a client has left
WORKERS_END = 0.4  # seconds that server_close() gives all workers together; who is stuck then is left behind


class Server(ThreadingHTTPServer):
    """An HTTP server on one listening socket.

    `RequestHandlerClass` is a `BaseHTTPRequestHandler` subclass, or any callable of (request, client_address, server)
    that answers `request`.  `before` and `access` are called with each request, ahead of its handler and at its end.
    `limits` are the keyword arguments of `_core.Front`; durations in seconds, sizes in bytes.
    OSError: the address cannot be bound.
    """

    # As many as the kernel allows (net.core.somaxconn): what waits there is not lost, what does not fit is.
    request_queue_size = 4096
    allow_reuse_port = False  # whatever the base class says: a second server on one port must be an error
    daemon_threads = True

    def __init__(
        self,
        server_address: Any,
        RequestHandlerClass: Any,
        bind_and_activate: bool = True,
        *,
        threads: int = 8,
        before: Callable[[_core.Request], object] | None = None,
        access: Callable[[_core.Request], object] | None = None,
        **limits: Any,
    ) -> None:
        if ":" in server_address[0]:
            self.address_family = socket.AF_INET6
        self.threads = threads
        self.before = before
        self.access = access
        self.front: _core.Front | None = None
        self._limits = limits
        self._handle: Handler | None = None if RequestHandlerClass is None else adapt(RequestHandlerClass)
        self._workers: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._serving = False
        self._served = False
        self._single: threading.Thread | None = None  # runs the front for handle_request()
        self._taken = self._left = 0  # connections that ended with and without a request for handle_request()
        self._ended = threading.Event()
        self._ended.set()
        super().__init__(server_address, RequestHandlerClass, bind_and_activate)

    # -------------------------------------------------------------- life

    def server_bind(self) -> None:
        """Binds; unlike the base class, asks no name server who we are."""
        if self.address_family == socket.AF_INET6:
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def server_activate(self) -> None:
        # Accepted sockets inherit the option.  Without it a response in two segments waits 40 ms for an
        # acknowledgement that the client delays.
        if self.address_family != socket.AF_UNIX:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        super().server_activate()
        self.front = _core.Front(self.socket.fileno(), **self._limits)

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serves until `shutdown()`, or until the front has closed every connection.

        Every `poll_interval` seconds signal handlers run, on the main thread, and service_actions(), if overridden.
        """
        self._ended.clear()
        try:
            self._check_socket()
            # A front only goes forward; as under socketserver, the server may serve again, or in a forked process.
            if self._served or self._front().is_foreign:
                self.front = _core.Front(self.socket.fileno(), **self._limits)
                self._workers.clear()
            front = self._front()
            self._served = True
            with self._lock:
                self._serving = True
                if self._handle is not None:
                    try:
                        self._start_workers()
                    except BaseException:
                        self._run_stopped(front)
                        raise
            acts = type(self).service_actions is not Server.service_actions
            if acts or threading.current_thread() is threading.main_thread():
                self._run_aside(front, poll_interval)
            else:
                self._run(front)
        finally:
            self._serving = False
            self._ended.set()

    def start(self) -> None:
        """Serves in a thread of its own; `drain()`, `join()` and `shutdown()` may follow before that has begun.

        RuntimeError: there is no thread to be had.
        """
        self._ended.clear()
        try:
            threading.Thread(target=self.serve_forever, name="front", daemon=True).start()
        except BaseException:
            self._ended.set()
            raise

    @staticmethod
    def _run(front: _core.Front) -> None:
        try:
            front.run()
        finally:
            Server._run_stopped(front)

    @staticmethod
    def _run_stopped(front: _core.Front) -> None:
        """Lets the workers go where run() was left by an exception, or never came to run."""
        front.advance(_core.Stage.STOPPED)
        with contextlib.suppress(OSError):
            front.run()

    def _run_aside(self, front: _core.Front, poll_interval: float) -> None:
        """Runs the front in another thread.  Were it this one, a signal that comes just before the front falls asleep
        would be seen when the next client comes."""
        errors: list[BaseException] = []
        ended = threading.Event()  # an interrupted Thread.join() takes the thread for dead (gh-90882, until 3.13)

        def run() -> None:
            try:
                self._run(front)
            except BaseException as error:
                errors.append(error)
            finally:
                ended.set()

        try:
            threading.Thread(target=run, name="front", daemon=True).start()
        except BaseException:  # no thread to be had: the workers go, for whom nobody would serve
            self._run_stopped(front)
            raise
        try:
            while not ended.wait(poll_interval):
                self.service_actions()
        finally:
            front.advance(_core.Stage.STOPPED)
            ended.wait()
        if errors:
            raise errors[0]

    def handle_request(self) -> None:
        """Serves one request, whose connection then closes; after `timeout` seconds without one, handle_timeout().

        As under socketserver it also returns when a client has connected and leaves without a request, or is refused
        by the front.  The request is served by a thread of its own, so that signal handlers run meanwhile.  Between
        calls other requests wait, at most queue_timeout.
        """
        self._check_socket()
        front = self._front()
        if self._single is None:
            single = threading.Thread(target=front.run, name="front", daemon=True)
            single.start()
            self._single = single
        request: _core.Request | None = None
        late = False

        def serve() -> None:
            nonlocal request, late
            end = None if self.timeout is None else time.monotonic() + self.timeout
            # Seen twice: one look may fall between two of the counters.
            looks = 0
            while request is None and not late and looks < 2:
                looks = looks + 1 if self._connections_left() > self._left else 0
                left = LOOK_EVERY if end is None else max(0.0, min(LOOK_EVERY, end - time.monotonic()))
                try:
                    request = front.take(left)
                    if request is None:
                        return  # the front has stopped
                except TimeoutError:
                    late = end is not None and time.monotonic() >= end
            if request is None:
                self._left += looks == 2
            else:
                self._taken += 1
                request.keep_alive = False
                self._serve(request)

        worker = threading.Thread(target=serve, name="worker", daemon=True)
        worker.start()
        while worker.is_alive():
            worker.join(0.5)
        if late:
            self.handle_timeout()

    def _connections_left(self) -> int:
        """How many connections are over that have brought no request to handle_request()."""
        stats = self._front().stats()
        return int(stats["accepted"] - stats["connections"]) - self._taken

    def _check_socket(self) -> None:
        """RuntimeError where TLS is meant, with a wrapped `socket` or in get_request(): it would be plain HTTP."""
        if type(self).get_request is not Server.get_request:
            raise RuntimeError(
                "get_request() is never called, as the front accepts connections; let a proxy in front terminate TLS"
            )
        if type(self.socket) is not socket.socket:
            raise RuntimeError(f"cannot serve on a {type(self.socket).__name__}: let a proxy in front terminate TLS")

    def host(self, handler: Any) -> None:
        """Gives a server that was made with `None` its handler.  Until then requests wait; published pages do not."""
        with self._lock:
            self._handle = adapt(handler)
            if self._serving:
                self._start_workers()

    def _start_workers(self) -> None:
        for n in range(self.threads):
            worker = threading.Thread(target=self._work, name=f"worker-{n}", daemon=self.daemon_threads)
            worker.start()
            self._workers.append(worker)

    @property
    def stuck_workers(self) -> int:
        """Workers that have not ended although the server has."""
        return sum(worker.is_alive() for worker in self._workers)

    def shutdown(self) -> None:
        """Ends `serve_forever` at once, aborting what is in flight, and waits for it.  For a drain see `drain()`."""
        self._front().advance(_core.Stage.STOPPED)
        self._ended.wait()

    def drain(self) -> None:
        """From now on every response says `Connection: close`; the listener still accepts."""
        self._front().advance(_core.Stage.TERMINATING)

    def close_listener(self) -> None:
        """Accepts what waits, stops listening, lets requests finish; `serve_forever` returns when all are done."""
        self._front().advance(_core.Stage.CLOSING)

    def join(self, timeout: float) -> bool:
        """Waits for serve_forever to return; False if it has not after `timeout` seconds."""
        return self._ended.wait(timeout)

    def server_close(self) -> None:
        if self._single is not None:
            self._front().advance(_core.Stage.CLOSING)  # what has been answered goes out
            self._single.join(5.0)
            self._front().advance(_core.Stage.STOPPED)
            self._single.join()
            self._single = None
        self.socket.close()
        end = time.monotonic() + WORKERS_END
        for worker in self._workers:
            worker.join(max(0.0, end - time.monotonic()))
        if not any(worker.is_alive() for worker in self._workers):
            self.front = None

    def _front(self) -> _core.Front:
        if self.front is None:
            raise RuntimeError("the server is not activated")
        return self.front

    # -------------------------------------------------------------- requests

    def _work(self) -> None:
        """One worker.  The loop is in C unless a subclass has changed what happens to a request."""
        front = self._front()
        changed = any(
            getattr(type(self), name) is not getattr(Server, name)
            for name in ("verify_request", "process_request", "finish_request", "shutdown_request")
        )
        if not changed:
            assert self._handle is not None
            front.work(self._handle, self.handle_error, self.access, self, self.before)
            return
        while (request := front.take()) is not None:
            self._serve(request)

    def _serve(self, request: _core.Request) -> None:
        """The way of a request through the methods that subclasses may override, as in socketserver."""
        try:
            try:
                if self.verify_request(request, request.client_address):
                    self.process_request(request, request.client_address)
                else:
                    self.shutdown_request(request)
            except BaseException:  # of an override: the worker goes on
                self._end_child()
                self.handle_error(request, request.client_address)
                self.shutdown_request(request)
            self._end_child()
        except BaseException:
            _log.exception("%s %s: handling the end of the request failed", request.method, request.target)
            Server.shutdown_request(self, request)

    def _end_child(self) -> None:
        """Ends this process if the handler has forked it: it has no way back into the worker's loop."""
        if self._front().is_foreign:
            from pkg._child import end

            end(sys.exception())

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether the request is served; for subclasses to override."""
        return True

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serves one request in the calling worker."""
        try:
            if self.before is not None:
                self.before(request)
            self.finish_request(request, client_address)
        except BaseException:  # SystemExit in a handler ends the request, not the worker
            self._end_child()
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)
        if self.access is not None:
            self.access(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        if isinstance(request, _core.Request):
            assert self._handle is not None
            self._handle(request, client_address, self)
        else:  # a subclass that brings connections of its own
            super().finish_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Gives the connection back to the front."""
        if not isinstance(request, _core.Request):
            super().shutdown_request(request)
        elif not request.is_finished:
            request.finish(keep_alive=request.status != 0, abort=request.status == 0)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Answers for the exception being handled, if nothing has been sent; else cuts the connection."""
        error = sys.exception()
        status, headers = HTTPStatus.INTERNAL_SERVER_ERROR, {}
        if isinstance(error, ClientDisconnected):
            _log.debug("%s %s: %s", request.method, request.target, error)
            request.finish(keep_alive=False, abort=True)
            return
        if isinstance(error, BodyError):
            status = HTTPStatus(error.status)
            if status == HTTPStatus.SERVICE_UNAVAILABLE:  # buffer_size is used up
                headers = {"Retry-After": "1"}
            _log.info("%s %s: %s", request.method, request.target, error)
        elif isinstance(error, DatabaseUnavailable):
            status, headers = HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "1"}
            _log.warning("%s %s: %s", request.method, request.target, error)
        elif isinstance(error, ResponseError):
            _log.error("%s %s: invalid response: %s", request.method, request.target, error)
        else:
            _log.error("%s %s failed", request.method, request.target, exc_info=error)
        if request.status != 0 or request.is_finished:
            request.finish(keep_alive=False, abort=True)
            return
        try:
            request.keep_alive = False
            response = _core.Response(request)
            response.start(status, status.phrase)
            response.add_header("Content-Type", "text/plain; charset=utf-8")
            for name, value in headers.items():
                response.add_header(name, value)
            response.end(f"{status.phrase}\n".encode())
        except (ClientDisconnected, ResponseError, ValueError):
            request.finish(keep_alive=False, abort=True)
