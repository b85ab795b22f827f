"""What the commands write to the terminal, and what becomes of it if nobody reads."""

from __future__ import annotations

import os
import sys

__all__ = ["complain", "one_line", "write"]


def write(data: bytes) -> None:
    """Writes to stdout.  Raises BrokenPipeError if the reader has gone, Error if the write fails otherwise."""
    from pkg.errors import Error

    if sys.stdout is None:
        raise Error("cannot write to stdout: it is closed")
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        # Otherwise the interpreter would try to flush stdout again at exit and print an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if isinstance(error, BrokenPipeError):
            raise
        raise Error(f"cannot write to stdout: {error.strerror}") from None


def complain(line: str) -> None:
    """Writes one line to stderr, if there is one."""
    if sys.stderr is not None:
        print(f"pkg: {line}", file=sys.stderr)


def one_line(body: bytes) -> str:
    """The first line; what is not printable ASCII is replaced, since an unknown server may have sent it."""
    lines = body.decode("utf-8", "replace").splitlines() or [""]
    return "".join(character if " " <= character <= "~" else "?" for character in lines[0][:500])
