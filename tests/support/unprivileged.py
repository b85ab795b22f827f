"""Runs the service as the image does: as a user who owns no files and has no capability.

Whether a kernel allows something often hangs on a capability, and root has them all: what works for root alone does not
work where the service runs.
"""

from __future__ import annotations

import os
import shutil

USER = 65532  # the image's


def unprivileged() -> tuple[str, ...]:
    """A command that runs the rest as the image does; nothing for an ordinary user, who has no capability anyway."""
    if os.geteuid() != 0:
        return ()
    setpriv = shutil.which("setpriv")
    assert setpriv is not None, "setpriv is in util-linux"
    return (
        setpriv,
        f"--reuid={USER}",
        f"--regid={USER}",
        "--clear-groups",
        "--inh-caps=-all",
        "--bounding-set=-all",
        "--no-new-privs",
    )


def describe() -> str:
    """Kernel, user and capabilities, to be shown with a figure."""
    uid = os.geteuid() or USER
    return f"Linux {os.uname().release}, user {uid}, no capabilities"
