"""Tells a service manager how the service is: sd_notify(3), one datagram for each message.

It is imported only if NOTIFY_SOCKET is set, by systemd (Type=notify) or whoever speaks its protocol.

    READY=1      The application is imported and workers run; gunicorn likewise sends it once its arbiter has started.
                 It does not wait for /readyz: systemd kills a start that takes longer than TimeoutStartSec, so a
                 database that is down when a machine boots would keep the service from ever starting, and with it all
                 units that are ordered after it.
    STATUS=      Readiness with its reason, whenever it changes; `systemctl status` shows it to every local user.
    WATCHDOG=1   From the thread that renews the health pages, so it stops when the interpreter hangs, and as long as
                 liveness passes.  The front could send it without the interpreter, so it would prove nothing.
    STOPPING=1   The drain has begun.

Nothing waits for the receiver.  READY, STATUS and STOPPING that find no room are sent again later.  Each has a datagram
of its own because conmon, between a container and systemd, passes on either READY=1 or WATCHDOG=1 of a datagram, and
nothing else (containers/conmon: src/conn_sock.c).

MAINPID is never sent.  Where the service is a child of another process of ours (process 1 of a container, --reload), it
is that process which systemd must signal and wait for; and outside of a container the number means another process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING

from pkg.health.checks import TICK

if TYPE_CHECKING:
    from pkg.health.report import CheckState, HealthReport

__all__ = ["Notify"]

_log = logging.getLogger("pkg.service")

MAX_STATUS = 500  # characters; it is for one line of a terminal


class Notify:
    """The connection to the service manager that `environ` describes.

    Removes NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID from `environ`, so that programs which the application starts
    do not send in our name.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        name = environ.pop("NOTIFY_SOCKET")
        interval, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        self._address = os.fsencode(f"\0{name[1:]}" if name.startswith("@") else name)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._lock = threading.Lock()
        self._unsent: dict[str, str] = {}
        self._status = ""
        self._is_over = self._has_failed = False
        self._report: Callable[[], HealthReport] | None = None
        self._shows: Callable[[CheckState], bool] = bool
        self._interval = 0.0  # seconds between two signs of life; 0: none
        self._last = 0.0
        if not name.startswith(("/", "@")):
            _log.warning("ignoring NOTIFY_SOCKET=%s: only paths and names that begin with @ are supported", name)
            self._socket.close()
        elif interval.isascii() and interval.isdecimal() and pid in ("", str(os.getpid())):
            self._interval = int(interval) / 2_000_000  # half of it, as sd_watchdog_enabled(3) recommends
        if 0 < self._interval < TICK:
            _log.warning(
                "WATCHDOG_USEC is %g s, but signs of life are sent every %g s; set WatchdogSec to at least %g s",
                self._interval * 2,
                TICK,
                TICK * 2,
            )

    def watch(self, report: Callable[[], HealthReport], shows: Callable[[CheckState], bool]) -> None:
        """From now on each call of this object sends what has changed.  `shows`: whether every local user may see the
        reason of a check; an application's own exceptions may contain secrets."""
        self._report, self._shows = report, shows

    def __call__(self) -> None:
        """Called with every tick of the health thread."""
        assert self._report is not None
        report = self._report()
        self._tell(readiness(report, self._shows))
        if report.live or self._is_over:  # a drain has a deadline of its own
            self._beat()

    def ready(self) -> None:
        self._send({"READY": "1"})

    def stopping(self, reason: str, *, is_last: bool = True) -> None:
        """The drain has begun.  `is_last`: the process that the service manager has started is also about to end."""
        self._tell(f"draining after {reason}", is_over=True)
        if is_last:
            self._send({"STOPPING": "1"})

    def end(self) -> None:
        """Called when the checks have stopped.  Signs of life are sent until the process ends, for which threads of the
        application may let it wait."""

        def run() -> None:
            while True:
                self._beat()
                time.sleep(TICK)

        if not self._interval:
            self._socket.close()
            return
        with contextlib.suppress(RuntimeError):  # no thread can be started
            threading.Thread(target=run, name="watchdog", daemon=True).start()

    def in_child(self) -> None:
        """Called in a forked process, which is not the service."""
        self._socket.close()  # without the lock, which a thread of the parent may have held

    def _tell(self, status: str, *, is_over: bool = False) -> None:
        status = " ".join(status.split())[:MAX_STATUS]
        with self._lock:
            is_new = is_over or (status != self._status and not self._is_over)
            self._is_over = self._is_over or is_over
            if is_new:
                self._status = self._unsent["STATUS"] = status
        self._send({})

    def _beat(self) -> None:
        """Sends a sign of life if it would come late with the next tick."""
        now = time.monotonic()
        if self._interval and now - self._last >= self._interval - TICK:
            self._last = now
            self._put("WATCHDOG=1")  # in vain if there is no room; the next one is as good

    def _send(self, messages: dict[str, str]) -> None:
        """Sends them after those that are still to be sent."""
        with self._lock:
            self._unsent |= messages
            for name, value in list(self._unsent.items()):
                if not self._put(f"{name}={value}"):
                    break
                del self._unsent[name]

    def _put(self, message: str) -> bool:
        try:
            self._socket.sendto(message.encode(), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._address)
        except OSError as error:
            if not self._has_failed:
                self._has_failed = True
                _log.debug("NOTIFY_SOCKET did not take %s: %s", message, error)
            return False
        return True


def readiness(report: HealthReport, shows: Callable[[CheckState], bool]) -> str:
    """The verdict of the readiness page, and the checks that fail or are degraded."""
    failing = [state for state in report.readiness if state.status != "ok"]
    required = [state for state in failing if state.required and state.status != "degraded"]
    if not report.ready:
        # `startup` waits for the others and is no reason of its own as long as one of them is.
        told, verdict = [state for state in required if state.name != "startup"] or required, "not ready"
    else:
        told, verdict = failing, "ready, degraded" if failing else "ready"
    return ": ".join([verdict, "; ".join(_name(state, shows) for state in told)] if told else [verdict])


def _name(state: CheckState, shows: Callable[[CheckState], bool]) -> str:
    return f"{state.name}: {state.reason}" if shows(state) and state.reason else f"{state.name}: {state.status}"
