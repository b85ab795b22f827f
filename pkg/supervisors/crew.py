"""The crew: the worker processes of a service, as process 1 sees them.

It has one thread, which starts workers, learns how they end, and starts others in their place.  What a worker does is
not its business, and neither is how requests get to it: `Front` is asked for a place for each.

    STARTING --"started"--> SERVING --a successor serves, or the drain--> LEAVING --> ended
        |                      |
        +------ it ends -------+--> another one is started, later each time if they end young

No exit code and no number of deaths ends the service.  Only the first workers of all may fail the start: code that
cannot be imported is reported as by a single process.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import random
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol

from pkg.diagnostics import procfs
from pkg.diagnostics.foreign_stacks import ForeignStacks
from pkg.health.checks import FROZEN
from pkg.health.pages import LIVENESS, READINESS
from pkg.service.drain import STREAMS_END
from pkg.service.signals import INTERRUPT
from pkg.supervisors.line import Line
from pkg.supervisors.template import Template

__all__ = ["Crew", "Ended", "Rules", "Worker"]

_log = logging.getLogger("pkg.workers")

TICK = 0.25  # seconds between two looks at all workers
SOON = 0.01  # seconds between two looks at a template that starts
YOUNG = 1.0  # seconds
SHORTEST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before one is started after one that ended young
PROOF = 30.0  # seconds for a successor that serves to become ready
SLOWER = 3.0  # a start may take so many times as long as the longest so far, and PROOF
LAST_WORDS = 1.0  # seconds for a stuck worker to write its stacks before it is killed
LAST_WORDS_OF_ALL = 0.2  # at the end of the service
ANSWER = 2.0  # seconds for a worker to answer for a page
SEND = 1.0  # seconds for a worker to take a message
MOST = 1024  # requests that a worker may serve at a time; an event loop also WebSockets among them


class Front(Protocol):
    """What the crew needs of the front of process 1."""

    def add_worker(self, threads: int, streams: bool) -> tuple[int, int]: ...
    def suit_worker(self, number: int, room: int, streams: bool) -> None: ...
    def admit_worker(self, number: int) -> None: ...
    def retire_worker(self, number: int) -> None: ...
    def lose_worker(self, number: int) -> list[tuple[str, str, str]]: ...
    def worker_state(self, number: int) -> Any: ...
    def worker_requests(self, number: int) -> list[Any]: ...


class Rules(NamedTuple):
    """Times in seconds, sizes in bytes; 0 turns a rule off."""

    workers: int
    min_ready: int
    max_requests: int = 0
    max_memory: int = 0
    drain_timeout: float = 20.0
    liveness_timeout: float = 30.0


class Stage(Enum):
    STARTING = "starting"
    SERVING = "serving"
    LEAVING = "leaving"  # it gets no new requests
    ENDED = "ended"


class Ended(NamedTuple):
    """How the first worker that failed to start has ended."""

    reason: str
    code: int


class Worker:
    """One worker's life.  `place`: its number among the workers, which its successor gets; `number`: in the front."""

    def __init__(self, place: int, number: int, pid: int, line: Line, stacks: ForeignStacks, generation: int) -> None:
        self.place, self.number, self.pid, self.line, self.stacks = place, number, pid, line, stacks
        self.generation = generation
        self.pidfd = os.pidfd_open(pid)
        self.stage = Stage.STARTING
        self.born = time.monotonic()
        self.serves_since = 0.0
        self.is_given_up = False  # its start has taken too long
        self.renewed_until = 0.0  # when what it has renewed before the last freeze expires
        self.excused_until = 0.0  # after a freeze: so long it may need to show a sign of life
        self.reasons: list[str] = []  # why it is not ready, as it says
        self.failure = ""  # why it could not start
        self.has_served = False
        self.is_stuck = ""  # why it is to be killed
        self.killed_at = 0.0
        self.left_at = 0.0  # when it was told to end
        self.ends_streams = False  # it has been told
        self.succeeds: Worker | None = None
        self.most_requests = 0.0
        self.answers: dict[int, dict[str, Any] | None] = {}

    @property
    def age(self) -> float:
        return time.monotonic() - self.born

    @property
    def start_time(self) -> float:
        """Seconds that its start has taken so far, or took."""
        return (self.serves_since or time.monotonic()) - self.born

    def tell(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # it has ended already
            self.line.send(**message)


class Crew:
    """`hello()`: what each worker is told first.  The front's times are CLOCK_MONOTONIC."""

    def __init__(
        self,
        rules: Rules,
        front: Front,
        template: Template,
        bell: int,
        hello: Callable[[], Mapping[str, Any]],
        oom_kills: Callable[[], int] = lambda: 0,
    ) -> None:
        self.rules = rules
        self._front, self.template, self._bell, self._hello = front, template, bell, hello
        self._oom_kills = oom_kills
        self._seen_oom_kills = oom_kills()
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._workers: list[Worker] = []
        self._due: dict[int, float] = {}  # when to start a worker, by place
        self._replacing_at = 0.0  # not before that
        self._awaits_template = False
        self._pauses: dict[int, float] = {}  # by place
        self._selector = selectors.DefaultSelector()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name="crew", daemon=True)
        self._is_over = False
        self._deadline = float("inf")
        self._generation = 0
        self._has_served = False
        self._longest_start = 0.0
        self._last_alive = self._looked_at = time.monotonic()
        self._asked = 0
        self._random = random.Random()
        self.has_eventloops = False  # workers serve by them, and not by threads
        self.failed: Ended | None = None
        self.overdue = 0  # workers that had to be killed at the end
        self.deaths: collections.Counter[int] = collections.Counter()  # that the log has named, by place

    # -------------------------------------------------------------- for process 1

    def start(self) -> None:
        """Starts all workers, and returns at once."""
        for place in range(1, self.rules.workers + 1):
            self._due[place] = 0.0
        self._thread.start()

    def await_start(self, timeout: float) -> bool:
        """Waits until every worker of the first ones has said that it serves, or one has failed."""
        with self._changed:
            return self._changed.wait_for(self._has_started, timeout)

    def _has_started(self) -> bool:
        serving = sum(worker.stage is Stage.SERVING for worker in self._workers)
        return serving >= self.rules.workers or self.failed is not None

    def workers(self) -> list[Worker]:
        return sorted(self._workers, key=lambda worker: (worker.place, worker.born))

    def starts_in(self, place: int) -> float | None:
        """Seconds until a worker is started in a place that has none; None if none will be."""
        due = self._due.get(place)
        return None if due is None or self._is_over else max(0.0, due - time.monotonic())

    def is_ready(self, worker: Worker) -> bool:
        """Whether it serves and its checks pass, by what it has last renewed."""
        return worker.stage is Stage.SERVING and not worker.is_stuck and self._fresh(worker, READINESS)

    # The next two take no lock, which the thread holds while a worker is forked.

    def readiness(self) -> None:
        """Raises RuntimeError with the reason if too few workers are ready."""
        workers = self.workers()
        ready = [worker for worker in workers if self.is_ready(worker)]
        if len(ready) >= self.rules.min_ready:
            return
        whys = [
            f"worker {worker.place}: {'; '.join(worker.reasons) or worker.is_stuck or worker.stage.value}"
            for worker in workers
            if worker not in ready
        ]
        raise RuntimeError(f"{len(ready)} of {self.rules.workers} workers are ready; {', '.join(whys) or 'none runs'}")

    def why_dead(self, patience: float) -> str | None:
        """Why no worker can serve, if none has shown a sign of life for `patience` seconds."""
        lasted = self._looked_at - self._last_alive
        return f"no worker has shown a sign of life for {lasted:.0f} s" if lasted > patience else None

    def reload(self) -> None:
        """Replaces all workers one by one, by new ones with the code as it is now."""
        with self._lock:
            self._generation += 1
            self._replacing_at = 0.0
            self.template.end()
        _log.info("reloading: %d workers are replaced one by one", self.rules.workers)
        self._wake()

    def ask(
        self, workers: Sequence[Worker], method: str, target: str, accept: str = "", patience: float = ANSWER
    ) -> list[dict[str, Any] | None]:
        """The answers of these workers for an admin page; None for one that gives none within `patience` seconds, and
        those that the page takes."""
        until = time.monotonic() + patience + _seconds_of(target)
        with self._changed:
            self._asked += 1
            number = self._asked
            for worker in workers:
                worker.answers[number] = None
        for worker in workers:
            worker.tell(id=number, method=method, target=target, accept=accept)
        with self._changed:
            self._changed.wait_for(
                lambda: all(worker.answers[number] or worker.stage is Stage.ENDED for worker in workers),
                max(0.0, until - time.monotonic()),
            )
            return [worker.answers.pop(number) for worker in workers]

    def look_into(self, worker: Worker) -> tuple[list[Any], str]:
        """The requests of one that does not answer, as the front knows them, and its stacks."""
        requests: list[Any] = []
        with contextlib.suppress(OSError):  # it has ended
            requests = self._front.worker_requests(worker.number)
        return sorted(requests, key=lambda request: -request.age), worker.stacks.take(worker.pidfd)

    def end_streams(self) -> None:
        for worker in self.workers():
            worker.tell(end_streams=True)

    def end_websockets(self, seconds: float) -> None:
        for worker in self.workers():
            worker.tell(end_websockets=seconds)

    def write_stacks(self) -> None:
        """Lets each worker that has requests write its stacks to stderr."""
        for worker in self.workers():
            with contextlib.suppress(OSError):
                if self._front.worker_state(worker.number).in_flight:
                    self._kill(worker, signal.SIGUSR1)

    def drain(self, deadline: float) -> None:
        """From now on no worker is started.  Those that still run at `deadline`, in time.monotonic(), are killed."""
        with self._lock:
            self._is_over, self._deadline = True, deadline
        self._wake()

    def join(self, timeout: float) -> bool:
        """Waits until all workers have ended."""
        if self._thread.ident is None:  # a signal has ended the start before
            return True
        self._thread.join(max(0.0, timeout))
        return not self._thread.is_alive()

    # -------------------------------------------------------------- its thread

    def _run(self) -> None:
        while not (self._is_over and not self._workers):
            try:
                for key, _ in self._selector.select(SOON if self._awaits_template else TICK):
                    self._on_event(key)
                with self._lock:
                    self._look()
            except Exception:
                _log.exception("looking after the workers failed; trying again")
                time.sleep(TICK)
        self.template.end()
        self._reap_orphans()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"x")

    def _on_event(self, key: selectors.SelectorKey) -> None:
        if key.data is None:
            os.read(self._wake_read, 1024)
            return
        worker, what = key.data
        if what == "end":
            self._on_end(worker)
            return
        if worker.stage is Stage.ENDED:  # in this turn, and its line is closed
            return
        messages = worker.line.receive()
        if messages is None:
            self._selector.unregister(worker.line.fileno())
            worker.line.close()
            return
        with self._changed:
            for message in messages:
                self._on_message(worker, message)

    def _on_message(self, worker: Worker, message: dict[str, Any]) -> None:
        if "id" in message:
            if message["id"] in worker.answers:  # nobody waits for it any more otherwise
                worker.answers[message["id"]] = message
                self._changed.notify_all()
            return
        worker.reasons = message.get("reasons", worker.reasons)
        worker.failure = message.get("failure", worker.failure)
        worker.is_stuck = worker.is_stuck or message.get("stuck", "")
        if message.get("started") and worker.stage is Stage.STARTING:
            worker.stage = Stage.SERVING
            worker.serves_since = time.monotonic()
            self._longest_start = max(self._longest_start, worker.start_time)
            self._front.suit_worker(worker.number, message["room"] or MOST, message["streams"])
            self.has_eventloops = message["streams"]
            self._front.admit_worker(worker.number)
            self._changed.notify_all()
            self._has_served = True
            _log.info("worker %d serves after %.0f ms (process %d)", worker.place, worker.age * 1000, worker.pid)

    def _on_end(self, worker: Worker) -> None:
        with self._lock:
            code, how = self._collect(worker)
            worker.has_served = self._front.worker_state(worker.number).served > 0
            lost = self._front.lose_worker(worker.number)
            stage, worker.stage = worker.stage, Stage.ENDED
            self._workers.remove(worker)
            self._changed.notify_all()
            is_expected = stage is Stage.LEAVING or self._is_over
            if is_expected and not lost and code == 0 and not worker.is_stuck:
                _log.info("worker %d has ended: process %d %s", worker.place, worker.pid, how)
            elif stage is Stage.STARTING and (worker.generation != self._generation or worker.is_given_up):
                self._after_interrupted_start(worker)
            else:
                self._tell_of_death(worker, how, lost)
                if not is_expected:
                    self._after_death(worker, code)

    def _collect(self, worker: Worker) -> tuple[int, str]:
        """The exit code of a process that has ended, and how it has; closes what process 1 has of it."""
        self._selector.unregister(worker.pidfd)
        ended = os.waitid(os.P_PIDFD, worker.pidfd, os.WEXITED)
        assert ended is not None
        worker.stacks.close()
        os.close(worker.pidfd)
        if worker.line.fileno() != -1:
            # Its last message says why.  A process that it has forked may hold the line, so that this is not its end.
            for message in worker.line.receive(wait=False) or ():
                self._on_message(worker, message)
            self._selector.unregister(worker.line.fileno())
            worker.line.close()
        code, how = ended.si_status, f"exited with code {ended.si_status}"
        if ended.si_code != os.CLD_EXITED:
            code, how = 128 + ended.si_status, f"was killed by {_name_of(ended.si_status)}"
        if (kills := self._oom_kills()) > self._seen_oom_kills:
            how += ", as the memory of the container is used up (oom_kill)"
            self._seen_oom_kills = kills
        return code, how

    def _after_interrupted_start(self, worker: Worker) -> None:
        if worker.succeeds is None:
            self._due[worker.place] = 0.0
        elif worker.is_given_up:
            self._replacement_failed(worker.succeeds, worker.generation)

    def _after_death(self, worker: Worker, code: int) -> None:
        successor = next((other for other in self._workers if other.succeeds is worker), None)
        if worker.succeeds is not None:  # the one that it was to replace goes on
            self._replacement_failed(worker.succeeds, worker.generation)
        elif successor is not None:
            successor.succeeds = None
        else:
            if not self._has_served and worker.failure:
                self.failed = Ended(worker.failure, code or 1)
            self._start_again(worker)

    def _tell_of_death(self, worker: Worker, how: str, lost: list[tuple[str, str, str]]) -> None:
        self.deaths[worker.place] += 1
        while_at = "; ".join(f"{method} {target} ({outcome})" for method, target, outcome in lost[:5])
        more = f" and {len(lost) - 5} more" if len(lost) > 5 else ""
        _log.error(
            "worker %d (process %d) %s after %.1f s%s%s",
            worker.place,
            worker.pid,
            how,
            worker.age,
            f", while serving {while_at}{more}" if lost else "",
            f": {worker.failure}" if worker.failure else "",
        )

    def _start_again(self, worker: Worker) -> None:
        """At once; later each time while they end young, or before they have begun to serve."""
        pause = 0.0
        if not worker.has_served or worker.age < YOUNG:
            pause = min(max(self._pauses.get(worker.place, 0.0) * 2, SHORTEST_PAUSE), LONGEST_PAUSE)
        self._pauses[worker.place] = pause
        self._due[worker.place] = time.monotonic() + pause

    def _replacement_failed(self, old: Worker, generation: int) -> None:
        if generation != self._generation:
            return  # another reload has begun meanwhile
        _log.error("worker %d could not be replaced; the old one (process %d) goes on", old.place, old.pid)
        self._replacing_at = time.monotonic() + LONGEST_PAUSE
        for other in self._workers:
            other.generation = generation  # it is not tried again for others: the next reload does

    # -------------------------------------------------------------- each turn

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._looked_at > TICK + FROZEN:
            self._excuse(now, now - self._looked_at)
        self._looked_at = now
        self._reap_orphans()
        # The first start may take as long as it takes.
        if not self._has_served or any(self._is_alive(worker) for worker in self._workers):
            self._last_alive = now
        for worker in list(self._workers):
            self._look_at(worker, now)
        self._awaits_template = False
        if self._is_over:
            return
        for place, due in list(self._due.items()):
            if due <= now:
                self._spawn(place, None)
        self._replace_next()

    def _is_alive(self, worker: Worker) -> bool:
        """Whether it serves, or will in a while: its start takes no longer than others, and is not one of a series that
        fail."""
        if worker.stage is Stage.STARTING:
            return self._pauses.get(worker.place, 0.0) <= SHORTEST_PAUSE and not self._starts_too_long(worker)
        return worker.stage is Stage.SERVING and self._fresh(worker, LIVENESS)

    def _starts_too_long(self, worker: Worker) -> bool:
        return worker.start_time > PROOF + SLOWER * self._longest_start

    def _excuse(self, now: float, gap: float) -> None:
        """After a freeze of all processes, as by `docker pause`: what the workers have renewed has expired meanwhile.

        One that has not renewed anything since the last freeze is not excused again: it may hang.
        """
        self._last_alive += gap
        for worker in self._workers:
            until = now + (self._left(worker, LIVENESS) or 0.0)
            if abs(until - worker.renewed_until) > TICK:
                worker.renewed_until, worker.excused_until = until, now + self.rules.liveness_timeout

    def _look_at(self, worker: Worker, now: float) -> None:
        if worker.killed_at:
            if now > worker.killed_at:
                self._kill(worker, signal.SIGKILL)
            return
        if (
            worker.stage is Stage.SERVING
            and not worker.is_stuck
            and now > worker.excused_until
            and self._is_expired(worker)
        ):
            worker.is_stuck = "its interpreter shows no sign of life"
        if self._front.worker_state(worker.number).is_broken:
            worker.is_stuck = worker.is_stuck or "it has written nonsense into the memory that it shares with the front"
        timeout = self.rules.drain_timeout
        is_overtaken = self._is_over or worker.generation != self._generation
        if worker.stage is Stage.STARTING and (is_overtaken or worker.is_given_up):
            worker.left_at = worker.left_at or now
            self._kill(worker, INTERRUPT)  # each time, as it may not have its handler yet
        lasts = now - worker.left_at if worker.left_at and worker.stage is not Stage.SERVING else 0.0
        if not worker.ends_streams and lasts > max(timeout / 2, timeout - STREAMS_END):
            worker.ends_streams = True
            worker.tell(end_streams=True)
        if lasts > timeout or (self._is_over and now > self._deadline):
            worker.is_stuck = worker.is_stuck or f"it has not ended within {timeout:g} s"
        if worker.is_stuck:
            what = "killed" if self._is_over else "replaced"
            _log.critical("worker %d is stuck and is %s: %s", worker.place, what, worker.is_stuck)
            self._kill(worker, signal.SIGUSR1)  # it writes its stacks to stderr, also if it holds the interpreter lock
            worker.killed_at = now + (LAST_WORDS_OF_ALL if self._is_over else LAST_WORDS)
            self.overdue += self._is_over

    def _replace_next(self) -> None:
        """Begins with one, or goes on with it."""
        for successor in self._workers:
            if successor.succeeds is not None:
                self._go_on_with(successor, successor.succeeds)
                return
        if time.monotonic() < self._replacing_at:
            return
        for worker in self._workers:
            if worker.stage is Stage.SERVING and (why := self._why_replace(worker)):
                if self._spawn(worker.place, worker):
                    _log.info("worker %d (process %d) is replaced: %s", worker.place, worker.pid, why)
                return

    def _go_on_with(self, successor: Worker, old: Worker) -> None:
        if successor.stage is not Stage.SERVING:
            if self._starts_too_long(successor) and not successor.is_given_up:
                successor.is_given_up = True
                _log.error(
                    "worker %d is given up: process %d has been starting for %.0f s, and others took %.1f s at most",
                    successor.place,
                    successor.pid,
                    successor.start_time,
                    self._longest_start,
                )
            return
        has_had_time = time.monotonic() - successor.serves_since > PROOF
        if self._fresh(successor, READINESS) or (has_had_time and not self.is_ready(old)):
            successor.succeeds = None
            self._retire(old)
        elif has_had_time:
            successor.succeeds = None
            _log.error("worker %d is not ready: %s", successor.place, "; ".join(successor.reasons))
            self._retire(successor)
            self._replacement_failed(old, successor.generation)

    def _why_replace(self, worker: Worker) -> str:
        rules = self.rules
        if worker.generation != self._generation:
            return "reload"
        if rules.max_requests:
            served = self._front.worker_state(worker.number).served
            if served >= worker.most_requests:
                return f"it has served {served} requests (max_requests)"
        if rules.max_memory and (memory := procfs.memory(worker.pid)[0]) > rules.max_memory:
            return f"it has {memory >> 20} MiB of memory (max_worker_memory)"
        return ""

    def _retire(self, worker: Worker) -> None:
        worker.stage, worker.left_at = Stage.LEAVING, time.monotonic()
        worker.tell(end_websockets=self.rules.drain_timeout / 2)
        self._front.retire_worker(worker.number)

    def _spawn(self, place: int, succeeds: Worker | None) -> bool:
        """Starts a worker, as soon as the template can, and says whether it has."""
        try:
            self._awaits_template = not self.template.is_ready()
            if self._awaits_template:
                return False
            worker = self._fork(place)
        except OSError as error:
            _log.error("worker %d cannot be started: %s", place, error.strerror or error)
            if succeeds is None:
                self._due[place] = time.monotonic() + SHORTEST_PAUSE
            else:
                self._replacement_failed(succeeds, self._generation)
            return False
        worker.succeeds = succeeds
        # Not all at the same moment.
        worker.most_requests = self.rules.max_requests * self._random.uniform(1.0, 1.1)
        self._due.pop(place, None)
        self._workers.append(worker)
        self._selector.register(worker.pidfd, selectors.EVENT_READ, (worker, "end"))
        self._selector.register(worker.line.fileno(), selectors.EVENT_READ, (worker, "line"))
        worker.tell(place=place, **self._hello())
        return True

    def _fork(self, place: int) -> Worker:
        number, area = self._front.add_worker(MOST, False)  # until it says what it can do
        try:
            own, its = socket.socketpair()
            own.settimeout(SEND)
            stacks = ForeignStacks()
            with its, stacks.writing:
                pid = self.template.fork(place, (area, self._bell, its.fileno(), stacks.writing.fileno()))
            return Worker(place, number, pid, Line(own), stacks, self._generation)
        except OSError:
            self._front.lose_worker(number)
            raise
        finally:
            os.close(area)

    def _left(self, worker: Worker, slot: int) -> float | None:
        """Seconds until what it has last renewed expires; None if it has not renewed it yet, or has ended."""
        try:
            left: float | None = self._front.worker_state(worker.number).expires[slot]
        except OSError:
            return None
        return left

    def _fresh(self, worker: Worker, slot: int) -> bool:
        return (self._left(worker, slot) or 0.0) > 0

    def _is_expired(self, worker: Worker) -> bool:
        left = self._left(worker, LIVENESS)
        return left is not None and left <= 0

    @staticmethod
    def _kill(worker: Worker, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(worker.pidfd, number)

    def _reap_orphans(self) -> None:
        """Children of workers that have ended, and templates; the kernel gives them to this process."""
        own = {worker.pid for worker in self._workers}
        with contextlib.suppress(ChildProcessError):
            while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if ended.si_pid in own:
                    return  # its end is seen by its descriptor
                os.waitpid(ended.si_pid, 0)


def _name_of(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"  # a real-time signal


def _seconds_of(target: str) -> float:
    """How long a page takes by itself: `?seconds=10` of a profile."""
    _, _, query = target.partition("?")
    for part in query.split("&"):
        name, _, value = part.partition("=")
        if name == "seconds":
            with contextlib.suppress(ValueError):
                return max(0.0, min(float(value.removesuffix("s")), 60.0))
    return 0.0
