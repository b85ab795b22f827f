"""Restarts of an instance without capabilities under a storm of connections: none may be reset.

No balancer stands in front, so nothing can repeat a request: a client that is refused has sent nothing and tries again;
one that was let in must be answered.
"""

from __future__ import annotations

import signal
import subprocess
import threading
from collections import Counter
from pathlib import Path

import pytest

from tests.support.client import get, wait_for
from tests.support.instances import Instances
from tests.support.load import is_listening
from tests.support.ports import free_ports
from tests.support.unprivileged import describe

CLIENTS = 8


class _Storm:
    """One connection a request, without a pause."""

    def __init__(self, port: int) -> None:
        self._port, self._over = port, threading.Event()
        self._lock = threading.Lock()
        self.fate: Counter[str] = Counter()
        self._threads = [threading.Thread(target=self._knock, daemon=True) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _knock(self) -> None:
        fate: Counter[str] = Counter()
        while not self._over.is_set():
            try:
                answer = get(("127.0.0.1", self._port), "/echo/1")
                fate["answered" if (answer.status, answer.body) == (200, b"GET 1 0") else str(answer.status)] += 1
            except ConnectionRefusedError:
                fate["refused"] += 1
                self._over.wait(0.002)
            except (OSError, EOFError) as error:
                fate[type(error).__name__] += 1
        with self._lock:
            self.fate += fate

    def finish(self) -> Counter[str]:
        self._over.set()
        for thread in self._threads:
            thread.join(30)
        return self.fate


@pytest.mark.parametrize(
    "restarts",
    [
        pytest.param(5, id="few"),
        pytest.param(40, id="forty", marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
def test_nobody_is_reset(restarts: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (port,) = free_ports(1)
    instances = Instances(tmp_path, PORT=str(port), PKG_DRAIN_DELAY="0.1")

    def start() -> subprocess.Popen[bytes]:
        process = instances.start()
        wait_for(lambda: process.poll() is not None or is_listening(port), 60, "a listener")
        assert process.poll() is None, instances.log()
        return process

    process = start()
    storm = _Storm(port)
    codes = []
    try:
        for _ in range(restarts):
            wait_for(lambda: _is_ready(port), 60, "a ready instance")
            process.send_signal(signal.SIGTERM)
            codes.append(process.wait(60))
            process = start()
        fate = storm.finish()
    finally:
        storm.finish()
        process.kill()
        process.wait()
    with capsys.disabled():
        print(f"\n{restarts} restarts in a storm, {describe()}: {dict(fate)}")
    assert set(fate) <= {"answered", "refused"}, instances.log()[-3000:]
    assert fate["answered"] > 20 * restarts
    assert codes == [0] * restarts
    assert "could not be stopped" not in instances.log()


def _is_ready(port: int) -> bool:
    try:
        return get(("127.0.0.1", port), "/readyz").status == 200
    except (OSError, EOFError):
        return False
