"""The command `probe` against services that listen in each of the ways there are: it needs no flag for any of them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.client import wait_for
from tests.support.ports import free_port
from tests.support.processes import Process, running

APPLICATION = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"the application"]
"""


def probe(directory: Path, *arguments: str, **environ: str) -> tuple[int, str]:
    """Exit code and output in the server's folder and environment, which HEALTHCHECK has as well."""
    done = subprocess.run(
        [sys.executable, "-m", "pkg", "probe", *arguments],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2]), "PORT": "1", **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    "environ",
    [
        {"PKG_LISTEN": "unix:app.sock"},
        {"PKG_LISTEN": "unix:app.sock?mode=600,127.0.0.1:0"},
        {"PKG_LISTEN": "127.0.0.1:{port}"},
        {"PKG_LISTEN": "127.0.0.1:0,127.0.0.1:{port}"},
        {"PKG_LISTEN": "127.0.0.1:0", "PKG_HEALTH": "unix:health.sock", "PKG_HEALTH_ON_MAIN": "false"},
        {"PKG_LISTEN": "unix:app.sock", "PKG_HEALTH": "127.0.0.1:{port}", "PKG_HEALTH_ON_MAIN": "false"},
    ],
    ids=" ".join,
)
def test_it_finds_the_listener(tmp_path: Path, environ: dict[str, str]) -> None:
    environ = {name: text.format(port=free_port()) for name, text in environ.items()} | {"PKG_ADMIN": "off"}
    with running(
        tmp_path, APPLICATION, ready=False, PKG_DRAIN_DELAY="60", PKG_GRACE_PERIOD="120", **environ
    ) as service:
        service.await_message("^serving ")
        service.await_message("^ignoring HOST and PORT in favor of PKG_LISTEN$")
        assert probe(tmp_path, **environ) == (0, "ok\n")
        assert probe(tmp_path, "--ready", **environ) == (0, "ok\n")
        service.process.terminate()
        wait_for(lambda: probe(tmp_path, "--ready", **environ) == (1, "shutdown: draining\n"))
        assert probe(tmp_path, **environ) == (0, "ok\n")
        service.kill()
        code, output = probe(tmp_path, **environ)
        assert code == 1 and output.startswith("pkg: probe: ") and "Connection refused" in output


class Inheriting(Process):
    """A service to which a listening socket is passed, as descriptor 3."""

    def command(self, arguments: tuple[str, ...]) -> list[str]:
        code = (
            "import os, socket, sys; s = socket.create_server(('127.0.0.1', 0)); fd = s.detach(); os.dup2(fd, 3); "
            "os.set_inheritable(3, True); os.execv(sys.argv[1], sys.argv[1:])"
        )
        return [sys.executable, "-c", code, *super().command(arguments)]


def test_an_inherited_socket_is_asked_about_at_the_admin_listener(tmp_path: Path) -> None:
    environ = {"PKG_LISTEN": "fd:3", "PKG_ADMIN": f"127.0.0.1:{free_port()}"}
    with running(tmp_path, APPLICATION, kind=Inheriting, **environ) as service:
        assert probe(tmp_path, **environ) == (0, "ok\n")
        with socket.create_connection(service.address, 10) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert b"".join(iter(lambda: client.recv(4096), b"")).endswith(b"the application")
