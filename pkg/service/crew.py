"""The service with worker processes: process 1, which has the front and imports no application.

What it has of `Service` is the front, the admin listener and the drain.  In place of an application it has a crew
(pkg/supervisors/crew.py), and its readiness is the crew's: enough workers whose own checks pass.

    start   front running, as `Service`; workers started, each loads the application; "serving" when all of them do
    SIGHUP  every worker is replaced, one by one, by one with the code of now
    stop    the drain as `Service`; then the workers end, each as a service of its own
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from pkg._core import QUEUE_WAIT_BOUNDS
from pkg.diagnostics.workers import FINDINGS, MAX_REQUESTS, TELL, ProcessRow, Sums, Told, histogram, lent, row_of
from pkg.errors import StartupError
from pkg.health.checks import Check
from pkg.service.service import Service
from pkg.service.signals import Signals

if TYPE_CHECKING:
    from pkg.admin.pages import Pages
    from pkg.diagnostics.metrics import Executor, Turns
    from pkg.diagnostics.snapshot import Elsewhere
    from pkg.logs.sink import LogLines
    from pkg.settings.declared import Settings

__all__ = ["CrewService"]

_log = logging.getLogger("pkg.service")

HANDLERS = 0.5  # seconds; the main thread runs signal handlers this often
LOOK = 0.05  # seconds between two looks at the first checks
TELLING = 0.5  # seconds for workers to tell of themselves
FRESH = 0.2  # seconds for which that serves: the parts of a page ask for it one by one
FIRST_CHECKS = 1.0  # seconds
READY_LOOK = 0.25  # seconds between two looks at whether enough workers are ready
WORKERS_END = 0.3  # seconds after the drain's deadline in which workers may still end by themselves
KILLED = 0.9  # seconds for the others to write their stacks and to be killed; all in all less than GIVE_UP


class Crew(Protocol):
    """The workers (pkg/supervisors/crew.py)."""

    @property
    def failed(self) -> Any: ...
    @property
    def template(self) -> Any: ...
    @property
    def overdue(self) -> int: ...
    @property
    def has_eventloops(self) -> bool: ...
    @property
    def deaths(self) -> Mapping[int, int]: ...
    def starts_in(self, place: int) -> float | None: ...
    def start(self) -> None: ...
    def await_start(self, timeout: float) -> bool: ...
    def readiness(self) -> None: ...
    def why_dead(self, patience: float) -> str | None: ...
    def reload(self) -> None: ...
    def write_stacks(self) -> None: ...
    def end_streams(self) -> None: ...
    def end_websockets(self, seconds: float) -> None: ...
    def drain(self, deadline: float) -> None: ...
    def join(self, timeout: float) -> bool: ...
    def workers(self) -> Sequence[Any]: ...
    def ask(
        self, workers: Sequence[Any], method: str, target: str, accept: str = "", patience: float = 2.0
    ) -> list[dict[str, Any] | None]: ...
    def look_into(self, worker: Any) -> tuple[list[Any], str]: ...
    def is_ready(self, worker: Any) -> bool: ...


class _Pool:
    """Sums of pools in place of a database."""

    shortage = locks = ""

    def __init__(self, sums: Mapping[str, Any]) -> None:
        self._sums = sums

    def stats(self) -> Mapping[str, Any]:
        return self._sums

    def taken(self) -> list[str]:
        return []  # the sums have what the workers' own pages say


class CrewService(Service):
    """`make_crew(front, bell, hello)` makes the crew."""

    def __init__(
        self, settings: Settings, make_crew: Callable[[Any, int, Callable[[], Mapping[str, Any]]], Crew]
    ) -> None:
        super().__init__(settings)
        self.signals = Signals(hangup=False)  # the front must not take it for the begin of a drain
        self._make_crew = make_crew
        self._crew: Crew
        self._carrier: threading.Thread
        self._sums = {field: Sums() for field in ("pools", "waits", "executors", "logs")}
        self._telling = threading.Lock()
        self._told: tuple[Told, dict[int, Told]] | None = None  # the sums, and what each tells, by its place
        self._told_until = 0.0

    def _open_checks(self) -> None:
        super()._open_checks()
        assert self.server is not None and self.server.front is not None
        bell = self.server.front.open_workers()
        self._crew = self._make_crew(self.server.front, bell, self._hello)
        self.request_start = None  # it is called in the workers, and here it would count none
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # of nohup
            signal.signal(signal.SIGHUP, self._on_hangup)

    def _why_stuck(self) -> str | None:
        return self._crew.why_dead(self.settings.liveness_timeout)

    def _tell_late(self) -> None:
        """Each worker tells of its own, with their stacks."""

    def _hello(self) -> Mapping[str, Any]:
        assert self.server is not None
        names = [listener.name for listener in self.server.listeners]
        return {"hosts": self._hosts, "addresses": self._listening_at, "listeners": names}

    def _serve_probes(self) -> None:
        assert self.server is not None and self.server.front is not None
        super()._serve_probes()
        self._carrier = threading.Thread(target=self.server.front.carry, name="carrier", daemon=True)
        self._carrier.start()

    def _open_application(self) -> None:
        assert self.checker is not None
        if self.status.cgroup.look()[0].oom_group:
            _log.info(
                "memory.oom.group is 1: when the memory of the container is used up, the kernel ends all of its "
                "processes; max_worker_memory replaces a worker before"
            )
        if self.admin is not None:
            self.admin.prime()  # now, as it would ask the workers, and cost each of them 1 MB
        with self.signals.interrupting():
            self._crew.start()
            while not self._crew.await_start(HANDLERS):
                pass
            if (failed := self._crew.failed) is not None:
                error = StartupError(failed.reason)
                error.exit_code = failed.code
                raise error
            self._await_checks()
        # Not before: until then nobody expects them to be ready.
        self.checker.add(Check("processes", self._crew.readiness, interval=READY_LOOK, failures=1, recoveries=1))
        self.checker.startup_done()

    def _await_checks(self) -> None:
        """Gives the workers' own checks time for a first result, so that it is not reported that there is none."""
        end = time.monotonic() + FIRST_CHECKS
        while time.monotonic() < end:
            with contextlib.suppress(RuntimeError):
                self._crew.readiness()
                return
            time.sleep(LOOK)

    def _on_hangup(self, number: int, frame: FrameType | None) -> None:
        # Not in the handler, which may have interrupted whoever holds a lock that this needs.
        threading.Thread(target=self._crew.reload, name="reload", daemon=True).start()

    # -------------------------------------------------------------- admin

    def _pages(self) -> Pages:
        from pkg.admin.crew import CrewPages

        level, set_level = (lambda: self.logs.level), self.logs.set_level
        return CrewPages(self.status, self._crew, level=level, set_level=set_level, drain=self.signals.ask)

    def _threads(self) -> int:
        return 0 if self._crew.has_eventloops else self.settings.threads * self.settings.workers

    def _processes(self) -> list[ProcessRow]:
        assert self.server is not None and self.server.front is not None
        rows = []
        if self._crew.template.pid:
            rows.append(row_of(self._crew.template, worker=0, state="template", is_ready=self._crew.template.forks))
        told = self._tell()[1]
        for worker in self._crew.workers():
            try:
                state = self.server.front.worker_state(worker.number)
            except OSError:
                continue  # it has ended meanwhile
            rows.append(
                row_of(
                    worker,
                    worker=worker.place,
                    state=worker.stage.value,
                    is_ready=self._crew.is_ready(worker),
                    in_flight=state.in_flight,
                    served=state.served,
                    deaths=self._crew.deaths[worker.place],
                    pool=lent(told[worker.place].pools) if worker.place in told else "",
                    reason="; ".join(worker.reasons),
                )
            )
        for place in set(range(1, self.settings.workers + 1)) - {row.worker for row in rows}:
            seconds = self._crew.starts_in(place)
            reason = ""
            if seconds is not None:
                reason = f"starts in {seconds:.1f} s" if seconds else "starts when the template can fork"
            rows.append(ProcessRow(place, None, "down", False, deaths=self._crew.deaths[place], reason=reason))
        return sorted(rows, key=lambda row: row.worker)

    def _pools_shown(self) -> Mapping[str, _Pool]:
        """The sums of all workers' pools, each as the database that it would be in a single process."""
        return {name: _Pool(stats) for name, stats in self._tell()[0].pools.items()}

    def _tell(self) -> tuple[Told, dict[int, Told]]:
        """The sums of what workers tell, and what each has told now, by its place."""
        with self._telling:
            if self._told is None or time.monotonic() > self._told_until:
                workers = self._crew.workers()
                replies = self._crew.ask(workers, "GET", TELL, patience=TELLING)
                told = {
                    worker: Told(**reply["told"])
                    for worker, reply in zip(workers, replies, strict=True)
                    if reply is not None and "told" in reply
                }
                sums: dict[str, Any] = {
                    field: its.take((w.pid, getattr(told[w], field) if w in told else None) for w in workers)
                    for field, its in self._sums.items()
                }
                self._told = Told(**sums, blocked=None), {w.place: it for w, it in told.items()}
                self._told_until = time.monotonic() + FRESH
            return self._told

    @property
    def _turns(self) -> Callable[[], Turns | None]:
        return self._turns_now

    def _turns_now(self) -> Turns | None:
        from pkg.diagnostics.metrics import Turns

        sums, each = self._tell()
        if "turns" not in sums.waits:
            return None
        blocked = {str(place): told.blocked for place, told in each.items() if told.blocked is not None}
        return Turns(*histogram(sums.waits["turns"]), blocked)

    def _executors(self) -> list[Executor]:
        from pkg.diagnostics.metrics import Executor

        return [Executor(name, **numbers) for name, numbers in self._tell()[0].executors.items()]

    @property
    def _proxy_waits(self) -> Callable[[], tuple[Sequence[int], float]] | None:
        return self._proxy_waits_now if self.settings.trusted_proxies else None

    def _proxy_waits_now(self) -> tuple[Sequence[int], float]:
        waits = self._tell()[0].waits
        return histogram(waits["proxies"]) if "proxies" in waits else ([0] * (len(QUEUE_WAIT_BOUNDS) + 1), 0.0)

    def _log_lines(self) -> LogLines:
        """Those of all processes, each of which writes its own."""
        own, told = super()._log_lines(), self._tell()[0].logs.get("", {})
        return own._replace(**{name: number + told.get(name, 0) for name, number in own._asdict().items()})

    def _elsewhere(self) -> Elsewhere:
        from pkg.diagnostics.snapshot import Elsewhere, Finding, InFlight, in_flight

        assert self.server is not None and self.server.front is not None
        front, told = self.server.front, self._tell()[1]  # one that has just not answered is not waited for again
        workers = [worker for worker in self._crew.workers() if worker.place in told]
        answers = dict(zip(workers, self._crew.ask(workers, "GET", FINDINGS, patience=TELLING), strict=True))
        findings, requests = [], []
        for worker in self._crew.workers():
            answer = answers.get(worker)
            if answer is not None and "requests" in answer:
                for level, text, page in answer["findings"]:
                    findings.append(Finding(level, f"worker {worker.place}: {text}", _page_of(worker.place, page)))
                for found in map(in_flight, answer["requests"]):
                    who = f"{worker.place}: {found.worker}" if found.worker else f"worker {worker.place}"
                    requests.append(found._replace(worker=who))
                continue
            with contextlib.suppress(OSError):  # it has ended
                for request in front.worker_requests(worker.number)[:MAX_REQUESTS]:
                    who, age = f"worker {worker.place}", round(request.age, 3)
                    requests.append(InFlight(request.method, request.target, age, who, None, "", None, None))
        return Elsewhere(findings, requests)

    def _serving_threads(self) -> int:
        return self.settings.threads * len([w for w in self._crew.workers() if w.stage.value == "serving"])

    def _stuck_threads(self) -> int:
        """Threads that serve requests are in other processes; their ends count like those of threads."""
        return self._crew.overdue if hasattr(self, "_crew") else 0

    # -------------------------------------------------------------- stop

    def _last_words(self, why: str) -> None:
        super()._last_words(why)
        self._crew.write_stacks()

    @property
    def _streams(self) -> Crew:
        return self._crew

    def _close_application(self, left: float) -> None:
        crew = getattr(self, "_crew", None)  # none if the start has failed before
        if crew is not None:
            end = time.monotonic() + left + WORKERS_END
            crew.drain(end)
            if not crew.join(end + KILLED - time.monotonic()):
                _log.error("workers have not ended and are left behind")


def _page_of(place: int, page: str) -> str:
    return f"{page}{'&' if '?' in page else '?'}worker={place}"
