"""Socket activation (sd_listen_fds(3)) across a fork: the sockets are for the child that serves.

systemd and podman name in LISTEN_PID the process that shall take the sockets.  That is the one they have started; as
process 1 and with `--reload` we serve in a child of it.
"""

from __future__ import annotations

import os

__all__ = ["hand_on"]


def hand_on(parent: int) -> None:
    """Called in the process that serves in place of `parent`, with the parent's sockets.

    The parent's own environment stays, so that its next child gets them, too.  A LISTEN_PID that names another
    process, such as a shell above the parent, also stays.
    """
    if parent != os.getpid() and os.environ.get("LISTEN_PID") == str(parent):
        os.environ["LISTEN_PID"] = str(os.getpid())
        os.environ.pop("LISTEN_PIDFDID", None)  # the parent's, by the inode number of its pidfd
