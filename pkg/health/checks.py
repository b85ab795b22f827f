"""Liveness and readiness: background checks, and the pages that the front sends to probers.

Nothing is checked while a probe waits: checks run in the background, pages are rendered when a state changes, and the
front sends them until they expire.

    check thread:  wait interval --> probe() --> result --+
                                                          v
    tick thread:   hung?  stale?  changed? --> render --> publish()      every tick: renew()

A check is `pending` until its first result (an unknown state never passes), then `ok`, `degraded` or `failed`.  It
fails after `failures` bad results in a row and recovers after `recoveries` good ones; if the very first result is good,
it counts at once.  The thread of a check only runs its probe: while a probe hangs, the tick thread counts failures for
it again and again, and its result is ignored when it returns too late.

Time in which the process is frozen does not count (`clock`).  Results from before a freeze are outdated, so every check
runs at once after it, and readiness is not renewed until the required checks have run.
"""

from __future__ import annotations

import logging
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

from pkg.errors import one_line
from pkg.health.coroutines import Coroutines, Gone, Overran, is_coroutine_function
from pkg.health.pages import LIVENESS, READINESS, Answers, HealthPage, Result, State, pages_of, verdict_of
from pkg.health.report import CheckRuns, HealthReport

__all__ = ["Check", "Checker", "Degraded", "Result"]

_log = logging.getLogger("pkg.health")

TICK = 0.5  # seconds between two ticks; changes are published at once
FROZEN = 2.0  # seconds; a tick that is later than this means that the process or the interpreter was stopped
READINESS_EXPIRY = 10.0  # seconds; shorter if a required check becomes stale sooner
STOP_TIMEOUT = 0.2  # seconds, for all checks together, so that hanging checks do not use up the time of the drain
MAX_CHECKS = 60

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
BUILT_IN = ("startup", "shutdown", "application", "interpreter", "workers")


class Degraded(NamedTuple):
    """Returned by a probe that passes with a reservation: the service stays ready, and the reason is shown."""

    reason: str


def _judge(outcome: Any) -> Result:
    """The result of a probe that has returned.  Returning False is a failure as well."""
    if isinstance(outcome, Degraded):
        return Result("degraded", outcome.reason)
    if outcome is False:
        return Result("failed", "returned False")
    return Result("ok")


def _untraced() -> AbstractContextManager[object]:
    """OpenTelemetry's instrumentation of a driver or a client, if there is one, makes no spans of what a check does."""
    utils = sys.modules.get("opentelemetry.instrumentation.utils")
    suppressing: Callable[[], AbstractContextManager[object]] = getattr(utils, "suppress_instrumentation", nullcontext)
    return suppressing()


def _reason(error: BaseException) -> str:
    """One line."""
    if isinstance(error, Overran):
        return str(error)
    if not isinstance(error, Exception):
        return type(error).__name__
    return one_line(error)


class Check:
    """A readiness check: `probe()` fails by raising or by returning False; Degraded and any other value pass.  It may
    be a coroutine function.

    It runs every `interval` seconds (twice as often while it fails), and fails if it takes longer than `timeout`
    seconds.  If it is not `required`, a failure makes the service degraded instead of unready.

    Raises ValueError for an invalid name, or a number out of range.
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
        self.is_coroutine = is_coroutine_function(probe)

        self.status = "pending"
        self.reason = "no result yet"
        self.since = 0.0  # when the status changed; on the checker's clock
        self.changed = datetime.now(UTC)
        self.last = 0.0  # time of the last result
        self.duration = 0.0  # of the last run, in seconds
        self.runs = 0
        self.proved = False  # whether it has ever passed

        self._bad = 0
        self._good = 0
        self._began: float | None = None  # start of the current run
        self._overdue = 0  # how many failures this run has been counted as, because it hangs
        self._outdated = False  # the last result is from before the process was frozen
        self._again = threading.Event()  # set to run at once instead of sleeping

    @property
    def stale_after(self) -> float:
        """Seconds after which the last result no longer counts."""
        return 3 * self.interval + self.timeout

    @property
    def passes(self) -> bool:
        return self.status in ("ok", "degraded")

    def take(self, result: Result, now: float) -> bool:
        """Counts a result.  Returns whether the status has changed."""
        former = self.status
        self.last = now
        if result.status == "failed":
            self._good = 0
            self._bad += 1
            if former == "failed" or self._bad >= self.failures or former == "pending":
                # From `pending` a single failure is enough, as a pending check does not pass either.
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


class _Stage(IntEnum):
    NEW = 0
    CHECKING = 1
    CHECKED = 2  # no check counts any more; liveness is renewed
    STOPPED = 3


class Checker:
    """Runs the checks and keeps the published pages up to date.

    `publish(pages)` and `renew(slot, seconds)` belong to the front.  `root`: `/` shows the readiness page.  `/livez` is
    an alias of `/healthz`, but not of another `liveness_path`.  `stuck()` returns a reason if all workers are stuck.
    `last_words(reason)` is called before liveness fails for the first time, since the process may be killed for it.
    Each of `notices` is called regularly and logs what it has found.  `frozen()` returns the seconds for which the
    process has been frozen so far, and `clock()` the monotonic time without them.  `coroutines` runs checks that are
    coroutine functions; by default each in an event loop of its own.
    """

    def __init__(
        self,
        *,
        publish: Callable[[Sequence[HealthPage]], object],
        renew: Callable[[int, float], object],
        liveness_timeout: float = 30.0,
        root: bool = False,
        liveness_path: str = "/healthz",
        readiness_path: str = "/readyz",
        stuck: Callable[[], str | None] | None = None,
        last_words: Callable[[str], object] | None = None,
        notices: Sequence[Callable[[], object]] = (),
        clock: Callable[[], float] = time.monotonic,
        frozen: Callable[[], float] = lambda: 0.0,
        coroutines: Coroutines | None = None,
    ) -> None:
        self._publish, self._renew_page = publish, renew
        self._pages: dict[str, HealthPage] = {}
        self._fresh_until = [0.0, 0.0]  # by slot, on `clock`
        self._liveness_timeout = liveness_timeout
        self._root = root
        self._liveness_paths = (liveness_path, "/livez") if liveness_path == "/healthz" else (liveness_path,)
        self._readiness_path = readiness_path
        self._stuck = stuck
        self._notices = notices
        self._last_words = last_words
        self._clock = clock
        self._frozen = frozen
        self._frozen_so_far = 0.0
        if coroutines is None:
            coroutines = Coroutines()
            coroutines.open()
        self._coroutines = coroutines
        self._lock = threading.RLock()
        self._checks: dict[str, Check] = {}
        self._stage = _Stage.NEW
        self._proved = self._is_child = False
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
        """The paths of the pages; the pages of single checks are below them."""
        return (*self._liveness_paths, self._readiness_path)

    def answers(self, path: str) -> Answers | None:
        """The answers of a page as the front gives them; None if there is no page of this path."""
        page = self._pages.get(path.rstrip("/"))
        if page is None:
            return None
        _, slot, fresh, expired, _ = page
        return fresh if self._clock() < self._fresh_until[slot] else expired

    # -------------------------------------------------------------- life

    def start(self) -> None:
        """Publishes the first pages and starts the checks."""
        with self._lock:
            self._stage = _Stage.CHECKING
            self.tick()
            self._spawn(self._run_ticks, "health")
            for check in self._checks.values():
                self._spawn(partial(self._run_check, check), f"check-{check.name}")

    def end_checks(self) -> None:
        """Ends the checks before what they look at is closed, which is no failure; liveness is still renewed."""
        with self._lock:
            self._stage = max(self._stage, _Stage.CHECKED)
            for check in self._checks.values():
                check._again.set()

    def stop(self) -> None:
        """Stops everything.  A probe that hangs is left behind in its daemon thread."""
        self.end_checks()
        self._stage = _Stage.STOPPED
        self._wake.set()
        end = time.monotonic() + STOP_TIMEOUT
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def in_child(self) -> None:
        """Called in a forked process, which must not run checks."""
        self._is_child, self._stage = True, _Stage.STOPPED

    def _are_checks_over(self) -> bool:
        return self._stage >= _Stage.CHECKED

    def _spawn(self, target: Callable[[], object], name: str) -> None:
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def add(self, check: Check) -> None:
        """Adds a check, which does not pass before its first result.  Raises ValueError if the name is taken, or for
        more than MAX_CHECKS checks."""
        with self._lock:
            if check.name in self._checks:
                raise ValueError(f"a check named {check.name!r} already exists")
            if len(self._checks) == MAX_CHECKS:
                raise ValueError(f"there can be at most {MAX_CHECKS} checks")
            check.since = check.last = self._clock()
            self._checks[check.name] = check
            if self._stage == _Stage.CHECKING:
                self._spawn(partial(self._run_check, check), f"check-{check.name}")
                self.refresh()

    # -------------------------------------------------------------- states set by others

    def startup_done(self) -> None:
        """Called when the application is loaded; `startup` passes once every required check has passed once."""
        self._set("_startup", Result("ok"))

    def drain(self) -> None:
        """Makes readiness fail for good."""
        self._set("_shutdown", Result("failed", "draining"))

    def set_ready(self, ready: bool, reason: str = "") -> None:
        """Sets the state of the check `application`."""
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
        """Makes liveness fail for good, because the application reports that it cannot recover."""
        with self._lock:
            if self._liveness.status == "ok":
                self._mourn(reason)
                self._liveness = Result("failed", reason)
            self.refresh()

    def _set(self, name: str, result: Result) -> None:
        with self._lock:
            setattr(self, name, result)
            if self._stage in (_Stage.CHECKING, _Stage.CHECKED):
                self.refresh()

    def _mourn(self, reason: str) -> None:
        _log.critical("liveness fails: %s", reason)
        if self._last_words is not None:
            self._last_words(reason)

    # -------------------------------------------------------------- checking

    def run_once(self, check: Check) -> None:
        """Runs one check once and counts its result."""
        with self._lock:
            check._began, check._overdue = self._clock(), 0
            frozen = self._frozen()
        try:
            with _untraced():
                outcome = check.probe()
                if hasattr(outcome, "__await__"):
                    outcome = self._coroutines.run(check.name, outcome, check.timeout)
            result = _judge(outcome)
            failure: BaseException | None = None
        except BaseException as error:  # SystemExit in a probe must not end its thread
            failure = error
            result = Result("failed", _reason(error))
        if self._is_child:
            from pkg.child import end

            end(failure)
        with self._lock:
            now = self._clock()
            check.duration, check._began = now - check._began, None
            if self._are_checks_over() or isinstance(failure, Gone):
                return
            check.runs += 1
            outdated = check._outdated
            if frozen != self._frozen():
                if result.status == "failed":  # most likely because of the freeze
                    check._again.set()
                    return
            else:
                check._outdated = False
            if check._overdue == 0 and check.duration > check.timeout and not isinstance(failure, Overran):
                result = Result("failed", f"took {check.duration:.1f} s, longer than {check.timeout:g} s")
            elif check._overdue:
                return  # it has been counted as failed already, and the result is outdated
            if check.take(result, now):
                self.refresh()
            if outdated:
                self._renew_readiness()

    def _run_check(self, check: Check) -> None:
        jitter = random.Random()
        while check.is_coroutine and not self._are_checks_over() and not self._coroutines.wait(TICK):
            pass  # there is no event loop for it yet
        while not self._are_checks_over():
            began = time.monotonic()
            try:
                self.run_once(check)
            except Exception:  # not raised by the probe; the result counts, and the next tick publishes it
                _log.exception("running the health check %s failed", check.name)
            # Run twice as often while something fails, to notice both the second failure and the recovery soon.
            interval = check.interval if check.status == "ok" and not check._bad else check.interval / 2
            # Counted from start to start: how soon readiness fails must not depend on how slowly probes fail.
            rest = began + interval * jitter.uniform(0.85, 1.0) - time.monotonic()
            check._again.wait(max(rest, interval / 10))
            check._again.clear()

    def _run_ticks(self) -> None:
        began = time.monotonic()
        while self._stage != _Stage.STOPPED:
            late = time.monotonic() - began > TICK + FROZEN
            began = time.monotonic()
            try:
                self.tick()
                for notice in self._notices:
                    notice()
            except Exception:  # the next tick tries again; if none succeeds, the pages expire, as they should
                _log.exception("updating the health pages failed")
            self._wake.wait(TICK / 10 if late else TICK)  # the front may not have noticed the freeze yet

    def tick(self) -> None:
        """Fails checks that hang or are stale, publishes changes, and renews the published pages."""
        with self._lock:
            self._look_again()
            now = self._clock()
            for check in self._checks.values() if not self._are_checks_over() else ():
                if check._began is not None and now - check._began > check.timeout + check._overdue * check.interval:
                    check._overdue += 1
                    reason = f"has been hanging for {now - check._began:.1f} s"
                    if check.is_coroutine and (why := self._coroutines.why()):
                        reason += f": {why}"
                    check.take(Result("failed", reason), now)
                elif check.passes and now - check.last > check.stale_after:
                    check._bad = check.failures
                    check.take(Result("failed", f"stale: no result for {now - check.last:.1f} s"), now)
            stuck = self._stuck() if self._stuck is not None else None
            if stuck and self._workers.status == "ok":
                self._mourn(stuck)
            self._workers = Result("failed", stuck) if stuck else Result("ok")
            self.refresh()
            self._renew(LIVENESS, self._liveness_timeout)
            self._renew_readiness()

    def _look_again(self) -> None:
        """Runs every check at once after the process was frozen."""
        frozen = self._frozen()
        if frozen != self._frozen_so_far:
            _log.info("the process was frozen for %.1f s; running every check again", frozen - self._frozen_so_far)
            self._frozen_so_far = frozen
            for check in self._checks.values():
                check._outdated = True
                check._again.set()

    def _renew(self, slot: int, seconds: float) -> None:
        self._fresh_until[slot] = self._clock() + seconds
        self._renew_page(slot, seconds)

    def _renew_readiness(self) -> None:
        required = [c for c in self._checks.values() if c.required]
        if not any(c._outdated and c.passes for c in required):
            self._renew(READINESS, min([READINESS_EXPIRY, *(c.stale_after for c in required)]))
            if self._frozen() != self._frozen_so_far:  # frozen just now; the front has let the page expire
                self._renew(READINESS, 0.0)

    # -------------------------------------------------------------- rendering

    def _states(self) -> tuple[list[State], list[State]]:
        liveness = [
            State("interpreter", Result("ok"), True, None),
            State("workers", self._workers, True, None),
            State("application", self._liveness, True, None),
        ]
        if self._startup.status == "ok" and all(c.proved for c in self._checks.values() if c.required):
            self._proved = True  # for good; a check that is added later counts for itself only
        readiness = [
            State("startup", Result("ok") if self._proved else Result("failed", "in progress"), True, None),
            State("shutdown", self._shutdown, True, None),
            State("application", self._application, True, None),
            *(State(c.name, Result(c.status, c.reason), c.required, c.changed) for c in self._checks.values()),
        ]
        return liveness, readiness

    def refresh(self) -> None:
        """Renders and publishes the pages if anything visible to a prober has changed."""
        with self._lock:
            liveness, readiness = self._states()
            shown = [(s.name, s.result.status, s.changed) for s in (*liveness, *readiness)]
            if shown == self._shown:
                return
            pages: list[HealthPage] = []
            for path in self._liveness_paths:
                pages += pages_of(path, path[1:], LIVENESS, liveness)
            pages += pages_of(self._readiness_path, self._readiness_path[1:], READINESS, readiness)
            if self._root:
                pages.append(("/", *pages[-len(readiness) - 1][1:]))
            self._publish(pages)
            self._pages = {page[0]: page for page in pages}
            self._shown = shown  # if that raised, the next tick tries again

    def report(self) -> HealthReport:
        """All states with their reasons, for the admin listener; not for probers."""
        with self._lock:
            now = self._clock()
            liveness, readiness = self._states()
            return HealthReport(
                live=verdict_of(liveness) != "fail",
                ready=verdict_of(readiness) != "fail",
                liveness=[state.report() for state in liveness],
                readiness=[
                    state.report(_runs(self._checks[state.name], now) if state.name in self._checks else None)
                    for state in readiness
                ],
            )


def _runs(check: Check, now: float) -> CheckRuns:
    return CheckRuns(
        lasted=round(now - check.since, 1),
        age=round(now - check.last, 1),
        duration=round(check.duration, 4),
        interval=check.interval,
        timeout=check.timeout,
        runs=check.runs,
    )
