"""What systemd has for the process that it starts, across a fork: it is for the child that serves.

systemd and podman name in LISTEN_PID the process that shall take the sockets (sd_listen_fds(3)), and systemd in
WATCHDOG_PID the one that shall send signs of life (sd_watchdog_enabled(3)).  That is the one they have started; as
process 1 and with `--reload` we serve in a child of it.
"""

from __future__ import annotations

import os

__all__ = ["hand_on"]


def hand_on(parent: int) -> None:
    """Called in the process that serves in place of `parent`, with the parent's sockets.

    The parent's own environment stays, so that its next child gets them, too.  A number that names another process,
    such as a shell above the parent, also stays.
    """
    if parent == os.getpid():
        return
    for name in ("LISTEN_PID", "WATCHDOG_PID"):
        if os.environ.get(name) == str(parent):
            os.environ[name] = str(os.getpid())
            if name == "LISTEN_PID":
                os.environ.pop("LISTEN_PIDFDID", None)  # the parent's, by the inode number of its pidfd
