"""The sockets of running services: the path of a Unix socket from start to end, and sockets that are passed to them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.activation import ROOT, activate, two_sockets
from tests.support.client import SLOWNESS, wait_for
from tests.support.listeners import accept, client_of
from tests.support.processes import SUBREAPER, Process, running

APP = """
import os, pathlib, time
def app(environ, start_response):
    path = environ["PATH_INFO"]
    text = "hello"
    if path == "/slow":             # until the test has seen enough
        pathlib.Path("slow").touch()
        while not os.path.exists("enough"):
            time.sleep(0.01)
    elif path == "/fork":
        child = os.fork()
        if child == 0:
            raise SystemExit(0)     # into the server's code, which ends it
        text = str(os.waitpid(child, 0)[1])
    elif path == "/variables":
        text = " ".join(name for name in os.environ if name.startswith("LISTEN_"))
    elif path == "/pid":
        text = f"{os.getpid()} {os.getppid()}"
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [text.encode()]
"""
PROGRAM = [sys.executable, "-m", "pkg"]
IN_CHILD = [sys.executable, "-c", SUBREAPER]  # as process 1 of a container does it


def text_of(address: Any, target: str) -> str:
    with client_of(address) as s:
        return rest_of(s, target)


def rest_of(s: socket.socket, target: str) -> str:
    s.sendall(f"GET {target} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n".encode())
    return answer_on(s)


def answer_on(s: socket.socket) -> str:
    data = b""
    while more := s.recv(65536):
        data += more
    assert data.startswith(b"HTTP/1.1 200 "), data
    return data.partition(b"\r\n\r\n")[2].decode()


def slow(address: Any, folder: Path) -> socket.socket:
    """A client whose request is being served, until `enough` is there."""
    s = client_of(address)
    s.sendall(b"GET /slow HTTP/1.1\r\nHost: test\r\n\r\n")
    wait_for((folder / "slow").exists)
    return s


# --------------------------------------------------------------- the path of a Unix socket


@contextlib.contextmanager
def on_path(folder: Path, path: Path, *arguments: str, **environ: str) -> Iterator[Process]:
    folder.mkdir(exist_ok=True)
    environ = {"PKG_LISTEN": f"unix:{path}", "PKG_ADMIN": "off", **environ}
    with running(folder, APP, *arguments, ready=False, **environ) as process:
        yield process


def is_serving(process: Process) -> bool:
    process.await_message("^serving ")
    return True


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.sock"


def test_the_path_is_free_as_soon_as_the_drain_stops_listening(tmp_path: Path, path: Path) -> None:
    """The next server takes it while the one before still serves."""
    with on_path(tmp_path / "old", path) as old, contextlib.ExitStack() as clients:
        assert is_serving(old)
        assert text_of(str(path), "/") == "hello"
        client = clients.enter_context(slow(str(path), tmp_path / "old"))
        old.process.send_signal(signal.SIGTERM)
        wait_for(lambda: not path.exists())
        with on_path(tmp_path / "new", path) as new:
            assert is_serving(new)
            assert old.process.poll() is None
            inode = path.stat().st_ino
            (tmp_path / "old" / "enough").touch()
            client.settimeout(10 * SLOWNESS)
            assert client.recv(65536).endswith(b"hello")
            assert old.process.wait(15 * SLOWNESS) == 0
            assert path.stat().st_ino == inode
            assert text_of(str(path), "/pid").split()[0] == str(new.process.pid)
            assert new.stop(signal.SIGTERM) == 0
        assert not path.exists()


def test_after_a_kill_the_path_is_taken_again(tmp_path: Path, path: Path) -> None:
    with on_path(tmp_path / "old", path) as old:
        assert is_serving(old)
    assert path.is_socket()
    with on_path(tmp_path / "new", path) as new:
        assert is_serving(new)
        assert text_of(str(path), "/") == "hello"
        assert new.stop() == 0
    assert not path.exists()


def test_a_start_on_a_living_servers_path(tmp_path: Path, path: Path) -> None:
    """It fails, names the other, and disturbs nothing."""
    with on_path(tmp_path / "old", path) as old:
        assert is_serving(old)
        with on_path(tmp_path / "new", path) as new:
            assert new.process.wait(15 * SLOWNESS) == 3
            assert (
                new.errors() == f"pkg: cannot listen on unix:{path}: Address already in use (pid {old.process.pid})\n"
            )
        assert text_of(str(path), "/") == "hello"


def test_two_starts_at_once(tmp_path: Path, path: Path) -> None:
    with on_path(tmp_path / "a", path) as a, on_path(tmp_path / "b", path) as b:
        loser = wait_for(lambda: next((p for p in (a, b) if p.process.poll() is not None), None), 15)
        winner = b if loser is a else a
        assert is_serving(winner)
        assert loser.process.returncode == 3
        assert loser.errors().endswith(f"Address already in use (pid {winner.process.pid})\n")
        assert text_of(str(path), "/pid").split()[0] == str(winner.process.pid)
        assert winner.stop() == 0
    assert not path.exists()


def test_a_child_of_the_application_leaves_the_path(tmp_path: Path, path: Path) -> None:
    with on_path(tmp_path / "a", path) as process:
        assert is_serving(process)
        assert text_of(str(path), "/fork") == "0"
        assert text_of(str(path), "/") == "hello"


def test_reloading_on_one_path(tmp_path: Path, path: Path) -> None:
    folder = tmp_path / "a"
    with on_path(folder, path, "--reload") as process:
        assert is_serving(process)
        assert text_of(str(path), "/") == "hello"
        (folder / "next.py").write_text(APP.replace("hello", "again"))
        (folder / "next.py").rename(folder / "application.py")

        def says_again() -> bool:
            try:
                return text_of(str(path), "/") == "again"
            except OSError:
                return False

        wait_for(says_again, 20)
        assert process.stop(signal.SIGTERM) == 0
    assert not path.exists()


# --------------------------------------------------------------- sockets that are passed


@contextlib.contextmanager
def passed_to(
    program: list[str],
    folder: Path,
    sockets: list[socket.socket],
    *arguments: str,
    variables: dict[str, str] | None = None,
    **environ: str,
) -> Iterator[subprocess.Popen[str]]:
    (folder / "application.py").write_text(APP)
    (folder / "slow").unlink(missing_ok=True)
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PKG_", "LISTEN_"))}
    env |= {"PYTHONPATH": str(ROOT), "PKG_ADMIN": "off", "PKG_DRAIN_DELAY": "0", **environ}
    with open(folder / "output", "w+") as output:
        process = activate(
            [*program, "application:app", *arguments],
            sockets,
            variables,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            wait_for(lambda: "serving application:app on" in (folder / "output").read_text(), 15)
            yield process
        finally:
            if process.poll() is None:
                for pid in children(process.pid):
                    os.kill(pid, signal.SIGKILL)
                process.kill()
            process.wait()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.fixture
def sockets(path: Path) -> Iterator[list[socket.socket]]:
    with two_sockets(path) as found:
        yield found


@pytest.mark.parametrize("program", [PROGRAM, IN_CHILD], ids=["alone", "process 1"])
@pytest.mark.parametrize("arguments", [(), ("--reload",)], ids=["", "reload"])
def test_sockets_of_systemd(
    tmp_path: Path, sockets: list[socket.socket], path: Path, program: list[str], arguments: tuple[str, ...]
) -> None:
    with passed_to(program, tmp_path, sockets, *arguments, PKG_LISTEN="systemd") as process:
        for s in sockets:
            assert text_of(s.getsockname(), "/") == "hello"
            assert text_of(s.getsockname(), "/variables") == ""
        process.send_signal(signal.SIGTERM)
        assert process.wait(15 * SLOWNESS) == 0
    assert path.is_socket()
    for s in sockets:  # they are not ours to shut down
        with client_of(s.getsockname()):
            wait_for(lambda s=s: accept(s)).close()


def test_two_services_on_one_socket(tmp_path: Path, sockets: list[socket.socket]) -> None:
    """A rolling restart: while one drains, the other serves all that comes."""
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    address = sockets[0].getsockname()
    with (
        passed_to(PROGRAM, tmp_path / "old", sockets, PKG_LISTEN="systemd") as old,
        slow(address, tmp_path / "old") as client,
        passed_to(PROGRAM, tmp_path / "new", sockets, PKG_LISTEN="fd:3,fd:4", variables={}) as new,
    ):
        old.send_signal(signal.SIGTERM)
        wait_for(lambda: "draining after SIGTERM" in (tmp_path / "old" / "output").read_text())

        def only_new() -> bool:
            return {text_of(address, "/pid").split()[0] for _ in range(50)} == {str(new.pid)}

        wait_for(only_new)
        assert old.poll() is None
        (tmp_path / "old" / "enough").touch()
        assert client.recv(65536).endswith(b"hello")
        assert old.wait(15 * SLOWNESS) == 0
        assert text_of(sockets[1].getsockname(), "/pid").split()[0] == str(new.pid)


@pytest.mark.parametrize("program", [PROGRAM, IN_CHILD], ids=["alone", "process 1"])
def test_the_only_holder_refuses_while_it_drains(tmp_path: Path, program: list[str]) -> None:
    """A socket that nobody else holds is closed when the service stops listening.  Otherwise the kernel would accept
    connections that nobody reads, and reset them at the end."""
    s = socket.create_server(("127.0.0.1", 0))
    address = s.getsockname()
    with s, passed_to(program, tmp_path, [s], PKG_LISTEN="fd:3", variables={}) as process:
        s.close()
        with slow(address, tmp_path) as client:
            (process_id,) = children(process.pid) or [process.pid]
            os.kill(process_id, signal.SIGTERM)

            def is_refused() -> bool:
                try:
                    client_of(address).close()
                except ConnectionRefusedError:
                    return True
                except ConnectionResetError:  # it came in the moment of the closing
                    pass
                return False

            wait_for(is_refused)
            assert process.poll() is None
            (tmp_path / "enough").touch()
            assert client.recv(65536).endswith(b"hello")
            assert process.wait(15 * SLOWNESS) == 0


def test_what_was_not_passed(tmp_path: Path) -> None:
    for listen, reason in {
        "systemd": "LISTEN_FDS is not set: was it started by systemd?",
        "fd:77": r"descriptor 77 is not open",
    }.items():
        with on_path(tmp_path / "a", tmp_path, PKG_LISTEN=listen) as process:
            assert process.process.wait(15 * SLOWNESS) == 3
            assert re.fullmatch(f"pkg: cannot listen on {listen}: {re.escape(reason)}\n", process.errors())
