"""Instances that replace each other on one inherited socket, under load: no request may be lost, nor reset.

    test        opens the socket, and holds it
    instance    started with it ... serves ... SIGTERM ..accepts what waits.. ended
    the next    before the old one is told to end, so that for a while both serve; or only after the old one has ended,
                and until then clients wait in the queue, as they do with systemd's socket activation

The clients have no proxy in front, which would ask another instance, and retry nothing.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import Connection, get, wait_for
from tests.support.instances import Instances, folder_of_user
from tests.support.load import loading
from tests.support.ports import free_ports
from tests.support.rolling import Outcome, table
from tests.support.unprivileged import describe

PATIENCE = 60  # seconds
WAITING = 20  # clients in the queue of a socket that no instance serves


class _Successors:
    """Instances on one socket, one after another, whose health pages are on ports of their own in turn."""

    def __init__(self, folder: Path, listening: socket.socket) -> None:
        self._instances = Instances(folder, PKG_DRAIN_DELAY="0", PKG_LISTEN=f"fd:{listening.fileno()}")
        self._listening = listening
        self._ports = free_ports(2)
        self._all: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        port = self._ports[len(self._all) % 2]
        process = self._instances.start([self._listening], PKG_HEALTH=f"127.0.0.1:{port}")
        self._all.append(process)

        def is_ready() -> bool:
            assert process.poll() is None, self.log()
            with contextlib.suppress(OSError, EOFError):
                return get(("127.0.0.1", port), "/readyz").status == 200
            return False

        wait_for(is_ready, PATIENCE, "a ready instance")
        return process

    def end(self, process: subprocess.Popen[bytes]) -> None:
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0, self.log()

    def kill(self) -> None:
        for process in self._all:
            if process.poll() is None:
                process.kill()
            process.wait()

    def log(self) -> str:
        return self._instances.log()[-3000:]


@pytest.fixture(params=["tcp", "unix"])
def listening(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with contextlib.ExitStack() as stack:
        if request.param == "tcp":
            s = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        else:
            folder = stack.enter_context(folder_of_user())
            s = stack.enter_context(socket.socket(socket.AF_UNIX))
            s.bind(str(folder / "app.sock"))
            s.listen(1024)
        yield s


@pytest.fixture
def successors(tmp_path: Path, listening: socket.socket) -> Iterator[_Successors]:
    found = _Successors(tmp_path, listening)
    try:
        yield found
    finally:
        found.kill()


@pytest.mark.parametrize(
    "restarts",
    [
        pytest.param(10, id="ten", marks=pytest.mark.slow),
        pytest.param(100, id="hundred", marks=[pytest.mark.long, pytest.mark.timeout(900)]),
    ],
)
def test_no_request_is_lost(
    restarts: int, listening: socket.socket, successors: _Successors, capsys: pytest.CaptureFixture[str]
) -> None:
    address: Any = listening.getsockname()
    current = successors.start()
    with loading(address) as load:
        for number in range(restarts):
            old, overlap = current, number % 2 == 0
            if overlap:
                current = successors.start()
            successors.end(old)
            if not overlap:
                current = successors.start()
        outcome = Outcome(restarts, tallies={"none": load.finish()})
    with capsys.disabled():
        kind = "Unix" if isinstance(address, str) else "TCP"
        print(f"\n{restarts} restarts on one inherited {kind} socket, {describe()}\n{table(outcome)}")
    total = outcome.total("none")
    assert (total.sent, total.lost) == (total.answered, {}), successors.log()
    assert total.sent > 20 * restarts
    assert "could not be stopped" not in successors.log()


def test_the_queue_outlives_every_instance(listening: socket.socket, successors: _Successors) -> None:
    """Nothing has shut the socket down: it accepts while nobody serves, and the next instance answers."""
    for _ in range(2):
        successors.end(successors.start())
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(Connection(listening.getsockname(), PATIENCE)) for _ in range(WAITING)]
        for number, client in enumerate(waiting):
            client.send(f"GET /echo/{number} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        process = successors.start()
        for number, client in enumerate(waiting):
            answer = client.receive()
            assert (answer.status, answer.body) == (200, f"GET {number} 0".encode())
        successors.end(process)
