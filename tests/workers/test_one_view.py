"""What only workers count and find is on the pages of process 1, as one view, and stays when a worker is replaced."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from tests.support.client import Connection, get, wait_for
from tests.support.ports import free_port
from tests.support.processes import Process, ask
from tests.workers.test_workers import rows, workers

SOURCE = """
import asyncio, time

def block():
    time.sleep(2)

async def app(scope, receive, send):
    if scope["path"] == "/block":
        block()
    if scope["path"] == "/thread":
        await asyncio.to_thread(block)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"done"})
"""

CHATTY = """
import logging

def app(environ, start_response):
    for _ in range(20_000):
        logging.getLogger("shop").warning("sold")
    start_response("200 OK", [])
    return [b"done"]
"""


def metrics(process: Process) -> dict[str, float]:
    status, _, text = ask(process.admin, "/metrics")  # type: ignore[attr-defined]
    assert status == 200, text
    return {name: float(value) for name, value in re.findall(r"(?m)^(\w+(?:{.*?})?) (\S+)$", text)}


def series(process: Process) -> list[str]:
    return re.findall(r"(?m)^(\w+(?:{.*?})?) \S+$", ask(process.admin, "/metrics")[2])  # type: ignore[attr-defined]


def findings(process: Process) -> list[str]:
    return re.findall(r"(?m)^ +(?:error|warning|note): (.*)", ask(process.admin, "/statusz")[2])  # type: ignore[attr-defined]


def is_served(process: Process) -> bool:
    with contextlib.suppress(OSError):
        return get(process.address, "/").status == 200
    return False


@contextlib.contextmanager
def asked(process: Process, target: str) -> Iterator[None]:
    """A request that is answered after the block."""
    with Connection(process.address) as client:
        client.send(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        yield
        assert client.receive().status == 200


def test_event_loops_and_their_threads(tmp_path: Path) -> None:
    with workers(tmp_path, SOURCE, PKG_LIFESPAN="off", PKG_TRUSTED_PROXIES="127.0.0.1") as process:
        for _ in range(4):
            assert get(process.address, "/", f"X-Request-Start: t={time.time():.3f}\r\n").status == 200
        with asked(process, "/block"):
            found = wait_for(lambda: [it for it in findings(process) if "blocked" in it], 1.5, "the finding")
            blocked = "the event loop has been blocked for"
            place = rf"^worker (\d): {blocked} .* at application.py:5: time.sleep\(2\), in GET /block"
            match = re.match(place, found[0])
            assert match, found
            worker = int(match[1])
            seconds = f'pkg_event_loop_blocked_seconds{{worker="{worker}"}}'
            # What workers have told serves for a moment: it may be from before the block.
            now = wait_for(lambda: now if (now := metrics(process))[seconds] > 0 else None, 1, "seconds of the block")
            assert now[f'pkg_event_loop_blocked_seconds{{worker="{3 - worker}"}}'] < 1
        with asked(process, "/thread"):
            wait_for(
                lambda: metrics(process)['pkg_executor_threads_busy{executor="asyncio"}'] == 1, 1.5, "a busy thread"
            )

        before = metrics(process)
        assert before["pkg_request_proxy_duration_seconds_count"] == 4
        assert before['pkg_event_loop_lag_seconds_bucket{le="+Inf"}'] > 4
        assert before["pkg_event_loop_lag_seconds_sum"] > 1.9
        pid = next(row["pid"] for row in rows(process) if row["worker"] == worker)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: pid not in [row["pid"] for row in rows(process)], 10, "its end")
        wait_for(lambda: [row["is_ready"] for row in rows(process)] == [True, True], 10, "another worker")
        after = metrics(process)
        for name in "pkg_request_proxy_duration_seconds_count", "pkg_event_loop_lag_seconds_sum":
            assert after[name] >= before[name]
        died = {number: after[f'pkg_worker_deaths_total{{worker="{number}"}}'] for number in (1, 2)}
        assert died == {worker: 1, 3 - worker: 0}

        # The template as well, so that for a while none of those that were asked before is there, and no other.
        everybody = json.loads(ask(process.admin, "/statusz?format=json")[2])["processes"]  # type: ignore[attr-defined]
        killed = {row["pid"] for row in everybody}
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        while not [row for row in rows(process) if row["is_ready"] and row["pid"] not in killed]:
            assert metrics(process)["pkg_event_loop_lag_seconds_sum"] >= before["pkg_event_loop_lag_seconds_sum"]


def test_each_place_is_one_row_while_a_worker_is_replaced(tmp_path: Path) -> None:
    """Prometheus takes one of two samples of the same series, and warns."""
    with workers(tmp_path, f"import time; time.sleep(0.5)\n{SOURCE}", PKG_LIFESPAN="off") as process:
        old = {row["pid"] for row in rows(process)}
        process.process.send_signal(signal.SIGHUP)
        most = 0
        while old & {row["pid"] for row in rows(process)}:
            most = max(most, len(rows(process)))
            found = series(process)
            assert len(found) == len(set(found))
            ready = {name: value for name, value in metrics(process).items() if name.startswith("pkg_worker_ready")}
            assert ready == {f'pkg_worker_ready{{worker="{number}"}}': 1 for number in (1, 2)}
        assert most >= 3


def test_a_place_without_a_process(tmp_path: Path) -> None:
    """It is not ready, and its deaths stay counted, until the next one is started."""
    with workers(tmp_path, SOURCE, PKG_LIFESPAN="off") as process:
        for _ in range(3):  # each pause is twice the last
            pid = wait_for(lambda: {row["worker"]: row["pid"] for row in rows(process)}.get(1), 5, "a process")
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: pid not in [row["pid"] for row in rows(process)], 5, "its end")
        page = json.loads(ask(process.admin, "/statusz?format=json")[2])["processes"]  # type: ignore[attr-defined]
        down, (worker, seen) = page[1], (1, metrics(process))
        assert (down["worker"], down["pid"], down["state"], down["is_ready"]) == (worker, None, "down", False)
        assert re.fullmatch(r"starts in [0-3]\.\d s", down["reason"])
        assert seen['pkg_worker_ready{worker="1"}'] == 0
        assert seen['pkg_worker_deaths_total{worker="1"}'] == 3
        assert 'pkg_worker_age_seconds{worker="1"}' not in seen
        assert re.search(r"(?m)^ *1 +down .*starts in", ask(process.admin, "/statusz")[2])  # type: ignore[attr-defined]


def test_lines_that_a_worker_loses(tmp_path: Path) -> None:
    """And its descriptors; process 1's own are others."""
    os.mkfifo(tmp_path / "stdout")
    unread, port = os.open(tmp_path / "stdout", os.O_RDWR), free_port()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, unread)
        process = stack.enter_context(workers(tmp_path, CHATTY, ready=False, PORT=str(port)))
        process.address = ("127.0.0.1", port)
        wait_for(lambda: is_served(process), 15, "its start")
        lost = wait_for(lambda: metrics(process)["pkg_log_lines_dropped_total"], 10, "lost lines")
        text = next(text for text in findings(process) if "log lines were lost" in text)
        assert int(text.split()[0]) >= lost > 1000  # process 1 has a dozen
        limits = {name: value for name, value in metrics(process).items() if name.startswith("pkg_worker_max_fds")}
        assert limits == {f'pkg_worker_max_fds{{worker="{n}"}}': metrics(process)["process_max_fds"] for n in (1, 2)}
        assert all(3 < metrics(process)[f'pkg_worker_open_fds{{worker="{number}"}}'] < 100 for number in (1, 2))
