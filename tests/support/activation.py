"""Plays systemd's part of socket activation (sd_listen_fds(3)): starts a command with sockets from descriptor 3 on."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

# Like systemd it sets LISTEN_PID after the fork.  The descriptors are first moved out of the way of their new numbers.
_LAUNCHER = """
import fcntl, json, os, sys
fds = [int(fd) for fd in sys.argv[1].split(",") if fd]
given = [fcntl.fcntl(fd, fcntl.F_DUPFD, 500) for fd in fds]
for fd in fds:
    os.close(fd)
for n, fd in enumerate(given):
    os.dup2(fd, 3 + n)
    os.close(fd)
for name, value in json.loads(sys.argv[2]).items():
    os.environ[name] = value.replace("SELF", str(os.getpid()))
os.execvp(sys.argv[3], sys.argv[3:])
"""


def activate(
    command: Sequence[str], sockets: Sequence[socket.socket], environ: dict[str, str] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """`environ`: the variables, in which `SELF` stands for the command's own process id; usually as systemd sets them.

    `options` are those of Popen; the command's output is text.
    """
    if environ is None:
        environ = {"LISTEN_FDS": str(len(sockets)), "LISTEN_PID": "SELF"}
    fds = [s.fileno() for s in sockets]
    launcher = [sys.executable, "-c", _LAUNCHER, ",".join(map(str, fds)), json.dumps(environ)]
    given = {name: value for name, value in os.environ.items() if not name.startswith("LISTEN_")}
    return subprocess.Popen([*launcher, *command], pass_fds=fds, text=True, **{"env": given, **options})


# Takes what was passed and says what it has got.
TAKER = """
import json, os, sys
from pkg.errors import StartupError
from pkg.http.listeners import open_listeners
from pkg.settings.listen import parse_endpoints
def take():
    try:
        found = open_listeners(parse_endpoints("systemd"))
    except StartupError as error:
        print(json.dumps(str(error)), flush=True)
        return 3
    passed_on = [name for name in os.environ if name.startswith("LISTEN_")]
    named = [[l.name, l.socket.fileno(), l.is_inherited] for l in found]
    print(json.dumps([named, passed_on, os.getpid(), os.getppid()]), flush=True)
    sys.stdin.read()
    return 0
"""
TAKE = f"{TAKER}\nsys.exit(take())"


@contextlib.contextmanager
def taking(
    code: str, sockets: list[socket.socket], environ: dict[str, str] | None = None, cwd: Path = ROOT
) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """Runs code that prints a line of JSON, and ends it at the end; the process and what the line says."""
    process = activate(
        [sys.executable, "-c", code],
        sockets,
        environ,
        cwd=cwd,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()
        yield process, json.loads(line)
    finally:
        process.communicate()  # the end of its input ends it


@contextlib.contextmanager
def two_sockets(path: Path) -> Iterator[list[socket.socket]]:
    """A TCP and a Unix socket to pass on."""
    with socket.create_server(("127.0.0.1", 0)) as first, socket.socket(socket.AF_UNIX) as second:
        second.bind(str(path))
        second.listen()
        yield [first, second]


def names_of(sockets: list[socket.socket]) -> list[list[Any]]:
    """What TAKER says of the two."""
    host, port = sockets[0].getsockname()
    return [[f"{host}:{port}", 3, True], [f"unix:{sockets[1].getsockname()}", 4, True]]
