"""Liveness and readiness: background checks, and the answers that the front gives to probes.

It asks nobody while a probe waits: checks run on their own, answers are rendered when a state changes, and the front
gives them until they expire.

    check thread:  wait interval --> probe() --> result --+
                                                          v
    tick thread:   hung?  stale?  changed? --> render --> publish()      every tick: renew()

A check is `pending` until its first result (unknown never passes), then `ok`, `degraded` or `failed`.  It fails after
`failures` bad results in a row and recovers after `recoveries` good ones; the first result of all counts at once when
it is good.  Its thread runs nothing but its probe: a probe that hangs is failed by the tick thread, again and again,
and what it returns too late counts for nothing.

Time in which the process is frozen is no time here (`clock`).  What was found before it says nothing about now, so
after it every check runs at once, and readiness is not renewed until the required ones have.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

from pkg._answers import LIVENESS, READINESS, Page, Result, State, pages_of, verdict_of

__all__ = ["Check", "Checker", "Degraded", "Result"]

_log = logging.getLogger(__name__)

TICK = 0.5  # seconds between two looks; changes are published at once
FROZEN = 2.0  # seconds by which a tick is late if the process, or the interpreter, has stood still
READINESS_EXPIRY = 10.0  # seconds; shorter where a required check is stale sooner
STOP_TIMEOUT = 0.2  # for all checks together: those that hang must not use up the time of the shutdown
MAX_CHECKS = 60

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
BUILT_IN = ("startup", "shutdown", "application", "interpreter", "workers")


class Degraded(NamedTuple):
    """What a probe returns when it passes, but not well: ready all the same, and shown."""

    reason: str


def _judge(outcome: Any) -> Result:
    """What a probe that has returned says.  Not only a raised error fails: what is meant so must not pass for well."""
    if isinstance(outcome, Degraded):
        return Result("degraded", outcome.reason)
    if outcome is False:
        return Result("failed", "returned False")
    if hasattr(outcome, "__await__"):
        if hasattr(outcome, "close"):
            outcome.close()  # else the interpreter warns that it was never awaited
        return Result("failed", "returned a coroutine; a check must be an ordinary function")
    return Result("ok")


def _reason(error: BaseException) -> str:
    """One line."""
    if not isinstance(error, Exception):
        return type(error).__name__
    try:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    except Exception:  # an error whose own __str__ fails
        return type(error).__name__


class Check:
    """A readiness check: `probe()` raises or returns False to fail; Degraded and anything else pass.

    It runs every `interval` seconds (half of that while failing), and fails if it takes longer than `timeout`.  One
    that is not `required` makes the whole degraded, not unready.  ValueError: a name or a number that cannot be.
    """

    def __init__(
        self,
        name: str,
        probe: Callable[[], object],
        interval: float = 5.0,
        timeout: float = 1.0,
        required: bool = True,
        failures: int = 2,
        recoveries: int = 2,
    ) -> None:
        if not _NAME.fullmatch(name) or name in BUILT_IN:
            raise ValueError(f"{name!r} is not a valid name for a check")
        if not 0.05 <= interval <= 3600 or not 0.01 <= timeout <= 600:
            raise ValueError(f"check {name}: interval must be 0.05 to 3600 seconds, and timeout 0.01 to 600 seconds")
        if failures < 1 or recoveries < 1:
            raise ValueError(f"check {name}: failures and recoveries must be at least 1")
        self.name = name
        self.probe = probe
        self.interval = interval
        self.timeout = timeout
        self.required = required
        self.failures = failures
        self.recoveries = recoveries

        self.status = "pending"
        self.reason = "no result yet"
        self.since = 0.0  # of the status; the checker's clock
        self.changed = datetime.now(UTC)
        self.last = 0.0  # when the last result came
        self.duration = 0.0  # of the last probe, seconds
        self.runs = 0
        self.proved = False  # has passed once

        self._bad = 0
        self._good = 0
        self._began: float | None = None  # while the probe runs
        self._overdue = 0  # how often this run has been failed for its length
        self._outdated = False  # the last result is from before the process was frozen
        self._again = threading.Event()  # not to sleep until the next run

    @property
    def stale_after(self) -> float:
        """Seconds after which a result says nothing any more."""
        return 3 * self.interval + self.timeout

    @property
    def passes(self) -> bool:
        return self.status in ("ok", "degraded")

    def take(self, result: Result, now: float) -> bool:
        """Counts a result; True if the status has changed."""
        former = self.status
        self.last = now
        if result.status == "failed":
            self._good = 0
            self._bad += 1
            if former == "failed" or self._bad >= self.failures or former == "pending":
                # From `pending` there is nothing to damp: it does not pass either way.
                self.status, self.reason = "failed", result.reason
        else:
            self.proved = True
            self._bad = 0
            self._good += 1
            if former != "failed" or self._good >= self.recoveries:
                self.status, self.reason = result.status, result.reason
        if self.status == former:
            return False
        self._log(former, now)
        self.since, self.changed = now, datetime.now(UTC)
        return True

    def _log(self, former: str, now: float) -> None:
        lasted = f"(was {former} for {now - self.since:.1f} s)"
        if self.status == "ok":
            _log.info("readiness check %s ok %s", self.name, lasted)
        else:
            _log.warning("readiness check %s %s: %s %s", self.name, self.status, self.reason, lasted)


class Checker:
    """Runs the checks and keeps the published answers true.

    `publish(pages)` and `renew(slot, seconds)` are the front's.  `root`: `/` answers like the readiness page.  `/livez`
    is another name of `/healthz`, not of what is put in its place.  `stuck()` gives a reason if no worker moves any
    more.  `last_words(reason)` is called before the first failing liveness answer: the process may be killed for it.
    `late()` is called now and then, to log what has taken too long.  `frozen()` is for how many seconds the process has
    been frozen so far, `clock()` the monotonic time without those.
    """

    def __init__(
        self,
        *,
        publish: Callable[[Sequence[Page]], object],
        renew: Callable[[int, float], object],
        liveness_timeout: float = 30.0,
        root: bool = False,
        liveness_path: str = "/healthz",
        readiness_path: str = "/readyz",
        stuck: Callable[[], str | None] | None = None,
        last_words: Callable[[str], object] | None = None,
        late: Callable[[], object] | None = None,
        clock: Callable[[], float] = time.monotonic,
        frozen: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._publish, self._renew = publish, renew
        self._liveness_timeout = liveness_timeout
        self._root = root
        self._liveness_paths = (liveness_path, "/livez") if liveness_path == "/healthz" else (liveness_path,)
        self._readiness_path = readiness_path
        self._stuck = stuck
        self._late = late
        self._last_words = last_words
        self._clock = clock
        self._frozen = frozen
        self._frozen_so_far = 0.0
        self._lock = threading.RLock()
        self._checks: dict[str, Check] = {}
        self._started = self._stopping = self._proved = self._is_child = False
        self._startup = Result("failed", "in progress")
        self._shutdown = Result("ok")
        self._application = Result("ok")
        self._application_since = clock()
        self._workers = Result("ok")
        self._liveness = Result("ok")
        self._shown: object = None
        self._wake = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def paths(self) -> tuple[str, ...]:
        """Where the pages are; those of single checks are below."""
        return (*self._liveness_paths, self._readiness_path)

    # -------------------------------------------------------------- life

    def start(self) -> None:
        """Publishes the first answers and begins to check."""
        with self._lock:
            self._started = True
            self.tick()
            self._spawn(self._run_ticks, "health")
            for check in self._checks.values():
                self._spawn(partial(self._run_check, check), f"check-{check.name}")

    def stop(self) -> None:
        """Ends the checks; a probe that hangs is left behind in its daemon thread."""
        self._stopping = True
        self._wake.set()
        with self._lock:
            for check in self._checks.values():
                check._again.set()
        end = time.monotonic() + STOP_TIMEOUT
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def in_child(self) -> None:
        """In a process that a probe, or anybody else, has forked: it checks nothing."""
        self._is_child = self._stopping = True

    def _spawn(self, target: Callable[[], object], name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def add(self, check: Check) -> None:
        """One more check; it does not pass until it has a result.  ValueError: the name is taken, or too many."""
        with self._lock:
            if check.name in self._checks:
                raise ValueError(f"a check named {check.name!r} already exists")
            if len(self._checks) == MAX_CHECKS:
                raise ValueError(f"there can be at most {MAX_CHECKS} checks")
            check.since = check.last = self._clock()
            self._checks[check.name] = check
            if self._started:
                self._spawn(partial(self._run_check, check), f"check-{check.name}")
                self.refresh()

    # -------------------------------------------------------------- what others say

    def startup_done(self) -> None:
        """The application is loaded; `startup` passes once every required check has passed once."""
        self._set("_startup", Result("ok"))

    def shutting_down(self) -> None:
        self._set("_shutdown", Result("failed", "draining"))

    def set_ready(self, ready: bool, reason: str = "") -> None:
        """Readiness as the application sees it."""
        with self._lock:
            former, now = self._application.status, self._clock()
            self._set("_application", Result("ok") if ready else Result("failed", reason or "not ready"))
            if former == self._application.status:
                return
            lasted, self._application_since = now - self._application_since, now
        said, was = ("ready", "not ready") if ready else ("not ready", "ready")
        why = f": {reason}" if reason else ""
        _log.info("the application reports that it is %s%s (was %s for %.1f s)", said, why, was, lasted)

    def fail_liveness(self, reason: str) -> None:
        """The application says that this process cannot recover; there is no way back."""
        with self._lock:
            if self._liveness.status == "ok":
                self._mourn(reason)
                self._liveness = Result("failed", reason)
            self.refresh()

    def _set(self, name: str, result: Result) -> None:
        with self._lock:
            setattr(self, name, result)
            if self._started:
                self.refresh()

    def _mourn(self, reason: str) -> None:
        _log.critical("liveness fails: %s", reason)
        if self._last_words is not None:
            self._last_words(reason)

    # -------------------------------------------------------------- checking

    def run_once(self, check: Check) -> None:
        """One probe of one check, and its result."""
        with self._lock:
            check._began, check._overdue = self._clock(), 0
            frozen = self._frozen()
        try:
            result = _judge(check.probe())
            failure: BaseException | None = None
        except BaseException as error:  # SystemExit in a probe must not end its thread
            failure = error
            result = Result("failed", _reason(error))
        if self._is_child:
            from pkg._child import end

            end(failure)
        with self._lock:
            now = self._clock()
            check.duration, check._began = now - check._began, None
            check.runs += 1
            outdated = check._outdated
            if frozen != self._frozen():
                if result.status == "failed":  # for the time that has passed, most likely
                    check._again.set()
                    return
            else:
                check._outdated = False
            if check._overdue == 0 and check.duration > check.timeout:
                result = Result("failed", f"took {check.duration:.1f} s, longer than {check.timeout:g} s")
            elif check._overdue:
                return  # has been failed already, and says nothing about now
            if check.take(result, now):
                self.refresh()
            if outdated:
                self._renew_readiness()

    def _run_check(self, check: Check) -> None:
        jitter = random.Random()
        while not self._stopping:
            began = time.monotonic()
            try:
                self.run_once(check)
            except Exception:  # not the probe's; the result counts, and the next tick publishes it
                _log.exception("running the health check %s failed", check.name)
            # While not everything is well look twice as often, to see both the end of it and the second failure.
            interval = check.interval if check.status == "ok" and not check._bad else check.interval / 2
            # From begin to begin, and never late: how soon readiness is red must not depend on how slowly probes fail.
            rest = began + interval * jitter.uniform(0.85, 1.0) - time.monotonic()
            check._again.wait(max(rest, interval / 10))
            check._again.clear()

    def _run_ticks(self) -> None:
        began = time.monotonic()
        while not self._stopping:
            late = time.monotonic() - began > TICK + FROZEN
            began = time.monotonic()
            try:
                self.tick()
                if self._late is not None:
                    self._late()
            except Exception:  # the next tick tries again; if none succeeds the answers expire, as they should
                _log.exception("updating the health pages failed")
            self._wake.wait(TICK / 10 if late else TICK)  # the front may not have noticed yet that it was frozen

    def tick(self) -> None:
        """Fails what hangs or is stale, publishes what has changed, renews what is published."""
        with self._lock:
            self._look_again()
            now = self._clock()
            for check in self._checks.values():
                if check._began is not None and now - check._began > check.timeout + check._overdue * check.interval:
                    check._overdue += 1
                    check.take(Result("failed", f"has been hanging for {now - check._began:.1f} s"), now)
                elif check.passes and now - check.last > check.stale_after:
                    check._bad = check.failures
                    check.take(Result("failed", f"stale: no result for {now - check.last:.1f} s"), now)
            reason = self._stuck() if self._stuck is not None else None
            if reason and self._workers.status == "ok":
                self._mourn(reason)
            self._workers = Result("failed", reason) if reason else Result("ok")
            self.refresh()
            self._renew(LIVENESS, self._liveness_timeout)
            self._renew_readiness()

    def _look_again(self) -> None:
        """After the process was frozen: every check runs at once."""
        frozen = self._frozen()
        if frozen != self._frozen_so_far:
            _log.info("the process was frozen for %.1f s; running every check again", frozen - self._frozen_so_far)
            self._frozen_so_far = frozen
            for check in self._checks.values():
                check._outdated = True
                check._again.set()

    def _renew_readiness(self) -> None:
        required = [c for c in self._checks.values() if c.required]
        if not any(c._outdated and c.passes for c in required):
            self._renew(READINESS, min([READINESS_EXPIRY, *(c.stale_after for c in required)]))
            if self._frozen() != self._frozen_so_far:  # just now: the front has let it expire before
                self._renew(READINESS, 0.0)

    # -------------------------------------------------------------- rendering

    def _states(self) -> tuple[list[State], list[State]]:
        liveness = [
            State("interpreter", Result("ok"), True, None),
            State("workers", self._workers, True, None),
            State("application", self._liveness, True, None),
        ]
        if self._startup.status == "ok" and all(c.proved for c in self._checks.values() if c.required):
            self._proved = True  # for good: a check that is added later speaks for itself
        readiness = [
            State("startup", Result("ok") if self._proved else Result("failed", "in progress"), True, None),
            State("shutdown", self._shutdown, True, None),
            State("application", self._application, True, None),
            *(State(c.name, Result(c.status, c.reason), c.required, c.changed) for c in self._checks.values()),
        ]
        return liveness, readiness

    def refresh(self) -> None:
        """Renders and publishes if anything that a prober can see has changed."""
        with self._lock:
            liveness, readiness = self._states()
            shown = [(s.name, s.result.status, s.changed) for s in (*liveness, *readiness)]
            if shown == self._shown:
                return
            pages: list[Page] = []
            for path in self._liveness_paths:
                pages += pages_of(path, path[1:], LIVENESS, liveness)
            pages += pages_of(self._readiness_path, self._readiness_path[1:], READINESS, readiness)
            if self._root:
                pages.append(("/", *pages[-len(readiness) - 1][1:]))
            self._publish(pages)
            self._shown = shown  # if that raised, the next tick tries again

    def report(self) -> dict[str, Any]:
        """Everything, with reasons: for the admin listener, not for probers."""
        with self._lock:
            now = self._clock()
            liveness, readiness = self._states()
            return {
                "live": verdict_of(liveness) != "fail",
                "ready": verdict_of(readiness) != "fail",
                "liveness": [s.report() for s in liveness],
                "readiness": [
                    s.report() if s.name not in self._checks else {**s.report(), **_detail(self._checks[s.name], now)}
                    for s in readiness
                ],
            }


def _detail(check: Check, now: float) -> dict[str, Any]:
    return {
        "for": round(now - check.since, 1),
        "age": round(now - check.last, 1),
        "duration": round(check.duration, 4),
        "interval": check.interval,
        "timeout": check.timeout,
        "runs": check.runs,
    }
