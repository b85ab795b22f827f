"""systemd's sockets are for the child that serves, in process 1 and with --reload."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.activation import ROOT, TAKER, names_of, taking, two_sockets
from tests.support.client import wait_for

# As process 1 of a container, and as podman starts it there.
TAKE_IN_CHILD = f"""{TAKER}
import ctypes
PR_SET_CHILD_SUBREAPER = 36
assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
from pkg.supervisors.init import hold_signals, serve_in_child
hold_signals()
serve_in_child()
sys.exit(take())
"""
TAKE_AGAIN = f"""{TAKER}
from pkg.supervisors.reload import serve_again
sys.exit(serve_again(take))
"""
TAKE_IN_GRANDCHILD = TAKE_IN_CHILD.replace(
    "sys.exit(take())", "from pkg.supervisors.reload import serve_again\nsys.exit(serve_again(take))"
)


@pytest.fixture
def passed(tmp_path: Path) -> Iterator[list[socket.socket]]:
    with two_sockets(tmp_path / "app.sock") as sockets:
        yield sockets


@pytest.mark.parametrize("code", [TAKE_IN_CHILD, TAKE_AGAIN], ids=["process 1", "reload"])
def test_sockets_of_systemd_in_the_child_that_serves(
    passed: list[socket.socket], code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with taking(code, passed, cwd=tmp_path) as (process, (named, passed_on, _, parent)):
        assert named == names_of(passed)
        assert passed_on == []
        assert parent == process.pid
    assert process.returncode == 0


def test_sockets_of_systemd_for_each_child(
    passed: list[socket.socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --reload in a container: process 1, the process that watches the files, the one that serves."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    source = tmp_path / "source.py"
    source.touch()
    with taking(TAKE_IN_GRANDCHILD, passed, cwd=tmp_path) as (process, (named, _, first, parent)):
        assert named == names_of(passed)
        assert parent != process.pid
        source.write_text("changed = True\n")
        assert process.stdout is not None
        again, passed_on, second, same = json.loads(process.stdout.readline())
        assert again == named and passed_on == []
        assert second != first and same == parent
    assert process.returncode == 0


def test_process_1_keeps_no_socket(passed: list[socket.socket]) -> None:
    """Otherwise the kernel would accept connections that nobody reads, once the child has closed the socket."""
    with taking(TAKE_IN_CHILD, passed) as (process, (named, _, child, _)):
        assert len(named) == 2
        folder = f"/proc/{process.pid}/fd"
        wait_for(lambda: sorted(os.listdir(folder)) == ["0", "1", "2"], message="no socket in process 1")
        assert {"3", "4"} <= set(os.listdir(f"/proc/{child}/fd"))


def test_another_processs_sockets_are_not_handed_on(passed: list[socket.socket]) -> None:
    with taking(TAKE_IN_CHILD, passed, {"LISTEN_FDS": "2", "LISTEN_PID": "1"}) as (process, said):
        assert said.startswith("cannot listen on systemd: LISTEN_PID is '1', but this is process ")
    assert process.returncode == 3
