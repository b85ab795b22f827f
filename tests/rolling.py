"""A rolling restart: two instances of a server behind HAProxy and behind nginx, replaced in turn under load.

It knows no server: whoever calls says how one is started.

    old instance   SIGTERM ..delay.. listener closed ..last second.. ended
    new instance                     started ... ready  (on the same port)
    HAProxy               red -> out                 green -> in
    then the other one
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.balancers import haproxy, nginx
from tests.client import get, wait_for
from tests.load import Load, Tally, is_listening, loading
from tests.processes import free_port

INTERVAL = 0.1  # seconds between HAProxy's checks
SETTLE = 3 * INTERVAL  # for HAProxy to see that an instance is back, before the other one goes

Start = Callable[[int], "subprocess.Popen[bytes]"]  # starts an instance on a port


@dataclass
class Outcome:
    """What became of the load of each balancer, by kind of client, and how the instances ended."""

    rounds: int = 0
    seconds: float = 0.0
    tallies: dict[str, dict[tuple[str, bool], Tally]] = field(default_factory=dict)
    codes: list[int] = field(default_factory=list)  # exit codes
    ends: list[float] = field(default_factory=list)  # seconds from SIGTERM to exit
    logs: dict[str, str] = field(default_factory=dict)

    def total(self, balancer: str) -> Tally:
        return sum(self.tallies[balancer].values(), Tally())


class _Instances:
    def __init__(self, start: Start, ports: list[int], check: str, outcome: Outcome) -> None:
        self._start, self._check, self._outcome = start, check, outcome
        self.ports = ports
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._leaving: list[tuple[subprocess.Popen[bytes], float]] = []

    def start(self, port: int) -> None:
        process = self._running[port] = self._start(port)

        def is_ready() -> bool:
            assert process.poll() is None, f"ended with {process.returncode} instead of serving"
            with contextlib.suppress(OSError, EOFError):
                return get(("127.0.0.1", port), self._check, "Connection: close\r\n").status == 200
            return False

        wait_for(is_ready, 30, "a ready instance")

    def replace(self, port: int) -> None:
        old, began = self._running.pop(port), time.monotonic()
        self._leaving.append((old, began))
        old.send_signal(signal.SIGTERM)
        wait_for(lambda: not is_listening(port) or old.poll() is not None, 30, "a closed listener")
        self.start(port)
        self.collect()

    def collect(self, wait: float = 0.0) -> None:
        """Notes who has ended."""
        for process, began in list(self._leaving):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._outcome.codes.append(process.wait(wait))
                self._outcome.ends.append(time.monotonic() - began)
                self._leaving.remove((process, began))

    def kill(self) -> None:
        for process in [*self._running.values(), *(process for process, _ in self._leaving)]:
            if process.poll() is None:
                process.kill()
            process.wait()


def roll(
    start: Start,
    *,
    rounds: int,
    check: str = "/readyz",
    say: Callable[[str], object] = lambda text: None,
    each: int = 2,
    pause: float = 0.01,
) -> Outcome:
    """Restarts both instances `rounds` times.  `check`: the page that is 200 while an instance wants traffic."""
    outcome = Outcome(rounds)
    instances = _Instances(start, [free_port(), free_port()], check, outcome)
    with contextlib.ExitStack() as stack:
        stack.callback(instances.kill)
        for port in instances.ports:
            instances.start(port)
        balancers = [
            stack.enter_context(haproxy(instances.ports, check=check, interval=INTERVAL)),
            stack.enter_context(nginx(instances.ports)),
        ]
        for balancer in balancers:
            wait_for(lambda b=balancer: get(b.address, "/echo/0").status == 200, 15, balancer.name)  # type: ignore[misc]
        time.sleep(SETTLE)
        loads: dict[str, Load] = {
            b.name: stack.enter_context(loading(b.address, each=each, pause=pause)) for b in balancers
        }
        began = time.monotonic()
        for number in range(rounds):
            for port in instances.ports:
                instances.replace(port)
                time.sleep(SETTLE)
            say(f"{number + 1} of {rounds} rolling restarts after {time.monotonic() - began:.0f} s")
        for name, load in loads.items():
            outcome.tallies[name] = load.finish()
        outcome.seconds = time.monotonic() - began
        instances.collect(30.0)
        outcome.logs = {b.name: b.log() for b in balancers}
    return outcome


def table(outcome: Outcome) -> str:
    """A line for each kind of client."""
    lines = [
        f"{'':8}{'client':18}{'sent':>8}{'answered':>10}{'lost':>6}  {'p50':>6} {'p99':>6} {'max':>6} ms  lost how"
    ]
    for name, tallies in outcome.tallies.items():
        for (method, keep), t in tallies.items():
            p50, p99, top = (t.quantile(q) * 1000 for q in (0.5, 0.99, 1.0))
            how = ", ".join(f"{n} x {what}" for what, n in sorted(t.lost.items()))
            client = f"{method} {'keep-alive' if keep else 'one-shot'}"
            lines.append(
                f"{name:8}{client:18}{t.sent:8}{t.answered:10}{t.lost.total():6}"
                f"  {p50:6.1f} {p99:6.1f} {top:6.0f}     {how}"
            )
    return "\n".join(lines)
