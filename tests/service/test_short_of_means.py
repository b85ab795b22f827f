"""A start for which there is no thread or no memory: one line, exit code 3, and nothing is left."""

from __future__ import annotations

import os
import resource
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ports import free_port

APPLICATION = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "0")])
    return [b""]
"""
MiB = 1 << 20


def fails(directory: Path, limits: dict[int, int], command: tuple[str, ...] = (), **environ: str) -> str:
    """What stderr says of a start under these limits."""
    (directory / "application.py").write_text(APPLICATION)
    port = free_port()

    def limit() -> None:
        for which, value in limits.items():
            resource.setrlimit(which, (value, value))

    run = subprocess.run(
        [*command, sys.executable, "-m", "pkg", "application:app"],
        cwd=directory,
        env={
            **os.environ,
            "PORT": str(port),
            "HOST": "127.0.0.1",
            "PKG_ADMIN": "127.0.0.1:0",
            "PYTHONPATH": str(Path(__file__).parents[2]),
            **environ,
        },
        preexec_fn=limit,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 3, (run.returncode, run.stdout, run.stderr)
    assert "Traceback" not in run.stdout
    assert run.stderr.count("\n") == 1, run.stderr
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", port))
    return run.stderr


def stranger() -> tuple[str, ...]:
    """A command that runs the rest as a user who has no process yet, but may read what root may: the limit on processes
    does not apply to root."""
    if os.getuid() != 0:
        return ()
    setpriv = shutil.which("setpriv")
    assert setpriv is not None, "setpriv is in util-linux"
    uid, capabilities = 61000 + os.getpid() % 4000, "-all,+dac_override,+dac_read_search"
    return (
        setpriv,
        f"--reuid={uid}",
        f"--regid={uid}",
        "--clear-groups",
        f"--inh-caps={capabilities}",
        f"--ambient-caps={capabilities}",
    )


# Each number in turn, so that the last thread there is belongs to the log, the front, the admin listener, the checks,
# the pool (psycopg's own), its watchdog and the workers.  An ordinary user has more processes than that, and so none.
@pytest.mark.parametrize("threads", range(1, 16))
def test_no_thread(threads: int, tmp_path: Path) -> None:
    url = "postgresql://nobody@127.0.0.1:1/none"
    limit = {resource.RLIMIT_NPROC: threads}
    text = fails(tmp_path, limit, stranger(), DATABASE_URL=url, PKG_THREADS="32")
    assert text.startswith("pkg: cannot start: no thread can be started: raise the limit on processes"), text


def test_no_memory(tmp_path: Path) -> None:
    limits = {resource.RLIMIT_STACK: 64 * MiB, resource.RLIMIT_AS: 400 * MiB}  # enough for some stacks
    assert fails(tmp_path, limits).startswith("pkg: cannot start: no")
