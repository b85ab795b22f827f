"""EventLoop: the thread that runs an ASGI application, one task for each request.

      start()    the thread, which runs coroutine functions for others from now on: run()
      startup()  the application's startup, while requests wait in the front
      open()     requests are taken: the thread leads the front while it is idle (FrontSelector, FrontReader)
      shutdown() tasks that still run finish, the application's shutdown
      end()      everything else is cancelled

It ends no connection: the front does, and the drain decides when.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from pkg._core import Exchange, News, Tasks
from pkg.asgi.exchange import await_it, receive, send
from pkg.asgi.executors import Executors
from pkg.asgi.keepalive import Keepalive, WebSocketRules
from pkg.asgi.lifespan import Lifespan
from pkg.asgi.reader import FrontReader
from pkg.asgi.selector import FrontSelector
from pkg.errors import ClientDisconnected, StartupError, one_line

if TYPE_CHECKING:
    from pkg._core import Front, Request
    from pkg.asgi.websocket import WebSocketExchange

__all__ = ["EventLoop"]

_log = logging.getLogger("pkg.asgi")

LEAST_SHUTDOWN = 0.2  # seconds for the application's shutdown, even if requests have taken all the time there was
# How long a request may take to begin its response before it is told to end, and then to end by itself: turns of the
# event loop, each of so many seconds or more, as it can do neither while the process does not run.
STREAMS_TURNS, STREAMS_TURN = 6, 0.05


class EventLoop:
    """Serves an ASGI application in a thread of its own.

    `addresses`: the scope's `server` for each listener.  `root_path`: the path under which a proxy publishes the
    application.  `on_request`, `on_response`: called with each request before the application, and at the end of the
    response.  `failed(request, client_address)`: called while what the application has raised is being handled.
    `body_timeout`, `write_timeout`: of the front, in seconds.  `new_loop`: makes an event loop in place of asyncio's.
    `threads`: of each executor.  `on_late(request, task)`: called before the task of a request is
    cancelled that has taken too long.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        front: Front,
        *,
        addresses: Sequence[tuple[str, int | None]],
        root_path: str = "",
        lifespan: str = "auto",
        on_request: Callable[[Request], object] | None = None,
        on_response: Callable[[Request], object] | None = None,
        failed: Callable[[Request, Any], object],
        body_timeout: float = 30.0,
        write_timeout: float = 30.0,
        new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
        threads: int | None = None,
        websockets: WebSocketRules | None = None,
        on_late: Callable[[Request, asyncio.Task[None]], object] | None = None,
    ) -> None:
        self.loop: asyncio.AbstractEventLoop
        self.executors = Executors(threads)
        self.thread = threading.Thread(target=self._run, name="event-loop", daemon=True)
        self._app = app
        self._front = front
        self._addresses = addresses
        self._root_path = root_path
        self._lifespan_mode = lifespan
        self._on_request = on_request
        self._on_response = on_response
        self._failed = failed
        self._on_late = on_late
        self._write_timeout = write_timeout
        self._look_every = min(1.0, body_timeout / 2, write_timeout / 2)
        self._tasks: Tasks
        self._watched: dict[Exchange, float] = {}  # those that wait for their client, and since when
        self.websocket_rules = websockets or WebSocketRules()
        self._has_no_websockets = False  # as the library is missing, which has been logged
        self._error: BaseException | None = None  # why the start has failed
        self._has_loop = threading.Event()
        self._has_started = threading.Event()
        self._has_shut_down = threading.Event()
        self._wait = FrontSelector() if new_loop is None else FrontReader(new_loop)
        self._begin: asyncio.Event  # the application's startup
        self._end: asyncio.Event
        self._end_timeout = 0.0
        self._close: asyncio.Event

    # -------------------------------------------------------------- life

    def start(self) -> None:
        """Raises RuntimeError if no thread can be started."""
        self.thread.start()
        self._has_loop.wait()
        if self._error is not None:
            raise self._error

    def run(self, function: Callable[[], Awaitable[object]], timeout: float | None = None) -> bool:
        """Runs a coroutine function of the application, for another thread; raises what it raises.

        Returns whether it has ended in `timeout` seconds.  What has not, or what interrupts the wait, cancels it.
        Raises RuntimeError if the event loop has ended.
        """
        outcome = _outcome(function)
        try:
            future = asyncio.run_coroutine_threadsafe(outcome, self.loop)
        except RuntimeError:
            outcome.close()  # or the interpreter warns that it was never awaited
            raise
        try:
            error = future.result(timeout)
        except TimeoutError:
            return False
        finally:
            future.cancel()
        if isinstance(error, asyncio.CancelledError):
            raise RuntimeError("its task has been cancelled") from error
        if error is not None:
            raise error
        return True

    def startup(self) -> None:
        """Returns when the application has started.  Raises StartupError if it says that it cannot."""
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            self.loop.call_soon_threadsafe(self._begin.set)
        self._has_started.wait()
        if self._error is not None:
            raise self._error

    def open(self) -> None:
        """Takes requests from now on.  Raises OSError if there is no descriptor left for it."""
        opened: Future[None] = Future()

        def attach() -> None:
            try:
                self._wait.attach(self.loop, self._front, self._serve)
                opened.set_result(None)
            except OSError as error:
                opened.set_exception(error)

        self.loop.call_soon_threadsafe(attach)
        opened.result()

    def end_streams(self) -> None:
        """Tells each request that has not ended that its client has left.  It may still respond.

        From now on, also those that come: a proxy sends its next request on the connection of a stream that has just
        ended.  Whatever has not begun to respond gets some time for that first.

        Some streams never ask.  Those of server-sent events are ended a little later, and their
        tasks are cancelled, as they may wait long for the next event; their clients connect again.
        """

        def look(before: dict[Exchange, int]) -> None:
            """`before`: the turns that each has had; more than STREAMS_TURNS: since it was told."""
            turns = {}
            for exchange in list(self._tasks.exchanges):
                had = before.get(exchange, 0)
                turns[exchange] = turn = (max(had, STREAMS_TURNS) if exchange.has_started else had) + 1
                if turn == STREAMS_TURNS + 1:
                    exchange.dismiss()
                    exchange.wake()
                elif turn > 2 * STREAMS_TURNS and exchange.end_stream() and exchange.task is not None:
                    exchange.task.cancel()
            self.loop.call_later(STREAMS_TURN, look, turns)

        with contextlib.suppress(AttributeError, RuntimeError):  # as in end()
            self.loop.call_soon_threadsafe(look, {})

    def shutdown(self, timeout: float) -> None:
        """Lets tasks finish, and the application shut down, in at most `timeout` seconds, or a little later."""
        if self.thread.ident is None:
            return

        def set_end() -> None:
            self._end_timeout = timeout
            self._end.set()

        with contextlib.suppress(AttributeError, RuntimeError):  # it has not got so far, or has ended
            self.loop.call_soon_threadsafe(set_end)
        self._has_shut_down.wait(timeout + 0.3)

    def end(self) -> None:
        """Cancels what is left.  Returns when the thread has ended, or soon after."""
        if self.thread.ident is None:
            return
        with contextlib.suppress(AttributeError, RuntimeError):
            self.loop.call_soon_threadsafe(self._close.set)
        self.thread.join(0.3 if self._has_shut_down.is_set() else 0.05)  # it is blocked, and has been waited for

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self._wait.new_loop) as runner:
                self._run_until(runner.get_loop())
        except BaseException as error:
            if self._has_started.is_set():
                _log.critical("the event loop has ended", exc_info=True)
            self._error = error
        finally:
            for event in (self._has_loop, self._has_started, self._has_shut_down):
                event.set()

    def _run_until(self, loop: asyncio.AbstractEventLoop) -> None:
        """Runs until _main() has ended, although the application can end each call of run_forever(): with stop(), and
        with a SystemExit or KeyboardInterrupt in a callback or in a task of its own, which is the end only of a start.
        """

        def stop(_: object) -> None:
            loop.stop()

        main = loop.create_task(self._main(), name="event-loop")
        main.add_done_callback(stop)
        while not main.done():
            try:
                loop.run_forever()
            except (SystemExit, KeyboardInterrupt) as error:
                if main.done():
                    raise
                if not self._has_started.is_set():
                    main.remove_done_callback(stop)  # or it ends what asyncio.Runner still runs
                    _log.critical("a callback or task has raised %r during the start", error, exc_info=True)
                    raise StartupError(f"a callback or task of the application has raised {one_line(error)}") from error
                _log.critical("a callback or task has raised %r; requests are served on", error, exc_info=True)
            else:
                if not main.done():
                    _log.error("the application has called stop() of the event loop; requests are served on")
        main.result()

    async def _main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.executors.open()
        self._begin, self._end, self._close = asyncio.Event(), asyncio.Event(), asyncio.Event()
        lifespan = Lifespan(self._app, self._lifespan_mode)
        self._tasks = Tasks(
            self,
            self._app,
            await_it,
            receive,
            send,
            addresses=self._addresses,
            root_path=self._root_path,
            state=lifespan.state,
            on_request=self._on_request,
            on_response=self._on_response,
        )
        end = asyncio.ensure_future(self._end.wait())
        starts = asyncio.ensure_future(self._starts(lifespan))
        self._has_loop.set()
        await asyncio.wait((end, starts), return_when=asyncio.FIRST_COMPLETED)
        end.cancel()
        if not starts.done():  # the end has been asked for meanwhile
            starts.cancel()
        else:
            self._error = starts.exception()
            self.executors.adopt()  # the application may have imported anyio meanwhile
            self._has_started.set()
        if starts.done() and self._error is None:
            await _come(self._end)
            until = self.loop.time() + self._end_timeout
            while not await self._ends(lifespan, until):
                pass
        self._has_shut_down.set()
        await _come(self._close)  # coroutine functions may still be run
        # What asyncio.Runner cancels may never have run, and then does not give its connection back.
        for exchange in self._tasks.exchanges:
            exchange.finish()

    async def _starts(self, lifespan: Lifespan) -> None:
        await self._begin.wait()
        await lifespan.startup()

    async def _ends(self, lifespan: Lifespan, until: float) -> bool:
        """Waits for requests and for the application's shutdown.  False: the application has cancelled this."""
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    while tasks := [exchange.task for exchange in self._tasks.exchanges if exchange.task is not None]:
                        await asyncio.wait(tasks)
            async with asyncio.timeout_at(max(until, self.loop.time() + LEAST_SHUTDOWN)):
                await lifespan.shutdown()
        except TimeoutError:
            _log.warning("the application has not shut down in time")
        except asyncio.CancelledError:
            return False
        return True

    # -------------------------------------------------------------- requests

    def serving(self) -> list[tuple[Request, asyncio.Task[None] | None]]:
        """Each request whose task has not ended, and that task.  From any thread."""
        tasks = getattr(self, "_tasks", None)
        if tasks is None:
            return []
        stepping = tasks.stepping  # its task may not be known yet
        found = {exchange for exchange in (*tuple(tasks.exchanges), stepping) if exchange is not None}
        return [
            (exchange.request, asyncio.current_task(self.loop) if exchange is stepping else exchange.task)
            for exchange in found
            if not exchange.is_closed
        ]

    def _serve(self, news: int) -> None:
        """Called by whoever waits for the front: tasks that are made here run in the same turn."""
        front = self._front
        if news & News.LATE:
            self._cancel_late()
        for exchange in front.moved():
            exchange.wake()
        self._tasks.start(front)

    def _cancel_late(self) -> None:
        """Cancels the task of each request that request_timeout has cut off, once."""
        self._front.take_late()
        for exchange in list(self._tasks.exchanges):
            if exchange.request.becomes_late() and exchange.task is not None:
                if self._on_late is not None:
                    self._on_late(exchange.request, exchange.task)
                exchange.task.cancel()

    def fail(self, exchange: Exchange, error: BaseException) -> bool:
        """Called while what the application has raised is being handled.  Whether it ends the task as well."""
        self._end_child(error)
        request = exchange.request
        if self._is_cancelled(error):
            if not (exchange.has_ended or exchange.has_left or request.is_late):  # or it is logged elsewhere
                self._fail(exchange)
            return True
        if exchange.has_left or (exchange.is_finished and not exchange.has_ended):
            level = logging.DEBUG if isinstance(error, ClientDisconnected) else logging.INFO
            _log.log(level, "%s %s: after the client had left: %r", request.method, request.target, error)
        else:
            self._failed(request, request.client_address)
        return False

    def start_websocket(self, request: Request) -> None:
        """Makes the task of a request for a WebSocket.  What only they need is imported with the first of them."""
        try:
            if self._has_no_websockets:
                raise ImportError
            from pkg.asgi.websocket import WebSocketExchange
        except ImportError as error:
            if not self._has_no_websockets:
                self._has_no_websockets = True
                hint = "pip install 'pkg-service[websockets]'"
                _log.error("clients that ask for a WebSocket get 501, because of: %s; %s", error, hint)
            exchange = Exchange(request, self._tasks)
            self._tasks.exchanges.add(exchange)
            exchange.task = self.loop.create_task(self._refuse_websocket(exchange))
        else:
            websocket = WebSocketExchange(request, self._tasks)
            self._tasks.exchanges.add(websocket)
            websocket.task = self.loop.create_task(self._handle_websocket(websocket))

    async def _handle_websocket(self, exchange: WebSocketExchange) -> None:
        """The task of one WebSocket.  The connection may live longer, until the client has answered the close frame."""
        try:
            scope = exchange.begin()
            if (refusal := exchange.refusal()) is not None:
                await exchange.refuse(*refusal)
                return
            await self._app(scope, exchange.receive, exchange.send)
            self._end_child(None)
            exchange.conclude()
        except BaseException as error:  # as in Handling, which serves the others
            self._end_child(error)
            exchange.has_failed = True
            request = exchange.request
            if self._is_cancelled(error):
                if not (exchange.has_ended or exchange.is_over or request.is_late):
                    self._fail(exchange)
                raise
            if exchange.is_over:
                level = logging.DEBUG if isinstance(error, ClientDisconnected) else logging.INFO
                _log.log(level, "%s %s: after its end: %r", request.method, request.target, error)
            elif exchange.was_accepted:
                _log.error("%s %s failed", request.method, request.target, exc_info=error)
            else:
                self._failed(request, request.client_address)
        finally:
            exchange.close()

    async def _refuse_websocket(self, exchange: Exchange) -> None:
        try:
            exchange.begin()
            exchange.request.keep_alive = False
            text = (b"content-type", b"text/plain; charset=utf-8")
            await exchange.send({"type": "http.response.start", "status": 501, "headers": [text]})
            await exchange.send({"type": "http.response.body", "body": b"this server has no WebSockets\n"})
        except ClientDisconnected:
            pass
        finally:
            exchange.close()

    @functools.cached_property
    def keepalive(self) -> Keepalive:
        """The clock of all WebSockets; created with the first of them."""
        rules = self.websocket_rules
        return Keepalive(self.loop, interval=rules.ping_interval, timeout=rules.ping_timeout)

    def end_websockets(self, seconds: float) -> None:
        """Closes all WebSockets with 1001, in the course of so many seconds."""
        with contextlib.suppress(AttributeError, RuntimeError):  # as in end()
            self.loop.call_soon_threadsafe(lambda: self.keepalive.drain(seconds))

    def _end_child(self, error: BaseException | None) -> None:
        """Ends this process if the application has forked it: a child must not return into the event loop."""
        if self._front.is_foreign:
            from pkg.child import end

            end(error)

    def _fail(self, exchange: Exchange) -> None:
        """The application has cancelled the task; or the drain has, at its deadline."""
        request = exchange.request
        if exchange.is_finished or request.status == 101:
            _log.warning("%s %s: the task has been cancelled", request.method, request.target)
        else:
            self._failed(request, request.client_address)

    @staticmethod
    def _is_cancelled(error: BaseException) -> bool:
        """Whether somebody has cancelled the task; a library may also raise this of its own accord."""
        task = asyncio.current_task()
        return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0

    # -------------------------------------------------------------- slow clients

    def watch(self, exchange: Exchange) -> None:
        """Holds its client to the pace while it is waited for."""
        if not self._watched:
            self.loop.call_later(self._look_every, self._look)
        self._watched.setdefault(exchange, self.loop.time())

    def _look(self) -> None:
        now = self.loop.time()
        for exchange, since in list(self._watched.items()):
            # No client is to blame for the time in which the process was frozen, or the event loop was blocked.
            if exchange.keep_pace(min(now - since, 2 * self._look_every), self._write_timeout):
                self._watched[exchange] = now
            else:
                del self._watched[exchange]
        if self._watched:
            self.loop.call_later(self._look_every, self._look)


async def _come(event: asyncio.Event) -> None:
    """Waits for it.  Some applications cancel all tasks that there are, and the one that waits is one of them."""
    while not event.is_set():
        with contextlib.suppress(asyncio.CancelledError):
            await event.wait()


async def _outcome(function: Callable[[], Awaitable[object]]) -> BaseException | None:
    """What it raises.  Not raised in this task, as a SystemExit would end the event loop."""
    try:
        await function()
    except BaseException as error:
        return error
    return None
