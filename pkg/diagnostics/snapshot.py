"""The state of the service at one moment for /statusz, and findings: what seems to be wrong, in words.

It changes nothing and stores nothing: every call collects the state from the parts.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from pkg.diagnostics import blocked, descriptors, installation, metrics, procfs, stacks, tasks
from pkg.diagnostics.cgroup import Cgroup, Limits, Throttling
from pkg.diagnostics.failures import LATELY, Failure
from pkg.diagnostics.metrics import Turns
from pkg.diagnostics.workers import ProcessRow

if TYPE_CHECKING:
    from pkg._core import Counters, Prober
    from pkg.health.report import HealthReport
    from pkg.lifecycle import Lifecycle
    from pkg.logs.sink import LogLines

__all__ = ["Elsewhere", "InFlight", "Snapshot", "Status", "diagnose", "in_flight", "show_pools"]

# Thresholds of the findings.
LONG_REQUEST = 5.0  # seconds
JAM, MANY_THERE = 1.0, 3  # seconds for which so many, and half of those in flight, have been at one place
LONG_TURN = 1.0  # of an event loop
LONG_START = 10.0
SLOW_INTERPRETER = 0.05
MANY_DESCRIPTORS = 0.9  # of the limit
MUCH_MEMORY = 0.9
# Of the periods; kubernetes-mixin's alert CPUThrottlingHigh has the same.
MUCH_THROTTLING = 0.25
MAX_PLACES = 5
LONG_COMPUTING = 5.0  # seconds of CPU time of a thread that serves no request,
MUCH_COMPUTING = 0.5  # and its share of the time since it began
SLOW_TURN = 0.1  # of an event loop, if the setting is off


_AWAITS = {"": "", "body": "to send the body", "room": "to take the response"}


class InFlight(NamedTuple):
    """A request in flight.  `age`: seconds.  `thread`: kernel thread id, None while it waits for a worker.

    `awaits`: what its client is to do, if its thread waits for that.
    """

    method: str
    target: str
    age: float
    worker: str | None
    thread: int | None
    state: str
    at: str | None  # the current place in the application, and its line of source
    source: str | None
    tasks: Sequence[tasks.TaskState] = ()  # of an event loop: those of this request
    is_websocket: bool = False
    has_responded: bool = False  # and its task goes on
    awaits: str = ""

    @property
    def is_in_flight(self) -> bool:
        return not (self.is_websocket or self.has_responded)

    def document(self, *, with_tasks: bool = True) -> dict[str, Any]:
        """As plain data for JSON.  The chains of all tasks may be long."""
        found = self._asdict()
        del found["tasks"], found["is_websocket"], found["has_responded"], found["awaits"]
        if with_tasks:
            found["tasks"] = [task.document() for task in self.tasks]
        return found


def in_flight(fields: Sequence[Any]) -> InFlight:
    """As a worker has sent it, which after a reload may have newer code, with more fields than are known here."""
    return InFlight(*fields[: len(InFlight.__match_args__)])


class ServiceState(NamedTuple):
    """Times in seconds; `started`: ISO 8601; `main_thread_at`: its current place in the application."""

    app: str
    version: str
    python: str
    psycopg: Any
    pid: int
    host: str
    address: str
    phase: str
    reason: str
    since: float
    uptime: float
    started: str
    main_thread_at: str | None


class Workers(NamedTuple):
    threads: int
    alive: int
    busy: int


class EventLoopState(NamedTuple):
    """`kind`: asyncio or uvloop.  `blocked`: seconds for which it has been in one turn, 0 unless that is long; where,
    and in which task.  `oldest_websocket`: seconds since its handshake; None if none is open."""

    kind: str
    tasks: int
    blocked: float
    at: str | None
    source: str | None
    task: str | None
    oldest_websocket: float | None = None


class Computing(NamedTuple):
    """A thread of the application that serves no request: seconds of CPU time in the seconds since it began, and where
    it is."""

    name: str
    cpu: float
    age: float
    at: str
    source: str


class Latency(NamedTuple):
    """Of all requests since the start: counts by class of status, and upper bounds of some quantiles in seconds (None:
    longer than the longest bound)."""

    count: int  # type: ignore[assignment]  # hides a method of tuples
    by_status: dict[str, int]
    mean: float = 0.0
    p50_at_most: float | None = None
    p90_at_most: float | None = None
    p99_at_most: float | None = None


class Finding(NamedTuple):
    level: str  # error, warning, note
    text: str
    page: str  # with the details


class Elsewhere(NamedTuple):
    """What worker processes tell of themselves: findings, and the oldest requests that each serves."""

    findings: Sequence[Finding]
    requests: Sequence[InFlight]


class ApplicationState(NamedTuple):
    """What the process that runs the application knows of it; the fields are those of Snapshot."""

    phase: str
    workers: Workers
    requests: list[InFlight]
    pools: Mapping[str, Mapping[str, Any]]
    front: Counters
    executors: Sequence[metrics.Executor]
    eventloop: EventLoopState | None
    process: Mapping[str, float]
    descriptors: str
    failures: Sequence[Failure]
    computing: Sequence[Computing]


class Snapshot(NamedTuple):
    """The state at one moment.

    `pools`: statistics of each database by its name ("" for the one without), under psycopg_pool's own names.
    `process`: numbers under the names of their metrics; those that the system does not tell are missing.  `limits`:
    those of the control group; `throttling`: how often it ran into them lately, None if nobody has looked before.
    `descriptors`: what most of those that are open are.  `failures`: exceptions that were logged lately; `computing`:
    threads that serve no request and use much of the interpreter's time.
    """

    service: ServiceState
    health: HealthReport
    workers: Workers
    requests: list[InFlight]
    pools: Mapping[str, Mapping[str, Any]]
    front: Counters
    listening: Sequence[metrics.Listening]
    latency: Latency
    probers: list[Prober]
    process: Mapping[str, float]
    logs: LogLines
    settings: Sequence[Mapping[str, str]]
    eventloop: EventLoopState | None = None  # of an ASGI application
    executors: Sequence[metrics.Executor] = ()
    limits: Limits = Limits()
    throttling: Throttling | None = None
    processes: Sequence[ProcessRow] | None = None  # those that run the application, if this one does not
    descriptors: str = ""
    failures: Sequence[Failure] = ()
    computing: Sequence[Computing] = ()
    findings: Sequence[Finding] = ()

    @property
    def phase(self) -> str:
        return self.service.phase

    def document(self) -> dict[str, Any]:
        """As plain data for JSON."""
        latency = self.latency._asdict() if self.latency.count else {"count": 0, "by_status": self.latency.by_status}
        return {
            "service": self.service._asdict(),
            "health": self.health.document(),
            "workers": self.workers._asdict(),
            "eventloop": self.eventloop._asdict() if self.eventloop is not None else None,
            "requests": [request.document(with_tasks=False) for request in self.requests],
            "pool": self.pools.get(""),
            **({"pools": show_pools(self.pools)} if self.pools.keys() - {""} else {}),
            "front": self.front._asdict(),
            "listening": [listener._asdict() for listener in self.listening],
            "executors": [executor._asdict() for executor in self.executors],
            "latency": latency,
            "probers": [prober._asdict() for prober in self.probers],
            "process": self.process,
            "descriptors": self.descriptors,
            "failures": [failure._asdict() for failure in self.failures],
            "computing": [thread._asdict() for thread in self.computing],
            "limits": self.limits._asdict(),
            "throttling": self.throttling._asdict() if self.throttling is not None else None,
            "logs": self.logs._asdict(),
            **({"processes": [row._asdict() for row in self.processes]} if self.processes is not None else {}),
            "settings": [dict(row) for row in self.settings],
            "findings": [finding._asdict() for finding in self.findings],
        }


class Status:
    """Collects the state from the parts.

    `front` has stats(), requests(), queued(), websockets(), durations(), queue_waits() and probers(); `checker` has
    report().  `databases()` returns the databases by name, which have stats(), taken(), `shortage` and `locks`.
    `eventloop()` returns the event loop of an ASGI application, or None; `slow`: the seconds after which a turn of it
    counts as blocked.  `threads()` returns how many worker threads there should be, none beside event loops, and
    `alive()` how many of them run.  `proxy_waits()` returns how long requests have
    been at proxies, or is None if none are trusted.  `listening()` returns how each listener is, `executors()` how the
    threads beside an event loop are, `processes()` how the worker processes are, `turns()` how their event loops are
    and `elsewhere()` what they tell of themselves, None without them.  `failures()` returns the exceptions that were
    logged lately.
    `settings`: rows with secrets redacted.  `began`: monotonic time of the start.
    """

    def __init__(
        self,
        *,
        front: Any,
        threads: Callable[[], int],
        lifecycle: Lifecycle,
        checker: Any,
        databases: Callable[[], Mapping[str, Any]],
        logs: Callable[[], LogLines],
        alive: Callable[[], int],
        eventloop: Callable[[], Any] = lambda: None,
        slow: float = 0.0,
        proxy_waits: Callable[[], tuple[Sequence[int], float]] | None = None,
        listening: Callable[[], Sequence[metrics.Listening]] = list,
        executors: Callable[[], Sequence[metrics.Executor]] = tuple,
        processes: Callable[[], Sequence[ProcessRow] | None] = lambda: None,
        turns: Callable[[], Turns | None] | None = None,
        elsewhere: Callable[[], Elsewhere | None] = lambda: None,
        failures: Callable[[], Sequence[Failure]] = tuple,
        app: str = "",
        address: str = "",
        settings: Sequence[Mapping[str, str]] = (),
        began: float | None = None,
    ) -> None:
        self.front = front
        self.threads = threads
        self._alive = alive
        self.eventloop = eventloop
        self._slow = slow or SLOW_TURN
        self._proxy_waits = proxy_waits
        self.listening = listening
        self.executors = executors
        self.processes = processes
        self.turns = turns or self._own_turns
        self._elsewhere = elsewhere
        self._failures = failures
        self.lifecycle = lifecycle
        self.app = app
        self.address = address
        self.settings = settings
        self.checker = checker
        self.databases = databases
        self.logs = logs
        self.cgroup = Cgroup()
        self._began = time.monotonic() if began is None else began
        self._began_at = datetime.now(UTC) - timedelta(seconds=time.monotonic() - self._began)

    @cached_property
    def version(self) -> str:
        """The version of this package; "" if it is not installed."""
        return installation.version()

    def pools(self) -> dict[str, dict[str, Any]]:
        """The statistics of the pool of each database, by name; "" is that of DATABASE_URL.

        Where connections are out, `taken` says for how long, and where the application took them.  `shortage` says why
        the server cannot give the pool all of its connections, `locks` for whose lock statements wait.
        """
        found = {}
        for name, database in self.databases().items():
            found[name] = dict(database.stats())
            if taken := database.taken():
                found[name]["taken"] = taken
            for key in ("shortage", "locks"):
                if text := getattr(database, key):
                    found[name][key] = text
        return found

    def metrics(self) -> metrics.Exposition:
        return metrics.collect(
            front=self.front,
            threads=self.threads(),
            phase=self.lifecycle.phase.value,
            health=self.checker.report(),
            pools=self.pools(),
            logs=self.logs(),
            proxy_waits=self._proxy_waits() if self._proxy_waits is not None else None,
            listening=self.listening(),
            executors=self.executors(),
            processes=self.processes() or (),
            limits=self.cgroup.look()[0],
            version=self.version,
            turns=self.turns(),
        )

    def waits(self) -> dict[str, tuple[Sequence[int], float]]:
        """Counts and sums of the histograms that the application's own process has."""
        turns, found = self.turns(), {}
        if turns is not None:
            found["turns"] = (turns.counts, turns.total)
        if self._proxy_waits is not None:
            found["proxies"] = self._proxy_waits()
        return found

    def _own_turns(self) -> Turns | None:
        if self.eventloop() is None:
            return None
        counts, total = self.front.turns()
        return Turns(counts, total, {"": self.front.eventloop_turn})

    def blocked(self) -> blocked.Blocked | None:
        """Where the event loop of an ASGI application is blocked, if it is."""
        eventloop = self._loop()
        return blocked.look(self.front, eventloop, self._slow) if eventloop is not None else None

    def tasks(self) -> list[tasks.TaskState] | None:
        """The tasks of the event loop; None if there is none."""
        eventloop = self._loop()
        return tasks.capture(eventloop) if eventloop is not None else None

    def _loop(self) -> Any:
        eventloop = self.eventloop()
        return eventloop if eventloop is not None and hasattr(eventloop, "loop") else None

    def requests(self, taken: Iterable[stacks.Stack] | None = None) -> list[InFlight]:
        """Requests in flight, the oldest first, each with its current place in the application."""
        if (eventloop := self._loop()) is not None:
            return self._requests_of(eventloop)
        by_thread = {stack.native_id: stack for stack in (stacks.capture() if taken is None else taken)}
        found = []
        for request in sorted(self.front.requests(), key=lambda request: -request.age):
            stack = by_thread.get(request.thread)
            at = stacks.place(stack) if stack is not None else None
            awaits = _AWAITS[request.awaits]
            state = f"waiting for the client {awaits}" if awaits else stack.state if stack is not None else ""
            found.append(
                InFlight(
                    method=request.method,
                    target=request.target,
                    age=round(request.age, 3),
                    worker=stack.name if stack is not None else None,
                    thread=request.thread or None,
                    state=state if request.thread else "queued",
                    at=str(at) if at is not None else None,
                    source=at.source or None if at is not None else None,
                    awaits=awaits,
                )
            )
        return found

    def not_listed(self, found: Iterable[InFlight]) -> int:
        """How many requests in flight requests() has left out, as there are so many."""
        in_flight: int = self.front.stats().in_flight
        return max(0, in_flight - sum(request.is_in_flight for request in found))

    def _requests_of(self, eventloop: Any) -> list[InFlight]:
        """Those of an event loop: by its own list, as one thread serves many, and those that wait for it."""
        serving = tasks.serving(eventloop)
        by_request: dict[int, list[tasks.TaskState]] = {}
        for task in tasks.capture(eventloop, serving):
            by_request.setdefault(id(task.serves), []).append(task)
        found = []
        for request in serving:
            own = by_request.get(id(request), [])
            at = tasks.best_place(own)
            state = next((s for s in ("running", "ready", "waiting") if any(task.state == s for task in own)), "ready")
            if request.is_websocket:
                state += ", WebSocket"
            elif request.has_ended:
                state += ", has responded"
            found.append(
                InFlight(
                    method=request.method,
                    target=request.target,
                    age=round(request.age, 3),
                    worker=eventloop.thread.name,
                    thread=eventloop.thread.native_id,
                    state=state,
                    at=str(at) if at is not None else None,
                    source=at.source or None if at is not None else None,
                    tasks=own,
                    is_websocket=request.is_websocket,
                    has_responded=request.has_ended,
                )
            )
        for waiting in self.front.queued():
            age = round(waiting.age, 3)
            found.append(InFlight(waiting.method, waiting.target, age, None, None, "queued", None, None))
        return sorted(found, key=lambda request: -request.age)

    def _eventloop_state(self) -> EventLoopState | None:
        eventloop = self._loop()
        if eventloop is None:
            return None
        now = self.blocked()
        at = now.place if now is not None else None
        return EventLoopState(
            kind=type(eventloop.loop).__module__.partition(".")[0],
            tasks=tasks.count(eventloop),
            blocked=round(now.seconds, 3) if now is not None else 0.0,
            at=str(at) if at is not None else None,
            source=at.source or None if at is not None else None,
            task=now.whose if now is not None else None,
            oldest_websocket=next((round(websocket.age, 3) for websocket in self.front.websockets(1)), None),
        )

    def collect(self) -> Snapshot:
        """Everything that /statusz shows."""
        taken = stacks.capture()
        main = next((stack for stack in taken if stack.name == "MainThread"), None)
        at = stacks.place(main) if main is not None else None
        now = time.monotonic()
        limits, throttling = self.cgroup.look()
        application = self._application(taken)._asdict()
        del application["phase"]
        snapshot = Snapshot(
            **application,
            service=ServiceState(
                app=self.app,
                version=self.version,
                python=installation.python_version(),
                psycopg=installation.loaded_driver(),
                pid=os.getpid(),
                host=os.uname().nodename,
                address=self.address,
                phase=self.lifecycle.phase.value,
                reason=self.lifecycle.reason,
                since=round(now - self.lifecycle.since, 1),
                uptime=round(now - self._began, 1),
                started=self._began_at.isoformat(timespec="seconds"),
                main_thread_at=str(at) if at is not None else None,
            ),
            health=self.checker.report(),
            listening=self.listening(),
            latency=_latency(self.front.durations()),
            probers=sorted(self.front.probers(), key=lambda prober: prober.age),
            limits=limits,
            throttling=throttling,
            logs=self.logs(),
            settings=self.settings,
            processes=self.processes(),
        )
        found = diagnose(snapshot)
        if (elsewhere := self._elsewhere()) is None:
            return snapshot._replace(findings=found)
        requests = [request for request in snapshot.requests if request.state == "queued"]
        return snapshot._replace(
            findings=_sorted([*found, *elsewhere.findings]),
            requests=sorted([*requests, *elsewhere.requests], key=lambda request: -request.age),
        )

    def of_application(self, most: int) -> Elsewhere:
        """What a worker process tells of itself, with so many requests; the rest is known to process 1."""
        state = self._application(stacks.capture())
        requests = [request._replace(tasks=()) for request in state.requests[:most]]
        return Elsewhere(list(_of_application(state)), requests)

    def _application(self, taken: Sequence[stacks.Stack]) -> ApplicationState:
        stats, threads = self.front.stats(), self.threads()
        process = metrics.process()
        requests = self.requests(taken)
        return ApplicationState(
            phase=self.lifecycle.phase.value,
            workers=Workers(threads, self._alive() if threads else 0, metrics.workers_busy(stats, threads)),
            requests=requests,
            pools=self.pools(),
            front=stats,
            executors=self.executors(),
            eventloop=self._eventloop_state(),
            process={**process, "interpreter_delay_seconds": _interpreter_delay()},
            descriptors=descriptors.most(int(process["max_fds"])),
            failures=self._failures(),
            computing=list(_computing(taken)),
        )


def show_pools(pools: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """The pools under the names that the log has for them."""
    return {name or "database": stats for name, stats in pools.items()}


def _latency(durations: Iterable[tuple[str, int, Sequence[int], float]]) -> Latency:
    from pkg._core import DURATION_BOUNDS

    buckets = [0] * (len(DURATION_BOUNDS) + 1)
    classes: dict[str, int] = {}
    total = 0.0
    for _, status, counts, seconds in durations:
        buckets = [a + b for a, b in zip(buckets, counts, strict=True)]
        key = f"{status // 100}xx" if status else "none"
        classes[key] = classes.get(key, 0) + sum(counts)
        total += seconds
    count = sum(buckets)
    by_status = dict(sorted(classes.items()))
    if not count:
        return Latency(0, by_status)

    def at_most(share: float) -> float | None:
        seen = 0
        for bound, n in zip(DURATION_BOUNDS, buckets, strict=False):
            seen += n
            if seen >= share * count:
                return bound
        return None

    return Latency(count, by_status, round(total / count, 6), at_most(0.5), at_most(0.9), at_most(0.99))


# In the stacks of threads that serve requests, or calls of an event loop.
_SERVING = tuple(
    os.path.join(*parts)
    for parts in (
        ("pkg", "http", "server.py"),
        ("pkg", "asgi", "eventloop.py"),
        ("concurrent", "futures", "thread.py"),
        ("anyio", "_backends", "_asyncio.py"),
    )
)


def _computing(taken: Iterable[stacks.Stack]) -> Iterable[Computing]:
    """Threads of the application that serve no request and have used most of the time since they began."""
    for stack in taken:
        if stack.cpu < LONG_COMPUTING or any(frame.file.endswith(_SERVING) for frame in stack.frames):
            continue
        at = stacks.place(stack)
        with contextlib.suppress(OSError):  # it has ended
            age = procfs.seconds_since(procfs.stat(f"self/task/{stack.native_id}"))
            if at is not None and stack.cpu > MUCH_COMPUTING * age:
                yield Computing(stack.name, round(stack.cpu, 1), round(age, 1), str(at), at.source)


def _interpreter_delay() -> float:
    """How long this thread waits for the interpreter lock: the delay of its return from a short sleep."""
    worst = 0.0
    for _ in range(3):
        began = time.monotonic()
        time.sleep(0.002)
        worst = max(worst, time.monotonic() - began - 0.002)
    return round(worst, 4)


# --- what seems to be wrong ----------------------------------------------------------------------------------------


def _times(number: float, one: str, many: str = "") -> str:
    return f"{number:.0f} {one if number == 1 else many or one + 's'}"


def diagnose(snapshot: Snapshot) -> list[Finding]:
    """Findings, the most severe first: level (error, warning, note), text, and the page with details."""
    return _sorted(
        [
            *_of_service(snapshot),
            *_of_health(snapshot),
            *(_of_application(snapshot) if snapshot.processes is None else _of_front(snapshot)),
            *_of_cpu_limit(snapshot.limits, snapshot.throttling),
            *_of_memory_limit(snapshot.limits, snapshot.throttling),
            *_of_past(snapshot),
        ]
    )


def _sorted(found: Iterable[Finding]) -> list[Finding]:
    return sorted(found, key=lambda finding: ("error", "warning", "note").index(finding.level))


def _of_front(snapshot: Snapshot) -> Iterable[Finding]:
    """With worker processes, each of which tells of its own."""
    if queued := snapshot.front.queued:
        text = f"{_times(queued, 'request')} {'waits' if queued == 1 else 'wait'}, as no worker process has room"
        yield Finding("error", text, "/debug/requests")
    yield from _of_process(snapshot)


def _of_application(state: ApplicationState | Snapshot) -> Iterable[Finding]:
    yield from _of_eventloop(state)
    yield from _of_workers(state)
    yield from _of_executors(state)
    yield from _of_pools(state)
    yield from _of_process(state)
    yield from _of_computing(state.computing)
    yield from _of_failures(state.failures)


def _of_service(snapshot: Snapshot) -> Iterable[Finding]:
    service = snapshot.service
    if service.phase == "starting" and service.since > LONG_START:
        at = f"; the main thread is at {service.main_thread_at}" if service.main_thread_at else ""
        text = f"still starting after {service.since:.0f} s: the application is being imported{at}"
        yield Finding("error", text, "/debug/threads")
    elif service.phase == "draining":
        yield Finding("warning", f"draining for {service.since:.0f} s because of {service.reason}", "/debug/requests")


def _of_health(snapshot: Snapshot) -> Iterable[Finding]:
    health = snapshot.health
    for state in health.liveness:
        if state.status == "failed":
            yield Finding("error", f"liveness fails: {state.name}: {state.reason}", "/debug/threads")
    for state in health.readiness:
        if state.status == "ok" or state.name in ("shutdown", "startup"):
            continue
        lasted = f", for {state.runs.lasted:.0f} s" if state.runs is not None else ""
        what = "fails" if state.status == "failed" else f"is {state.status}"
        level = "error" if state.status == "failed" and state.required else "warning"
        kind, _, name = state.name.partition("-")
        page = "/debug/pool" if kind == "database" and name in snapshot.pools else "/statusz"
        yield Finding(level, f"check {state.name} {what}{lasted}: {state.reason}", page)


def _of_eventloop(state: ApplicationState | Snapshot) -> Iterable[Finding]:
    eventloop = state.eventloop
    if eventloop is None or not eventloop.blocked:
        return
    place = eventloop.at or "an unknown place"
    if eventloop.source:
        place = f"{place.partition(' in ')[0]}: {eventloop.source}"
    text = f"the event loop has been blocked for {eventloop.blocked:.1f} s at {place}, in {eventloop.task}"
    queued = state.front.queued
    others = state.front.in_flight - queued
    if oldest := next((request for request in state.requests if request.is_in_flight), None):
        text += f"; {_times(others, 'request')} in flight and {queued} queued, the oldest for {oldest.age:.1f} s"
    yield Finding("error" if eventloop.blocked > LONG_TURN else "warning", text, "/debug/requests")


def _of_workers(state: ApplicationState | Snapshot) -> Iterable[Finding]:
    workers, requests = state.workers, state.requests
    if workers.threads == 0:  # an event loop serves
        return
    if state.phase == "ready" and workers.alive < workers.threads:
        text = f"only {workers.alive} of {_times(workers.threads, 'worker')} are running; the others have ended"
        yield Finding("error", text, "/debug/threads")
    queued = state.front.queued
    running = [request for request in requests if request.thread]
    if workers.busy >= workers.threads and running:
        longest = running[0]
        text = (
            f"all {_times(workers.threads, 'worker')} {'is' if workers.threads == 1 else 'are'} busy and "
            f"{_times(queued, 'request')} {'waits' if queued == 1 else 'wait'}; the longest has been running for "
            f"{longest.age:.1f} s: {longest.method} {longest.target}"
        )
        yield Finding("error" if queued or longest.age > LONG_REQUEST else "warning", text, "/debug/requests")
    yield from _of_places(running, workers.busy)


def _of_places(running: Iterable[InFlight], busy: int) -> Iterable[Finding]:
    """Requests that have been long at one place, or many that meet there: one line for ten that wait for one lock."""
    places: dict[tuple[str, str], list[InFlight]] = {}
    for request in running:
        if request.age > JAM:
            source = f": `{request.source}`" if request.source else ""
            places.setdefault((f"{request.at}{source}" if request.at else "", request.awaits), []).append(request)
    for (place, awaits), there in sorted(places.items(), key=lambda item: -len(item[1]))[:MAX_PLACES]:
        oldest = there[0]
        is_long = oldest.age > LONG_REQUEST
        if not is_long and (len(there) < MANY_THERE or 2 * len(there) < busy):
            continue
        what = f"{oldest.method} {oldest.target}"
        if any(request.target != oldest.target for request in there):
            what += " and others"
        if len(there) == 1:
            text = f"{oldest.worker or 'a thread'} has been serving {what} for {oldest.age:.0f} s"
        else:
            text = f"{len(there)} threads have been serving {what} for up to {oldest.age:.0f} s"
        if place or not awaits:
            text += f", at {place or 'an unknown place'}"
        if awaits:
            text += f", waiting for {'the client' if len(there) == 1 else 'their clients'} {awaits}"
        yield Finding("warning" if is_long else "note", text, "/debug/threads")


def _of_executors(state: ApplicationState | Snapshot) -> Iterable[Finding]:
    for executor in state.executors:
        if executor.queued:
            threads = f"all {_times(executor.size, 'thread')} of {executor.name}"
            calls = f"{_times(executor.queued, 'call')} {'waits' if executor.queued == 1 else 'wait'}"
            text = f"{threads} {'is' if executor.size == 1 else 'are'} busy and {calls}"
            yield Finding("warning", text, "/debug/threads")


def _of_pools(state: ApplicationState | Snapshot) -> Iterable[Finding]:
    for name, pool in state.pools.items():
        yield from _of_pool(f" {name}" if name else "", pool, is_idle=not state.requests)


def _of_pool(name: str, pool: Mapping[str, Any], *, is_idle: bool) -> Iterable[Finding]:
    """`is_idle`: whether no request is in flight."""
    lent = pool.get("connections_used", 0)
    if lent and is_idle:
        what = "a connection" if lent == 1 else f"{lent} connections"
        what += f" of the pool{name}" if name else ""
        text = (
            f"{what} {'is' if lent == 1 else 'are'} in use while no request is in flight; leaked, unless one of the "
            "application's own threads holds it"
        )
        if taken := pool.get("taken"):
            text += f" ({taken[0]})"
        yield Finding("warning", text, "/debug/pool")
    for text in filter(None, (pool.get("shortage"), pool.get("locks"))):
        yield Finding("warning", f"{name.lstrip()}: {text}" if name else text, "/debug/pool")
    size, most = pool.get("pool_size", 0), pool.get("pool_max", 0)
    waiting = pool.get("requests_waiting", 0)
    if waiting or (most and size >= most and not pool.get("pool_available", 0)):
        used = size - pool.get("pool_available", 0)
        text = f"the pool{name} is exhausted: {used} of {most} connections are in use, "
        text += f"{_times(waiting, 'caller')} waiting"
        yield Finding("error" if waiting else "warning", text, "/debug/pool")


def _of_process(state: ApplicationState | Snapshot) -> Iterable[Finding]:
    process, front = state.process, state.front
    used, most = process.get("open_fds"), process["max_fds"]
    what = f"; {state.descriptors}" if state.descriptors else ""
    if used is None:
        text = f"no file descriptor is free (the limit is {most:.0f}){what}"
        yield Finding("error", text, "/debug/requests")
    elif used >= MANY_DESCRIPTORS * most:
        text = f"{used:.0f} of {most:.0f} file descriptors are open, {front.connections} of them client connections"
        yield Finding("error", text + what, "/debug/requests")
    delay = process["interpreter_delay_seconds"]
    if delay > SLOW_INTERPRETER:
        text = f"threads wait {delay * 1000:.0f} ms for the interpreter lock: a thread computes and seldom releases it"
        yield Finding("warning", text, "/debug/profile?seconds=5")


def _of_computing(threads: Iterable[Computing]) -> Iterable[Finding]:
    for thread in threads:
        source = f": `{thread.source}`" if thread.source else ""
        text = (
            f"the thread {thread.name}, which serves no request, has computed for {thread.cpu:.0f} of the last "
            f"{thread.age:.0f} s, at {thread.at}{source}; requests wait for the interpreter meanwhile"
        )
        yield Finding("warning", text, "/debug/profile?seconds=5")


def _of_failures(failures: Iterable[Failure]) -> Iterable[Finding]:
    for failure in list(failures)[:MAX_PLACES]:
        at = f" at {failure.at}" if failure.at else ""
        times = f"{_times(failure.times, 'time')} in the last {LATELY:.0f} s"
        yield Finding("warning", f"{failure.kind}{at} was logged {times}; the log has the traceback", "/debug/requests")


def _of_cpu_limit(limits: Limits, lately: Throttling | None) -> Iterable[Finding]:
    if limits.cpu_limit is not None and lately is not None and lately.share > MUCH_THROTTLING:
        text = (
            f"throttled in {100 * lately.share:.0f} % of the CPU periods of the last {lately.seconds:.0f} s: the limit "
            f"of {limits.cpu_limit:.3g} CPU makes answers slow, whatever the code does; raise or remove it "
            "(limits.cpu in Kubernetes, --cpus in Docker, CPUQuota= in systemd)"
        )
        yield Finding("warning", text, "/metrics")


def _of_memory_limit(limits: Limits, lately: Throttling | None) -> Iterable[Finding]:
    most, used, file = limits.memory_limit, limits.memory, limits.file or 0
    if lately is not None and lately.high_events:
        text = (
            f"{_times(lately.high_events, 'time')} in the last {lately.seconds:.0f} s the kernel has slowed the "
            f"process down to keep its memory below {_mib(limits.memory_high)} (memory.high)"
        )
        yield Finding("warning", text, "/debug/memory")
    if not most or used is None:
        return
    ends = "; such a kill ends all processes of the container (memory.oom.group is 1)" if limits.oom_group else ""
    if used > MUCH_MEMORY * most:
        text = f"memory is at {100 * used / most:.0f} % of its limit of {_mib(most)}"
        if file >= 1 << 20:
            text += f": {_mib(file)} of it are file cache, which the kernel takes back first"
        if used - file > MUCH_MEMORY * most:
            text += f"; beyond the limit the kernel kills (limits.memory in Kubernetes, --memory in Docker){ends}"
            yield Finding("warning", text, "/debug/memory")
        else:
            yield Finding("note", text, "/debug/memory")
    if limits.oom_kills:
        killed = _times(limits.oom_kills, "process", "processes")
        text = f"the kernel has killed {killed} of this container for memory since it started{ends}"
        yield Finding("warning", text, "/debug/memory")


def _mib(size: float | None) -> str:
    return f"{(size or 0) / (1 << 20):.0f} MiB"


def _of_past(snapshot: Snapshot) -> Iterable[Finding]:
    front, logs = snapshot.front, snapshot.logs
    if front.accept_errors:
        text = f"{_times(front.accept_errors, 'time')} there was no descriptor or memory to accept a connection"
        yield Finding("note", f"{text} (since the start)", "/metrics")
    if front.too_late:
        text = (
            f"{_times(front.too_late, 'request')} came when idle_timeout had just closed the connection, and got no "
            "answer (since the start): a client or a proxy keeps connections for longer than this server"
        )
        yield Finding("note", text, "/metrics")
    if front.stale:
        text = (
            f"{_times(front.stale, 'probe')} got 503 because the interpreter showed no sign of life: "
            "the lock was held, or the process was frozen (since the start; stderr has the stacks if /healthz failed)"
        )
        yield Finding("note", text, "/metrics")
    if logs.dropped:
        text = f"{_times(logs.dropped, 'log line')} were lost: the output is or was blocked (since the start)"
        yield Finding("note", text, "/metrics")
