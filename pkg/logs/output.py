"""Writes to a pipe, a terminal, a socket or a file without ever waiting for its reader.

Each write to a pipe consists of whole lines and fits into PIPE_BUF, so that the kernel accepts it completely or not at
all (pipe(7)), and no print of the application gets into a line.  A longer line is written in one call, which Linux
accepts completely if the pipe has room; otherwise another writer may come between the parts.

It buffers nothing and retries nothing: `sink` decides what to do with data that was not written.
"""

from __future__ import annotations

import fcntl
import io
import os
import select
import stat
from contextlib import suppress
from functools import cache
from typing import IO, Any

_RWF_NOWAIT = 0x00000008  # from linux/fs.h; the os module does not have it for writing
PIPE_BUF = 4096
LONGEST_LINE = 1 << 20  # bytes; how far to search for the end of a line
LAST_WORDS_SIZE = 1 << 20  # bytes; room for the stacks of a thousand threads, even if the reader is slow


@cache
def last_words() -> int:
    """A descriptor for stderr that never blocks, because stacks are written with the interpreter lock held.

    It is 2 if stderr is not a pipe, or cannot be opened again.
    """
    with suppress(OSError):
        if stat.S_ISFIFO(os.fstat(2).st_mode):
            # Opened again: O_NONBLOCK on 2 would apply to every process that has it, and make the application's prints
            # fail.
            descriptor = os.open("/proc/self/fd/2", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, LAST_WORDS_SIZE)
            return descriptor
    return 2


def _whole_lines(data: memoryview) -> memoryview:
    """As many whole lines as fit into PIPE_BUF, but at least one."""
    if len(data) <= PIPE_BUF:
        return data
    end = bytes(data[:PIPE_BUF]).rfind(b"\n") + 1
    if end == 0:
        end = (bytes(data[PIPE_BUF : PIPE_BUF + LONGEST_LINE]).find(b"\n") + 1 or LONGEST_LINE) + PIPE_BUF
    return data[:end]


class Output:
    """A descriptor that is written to without ever blocking.

    It does not use O_NONBLOCK, which would apply to every process that has the same pipe or terminal open.

    `write` writes a part that ends at the end of a line and returns its size.  It raises BlockingIOError if it could
    not write anything now, and OSError if it never can.
    """

    def __init__(self, stream: IO[Any] | None) -> None:
        self.descriptor = -1
        self._stream = stream
        self.is_terminal = False
        self._nowait = self._poll = False
        if stream is None:
            return
        with suppress(OSError, ValueError):
            stream.flush()
        try:
            # A duplicate, because if somebody closes descriptor 1, its number may be given to a client's socket.
            self.descriptor = os.dup(stream.fileno())
        except (OSError, ValueError, AttributeError):  # StringIO and the like
            return
        mode = os.fstat(self.descriptor).st_mode
        self.is_terminal = os.isatty(self.descriptor)
        self._nowait = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        self._poll = self.is_terminal
        self._poller = select.poll()
        self._poller.register(self.descriptor, select.POLLOUT)

    def write(self, data: memoryview) -> int:
        if self.descriptor < 0:
            return self._write_stream(data)
        if self._nowait or self._poll:
            data = _whole_lines(data)
        if self._nowait:
            try:
                return os.pwritev(self.descriptor, [data], -1, _RWF_NOWAIT)
            except BlockingIOError:
                raise
            except BrokenPipeError:
                raise
            except OSError:
                # EOPNOTSUPP, EINVAL, ENOSYS, ESPIPE: kernels before 6.4 and sandboxes do not support it for pipes.
                self._nowait, self._poll = False, True
        if self._poll:
            # Writable means that PIPE_BUF bytes fit (pipe(7)), so a write of this size does not block.
            if not self._poller.poll(0):
                raise BlockingIOError
            data = data[:PIPE_BUF]
        return os.write(self.descriptor, data)

    def _write_stream(self, data: memoryview) -> int:
        try:
            if self._stream is None:
                raise BrokenPipeError
            if isinstance(self._stream, io.TextIOBase):
                self._stream.write(bytes(data).decode())
            else:
                self._stream.write(bytes(data))
            self._stream.flush()
        except ValueError as error:  # closed
            raise BrokenPipeError(str(error)) from None
        return len(data)

    def wait(self, timeout: float) -> None:
        """Waits until there may be room again, for at most `timeout` seconds."""
        if self.descriptor >= 0:
            self._poller.poll(timeout * 1000)

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor, self._stream = -1, None
