"""Ends a process that the application has forked from ours, when it returns into our code.

It is imported only in such a child.  Each part of the service makes sure that a child cannot use it.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from typing import NoReturn

from pkg.errors import ClientDisconnected

__all__ = ["end", "end_in_loop"]


def end(error: BaseException | None) -> NoReturn:
    """Ends this process as the interpreter would do at the end of the child's own code.

    It must not return: the loops above the handler, and what they serve or close, belong to the parent, and so do the
    functions registered with atexit.  The exit code is 0 after a return, the code of a SystemExit, or 1 after any other
    exception, whose traceback is written to stderr.
    """
    code, text = 0, ""
    if isinstance(error, SystemExit):
        if isinstance(error.code, int):
            code = error.code & 0xFF
        elif error.code is not None:
            code, text = 1, f"{error.code}\n"
    elif error is None or isinstance(error, ClientDisconnected):
        text = (
            f"pkg: process {os.getpid()}, forked while a request was served, has returned from the handler and exits\n"
        )
    else:
        code, text = 1, "".join(traceback.format_exception(error))
    try:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        with suppress(OSError):
            os.write(2, text.encode("utf-8", "backslashreplace"))
    finally:
        os._exit(code)


def end_in_loop() -> NoReturn:
    """Ends this process, which the application has forked and which goes on in the event loop of its parent.

    It would run the tasks of the parent's requests once more, over the same sockets of databases and other servers.
    """
    end(RuntimeError(f"process {os.getpid()}, forked while a request was served, must not wait in the event loop"))
