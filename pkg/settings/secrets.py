"""Secrets: the files that contain them, and what is shown instead."""

from __future__ import annotations

import os
import stat

__all__ = ["HIDDEN", "read_secret"]

HIDDEN = "***"
_MAX_SIZE = 65536


def read_secret(path: str) -> str:
    """The content of a secret file, without leading and trailing white space.

    It must be a regular file (Kubernetes mounts links to regular files), not empty, at most 64 KiB, in UTF-8.  Raises
    ValueError with a phrase that says what is wrong with the file and shows nothing of its content.
    """
    try:
        # O_NONBLOCK, because opening a FIFO without a writer would block forever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise ValueError("cannot be read: it is not a regular file")
            content = os.read(descriptor, _MAX_SIZE + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror or error}") from None
    if len(content) > _MAX_SIZE:
        raise ValueError("is longer than 64KiB")
    try:
        text = content.decode().strip()
    except UnicodeDecodeError:
        raise ValueError("is not valid UTF-8") from None
    if not text:
        raise ValueError("is empty")
    return text
