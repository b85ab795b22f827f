"""Where the command `probe` asks: it finds the listener by the variables that the server reads."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pkg.cli import main as cli
from tests.support.answering import Answering
from tests.support.client import get, wait_for
from tests.support.ports import free_port
from tests.support.processes import running

ROOT = Path(__file__).parents[2]
HELLO = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
"""


def saying(word: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(word), word)


class Played(NamedTuple):
    """Listeners whose answers tell which one was asked."""

    tcp: int  # ports
    other: int
    admin: int
    unix: str  # paths
    health: str


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Played]:
    folder = tmp_path_factory.mktemp("s")
    unix, health = str(folder / "app.sock"), str(folder / "health.sock")
    with contextlib.ExitStack() as stack:

        def start(word: bytes, host: str = "127.0.0.1") -> Answering:
            server = Answering(saying(word), host)
            stack.callback(server.close)
            return server

        ports = [start(word).port for word in (b"tcp", b"other", b"admin")]
        start(b"unix", unix)
        start(b"health", health)
        yield Played(*ports, unix, health)


@pytest.mark.parametrize(
    ("arguments", "environ", "asked"),
    [
        ("", "PORT={tcp}", "tcp"),
        ("", "PKG_LISTEN=:{tcp}", "tcp"),
        ("", "PKG_LISTEN=127.0.0.1:{tcp} PORT={other}", "tcp"),
        ("", "PKG_LISTEN=unix:{unix}", "unix"),
        ("", "PKG_LISTEN=unix:{unix}?mode=660,:{tcp} PORT={other}", "unix"),
        ("", "PKG_LISTEN=:{tcp},unix:{unix}", "tcp"),
        ("", "PKG_LISTEN=fd:3,systemd,unix:{unix}", "unix"),
        ("", "PKG_LISTEN=127.0.0.1:0,:{tcp}", "tcp"),
        ("", "PKG_HEALTH=:{tcp} PORT={other}", "tcp"),
        ("", "PKG_HEALTH=unix:{health} PKG_LISTEN=unix:{unix}", "health"),
        ("", "PKG_HEALTH=unix:{health} PKG_LISTEN=fd:3 PKG_HEALTH_ON_MAIN=false", "health"),
        ("", "PKG_LISTEN=fd:3 PKG_ADMIN=127.0.0.1:{admin}", "admin"),
        ("", "PKG_LISTEN=systemd PKG_ADMIN=0.0.0.0:{admin} PORT={tcp}", "admin"),
        ("", "PKG_LISTEN=127.0.0.1:0 PKG_ADMIN=localhost:{admin}", "admin"),
        ("--listen unix:{unix}", "PKG_HEALTH=unix:{health} PKG_LISTEN=:{tcp}", "unix"),
        ("--listen=:{tcp}", "PKG_HEALTH=unix:{health} PORT={other}", "tcp"),
        ("--port {tcp}", "PKG_HEALTH=unix:{health} PKG_LISTEN=unix:{unix} PORT={other}", "tcp"),
        ("--host 127.0.0.1", "PKG_HEALTH=unix:{health} PKG_LISTEN=unix:{unix} PORT={tcp}", "tcp"),
    ],
)
def test_who_is_asked(
    played: Played, capsys: pytest.CaptureFixture[str], arguments: str, environ: str, asked: str
) -> None:
    variables = dict(pair.split("=", 1) for pair in environ.format(**played._asdict()).split())
    assert cli.main(["probe", *arguments.format(**played._asdict()).split()], variables) == 0
    assert capsys.readouterr() == (f"{asked}\n", "")


@pytest.mark.parametrize(
    ("arguments", "environ", "complaint"),
    [
        ("", {"PKG_LISTEN": "unix:"}, "PKG_LISTEN has no file name, as in unix:/run/app.sock"),
        ("", {"PKG_LISTEN": "fd:3,fd:1"}, "PKG_LISTEN (address 2) is not the number of a descriptor from 3 to 1023,"),
        ("", {"PKG_HEALTH": "http://u:hunter2@h"}, "PKG_HEALTH is not an address such as 0.0.0.0:8080,"),
        ("", {"PKG_LISTEN": "fd:3", "PKG_ADMIN": "OFF"}, "PKG_ADMIN is off, and no other address is known: set PKG_"),
        ("", {"PKG_LISTEN": "fd:3", "PKG_ADMIN": "127.0.0.1:0"}, "PKG_ADMIN names no address to ask: set PKG_HEALTH"),
        ("", {"PKG_LISTEN": "systemd", "PKG_ADMIN": "9901"}, "PKG_ADMIN is not an address such as"),
        ("", {"PKG_LISTEN": "unix:/nonexistent/a"}, "unix:/nonexistent/a: [Errno 2] No such file or directory"),
        ("--listen fd:3", {}, "--listen must be host:port, :port or unix:PATH"),
        ("--listen x", {}, "--listen is not an address such as"),
        ("--listen :80 --port 80", {}, "--listen cannot be combined with --host or --port"),
        ("--listen", {}, "pop from empty list"),
    ],
)
def test_complaints(
    capsys: pytest.CaptureFixture[str], arguments: str, environ: dict[str, str], complaint: str
) -> None:
    assert cli.main(["probe", *arguments.split()], environ) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"pkg: probe: {complaint}") and err.count("\n") == 1
    assert "hunter2" not in err


def test_only_the_first_address_counts(played: Played, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    assert cli.main(["probe"], {"PKG_LISTEN": f"127.0.0.1:{port},:{played.tcp}"}) == 1
    assert capsys.readouterr().err == f"pkg: probe: 127.0.0.1 port {port}: [Errno 111] Connection refused\n"


def test_a_relative_path_is_the_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Answering(saying(b"ok"), str(tmp_path / "app.sock"))
    try:
        monkeypatch.chdir(tmp_path)
        assert cli.main(["probe", "--ready"], {"PKG_LISTEN": "unix:app.sock"}) == 0
    finally:
        server.close()
    assert server.requests[0].startswith(b"GET /readyz HTTP/1.1\r\nHost: localhost\r\n")


def test_a_full_backlog_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise a burst of connections on a Unix socket would make the container unhealthy."""
    path = str(tmp_path / "app.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(0)
        listener.settimeout(60)
        with contextlib.ExitStack() as clients:
            for _ in range(100):
                client = clients.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                try:
                    client.connect(path)
                except BlockingIOError:
                    break
            else:
                raise AssertionError("the backlog has no end")
            began = time.monotonic()
            assert cli.main(["probe", "--listen", f"unix:{path}", "--timeout", "0.2"], {}) == 1
            assert time.monotonic() - began >= 0.19
            assert "[Errno 11]" in capsys.readouterr().err

            codes: list[int] = []
            arguments = ["probe", "--listen", f"unix:{path}", "--timeout", "60"]
            probe = threading.Thread(target=lambda: codes.append(cli.main(arguments, {})))
            probe.start()
        asked = b""
        while not asked:  # the clients above have sent nothing
            connection, _ = listener.accept()
            with connection:
                asked = connection.recv(4096)
                if asked:
                    connection.sendall(saying(b"at last"))
        probe.join(60)
    assert (codes, capsys.readouterr().out) == ([0], "at last\n")


def test_a_probe_of_a_unix_socket_imports_nothing_heavy(played: Played) -> None:
    code = "import sys; from pkg.cli.main import main; main(['probe']); print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PKG_LISTEN": f"unix:{played.unix}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stderr == ""
    loaded = set(result.stdout.split()[1:])
    heavy = {"argparse", "logging", "http.client", "psycopg", "json", "threading", "encodings.idna", "urllib", "re"}
    assert not loaded & heavy
    own = {"pkg", "pkg.cli", "pkg.cli.main", "pkg.cli.probe", "pkg.cli.terminal", "pkg.settings", "pkg.settings.listen"}
    assert {name for name in loaded if name.startswith("pkg")} == own


def probe(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pkg", "probe", *arguments],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_admin_listener_of_a_service(tmp_path: Path) -> None:
    """What a probe learns there is what the front says, while it starts, serves and drains."""
    admin = f"127.0.0.1:{free_port()}"
    environ = {"PKG_LISTEN": "fd:3", "PKG_ADMIN": admin}
    with running(tmp_path, HELLO, PKG_ADMIN=admin, PKG_DRAIN_DELAY="60", PKG_GRACE_PERIOD="120") as service:
        for flag in ((), ("--ready",)):
            result = probe(*flag, **environ)
            assert (result.returncode, result.stdout, result.stderr) == (0, "ok\n", "")
        service.process.terminate()
        wait_for(lambda: get(service.address, "/readyz").status == 503)
        assert probe("--ready", **environ).stdout == "shutdown: draining\n"
        assert probe(**environ).returncode == 0
    result = probe(**environ)
    assert result.returncode == 1
    assert result.stderr.startswith(
        "pkg: probe: PKG_LISTEN names no address to ask; the admin listener at 127.0.0.1 port"
    )
