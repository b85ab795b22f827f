"""Instances of the service as in the image, for tests that replace them under load; they share one log."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.processes import WORKERS
from tests.support.unprivileged import USER, unprivileged

APP = "tests.support.rolling_application:app"


class Instances:
    """Starts instances of the application, with the settings `environ` besides those of every test."""

    def __init__(self, folder: Path, app: str = APP, **environ: str) -> None:
        self._app = app
        self._log, self._folder = folder / "log", folder
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith(("PKG_", "LISTEN_"))}
        self._environ |= {"HOST": "127.0.0.1", "PKG_ADMIN": "off", "LOG_FORMAT": "json", "PKG_ACCESS_LOG": "false"}
        self._environ |= WORKERS | environ
        self._log.touch()

    def start(self, passed: Sequence[socket.socket] = (), /, **environ: str) -> subprocess.Popen[bytes]:
        """`passed`: sockets that the instance inherits under their numbers here."""
        with open(self._log, "ab") as out:
            return subprocess.Popen(
                [*unprivileged(), sys.executable, "-m", "pkg", self._app],
                env=self._environ | environ,
                cwd=self._folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                pass_fds=[s.fileno() for s in passed],
            )

    def log(self) -> str:
        return self._log.read_text()


@contextlib.contextmanager
def folder_of_user() -> Iterator[Path]:
    """A folder in which the image's user may make sockets and root's balancers find them, as in an emptyDir."""
    with tempfile.TemporaryDirectory(prefix="sockets-") as name:
        if os.geteuid() == 0:
            os.chown(name, USER, USER)
        yield Path(name)
