"""HAProxy and nginx from Debian's packages, in front of servers on loopback ports or Unix sockets.

They are set up as people do who want no request lost, and not one directive further: nothing here retries a request
that has been sent, except that nginx does so by default with idempotent ones.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.client import wait_for
from tests.support.load import is_reachable
from tests.support.places import Place
from tests.support.ports import free_port

# Active checks: a server leaves the rotation after two responses in a row other than 200, and returns with the first
# 200.  A check may take much longer than the interval, so that a busy machine does not make a server look dead.
HAPROXY = """\
global
    maxconn 2000
    nbthread 1
    stats socket {folder}/stats mode 600 level user
defaults
    mode http
    timeout check 5s
    timeout connect 2s
    timeout client 30s
    timeout server 30s
    retries 3
    option redispatch
{sections}
"""
HAPROXY_SECTIONS = """\
frontend in
    bind 127.0.0.1:{port}
    {directive}
    default_backend instances
backend instances
    balance roundrobin
    option httpchk GET {check}
    http-reuse safe
    default-server check inter {interval}ms fall 2 rise 1
{servers}
"""

# No active checks in the open-source edition: nginx learns that an instance has gone from a connection that is
# refused, and takes the next one, also for a POST, of which nothing has been sent by then.  `max_fails=0`, since an
# instance that is taken for dead for a while is missing when its neighbour restarts.
NGINX = """\
daemon off;
master_process off;
worker_processes 1;
pid {folder}/pid;
error_log stderr error;
events {{ worker_connections 2000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    keepalive_requests 1000000;
{blocks}
}}
"""
NGINX_BLOCKS = """\
    upstream instances {{
{servers}
        keepalive 16;
        keepalive_requests 1000000;
    }}
    server {{
        listen 127.0.0.1:{port};
        client_max_body_size 10m;
        location / {{
            proxy_pass http://instances;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_connect_timeout 500ms;
            {directive}
        }}
        location /socket {{
            proxy_pass http://instances;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
            proxy_connect_timeout 500ms;
        }}
    }}
"""


def missing() -> list[str]:
    """The balancers that are missing on this machine."""
    return [name for name in ("haproxy", "nginx") if _command(name) is None]


def _command(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


class Balancer:
    """A running balancer: send requests to `address`; `log()` is its log."""

    def __init__(self, name: str, address: tuple[str, int], process: subprocess.Popen[bytes], folder: Path) -> None:
        self.name, self.address, self.process, self._folder = name, address, process, folder

    def log(self) -> str:
        return (self._folder / "log").read_text()

    def has(self, name: str) -> bool:
        """Whether its checks let it send requests to the server of that name, which is `Place.name`.

        nginx has no checks, so always."""
        if self.name != "haproxy":
            return True
        try:
            with socket.socket(socket.AF_UNIX) as s, s.makefile("r") as answer:
                s.settimeout(5)
                s.connect(str(self._folder / "stats"))
                s.sendall(b"show stat\n")
                rows = [line.split(",") for line in answer]
        except (FileNotFoundError, ConnectionRefusedError):  # so far it listens for clients only
            return False
        status = rows[0].index("status")
        return any(row[1:2] == [name] and row[status] == "UP" for row in rows)


@contextlib.contextmanager
def _started(name: str, config: str, port: int, *arguments: str) -> Iterator[Balancer]:
    """In `config`, FOLDER stands for a folder of its own; in `arguments`, CONFIG for its file."""
    command = _command(name)
    assert command is not None, name
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as own:
        folder = Path(own)
        (folder / "config").write_text(config.replace("FOLDER", own))
        words = [word.replace("CONFIG", f"{own}/config").replace("FOLDER", own) for word in arguments]
        with open(folder / "log", "wb") as log:
            process = subprocess.Popen([command, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        balancer = Balancer(name, ("127.0.0.1", port), process, folder)
        try:
            wait_for(lambda: process.poll() is not None or is_reachable(balancer.address), 15, name)
            assert process.poll() is None, balancer.log()
            yield balancer
        finally:
            process.kill()
            process.wait()


def haproxy_with(sections: str, port: int) -> contextlib.AbstractContextManager[Balancer]:
    """HAProxy with these frontends and backends, of which one listens on the port of 127.0.0.1."""
    return _started("haproxy", HAPROXY.format(folder="FOLDER", sections=sections), port, "-db", "-f", "CONFIG")


def nginx_with(blocks: str, port: int) -> contextlib.AbstractContextManager[Balancer]:
    """nginx with these upstreams and servers, of which one listens on the port of 127.0.0.1."""
    config = NGINX.format(folder="FOLDER", blocks=blocks)
    return _started("nginx", config, port, "-e", "stderr", "-p", "FOLDER", "-c", "CONFIG")


def haproxy(
    places: Sequence[Place], *, check: str = "/readyz", interval: float = 0.1, directive: str = ""
) -> contextlib.AbstractContextManager[Balancer]:
    """`interval`: seconds between two health checks of `check`.  `directive`: one more, of the frontend."""
    port = free_port()
    sections = HAPROXY_SECTIONS.format(
        port=port,
        check=check,
        interval=round(interval * 1000),
        servers="\n".join(f"    server {_haproxy_server(place)}" for place in places),
        directive=directive,
    )
    return haproxy_with(sections, port)


def _haproxy_server(place: Place) -> str:
    address = f"unix@{place.path}" if place.path else f"127.0.0.1:{place.port}"
    return f"{place.name} {address}" + (f" addr 127.0.0.1 port {place.health_port}" if place.health_port else "")


def nginx(places: Sequence[Place], *, directive: str = "") -> contextlib.AbstractContextManager[Balancer]:
    """`directive`: one more, of the location."""
    port = free_port()
    servers = "\n".join(
        f"        server {f'unix:{p.path}' if p.path else f'127.0.0.1:{p.port}'} max_fails=0;" for p in places
    )
    return nginx_with(NGINX_BLOCKS.format(port=port, servers=servers, directive=directive), port)
