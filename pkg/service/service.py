"""The composition root: builds the parts, runs them, and ends them in order.

It decides when something happens; each part knows how.

    start   signal handlers, then logs                       (phase STARTING)
            socket bound, front running: /healthz 200, /readyz 503 `startup`
            pool opened without waiting, application imported, its start functions, lifespan startup
            workers started, `startup` passes                (phase READY)

    stop    SIGTERM, SIGINT, SIGHUP, SIGQUIT or POST /drain  (phase DRAINING)
            the drain, whose timeline is in `drain`
            lifespan shutdown, stop functions, checks stop, the pool closes, a summary is logged    (phase STOPPED)
            logs are flushed; exit 0 if nothing was aborted, else 1
            1.5 s after the drain's deadline: the front or faulthandler ends the process with exit code 1

What has been started is ended in any case: in phase STOPPED by the drain, in another one, after an exception, by abort.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pkg import api
from pkg.errors import StartupError
from pkg.lifecycle import Lifecycle, Phase
from pkg.service import databases
from pkg.service.drain import GIVE_UP, Streams, drain
from pkg.service.hooks import Hooks
from pkg.service.signals import Interrupted, Signals
from pkg.settings.kinds import parse_address

if TYPE_CHECKING:
    from pkg.admin.listener import Admin
    from pkg.admin.pages import Pages
    from pkg.asgi.eventloop import EventLoop
    from pkg.database.database import Database
    from pkg.diagnostics.failures import Failures
    from pkg.diagnostics.metrics import Executor, Listening, Turns
    from pkg.diagnostics.snapshot import Elsewhere, Status
    from pkg.diagnostics.workers import ProcessRow
    from pkg.health.checks import Checker
    from pkg.health.pages import HealthPage
    from pkg.http.request_start import RequestStart
    from pkg.http.server import Server
    from pkg.logs.sink import LogLines
    from pkg.service.notify import Notify
    from pkg.settings.declared import Settings

__all__ = ["Service", "has_lasting_threads"]

_log = logging.getLogger("pkg.service")

# For --reload, seconds in place of a longer drain_timeout: a page that is being developed often has an endless stream
# open, and the application should have shut down before the supervisor loses its patience, after 5 s.
RELOAD_TIMEOUT = 3.0
# Seconds after which a thread that wants the interpreter has it while others compute, e.g. since its query is answered.
# With the default it would wait for fifteen short requests.
SWITCH_INTERVAL, PYTHONS_INTERVAL = 0.001, 0.005


class _RequestRules(NamedTuple):
    """`proxies`: trusted networks; `unix`: whether everybody at a Unix socket is trusted."""

    proxies: Sequence[Any]
    unix: bool
    on_request: Any
    on_response: Any


class Service:
    """One process: `run()` serves until it is told to stop, and returns the exit code."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.notify: Notify | None = None
        self.started = time.monotonic()
        self.signals = Signals()
        self.lifecycle = Lifecycle()
        self.server: Server | None = None
        self.eventloop: EventLoop | None = None
        self.databases: Mapping[str, Database] = {}  # by name, "" for the one of DATABASE_URL
        self.checker: Checker | None = None
        self._notices: list[Callable[[], object]] = []  # called with each tick of the checks
        self.hooks = Hooks(api.early_starts, api.early_stops, self._end_child)
        self.admin: Admin | None = None
        self.request_start: RequestStart | None = None
        self._stuck: Callable[[], str | None] | None = None
        self._late: Callable[[], None] | None = None

    # -------------------------------------------------------------- run

    def run(self) -> int:
        """Returns 0 if no request was aborted, otherwise 1.

        Raises StartupError, and leaves nothing bound, if the start fails, also for lack of threads or memory.
        """
        self.signals.install()
        self._open_logs()
        self._tell_of_settings()
        if "NOTIFY_SOCKET" in os.environ:
            from pkg.service.notify import Notify

            self.notify = Notify(os.environ)
        try:
            try:
                with _short_of_means():
                    self._start()
                self._serve()
            except Interrupted:  # what has been started so far is drained like the rest
                assert self.server is not None
                self.server.host(_unavailable)
            self.lifecycle.advance(Phase.DRAINING, self.signals.name)
            if self.notify is not None:
                # systemd would end a unit that it believes to stop.
                self.notify.stopping(self.signals.name, is_last=not self._may_be_started_again)
            aborted = self._drain()
            self.lifecycle.advance(Phase.STOPPED)
        finally:
            self._end()
        return 1 if aborted else 0

    def _open_logs(self) -> None:
        s = self.settings
        with _short_of_means():
            from pkg.logs import sink

            self.logs = sink.configure(
                format=s.log_format, schema=s.log_schema, level=s.log_level, access_log=s.access_log
            )
        sink.catch_uncaught(self.logs)

    def _tell_of_settings(self) -> None:
        from pkg.diagnostics import installation

        for warning in filter(None, (installation.conflict(), *self.settings.warnings)):
            _log.warning("%s", warning)
        for note in self.settings.notes:
            _log.info("%s", note)

    def _serve(self) -> None:
        """Until something requests the drain."""
        self.lifecycle.advance(Phase.READY)
        _log.info(
            "serving %s on %s after %.0f ms",
            self.settings.app or "health pages",
            self.addresses,
            (time.monotonic() - self.started) * 1000,
        )
        if self.notify is not None:
            self.notify.ready()
        if self.admin is not None:
            self.admin.prime()
        self.signals.drain.wait()

    @property
    def is_draining(self) -> bool:
        return self.lifecycle.phase in (Phase.DRAINING, Phase.STOPPED)

    @property
    def _may_be_started_again(self) -> bool:
        """By --reload, which sends SIGINT when a file has changed."""
        return bool(self.settings.reload) and self.signals.name == "SIGINT"

    def in_child(self) -> None:
        """Called in a process that the application has forked: closes and stops there what belongs to this one.

        The front and the database connections do so by themselves.
        """
        if self.admin is not None:
            self.admin.in_child()
        if self.checker is not None:
            self.checker.in_child()
        if self.notify is not None:
            self.notify.in_child()

    @property
    def addresses(self) -> str:
        """Where it listens, in words."""
        assert self.server is not None
        return ", ".join(
            f"health pages on {listener.name}" if listener.is_health else listener.name
            for listener in self.server.listeners
        )

    # -------------------------------------------------------------- start

    def _start(self) -> None:
        from pkg.diagnostics.descriptors import keep_table

        self._open_server()
        self._open_checks()
        self._open_admin()
        self._serve_probes()
        keep_table()
        self._open_application()

    def _open_server(self) -> None:
        """Binds the sockets, and makes the front."""
        try:
            from pkg.http.listeners import open_listeners
            from pkg.http.server import Server
        except ImportError as error:  # the C core is not compiled, is compiled for another Python, or has been removed
            raise StartupError(f"the installation is incomplete: {error}") from error
        s = self.settings
        rules = self._request_rules()
        limits = self._limits()
        listeners = open_listeners(s.endpoints, s.health_endpoint)
        try:
            self.server = Server(
                listeners[0].host,
                None,
                listeners=listeners,
                health_on_main=s.health_on_main,
                proxied_unix=rules.unix and s.proxy_protocol,
                threads=s.threads,
                on_request=rules.on_request,
                on_response=rules.on_response,
                proxies=rules.proxies if s.proxy_protocol else (),
                proxy_optional=s.proxy_protocol_optional,
                body_spool=s.body_spool or os.environ.get("TMPDIR") or "/tmp",
                **limits,
            )
        except BaseException as error:
            for listener in listeners:
                listener.release()
                listener.close()
            if not isinstance(error, OSError):
                raise
            if error.errno == errno.ENOMEM:
                raise MemoryError from None
            raise StartupError(f"cannot serve on {listeners[0].name}: {error.strerror or error}") from None
        assert self.server.front is not None
        self.server.front.watch_signals(
            self.signals.read_fd,
            self.signals.numbers,
            signal.SIGUSR1,
            s.drain_delay + s.drain_timeout + GIVE_UP,
        )

    def _request_rules(self) -> _RequestRules:
        """What is done with each request before and after the application."""
        from pkg.http.request_ids import observers

        s = self.settings
        proxies: Sequence[Any] = ()
        unix = False
        if s.trusted_proxies:
            from pkg.http.forwarded import has_unix, networks
            from pkg.http.request_start import RequestStart

            proxies, unix = networks(s.trusted_proxies), has_unix(s.trusted_proxies)
            self.request_start = RequestStart()
        on_request, on_response = observers(
            access_log=s.access_log,
            proxies=proxies,
            unix=unix,
            on_trusted=self.request_start,
            request_timeout=s.request_timeout,
        )
        return _RequestRules(proxies, unix, on_request, on_response)

    def _limits(self) -> dict[str, Any]:
        """The settings that the front knows by the same names."""
        from pkg._core import LIMITS

        limits = {name: getattr(self.settings, name) for name in LIMITS if hasattr(self.settings, name)}
        limits["max_connections"] = _connections(self.settings.max_connections)
        return limits

    def _open_checks(self) -> None:
        from pkg.health.checks import Checker
        from pkg.health.coroutines import Coroutines
        from pkg.health.stuck import StuckWorkers

        s = self.settings
        assert self.server is not None and self.server.front is not None
        front = self.server.front
        if s.stuck_timeout:
            self._stuck = StuckWorkers(front, s.threads, s.stuck_timeout, clock=front.clock)
        self._notices.append(_Unspooled(front))
        if self.notify is not None:
            self._notices.insert(0, self.notify)  # the others might fail
        if s.request_timeout:
            from pkg.diagnostics.last_words import Late

            self._late = Late(front, s.request_timeout)
            self._notices.append(self._tell_late)
        self.coroutines = Coroutines()
        self.checker = Checker(
            publish=self._publish,
            renew=self._renew,
            liveness_timeout=s.liveness_timeout,
            root=not s.app,
            liveness_path=s.liveness_path,
            readiness_path=s.readiness_path,
            stuck=self._why_stuck,
            last_words=self._last_words,
            notices=self._notices,
            clock=front.clock,
            frozen=lambda: front.frozen,
            coroutines=self.coroutines,
        )
        if self.notify is not None:
            built_in = {"startup", "shutdown", "application"}
            self.notify.watch(
                self.checker.report,
                lambda state: state.name in built_in or state.name in map(databases.check_name, self.databases),
            )

    def _why_stuck(self) -> str | None:
        """Why no request will be served any more, so that liveness fails."""
        return self._stuck() if self._stuck is not None else None

    def _tell_late(self) -> None:
        """Tells of requests that have exceeded `request_timeout`."""
        if self._late is not None:
            self._late()

    def _publish(self, pages: Sequence[HealthPage]) -> None:
        assert self.server is not None and self.server.front is not None
        self.server.front.publish(pages)

    def _renew(self, slot: int, seconds: float) -> None:
        assert self.server is not None and self.server.front is not None
        self.server.front.renew(slot, seconds)

    def _serve_probes(self) -> None:
        """Probes are answered from now on."""
        assert self.server is not None and self.checker is not None
        self.checker.start()
        self.server.start()
        # Not later, when there may be no descriptor or memory left to import it with.
        import pkg.diagnostics.last_words  # noqa: F401

    def _open_application(self) -> None:
        s = self.settings
        assert self.server is not None and self.checker is not None
        if not s.pool:
            _log.info(
                "pool is off: DATABASE_URL is left to the application, without a connection pool or a database check"
            )
        elif s.databases:
            self.databases = databases.open_all(s.databases, self.checker, self._oldest_request)
        else:
            _log.info("DATABASE_URL is not set: there is no connection pool and no database check")
        api.enter(self)  # the application may register checks while it is imported
        if round(sys.getswitchinterval(), 6) == PYTHONS_INTERVAL:
            sys.setswitchinterval(SWITCH_INTERVAL)
        try:
            with self.signals.interrupting():
                handler = self._handler()
                self.hooks.start(self.eventloop.run if self.eventloop is not None else None)
                if self.eventloop is not None:
                    self.eventloop.startup()
        except BaseException as error:
            self._end_child(error)
            raise
        self._end_child(None)
        self.signals.keep()
        for make in api.early_checks:
            self.checker.add(make())
        if self.eventloop is None:
            self.server.host(handler)
        else:
            self._open_eventloop()
        loop = self.eventloop.loop if self.eventloop is not None else None
        self.coroutines.open(loop, self._why_blocked)
        self.checker.startup_done()

    def _end_child(self, error: BaseException | None) -> None:
        """Ends this process if the application forked it while it was being imported."""
        if self.server is not None and self.server.front is not None and self.server.front.is_foreign:
            from pkg.child import end

            end(error)

    def _handler(self) -> Any:
        from pkg.service.interface import interface_of

        if not self.settings.app:
            return _no_application
        app = self._load()
        interface = interface_of(app) if self.settings.interface == "auto" else self.settings.interface
        if interface == "handler":
            if self.settings.script_name:
                _log.warning("ignoring script_name: APP is a handler class, which gets each path as it was sent")
            return app
        if self.settings.health_on_main:
            self._tell_of_shadows(app)
        assert self.server is not None
        if interface == "asgi":
            self._start_eventloop(app)
            return None
        from pkg.http.wsgi import Application

        (name, port), *others = self._hosts
        s = self.settings
        return Application(
            app, name=name, port=port, others=others, script_name=s.script_name, multiprocess=s.workers > 0
        )

    @property
    def _hosts(self) -> Sequence[tuple[str, int]]:
        """Name and port of each listener."""
        assert self.server is not None
        return [listener.host for listener in self.server.listeners]

    @property
    def _listening_at(self) -> Sequence[Any]:
        """The address of each listener, as ASGI's scope has it."""
        assert self.server is not None
        return [listener.address for listener in self.server.listeners]

    def _load(self) -> Any:
        from pkg.service.loader import load

        return load(self.settings.app)

    def _start_eventloop(self, app: Any) -> None:
        from pkg.asgi.eventloop import EventLoop
        from pkg.asgi.keepalive import WebSocketRules
        from pkg.health.stuck import StuckEventLoop

        s, server = self.settings, self.server
        assert server is not None and server.front is not None
        late = None
        if s.request_timeout:
            from pkg.diagnostics.last_words import LateTasks

            self._late = late = LateTasks(server.front, s.request_timeout)
        self.eventloop = EventLoop(
            app,
            server.front,
            addresses=self._listening_at,
            root_path=s.script_name,
            lifespan=s.lifespan,
            on_request=server.on_request,
            on_response=server.on_response,
            failed=server.handle_error,
            body_timeout=s.body_timeout,
            write_timeout=s.write_timeout,
            new_loop=self._loop_factory(),
            on_late=late.cancels if late is not None else None,
            threads=s.threads if s.origin("threads") != "default" else None,
            websockets=WebSocketRules(
                max_size=s.max_message_size,
                compression=s.websocket_compression,
                ping_interval=s.websocket_ping_interval,
                ping_timeout=s.websocket_ping_timeout,
            ),
        )
        if s.stuck_timeout:
            self._stuck = StuckEventLoop(server.front, s.stuck_timeout, where=self._where_blocked)
        self.eventloop.start()

    def _loop_factory(self) -> Callable[[], Any] | None:
        """What makes the event loop that the setting names; None: asyncio's own, which turns the front while it is
        idle."""
        return _loop_factory(self.settings.loop)

    def _open_eventloop(self) -> None:
        from pkg.diagnostics.blocked import Watcher

        assert self.eventloop is not None and self.server is not None
        self.eventloop.open()
        if self.settings.slow_callback_duration:
            Watcher(self.server.front, self.eventloop).start()

    def _why_blocked(self) -> str:
        """That the event loop is blocked, and where, or ""."""
        return str(self.status.blocked() or "")

    def _where_blocked(self) -> str:
        """Where the event loop is blocked, or ""."""
        blocked = self.status.blocked()
        return blocked.where if blocked is not None else ""

    def _tell_of_shadows(self, app: Any) -> None:
        from pkg.service.routes import own_routes

        assert self.checker is not None
        shadowed = own_routes(app, self.checker.paths)
        if shadowed:
            _log.warning(
                "the health pages hide the application's own %s; liveness_path and readiness_path "
                "(PKG_LIVENESS_PATH, PKG_READINESS_PATH) move the health pages",
                ", ".join(shadowed),
            )

    def _open_admin(self) -> None:
        from pkg.admin.health import HealthPages
        from pkg.admin.listener import Admin

        assert self.checker is not None
        s = self.settings
        address = parse_address(s.admin)
        if address is None:
            return
        try:
            health = HealthPages(self.checker.answers)
            self.admin = Admin(address, pages=self._pages, token=s.admin_token, health=health)
        except OSError as error:
            reason = f"the admin listener cannot listen on {s.admin}: {error.strerror or error}"
            if s.origin("admin") != "default":
                raise StartupError(reason) from None
            _log.warning("%s; continuing without it", reason)
            return
        self.admin.start()

    def _pages(self) -> Pages:
        from pkg.admin.pages import Pages

        level, set_level = (lambda: self.logs.level), self.logs.set_level
        return Pages(self.status, level=level, set_level=set_level, drain=self.signals.ask)

    def _log_lines(self) -> LogLines:
        return self.logs.stats()

    @functools.cached_property
    def failures(self) -> Failures:
        """Counts the exceptions that are logged from its first use on."""
        from pkg.diagnostics.failures import Failures

        failures = Failures()
        self.logs.watch(failures.note)
        return failures

    @functools.cached_property
    def status(self) -> Status:
        """The state that the admin pages and the last words show; created on first use, or when the start is
        complete."""
        from pkg.diagnostics.snapshot import Status

        s = self.settings
        assert self.server is not None
        status = Status(
            front=self.server.front,
            threads=self._threads,
            alive=self._serving_threads,
            lifecycle=self.lifecycle,
            checker=self.checker,
            databases=self._pools_shown,
            eventloop=lambda: self.eventloop,
            slow=s.slow_callback_duration,
            proxy_waits=self._proxy_waits,
            logs=self._log_lines,
            app=s.app,
            address=self.addresses,
            listening=self._listening,
            executors=self._executors,
            processes=self._processes,
            turns=self._turns,
            elsewhere=self._elsewhere,
            failures=self.failures.lately,
            settings=[{"name": row.name, "value": row.value, "origin": row.origin} for row in s.describe()],
            began=self.started,
        )
        if self.admin is not None:
            self._notices.append(status.cgroup.tick)  # so that the first one who asks learns of the last minute
        return status

    def _listening(self) -> list[Listening]:
        from pkg.diagnostics.metrics import Listening

        assert self.server is not None
        front = self.server.front
        return [
            Listening(
                listener.name,
                listener.is_health,
                front.accepted(place) if front is not None else 0,
                *(listener.pending() or (None, None)),
            )
            for place, listener in enumerate(self.server.listeners)
        ]

    def _pools_shown(self) -> Mapping[str, Any]:
        """What has the statistics of each database, by name."""
        return self.databases

    def _processes(self) -> Sequence[ProcessRow] | None:
        """Those that run the application in place of this one."""
        return None

    @property
    def _turns(self) -> Callable[[], Turns | None] | None:
        """How their event loops are."""
        return None

    def _elsewhere(self) -> Elsewhere | None:
        """What they tell of themselves."""
        return None

    @property
    def _proxy_waits(self) -> Callable[[], tuple[Sequence[int], float]] | None:
        """How long requests have been at trusted proxies."""
        return self.request_start.waits if self.request_start is not None else None

    def _oldest_request(self) -> float:
        """The monotonic time at which the oldest request in flight has begun; that of the start if it is not known."""
        front = self.server.front if self.server is not None else None
        if front is None:
            return 0.0
        stats = front.stats()
        if stats.websockets or stats.in_flight > 64:  # more than requests() tells
            return 0.0
        # By the front's clock, without the time for which the process was frozen: rather too early than too late.
        now: float = front.clock()
        return now - max((request.age for request in front.requests()), default=0.0)

    def _executors(self) -> list[Executor]:
        from pkg.diagnostics.metrics import Executor

        return [Executor(*stats) for stats in self.eventloop.executors.stats()] if self.eventloop is not None else []

    # -------------------------------------------------------------- stop

    @property
    def _streams(self) -> Streams | None:
        return self.eventloop

    def _drain(self) -> int:
        """Ends everything in order.  Returns the number of requests that were aborted."""
        s = self.settings
        assert self.server is not None and self.checker is not None
        timeout: float = s.drain_timeout
        if self._may_be_started_again and (self.eventloop is not None or self.hooks.has_stops):
            timeout = min(timeout, RELOAD_TIMEOUT)
        drained = drain(
            self.server,
            self.checker,
            self.signals,
            delay=s.drain_delay,
            timeout=timeout,
            say=self._last_words,
            streams=self._streams,
        )
        self._close_parts(self.signals.at + s.drain_delay + timeout - time.monotonic())
        has_lasting_threads()
        drained.log()
        return drained.aborted

    def _end(self) -> None:
        """Ends what the drain leaves, or everything if there was none; after a worker that is stuck, the process."""
        is_drained = self.lifecycle.phase is Phase.STOPPED
        if not is_drained:
            self._abort()
        api.leave()
        if self.admin is not None:
            self.admin.close()
        stuck = self._stuck_threads()
        self.logs.close()
        self.signals.close()
        if is_drained and stuck:
            # A worker that never ends, and whatever it holds, must not delay the exit.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)

    def _threads(self) -> int:
        """How many worker threads there should be: none beside an event loop."""
        return 0 if self.eventloop is not None else self.settings.threads

    def _serving_threads(self) -> int:
        """How many of these run."""
        return self._stuck_threads()

    def _stuck_threads(self) -> int:
        """The number of threads that serve requests and have not ended."""
        workers = self.server.stuck_workers if self.server is not None else 0
        return workers + (self.eventloop is not None and self.eventloop.thread.is_alive())

    def _close_parts(self, left: float = 0.0) -> None:
        """Takes at most 1.4 s, whatever hangs: less than GIVE_UP, so that the summary is logged.

        Only the application may take longer to shut down, as long as there are `left` seconds of the drain.
        """
        if self.checker is not None:
            self.checker.end_checks()
        self._close_application(max(0.0, left))
        if self.checker is not None:
            self.checker.stop()
        if self.notify is not None:
            self.notify.end()
        databases.close_all(self.databases, 0.2)  # frees workers that wait for a query
        if self.server is not None:
            self.server.server_close()

    def _close_application(self, left: float) -> None:
        until = time.monotonic() + left
        if self.eventloop is not None:
            self.eventloop.shutdown(left)
        self.hooks.stop(until - time.monotonic())
        if self.eventloop is not None:
            self.eventloop.end()

    def _abort(self) -> None:
        """Cleans up after a failed start: nothing stays bound or running."""
        if self.server is not None and self.server.front is not None:
            self.server.shutdown()
        # A part whose start was interrupted may fail to end; the process ends all the same.
        with contextlib.suppress(RuntimeError, MemoryError):
            self._close_parts(self.settings.drain_timeout if self.hooks.has_stops else 0.0)
        if has_lasting_threads():
            failure = sys.exception()
            code = getattr(failure, "exit_code", 1)
            end = threading.Timer(GIVE_UP, os._exit, (code,))
            end.daemon = True
            try:
                end.start()
            except RuntimeError:  # no thread can be started
                self.logs.close()
                if sys.stderr is not None:
                    print(f"pkg: {failure}", file=sys.stderr, flush=True)
                os._exit(code)

    def _last_words(self, why: str) -> None:
        from pkg.diagnostics import last_words

        last_words.say(why, self.status, self.logs.flush)


def _loop_factory(loop: str) -> Callable[[], Any] | None:
    """What makes the event loop that the setting names; None: asyncio's own."""
    if loop == "asyncio":
        return None
    try:
        import uvloop
    except ImportError as error:
        if loop == "uvloop":
            from pkg.diagnostics.installation import why_no_uvloop

            raise StartupError(f"loop is uvloop, but {why_no_uvloop(error)}") from error
        return None
    return uvloop.new_event_loop


@contextlib.contextmanager
def _short_of_means() -> Iterator[None]:
    """Turns a lack of threads or memory during the start into one line instead of a traceback."""
    try:
        yield
    except MemoryError:
        reason = "out of memory: raise the memory limit, or lower max_connections or threads"
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        reason = (
            "no thread can be started: raise the limit on processes (RLIMIT_NPROC, or the container's pids limit) "
            "or on memory, or lower threads"
        )
    else:
        return
    raise StartupError(f"cannot start: {reason}")


def has_lasting_threads() -> bool:
    """Whether the application has left non-daemon threads, for which the interpreter waits."""
    names = [t.name for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]
    if names:
        _log.warning("the application's non-daemon threads delay the exit: %s", ", ".join(names))
    return bool(names)


class _Unspooled:
    """Logs, when asked, that request bodies could not be spooled, and why: once a minute at most."""

    def __init__(self, front: Any) -> None:
        self._front, self._seen, self._next = front, 0, 0.0

    def __call__(self) -> None:
        stats = self._front.stats()
        if stats.spool_failures == self._seen or time.monotonic() < self._next:
            return
        error = stats.spool_error
        full = {errno.EFBIG: "body_spool_size is used up", errno.ENOBUFS: "buffer_size is used up"}
        _log.warning(
            "%d request bodies could not be spooled (%s): worker threads read them as they come",
            stats.spool_failures - self._seen,
            full.get(error) or os.strerror(error),
        )
        self._seen, self._next = stats.spool_failures, time.monotonic() + 60


_OTHER_DESCRIPTORS = 128  # for the application, the pool, the logs, and probes beyond the limit


def _connections(wanted: int) -> int:
    """The number of connections for which there are descriptors; raises the soft limit as far as possible."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = wanted + 2 * _OTHER_DESCRIPTORS
    most = need + wanted  # each connection may also have a file with a spooled body
    target = most if hard == resource.RLIM_INFINITY else min(most, hard)
    if soft != resource.RLIM_INFINITY and soft < target:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
            soft = target
    if soft == resource.RLIM_INFINITY or soft >= need:
        return wanted
    possible = max(16, soft - 2 * _OTHER_DESCRIPTORS)
    if possible < wanted:
        _log.info("max_connections is lowered to %d, because the limit on open files is %d", possible, soft)
    return min(wanted, possible)


def _no_application(request: Any, client_address: Any, server: Any) -> None:
    _answer(request, 404, "Not Found", b"not found\n")


def _unavailable(request: Any, client_address: Any, server: Any) -> None:
    """Responds to requests that were waiting for the application when its import was interrupted."""
    _answer(request, 503, "Service Unavailable", b"shutting down\n", ("Retry-After", "1"))


def _answer(request: Any, status: int, reason: str, body: bytes, *headers: tuple[str, str]) -> None:
    from pkg import _core

    response = _core.Response(request)
    response.start(status, reason)
    response.add_header("Content-Type", "text/plain; charset=utf-8")
    for name, value in headers:
        response.add_header(name, value)
    response.end(body)
    request.finish()
