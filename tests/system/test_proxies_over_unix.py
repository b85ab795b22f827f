"""nginx and HAProxy in front over a Unix socket, as the page on deploying has them, and whom the application sees."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import balancers
from tests.support.balancers import Balancer, haproxy_with, nginx_with
from tests.support.client import wait_for
from tests.support.instances import folder_of_user
from tests.support.pages import ROOT, blocks
from tests.support.ports import free_port, free_ports
from tests.support.processes import running
from tests.support.unprivileged import USER

APPLICATION = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['REMOTE_ADDR']!r} {environ['wsgi.url_scheme']}".encode()]
"""
CLIENT = "127.0.0.5"
FORGED = "X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n"

pytestmark = pytest.mark.skipif(
    bool(balancers.missing()), reason=f"not installed: {' '.join(balancers.missing())} (Debian's packages)"
)


def _from_page(language: str, folder: Path, port: int, health_port: int) -> str:
    """The page's configuration, on this machine's paths and ports."""
    (text,) = (
        block.text
        for block in blocks(ROOT / "docs/deploying.md")
        if block.language == language and block.what.startswith(f"tested by: {Path(__file__).relative_to(ROOT)}")
    )
    text, places = re.subn(r"\b(listen |bind :)8000\b", lambda m: f"{m[1].rstrip(':')}127.0.0.1:{port}", text)
    assert places == 1 and text.count("/run/shop") == 1
    return text.replace("/run/shop", str(folder)).replace("8081", str(health_port))


@contextlib.contextmanager
def _serving(tmp_path: Path, folder: Path, health_port: int, proxies: str = "unix", **environ: str) -> Iterator[None]:
    listen = f"unix:{folder}/app.sock?mode=660"
    health = {"PKG_HEALTH": f"127.0.0.1:{health_port}", "PKG_HEALTH_ON_MAIN": "false"}
    trusted = {"PKG_TRUSTED_PROXIES": proxies}
    with running(
        tmp_path, APPLICATION, ready=False, PKG_LISTEN=listen, PKG_ADMIN="off", **health, **trusted, **environ
    ) as process:
        process.await_message("^serving ")
        yield
        assert process.stop() == 0
    assert not (folder / "app.sock").exists()


def _seen_through(proxy: Balancer, headers: str = FORGED) -> str:
    """What the application sees of a client whose address is CLIENT."""
    with socket.create_connection(proxy.address, 30, (CLIENT, 0)) as client:
        client.sendall(f"GET / HTTP/1.1\r\nHost: t\r\nConnection: close\r\n{headers}\r\n".encode())
        head, _, body = b"".join(iter(lambda: client.recv(4096), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), (head, proxy.log())
    return body.decode()


@pytest.fixture
def folder() -> Iterator[Path]:
    """Like an emptyDir of a pod with `fsGroup`, it gives its group to its files."""
    with folder_of_user() as path:
        path.chmod(0o2770)
        yield path


@pytest.mark.parametrize(("proxies", "seen"), [("unix", f"'{CLIENT}' http"), ("", "'' http")])
def test_nginx_as_the_page_has_it(proxies: str, seen: str, tmp_path: Path, folder: Path) -> None:
    port, (health_port,) = free_port(), free_ports(1)
    with (
        _serving(tmp_path, folder, health_port, proxies),
        nginx_with(_from_page("nginx", folder, port, health_port), port) as proxy,
    ):
        state = (folder / "app.sock").stat()
        assert stat.filemode(state.st_mode) == "srw-rw----"
        assert state.st_gid == (USER if os.geteuid() == 0 else os.getegid())
        assert _seen_through(proxy) == seen


def test_haproxy_as_the_page_has_it(tmp_path: Path, folder: Path) -> None:
    """The PROXY header counts, and behind it nobody is trusted who is not named."""
    port, (health_port,) = free_port(), free_ports(1)
    with (
        _serving(tmp_path, folder, health_port, PKG_PROXY_PROTOCOL="true"),
        haproxy_with(_from_page("haproxy", folder, port, health_port), port) as proxy,
    ):
        wait_for(lambda: proxy.has("shop"), 15, "a green check")
        assert _seen_through(proxy) == f"'{CLIENT}' http"
        assert _seen_through(proxy, "") == f"'{CLIENT}' http"
