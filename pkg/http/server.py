"""Server: `http.server.ThreadingHTTPServer` whose loop is the C front and whose threads are a bounded pool.

It knows nothing about health, databases or settings; its limits are keyword arguments.

It keeps the structure of `socketserver`: `serve_forever()` runs the loop (without the interpreter lock), worker threads
make the server "threading", and `finish_request()` builds the handler.  The difference is that a worker gets a request
and not a connection, so that a slow client does not occupy a thread.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from pkg import _core
from pkg.errors import BodyError, ClientDisconnected, ResponseError, outage
from pkg.http.adapt import adapt

if TYPE_CHECKING:
    from pkg.http.listeners import Listener

__all__ = ["Server"]

_log = logging.getLogger("pkg.server")

Handler = Callable[[Any, Any, Any], object]

LOOK_EVERY = 0.05  # seconds; how soon handle_request() notices that a client has left
WORKERS_END = 0.4  # seconds that server_close() waits for all workers together; workers stuck then are left behind


class Server(ThreadingHTTPServer):
    """An HTTP server on one listening socket, or on several.

    `listeners`: sockets that listen already, of which the first is `socket`; nothing is bound then.  They are closed
    with the server.  `health_on_main`: whether listeners other than those for health serve the published pages.
    `proxied_unix`: whether connections of Unix sockets begin with a PROXY header.
    `RequestHandlerClass`: a subclass of `BaseHTTPRequestHandler`, or any callable with the parameters (request,
    client_address, server) that responds to `request`.  `on_request` and `on_response` are called with each request,
    before its handler and at the end of its response.  `limits`: keyword arguments of `_core.Front`, durations in
    seconds and sizes in bytes.

    Raises OSError if the address cannot be bound.
    """

    # As many as the kernel allows (net.core.somaxconn): connections that wait there are not lost, others are.
    request_queue_size = 4096
    allow_reuse_port = False  # unlike some versions of the base class: a second server on the same port must fail
    daemon_threads = True

    def __init__(
        self,
        server_address: Any,
        RequestHandlerClass: Any,
        bind_and_activate: bool = True,
        *,
        threads: int = 8,
        on_request: Callable[[_core.Request], object] | None = None,
        on_response: Callable[[_core.Request], object] | None = None,
        listeners: Sequence[Listener] = (),
        health_on_main: bool = True,
        proxied_unix: bool = False,
        **limits: Any,
    ) -> None:
        if ":" in server_address[0]:
            self.address_family = socket.AF_INET6
        self.listeners = tuple(listeners)
        self._health_on_main = health_on_main
        self._proxied_unix = proxied_unix
        self.threads = threads
        self.on_request = on_request
        self.on_response = on_response
        self.front: _core.Front | None = None
        self._limits = limits
        self._handle: Handler | None = None if RequestHandlerClass is None else adapt(RequestHandlerClass)
        self._workers: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._serving = False
        self._served = False
        self._single: threading.Thread | None = None  # the thread that runs the front for handle_request()
        self._taken = self._left = 0  # connections that ended with and without a request for handle_request()
        self._ended = threading.Event()
        self._ended.set()
        super().__init__(server_address, RequestHandlerClass, bind_and_activate and not listeners)
        if listeners:
            self.socket.close()
            self.socket = listeners[0].socket
            self.server_address = server_address
            self.server_name, self.server_port = listeners[0].host
            self.front = self._new_front()

    # -------------------------------------------------------------- life

    def server_bind(self) -> None:
        """Binds the socket.  Unlike the base class it does not look the host's name up."""
        if self.address_family == socket.AF_INET6:
            with contextlib.suppress(OSError):
                self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def server_activate(self) -> None:
        # Accepted sockets inherit the option.  Without it a response in two segments waits up to 40 ms for the client's
        # delayed acknowledgement.
        if self.address_family != socket.AF_UNIX:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        super().server_activate()
        self.front = self._new_front()

    def _new_front(self) -> _core.Front:
        if not self.listeners:
            return _core.Front(self.socket.fileno(), **self._limits)
        sockets = [
            _core.Listen(
                listener.socket.fileno(),
                listener.name,
                shared=listener.is_inherited,
                pages=listener.is_health or self._health_on_main,
                requests=not listener.is_health,
                proxied=self._proxied_unix and listener.socket.family == socket.AF_UNIX,
            )
            for listener in self.listeners
        ]
        return _core.Front(sockets, **self._limits)

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serves until `shutdown()`, or until the front has closed every connection.

        Every `poll_interval` seconds it runs service_actions(), if overridden, and on the main thread signal handlers.
        """
        self._ended.clear()
        try:
            self._check_socket()
            # A front runs only once, but as in socketserver a server may serve again, or in a forked process.
            if self._served or self._front().is_foreign:
                self.front = self._new_front()
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
        """Serves in a new thread.  `drain()`, `join()` and `shutdown()` may be called before that thread runs.

        Raises RuntimeError if no thread can be started.
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
        """Releases the workers after run() has raised an exception or was never called."""
        front.advance(_core.Stage.STOPPED)
        with contextlib.suppress(OSError):
            front.run()

    def _run_aside(self, front: _core.Front, poll_interval: float) -> None:
        """Runs the front in another thread.  In this thread, a signal that arrives just before the front goes to sleep
        would be handled only when the next client connects."""
        errors: list[BaseException] = []
        ended = threading.Event()  # an interrupted Thread.join() considers the thread dead (gh-90882, until 3.13)

        def run() -> None:
            try:
                self._run(front)
            except BaseException as error:
                errors.append(error)
            finally:
                ended.set()

        try:
            threading.Thread(target=run, name="front", daemon=True).start()
        except BaseException:  # no thread can be started: release the workers, which would never get a request
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

        As in socketserver it also returns when a client has connected and leaves without a request, or is refused by
        the front.  A separate thread serves the request, so that signal handlers can run meanwhile.  Between two calls
        other requests wait, at most queue_timeout.
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
            # Look twice: one look may fall between the updates of two counters.
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
        """How many connections have ended without a request for handle_request()."""
        stats = self._front().stats()
        return int(stats.accepted - stats.connections) - self._taken

    def _check_socket(self) -> None:
        """Raises RuntimeError where TLS is meant, by a wrapped `socket` or in get_request(); it would be plain HTTP."""
        if type(self).get_request is not Server.get_request:
            raise RuntimeError(
                "get_request() is never called, as the front accepts connections; let a proxy in front terminate TLS"
            )
        if type(self.socket) is not socket.socket:
            raise RuntimeError(f"cannot serve on a {type(self.socket).__name__}: let a proxy in front terminate TLS")

    def host(self, handler: Any) -> None:
        """Sets the handler of a server that was created with `None`.  Until then requests wait, except for health
        pages."""
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
        """The number of workers that have not ended, although the server has."""
        return sum(worker.is_alive() for worker in self._workers)

    def shutdown(self) -> None:
        """Ends `serve_forever` at once, aborts requests in flight, and waits for the end.  To drain, see `drain()`."""
        self._front().advance(_core.Stage.STOPPED)
        self._ended.wait()

    def drain(self) -> None:
        """Sends `Connection: close` with every response from now on.  New connections are still accepted."""
        self._front().advance(_core.Stage.DRAINING)

    def close_listener(self) -> None:
        """Accepts the backlog, stops listening, and lets requests finish; then `serve_forever` returns."""
        for listener in self.listeners:
            listener.release()  # nobody connects to a Unix socket any more, and another server may take its path
        self._front().advance(_core.Stage.CLOSING)

    def join(self, timeout: float) -> bool:
        """Waits at most `timeout` seconds for serve_forever to return, and returns whether it has."""
        return self._ended.wait(timeout)

    def server_close(self) -> None:
        if self._single is not None:
            self._front().advance(_core.Stage.CLOSING)  # responses that are complete are still sent
            self._single.join(5.0)
            self._front().advance(_core.Stage.STOPPED)
            self._single.join()
            self._single = None
        self.socket.close()
        for listener in self.listeners:
            listener.release()
            listener.close()
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
        """Runs one worker.  The loop is in C, unless a subclass overrides a method that handles requests."""
        front = self._front()
        changed = any(
            getattr(type(self), name) is not getattr(Server, name)
            for name in ("verify_request", "process_request", "finish_request", "shutdown_request")
        )
        if not changed:
            assert self._handle is not None
            front.work(self._handle, self.handle_error, self.on_response, self, self.on_request)
            return
        while (request := front.take()) is not None:
            self._serve(request)

    def _serve(self, request: _core.Request) -> None:
        """Serves a request through the methods that subclasses may override, as in socketserver."""
        try:
            try:
                if self.verify_request(request, request.client_address):
                    self.process_request(request, request.client_address)
                else:
                    self.shutdown_request(request)
            except BaseException:  # raised by an override; the worker continues
                self._end_child()
                self.handle_error(request, request.client_address)
                self.shutdown_request(request)
            self._end_child()
        except BaseException:
            _log.exception("%s %s: handling the end of the request failed", request.method, request.target)
            Server.shutdown_request(self, request)

    def _end_child(self) -> None:
        """Ends this process if the handler forked it: a child must not return into the worker's loop."""
        if self._front().is_foreign:
            from pkg.child import end

            end(sys.exception())

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether to serve the request; subclasses may override it."""
        return True

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serves one request in the calling worker thread."""
        try:
            if self.on_request is not None:
                self.on_request(request)
            self.finish_request(request, client_address)
        except BaseException:  # SystemExit in a handler ends the request, not the worker
            self._end_child()
            self.handle_error(request, client_address)
        finally:
            self.shutdown_request(request)
        if self.on_response is not None:
            self.on_response(request)

    def finish_request(self, request: Any, client_address: Any) -> None:
        if isinstance(request, _core.Request):
            assert self._handle is not None
            self._handle(request, client_address, self)
        else:  # a subclass passes its own connections
            super().finish_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Returns the connection to the front."""
        if not isinstance(request, _core.Request):
            super().shutdown_request(request)
        elif not request.is_finished:
            request.finish(keep_alive=request.status != 0, abort=request.status == 0)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Responds for the exception being handled, or closes the connection if a response has begun."""
        error = sys.exception()
        status, headers = HTTPStatus.INTERNAL_SERVER_ERROR, {}
        if isinstance(error, ClientDisconnected):
            _log.debug("%s %s: %s", request.method, request.target, error)
            request.finish(keep_alive=False, abort=True)
            return
        if isinstance(error, BodyError):
            status = HTTPStatus(error.status)
            if status == HTTPStatus.SERVICE_UNAVAILABLE:  # buffer_size is exhausted
                headers = {"Retry-After": "1"}
            _log.info("%s %s: %s", request.method, request.target, error)
        elif (unavailable := outage(error)) is not None:
            status, headers = HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "1"}
            _log.warning("%s %s: %s", request.method, request.target, unavailable)
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
