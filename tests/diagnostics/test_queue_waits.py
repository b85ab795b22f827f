"""The histogram of how long requests wait for a worker thread, in the real process with one worker that is held."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pkg._core import QUEUE_WAIT_BOUNDS
from tests.support.client import get, wait_for
from tests.support.ports import free_port
from tests.support.processes import Process, ask, running

NAME = "pkg_request_queue_duration_seconds"
SOURCE = """
import pathlib, signal, threading
go_on = threading.Event()
def app(environ, start_response):
    if environ["PATH_INFO"] == "/hold":
        pathlib.Path("held").touch()
        go_on.wait(30)
    start_response("200 OK", [])
    return [b"ok"]
signal.signal(signal.SIGUSR2, lambda *_: go_on.set())
"""


class Waits:
    """A running service with one worker, and its histogram."""

    def __init__(self, process: Process, admin: tuple[str, int], folder: Path) -> None:
        self.process, self.admin, self.folder = process, admin, folder

    def read(self) -> tuple[dict[str, int], float]:
        """The requests up to each bound, and the sum in seconds."""
        text = ask(self.admin, "/metrics")[2]
        buckets = {le: int(n) for le, n in re.findall(rf'^{NAME}_bucket{{le="(.+)"}} (\d+)$', text, re.MULTILINE)}
        total = re.search(rf"^{NAME}_sum (.+)$", text, re.MULTILINE)
        count = re.search(rf"^{NAME}_count (.+)$", text, re.MULTILINE)
        assert total and count and int(count[1]) == buckets["+Inf"]
        return buckets, float(total[1])

    def queued(self) -> int:
        found = re.search(r"^pkg_queue_length (\d+)$", ask(self.admin, "/metrics")[2], re.MULTILINE)
        assert found
        return int(found[1])

    def age(self) -> float:
        """Seconds for which the request in the queue has been waiting."""
        found = json.loads(ask(self.admin, "/debug/requests?format=json")[2])
        rows = found["requests"] if isinstance(found, dict) else found
        return max((float(row["age"]) for row in rows if row["state"] == "queued"), default=0.0)


@pytest.fixture
def waits(tmp_path: Path) -> Iterator[Waits]:
    admin = ("127.0.0.1", free_port())
    environ = {"PKG_THREADS": "1", "PKG_QUEUE_TIMEOUT": "1s", "PKG_ADMIN": f"127.0.0.1:{admin[1]}"}
    with running(tmp_path, SOURCE, **environ) as process:
        yield Waits(process, admin, tmp_path)


def test_bounds() -> None:
    assert QUEUE_WAIT_BOUNDS == (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def test_waits_are_counted(waits: Waits) -> None:
    assert waits.read() == (dict.fromkeys([*map(str, QUEUE_WAIT_BOUNDS), "+Inf"], 0), 0.0)
    for _ in range(20):
        assert get(waits.process.address, "/").status == 200
    buckets, total = waits.read()
    assert (
        buckets["+Inf"] == 20 and buckets["0.005"] >= 10 and total < 1
    )  # taken at once, on a machine that may be busy
    with ThreadPoolExecutor(4) as pool:
        held = pool.submit(get, waits.process.address, "/hold")
        wait_for((waits.folder / "held").exists)
        queued = [pool.submit(get, waits.process.address, "/") for _ in range(2)]
        wait_for(lambda: waits.queued() == 2)
        assert waits.read()[0]["+Inf"] == 21  # they count when a worker takes them
        assert [request.result().status for request in queued] == [503, 503]  # or when they have waited for too long
        waits.process.process.send_signal(signal.SIGUSR2)
        assert held.result().status == 200
    now, sum_now = waits.read()
    assert now["+Inf"] == 23
    assert now["+Inf"] - now["0.5"] == 2 and sum_now - total > 2 * 0.9


def test_a_request_that_is_taken_late(waits: Waits) -> None:
    with ThreadPoolExecutor(2) as pool:
        held = pool.submit(get, waits.process.address, "/hold")
        wait_for((waits.folder / "held").exists)
        late = pool.submit(get, waits.process.address, "/")
        wait_for(lambda: waits.queued() == 1)
        wait_for(lambda: waits.age() > 0.3)
        waits.process.process.send_signal(signal.SIGUSR2)
        assert held.result().status == 200 and late.result().status in (200, 503)
    buckets, total = waits.read()
    assert buckets["+Inf"] == 2 and buckets["0.25"] == 1 and total > 0.3
