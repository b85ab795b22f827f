"""A worker: the service in one of several processes behind one front.

It has the application, its databases and its checks, and neither sockets nor an admin listener.  Requests reach it
through shared memory (ext/front/area.h); over a line to process 1 it says how it is, and answers for admin pages.

    start   hello from process 1, logs, front, checks; databases, application, start functions; "started"
    stop    process 1 has let it go, and its last request has ended: shutdown, stop functions, databases, exit 0

Signals that end a service are process 1's business: a terminal or systemd sends them to every process.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import importlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from pkg.diagnostics import foreign_stacks
from pkg.diagnostics.workers import FINDINGS, MAX_REQUESTS, TELL, tell
from pkg.errors import Error, one_line
from pkg.health.pages import READINESS
from pkg.logs.output import last_words
from pkg.service.service import Service, has_lasting_threads
from pkg.service.signals import INTERRUPT, Interrupted

if TYPE_CHECKING:
    from pkg.admin.pages import Pages
    from pkg.health.pages import HealthPage
    from pkg.settings.declared import Settings

__all__ = ["WorkerService", "import_parts"]

LOOK = 0.5  # seconds; the main thread runs signal handlers this often


def import_parts(settings: Settings) -> None:
    """Imports what each worker needs, for a process that forks workers: they share its memory, and start sooner."""
    names = [
        "pkg.admin.pages",
        "pkg.diagnostics.descriptors",
        "pkg.diagnostics.last_words",
        "pkg.health.checks",
        "pkg.health.stuck",
        "pkg.http.server",
    ]
    names += [
        "pkg.http.request_ids",
        "pkg.http.wsgi",
        "pkg.service.interface",
        "pkg.service.loader",
        "pkg.service.routes",
        "pkg.logs.sink",
    ]
    if settings.databases:
        names.append("pkg.database.database")
    for name in names:
        with contextlib.suppress(ImportError):  # the worker's own attempt tells why
            importlib.import_module(name)


class Line(Protocol):
    """The line to process 1."""

    def send(self, **message: Any) -> None: ...
    def messages(self) -> Iterator[dict[str, Any]]: ...


class WorkerService(Service):
    """`area`, `bell`, `stacks`: the descriptors of the shared memory, the bell of process 1, and a pipe for stacks.
    `load`: in place of importing the application, for one that was imported before the fork."""

    def __init__(
        self,
        settings: Settings,
        area: int,
        bell: int,
        line: Line,
        stacks: int,
        load: Callable[[], Any] | None = None,
    ) -> None:
        super().__init__(settings)
        self._stacks = stacks
        self._area, self._bell, self._line = area, bell, line
        self._preloaded = load
        self._passes = [False, False]  # by slot
        self._said: tuple[tuple[str, ...], str] | None = None

    def run(self) -> int:
        """Returns 0 when process 1 has let it go, and the exit code of the error if the start fails."""
        faulthandler.enable(last_words())
        faulthandler.register(signal.SIGUSR1, last_words(), all_threads=True)
        foreign_stacks.write_to(self._stacks)
        signal.signal(INTERRUPT, lambda *_: self.signals.interrupt("process 1"))
        self._messages = self._line.messages()
        self._hello = next(self._messages, None)
        if self._hello is None:
            return 0  # process 1 has ended
        self._open_logs()
        try:
            try:
                self._start()
            except Interrupted:  # what has been started so far is ended like the rest
                assert self.server is not None
                self.server.shutdown()
                self._leave()
                return 0
            finally:
                signal.signal(INTERRUPT, signal.SIG_IGN)  # its end restores the default of signals that have a handler
            assert self.checker is not None
            self.checker.tick()  # which tells that it is ready, if it is
            _ = self.failures  # process 1 asks for them later
            streams = self.eventloop is not None
            self._line.send(started=True, room=None if streams else self.settings.threads, streams=streams)
            assert self.server is not None
            while not self.server.join(LOOK):
                pass
            self._leave()
        except Error as error:
            self._line.send(failure=str(error))
            self._abort()
            return error.exit_code
        except BaseException as error:
            self._line.send(failure=one_line(error))
            self._abort()
            raise
        finally:
            self.logs.close()
        if self._stuck_threads():
            os._exit(1)
        return 0

    def _leave(self) -> None:
        self._close_parts(self.settings.drain_timeout)
        has_lasting_threads()

    @property
    def is_draining(self) -> bool:
        front = self.server.front if self.server is not None else None
        return front is None or front.stage > 0

    # -------------------------------------------------------------- start

    def _open_server(self) -> None:
        from pkg import _core
        from pkg.http.server import Server

        assert self._hello is not None
        rules, limits = self._request_rules(), self._limits()
        host = self._hosts[0]
        server = Server(
            host,
            None,
            bind_and_activate=False,
            threads=self.settings.threads,
            on_request=rules.on_request,
            on_response=rules.on_response,
        )
        server.server_name, server.server_port = host
        listeners = [_core.Listen(-1, name) for name in self._hello["listeners"]]  # process 1 has their descriptors
        server.front = _core.Front.remote(self._area, self._bell, listeners=listeners, **limits)
        self.server = server

    def _load(self) -> Any:
        return super()._load() if self._preloaded is None else self._preloaded()

    def _open_admin(self) -> None:
        """Process 1 has the listener, and asks this one from now on, also while the application is imported."""
        threading.Thread(target=self._answer_all, name="line", daemon=True).start()

    @property
    def _hosts(self) -> Sequence[tuple[str, int]]:
        assert self._hello is not None
        return [(str(name), int(port)) for name, port in self._hello["hosts"]]

    @property
    def _listening_at(self) -> Sequence[Any]:
        assert self._hello is not None
        return [tuple(address) if isinstance(address, list) else address for address in self._hello["addresses"]]

    def _loop_factory(self) -> Callable[[], Any]:
        import asyncio

        return super()._loop_factory() or asyncio.new_event_loop

    # -------------------------------------------------------------- health

    def _publish(self, pages: Sequence[HealthPage]) -> None:
        """Nobody asks this process for pages: process 1 has one for all workers."""
        passes = [False, False]
        for path, slot, fresh, *_ in pages:
            if path in (self.settings.liveness_path, self.settings.readiness_path):
                passes[slot] = fresh[0][0] == 200
        changed, self._passes = self._passes != passes, passes
        if changed:
            self._renew(READINESS, 0.0)  # the next renewal, which follows at once, tells
        self._tell()

    def _renew(self, slot: int, seconds: float) -> None:
        super()._renew(slot, seconds if self._passes[slot] else 0.0)

    def _tell(self) -> None:
        """Tells process 1 why this worker is not ready, or must be replaced."""
        assert self.checker is not None
        report = self.checker.report()
        reasons = tuple(f"{state.name}: {state.reason}" for state in report.readiness if state.status == "failed")
        stuck = next((state.reason for state in report.liveness if state.status == "failed"), "")
        if (reasons, stuck) != self._said:
            self._said = (reasons, stuck)
            self._line.send(reasons=reasons, stuck=stuck)

    # -------------------------------------------------------------- admin pages

    def _answer_all(self) -> None:
        for message in self._messages:
            if "id" not in message:
                self._end_parts(message)
                continue
            threading.Thread(target=self._answer, args=(message,), name="page", daemon=True).start()

    def _end_parts(self, message: Mapping[str, Any]) -> None:
        if self.eventloop is not None and "end_websockets" in message:
            self.eventloop.end_websockets(message["end_websockets"])
        if self.eventloop is not None and "end_streams" in message:
            self.eventloop.end_streams()

    @functools.cached_property
    def _own_pages(self) -> Pages:
        from pkg.admin.pages import Pages

        return Pages(self.status, level=lambda: self.logs.level, set_level=self.logs.set_level, drain=_ignore)

    def _answer(self, message: dict[str, Any]) -> None:
        from pkg.admin.reply import Problem

        answer: dict[str, Any]
        try:
            if message["target"] == TELL:
                self._line.send(id=message["id"], told=tell(self.status)._asdict())
                return
            if message["target"] == FINDINGS:
                state = self.status.of_application(MAX_REQUESTS)
                self._line.send(id=message["id"], findings=state.findings, requests=state.requests)
                return
            reply = self._own_pages.answer(message["method"], message["target"], message["accept"])
            answer = {"status": reply.status, "media_type": reply.media_type, "headers": dict(reply.headers)}
            answer["body"] = reply.body.decode("utf-8", "replace")
        except Problem as problem:
            answer = {"status": problem.status, "problem": str(problem), "headers": problem.headers}
        except Exception as error:
            answer = {"status": 500, "problem": one_line(error), "headers": {}}
        self._line.send(id=message["id"], **answer)


def _ignore(_: str) -> None:
    """Only process 1 drains."""
