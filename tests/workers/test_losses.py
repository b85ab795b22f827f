"""Under load: workers that are killed, and reloads, lose nothing that need not be lost; probes do not notice."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support.client import wait_for
from tests.support.processes import Process, ask
from tests.workers.test_workers import APP, rows, workers

CLIENTS = 8


class Load:
    """Clients that ask on connections which they keep; `outcomes` by method and by status or error."""

    def __init__(self, process: Process, total: int, methods: tuple[str, ...] = ("GET",)) -> None:
        self.outcomes: Counter[tuple[str, object]] = Counter()
        self._address, self._left, self._methods = process.address, total, methods
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    @property
    def is_over(self) -> bool:
        return not any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        with self._lock:
            self._left = 0

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def _take(self) -> bool:
        with self._lock:
            self._left -= 1
            return self._left >= 0

    def _run(self) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=30)
        number = 0
        while self._take():
            number += 1
            method = self._methods[number % len(self._methods)]
            outcome: object
            try:
                connection.request(method, "/", b"" if method == "POST" else None)
                response = connection.getresponse()
                response.read()
                outcome = response.status
            except (OSError, http.client.HTTPException) as error:
                outcome = type(error).__name__
                connection.close()
            with self._lock:
                self.outcomes[method, outcome] += 1
        connection.close()


def probes(process: Process, ended: threading.Event) -> list[float]:
    """Seconds that each probe took, one every 5 ms, on one connection."""
    times = []
    connection = http.client.HTTPConnection(*process.address, timeout=10)
    while not ended.wait(0.005):
        began = time.perf_counter()
        connection.request("GET", "/healthz")
        response = connection.getresponse()
        response.read()
        times.append(time.perf_counter() - began)
        assert response.status == 200
    connection.close()
    return times


def hold_the_lock(process: Process) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException):  # it is killed in the end
        ask(process.address, "/lock", "POST", body=b"", timeout=60)


@pytest.mark.parametrize(
    ("least", "total", "every"),
    [(4, 0, 0.3), pytest.param(0, 100_000, 1.0, marks=[pytest.mark.long, pytest.mark.timeout(600)])],
)
def test_no_get_is_lost_while_workers_are_killed(tmp_path: Path, least: int, total: int, every: float) -> None:
    """Until `least` workers have been killed, or there were `total` requests."""
    with workers(tmp_path, PKG_ACCESS_LOG="off") as process:
        load = Load(process, total or 10**9)
        kills = 0
        times: list[float] = []
        ended = threading.Event()
        prober = threading.Thread(target=lambda: times.extend(probes(process, ended)))
        prober.start()
        while not load.is_over:
            time.sleep(every)
            ready = [row for row in rows(process) if row["is_ready"]]
            if len(ready) == 2:
                os.kill(ready[kills % 2]["pid"], signal.SIGKILL)
                kills += 1
                if kills == least:
                    load.stop()
        load.join()
        ended.set()
        prober.join()
        times.sort()
        p99 = times[-len(times) // 100] * 1e3
        print(f"\n{load.outcomes.total()} GET, {kills} workers killed: {dict(load.outcomes)}; probes p99 {p99:.2f} ms")
        assert set(load.outcomes) == {("GET", 200)}
        assert process.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("reloads", [3, pytest.param(50, marks=[pytest.mark.long, pytest.mark.timeout(600)])])
def test_reloads_lose_nothing(tmp_path: Path, reloads: int) -> None:
    with workers(tmp_path, PKG_ACCESS_LOG="off") as process:
        load = Load(process, 10**9, ("GET", "POST"))
        for _ in range(reloads):
            before = {row["pid"] for row in rows(process)}
            process.process.send_signal(signal.SIGHUP)
            wait_for(lambda before=before: not before & {row["pid"] for row in rows(process)}, 30, "other workers")  # type: ignore[misc]
        load.stop()
        load.join()
        print(f"\n{reloads} reloads: {dict(load.outcomes)}")
        assert set(load.outcomes) == {("GET", 200), ("POST", 200)}
        assert process.stop(signal.SIGTERM) == 0


def test_probes_are_answered_while_all_workers_are_stuck(tmp_path: Path) -> None:
    with workers(tmp_path, PKG_LIVENESS_TIMEOUT="60") as process:
        for _ in range(2):
            threading.Thread(target=hold_the_lock, args=(process,)).start()
            time.sleep(0.2)
        ended = threading.Event()
        threading.Timer(2.0, ended.set).start()
        times = sorted(probes(process, ended))
        print(f"\nall workers hold their lock: probes p99 {times[-len(times) // 100] * 1e3:.2f} ms of {len(times)}")
        assert len(times) > 20
        for row in rows(process):
            os.kill(row["pid"], signal.SIGKILL)


def test_a_request_that_kills_whoever_serves_it(tmp_path: Path) -> None:
    """Others are served all the while, and it does not kill one worker after the other."""
    with workers(tmp_path, APP, PKG_ACCESS_LOG="off") as process:
        load = Load(process, 4_000)
        statuses = []
        for _ in range(4):
            statuses.append(ask(process.address, "/kill")[0])
            wait_for(lambda: all(row["is_ready"] for row in rows(process)), 20, "workers")
        load.join()
        assert statuses == [502] * 4
        # One that was with the first worker is repeated on the second, which may be the next to die of /kill.
        assert set(load.outcomes) <= {("GET", 200), ("GET", 502)}
        assert load.outcomes["GET", 502] <= 4 * CLIENTS
