"""A rolling restart: two instances of a server behind HAProxy and behind nginx, replaced in turn under load.

It knows no server: whoever calls says how one is started.

    old instance   SIGTERM ..delay.. listener closed ..last second.. ended
    new instance                     started ... ready  (in the same place)
    HAProxy               red -> out                 green -> in
    then the other one

Every step waits for the one before it, so a slow machine makes it longer and nothing else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.support.balancers import Balancer, haproxy, nginx
from tests.support.client import get, wait_for
from tests.support.load import Load, Tally, loading
from tests.support.places import Place, tcp_places
from tests.support.streams import Streamed, Streams, streaming

INTERVAL = 0.1  # seconds between HAProxy's checks
PATIENCE = 60  # seconds to wait for anything

Start = Callable[[Place], "subprocess.Popen[bytes]"]


@dataclass
class Outcome:
    """The outcome of the load on each balancer, by kind of client, and how the instances ended."""

    rounds: int = 0
    seconds: float = 0.0
    tallies: dict[str, dict[tuple[str, bool], Tally]] = field(default_factory=dict)
    codes: list[int] = field(default_factory=list)  # exit codes
    ends: list[float] = field(default_factory=list)  # seconds from SIGTERM to exit
    logs: dict[str, str] = field(default_factory=dict)
    streams: dict[str, dict[str, Streamed]] = field(default_factory=dict)  # by where they go to and path

    def total(self, balancer: str) -> Tally:
        return sum(self.tallies[balancer].values(), Tally())

    def __add__(self, other: Outcome) -> Outcome:
        """Combines two runs that took place at the same time."""
        tallies = {
            name: {kind: mine.get(kind, Tally()) + tally for kind, tally in theirs.items()}
            for name, theirs in other.tallies.items()
            for mine in [self.tallies.get(name, {})]
        }
        return Outcome(
            self.rounds + other.rounds,
            max(self.seconds, other.seconds),
            tallies,
            self.codes + other.codes,
            self.ends + other.ends,
            {name: self.logs.get(name, "") + text for name, text in other.logs.items()},
            {
                name: {path: self.streams.get(name, {}).get(path, Streamed()) + more for path, more in theirs.items()}
                for name, theirs in other.streams.items()
            },
        )


class Rollout:
    """Instances in their places, each of which can be replaced.  `outcome` gets the codes and times of their ends."""

    def __init__(self, start: Start, stop: signal.Signals, check: str, outcome: Outcome) -> None:
        self._start, self._stop, self._check, self._outcome = start, stop, check, outcome
        self._running: dict[Place, subprocess.Popen[bytes]] = {}
        self._leaving: list[tuple[subprocess.Popen[bytes], threading.Thread]] = []

    def start(self, place: Place) -> None:
        process = self._running[place] = self._start(place)

        def is_ready() -> bool:
            assert process.poll() is None, f"ended with {process.returncode} instead of serving"
            with contextlib.suppress(OSError, EOFError):
                return get(place.health_address, self._check, "Connection: close\r\n").status == 200
            return False

        wait_for(is_ready, PATIENCE, "a ready instance")

    def replace(self, place: Place) -> None:
        old = self._running.pop(place)
        waiter = threading.Thread(target=self._note_end, args=(old, time.monotonic()), daemon=True)
        self._leaving.append((old, waiter))
        waiter.start()
        old.send_signal(self._stop)
        wait_for(lambda: place.is_free, PATIENCE, "a closed listener")
        self.start(place)

    def _note_end(self, old: subprocess.Popen[bytes], began: float) -> None:
        self._outcome.codes.append(old.wait())
        self._outcome.ends.append(time.monotonic() - began)

    def await_ends(self) -> None:
        for _, waiter in self._leaving:
            waiter.join(PATIENCE)
            assert not waiter.is_alive(), "an instance does not end"

    def kill(self) -> None:
        for process in [*self._running.values(), *(process for process, _ in self._leaving)]:
            _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills the instance, with its workers if it has its own session."""
    if process.poll() is None:
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def roll(
    start: Start,
    *,
    rounds: int,
    stop: signal.Signals = signal.SIGTERM,
    check: str = "/readyz",
    say: Callable[[str], object] = lambda text: None,
    pairs: int = 1,
    places: Sequence[Place] = (),
    each: int = 2,
    pause: float = 0.01,
    streams: tuple[str, ...] = (),
) -> Outcome:
    """Restarts both instances `rounds` times.

    `stop`: the signal that asks for a graceful end; `check`: the page that is 200 while an instance wants traffic;
    `pairs`: how many pairs of instances, each behind balancers of its own, share the rounds and run at the same time;
    `places`: where they serve, two for each pair; ports if none are given.  `streams`: paths of streams that are held
    open through each balancer, and to one instance directly.
    """
    places = places or tcp_places(2 * pairs)

    def one(number: int) -> Outcome:
        share = rounds // pairs + (number < rounds % pairs)
        return _roll(start, places[2 * number : 2 * number + 2], share, stop, check, say, each, pause, streams)

    with ThreadPoolExecutor(pairs) as pool:
        return sum(pool.map(one, range(pairs)), Outcome())


def _roll(
    start: Start,
    places: Sequence[Place],
    rounds: int,
    stop: signal.Signals,
    check: str,
    say: Callable[[str], object],
    each: int,
    pause: float,
    streams: tuple[str, ...],
) -> Outcome:
    outcome = Outcome(rounds)
    instances = Rollout(start, stop, check, outcome)
    with contextlib.ExitStack() as stack:
        stack.callback(instances.kill)
        for place in places:
            instances.start(place)
        balancers = [
            stack.enter_context(haproxy(places, check=check, interval=INTERVAL)),
            stack.enter_context(nginx(places)),
        ]
        for place in places:
            await_place(balancers, place)
        loads: dict[str, Load] = {
            b.name: stack.enter_context(loading(b.address, each=each, pause=pause)) for b in balancers
        }
        open_to = {b.name: b.address for b in balancers} | {"direct": places[0].address} if streams else {}
        opened: dict[str, Streams] = {
            name: stack.enter_context(streaming(address, streams)) for name, address in open_to.items()
        }
        began = time.monotonic()
        for number in range(rounds):
            for place in places:
                instances.replace(place)
                await_place(balancers, place)  # before the other one goes
            say(f"{number + 1} of {rounds} rolling restarts after {time.monotonic() - began:.0f} s")
        for name, load in loads.items():
            outcome.tallies[name] = load.finish()
        outcome.seconds = time.monotonic() - began
        instances.await_ends()
        outcome.streams = {name: found.finish() for name, found in opened.items()}
        outcome.logs = {b.name: b.log() for b in balancers}
    return outcome


def await_place(balancers: Sequence[Balancer], place: Place) -> None:
    """Waits until all of them send requests there."""
    for balancer in balancers:
        wait_for(lambda b=balancer: b.has(place.name), PATIENCE, f"{balancer.name} with {place.address}")  # type: ignore[misc]


def table(outcome: Outcome) -> str:
    """One line for each kind of client."""
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
    for name, found in outcome.streams.items():
        lines += [f"{name:8}{path:18}{streamed}" for path, streamed in found.items()]
    return "\n".join(lines)
