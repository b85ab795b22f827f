"""Listening sockets of our own: addresses, and the file of a Unix socket."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pkg.errors import StartupError
from pkg.http import listeners
from pkg.http.listeners import Listener, open_listeners
from tests.supervisors.test_process_1 import namespace
from tests.support.client import SLOWNESS, wait_for
from tests.support.listeners import accept, client_of, opened, refusal, tcp, unix
from tests.support.ports import free_port
from tests.support.unprivileged import unprivileged

ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "app.sock"


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory for the image's user, too, who cannot reach those of the other tests."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        yield Path(folder)


# Opens what its arguments name, says so or why not, and then waits for the end of its input.
SERVER = """
import sys
from pkg.errors import StartupError
from pkg.http.listeners import open_listeners
from pkg.settings.listen import parse_endpoints
try:
    found = open_listeners(parse_endpoints(sys.argv[1]))
except StartupError as error:
    print(error, flush=True)
    sys.exit(3)
print("listening", flush=True)
command = sys.stdin.readline()
if command:
    for listener in found:
        listener.release()
"""


class Other:
    """Another server, in a process of its own."""

    def __init__(self, path: Path, before: tuple[str, ...] = ()) -> None:
        self.process = subprocess.Popen(
            [*before, sys.executable, "-c", SERVER, f"unix:{path}"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def __enter__(self) -> Other:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


# --------------------------------------------------------------- TCP


def test_a_tcp_listener() -> None:
    with opened(tcp()) as (listener,):
        s = listener.socket
        assert not s.getblocking() and not os.get_inheritable(s.fileno())
        assert os.get_blocking(s.fileno()) is False
        assert listener.name == f"127.0.0.1:{s.getsockname()[1]}" and not listener.name.endswith(":0")
        assert not listener.is_health and not listener.is_inherited
        assert s.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        with client_of(s.getsockname()):
            accepted = wait_for(lambda: accept(s))
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_ipv6_accepts_ipv4() -> None:
    try:
        found = open_listeners([tcp("::")], None, {})
    except StartupError as error:  # as other tests do where there is no IPv6
        pytest.skip(str(error))
    (listener,) = found
    try:
        port = listener.socket.getsockname()[1]
        assert listener.name == f"[::]:{port}"
        client_of(("127.0.0.1", port)).close()
        with socket.socket(socket.AF_INET6) as s:
            s.connect(("::1", port))
    finally:
        listener.close()


def test_order_and_health(path: Path) -> None:
    with opened(unix(path), tcp(), health=tcp()) as found:
        assert [listener.is_health for listener in found] == [False, False, True]
        assert [listener.name.partition(":")[0] for listener in found] == ["unix", "127.0.0.1", "127.0.0.1"]
        assert repr(found[0]) == f"<Listener unix:{path}>"
    with opened(tcp(), health=unix(path)) as found:
        assert found[1].is_health and found[1].name == f"unix:{path}"


def test_all_or_nothing(path: Path) -> None:
    """The last one cannot be opened: the others are closed, and their addresses are free."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        taken = tcp(port=holder.getsockname()[1])
        free = tcp(port=free_port())
        before = os.listdir("/proc/self/fd")
        assert refusal(free, unix(path), taken) == "Address already in use"
        assert os.listdir("/proc/self/fd") == before
        assert not path.exists()
        with pytest.raises(StartupError, match=f"^cannot listen on {taken}: Address already in use$"):
            open_listeners([free, unix(path)], taken, {})
        with opened(free, unix(path)):
            pass


def test_hosts_that_cannot_be_bound() -> None:
    assert refusal(tcp("192.0.2.1")) == "Cannot assign requested address"
    assert refusal(tcp("a..b"))  # IDNA has no name for it
    assert refusal(tcp("no-such-host.invalid"))


def test_a_lack_of_memory_is_no_fault_of_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The service says then what to do against it."""

    def none_left(*_: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr(listeners, "_send_at_once", none_left)
    with pytest.raises(MemoryError):
        open_listeners([tcp()], None, {})


# --------------------------------------------------------------- Unix


def test_a_unix_listener(path: Path) -> None:
    with opened(unix(path)) as (listener,):
        assert listener.name == f"unix:{path}"
        assert not os.get_blocking(listener.socket.fileno()) and not os.get_inheritable(listener.socket.fileno())
        client_of(str(path)).close()
        listener.release()
        assert not path.exists()
        with client_of_accepted(listener):  # who connected before is still served
            pass


@contextlib.contextmanager
def client_of_accepted(listener: Listener) -> Iterator[socket.socket]:
    accepted = wait_for(lambda: accept(listener.socket))
    with accepted:
        yield accepted


@pytest.mark.parametrize("mode", [0o600, 0o660, 0o666, 0o777])
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_the_mode_of_the_file(path: Path, mode: int, umask: int) -> None:
    old = os.umask(umask)
    try:
        with opened(unix(path, mode)):
            assert path.stat().st_mode & 0o7777 == mode
        with opened(unix(path)):
            assert path.stat().st_mode & 0o7777 == 0o777 & ~umask
        assert os.umask(umask) == umask  # it was not changed
    finally:
        os.umask(old)


def test_nobody_connects_before_the_mode_is_set(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []
    chmod = os.chmod

    def chmod_later(*args: Any) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            tried.append(client.connect_ex(str(path)))
        chmod(*args)

    monkeypatch.setattr(os, "chmod", chmod_later)
    with opened(unix(path, 0o600)):
        assert tried == [errno.ECONNREFUSED]


def test_the_file_of_a_killed_server_is_replaced(path: Path) -> None:
    with Other(path) as other:
        assert other.says() == "listening"
        other.process.send_signal(signal.SIGKILL)
        other.process.wait()
        assert path.is_socket()
        with opened(unix(path)):
            client_of(str(path)).close()
        assert not path.exists()


def test_a_living_servers_file_stays(path: Path) -> None:
    with Other(path) as other:
        assert other.says() == "listening"
        before = path.stat()
        assert refusal(unix(path)) == f"Address already in use (pid {other.process.pid})"
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    with opened(unix(path)):
        assert refusal(tcp(), unix(path)) == f"Address already in use (pid {os.getpid()})"


def test_a_living_server_with_a_full_queue(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server, contextlib.ExitStack() as clients:
        server.bind(str(path))
        server.listen(0)
        while True:
            s = clients.enter_context(socket.socket(socket.AF_UNIX))
            s.setblocking(False)
            if s.connect_ex(str(path)) == errno.EAGAIN:
                break
        assert refusal(unix(path)) == "Address already in use (pid unknown, as no connection fits in its queue)"
        assert path.is_socket()


def test_a_living_server_in_another_pid_namespace(path: Path) -> None:
    enter = namespace()
    if enter is None:
        pytest.skip("this user may not make a PID namespace")
    with opened(unix(path)), Other(path, before=enter) as other:
        assert other.says() == f"cannot listen on unix:{path}: Address already in use (pid unknown)"
        assert other.process.wait(10 * SLOWNESS) == 3


def test_what_is_not_a_socket_stays(path: Path) -> None:
    def check() -> None:
        assert refusal(unix(path)) == "the file exists and is not a socket"
        assert os.path.lexists(path)

    path.write_text("precious")
    check()
    path.unlink()
    path.mkdir()
    check()
    path.rmdir()
    path.symlink_to("nowhere")
    check()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as s:  # a link to the socket of a dead server
        s.bind(str(path.with_name("real.sock")))
    path.symlink_to("real.sock")
    check()


def test_a_datagram_socket_in_use_stays(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(str(path))
        assert refusal(unix(path)) == "the file is a socket of another type than a stream, and in use"
    assert path.is_socket()
    with opened(unix(path)):
        pass


def test_directories_in_which_there_can_be_no_socket(path: Path) -> None:
    assert refusal(unix(path / "app.sock")) == f"there is no directory {path}"
    path.touch()
    assert refusal(unix(path / "app.sock")) == "Not a directory"
    assert refusal(unix("/proc/app.sock"))
    assert refusal(unix(path.with_name("x" * 120))) == "AF_UNIX path too long"


def test_a_directory_without_permission(open_to_all: Path) -> None:
    open_to_all.chmod(0o555)
    path = open_to_all / "app.sock"
    with Other(path, before=unprivileged()) as other:
        said = other.says()
        assert re.fullmatch(
            rf"cannot listen on unix:{path}: Permission denied: user \d+ may not write in {open_to_all}", said
        ), said
        assert other.process.wait(10 * SLOWNESS) == 3


def test_another_users_file_that_cannot_be_removed(open_to_all: Path) -> None:
    """That of a server that has ended, in a directory like /tmp."""
    path = open_to_all / "app.sock"
    with socket.socket(socket.AF_UNIX) as s:
        s.bind(str(path))
    path.chmod(0o666)
    open_to_all.chmod(0o1777)
    with Other(path, before=unprivileged()) as other:
        if os.geteuid() != 0:  # then it is the user's own
            assert other.says() == "listening"
            return
        reason = "Operation not permitted: a server that has ended has left its file there"
        assert other.says() == f"cannot listen on unix:{path}: {reason}"
        path.chmod(0o600)
    with Other(path, before=unprivileged()) as other:
        reason = "the file exists, and whether a server listens on it is unknown: Permission denied"
        assert other.says() == f"cannot listen on unix:{path}: {reason}"
    assert path.is_socket()


def test_a_directory_that_may_be_written_but_not_read(open_to_all: Path) -> None:
    """Without its lock, then."""
    open_to_all.chmod(0o333)
    path = open_to_all / "app.sock"
    try:
        with Other(path, before=unprivileged()) as other:
            assert other.says() == "listening"
            assert other.process.communicate("release\n")[0] == ""
            assert other.process.returncode == 0
            assert not os.path.lexists(path)
    finally:
        open_to_all.chmod(0o777)


def test_a_file_that_cannot_be_removed_at_the_end(open_to_all: Path) -> None:
    """The directory's permissions change while the server runs."""
    path = open_to_all / "app.sock"
    with Other(path, before=unprivileged()) as other:
        assert other.says() == "listening"
        open_to_all.chmod(0o555)
        try:
            assert other.process.communicate("release\n")[0] == ""
            assert other.process.returncode == 0
            assert path.is_socket()
        finally:
            open_to_all.chmod(0o777)


def test_a_directory_that_somebody_else_has_locked(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever holds such a lock for good delays a start and an end by moments."""
    monkeypatch.setattr(listeners, "START_PATIENCE", 0.1)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        with caplog.at_level(logging.INFO), opened(unix(path)) as (listener,):
            client_of(str(path)).close()
            listener.release()
            assert not path.exists()
        told = "another process holds a lock on the socket's directory; continuing without it"
        assert caplog.messages == [told, told]
    finally:
        os.close(descriptor)


def test_the_lock_is_given_back(path: Path) -> None:
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        with opened(unix(path)):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(descriptor, fcntl.LOCK_UN)
        refusal(unix(path), tcp("192.0.2.1"))
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("left", [False, True], ids=["no file", "the file of a killed server"])
def test_of_two_that_start_at_once_one_wins(path: Path, left: bool) -> None:
    for _ in range(10):
        if left:
            with socket.socket(socket.AF_UNIX) as s:
                s.bind(str(path))
        with contextlib.ExitStack() as stack:
            others = [stack.enter_context(Other(path)) for _ in range(2)]
            said = [other.says() for other in others]
            assert sorted(text == "listening" for text in said) == [False, True], said
            winner, loser = others if said[0] == "listening" else others[::-1]
            refused = f"cannot listen on unix:{path}: Address already in use (pid {winner.process.pid})"
            assert refused in said
            assert loser.process.wait(10 * SLOWNESS) == 3
            with client_of(str(path)) as client:
                assert listeners._listening_process(client) == winner.process.pid
            winner.process.communicate("release\n")
            assert not path.exists()


# Opens and releases one path again and again; the other process does the same.
CONTENDER = """
import socket, sys
from pkg.errors import StartupError
from pkg.http.listeners import open_listeners
from pkg.settings.listen import parse_endpoints
addresses = parse_endpoints(f"unix:{sys.argv[1]}")
won = lost = 0
print("ready", flush=True)
sys.stdin.readline()
while won < 200:
    try:
        (listener,) = open_listeners(addresses)
    except StartupError as error:
        assert "Address already in use (pid " in str(error), error
        lost += 1
        continue
    won += 1
    with socket.socket(socket.AF_UNIX) as s:
        s.connect(sys.argv[1])          # the path is ours, and stays so until we give it back
        listener.socket.accept()[0].close()
    if won % 2:
        listener.release()              # otherwise it is left, as after a kill
    listener.close()
print(won, lost, flush=True)
"""


def test_nobody_takes_the_path_of_another(path: Path) -> None:
    """Starts and ends of two servers in any order: whoever has opened the path has it until it is released."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONTENDER, str(path)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        for process in processes:
            out, err = process.communicate(timeout=60 * SLOWNESS)
            assert process.returncode == 0 and out.startswith("200 "), err
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


def test_release_leaves_what_is_not_ours(path: Path) -> None:
    with opened(unix(path)) as (listener,):
        path.unlink()
        path.touch()
        listener.release()
        assert path.exists()
        path.unlink()
    with opened(unix(path)) as (listener,):
        path.unlink()
        listener.release()
        listener.release()


def test_release_is_done_once(path: Path) -> None:
    with opened(unix(path)) as (first,):
        first.release()
        with opened(unix(path)) as (_,):
            first.release()
            first.close()
            first.release()
            assert path.is_socket()


def test_release_after_changes_of_owner_and_mode(path: Path) -> None:
    """As an ExecStartPost= does it that gives the socket to the proxy's group."""
    with opened(unix(path)) as (listener,):
        path.chmod(0o660)
        os.chown(path, -1, os.getegid())
        client_of(str(path)).close()
        listener.release()
        assert not path.exists()


def test_release_knows_a_later_file_with_the_same_inode_number(path: Path) -> None:
    """Once the socket is closed, filesystems such as ext4 give the number of its removed file to the next one."""
    with opened(unix(path)) as (listener,):
        before = path.stat()
        listener.close()
        path.unlink()
        for n in range(100):
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(str(path))
            now = path.stat()
            if now.st_ino == before.st_ino and now.st_mtime_ns != before.st_mtime_ns:
                break
            # The clock of files may stand still for some milliseconds; a filesystem without reuse never comes here.
            path.unlink()
            select.select([], [], [], 0.001 * (n < 20))
        else:
            path.touch()
        listener.release()
        assert path.exists()


def test_release_waits_for_a_server_that_starts(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its look at the file and its end another server could have taken the path."""
    monkeypatch.setattr(listeners, "RELEASE_PATIENCE", 30.0)
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        with opened(unix(path)) as (listener,):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            thread = threading.Thread(target=listener.release)
            thread.start()

            def is_waiting() -> bool:
                frame = sys._current_frames().get(thread.ident or 0)
                while frame is not None and frame.f_code.co_name != "_lock":
                    frame = frame.f_back
                return frame is not None

            try:
                wait_for(is_waiting)
                path.unlink()
                with socket.socket(socket.AF_UNIX) as other:
                    other.bind(str(path))
            finally:
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                thread.join()
            assert path.is_socket()
    finally:
        os.close(descriptor)


def test_release_after_a_change_of_directory(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with opened(unix("app.sock")) as (listener,):
        assert listener.name == "unix:app.sock"
        monkeypatch.chdir("/")
        listener.release()
        assert not path.exists()


def test_a_forked_child_does_not_release(path: Path) -> None:
    with opened(unix(path)) as (listener,):
        child = os.fork()
        if child == 0:
            listener.release()
            listener.close()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        client_of(str(path)).close()
        listener.release()
        assert not path.exists()


def test_release_when_the_directory_has_gone(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    directory = path.with_name("run")
    directory.mkdir()
    with caplog.at_level(logging.INFO), opened(unix(directory / "app.sock")) as (listener,):
        (directory / "app.sock").unlink()
        directory.rmdir()
        listener.release()
    assert caplog.messages == []
