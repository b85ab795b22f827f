"""How a process ends that the application has forked from ours, and that has come back into our code.

It is loaded in such a child only.  What a child gets of the service's parts is said where they are: nothing.
"""

from __future__ import annotations

import os
import sys
import traceback
from contextlib import suppress
from typing import NoReturn

from pkg.errors import ClientDisconnected

__all__ = ["end"]


def end(error: BaseException | None) -> NoReturn:
    """Ends this process as the interpreter would have at the end of the child's own code.

    There is nothing to go back to: the loops above the handler, with all that they would serve or close, are the
    parent's.  So are the functions registered with atexit.  Exit code 0 after a return, the code of a SystemExit, 1
    after any other exception, whose traceback goes to stderr.
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
