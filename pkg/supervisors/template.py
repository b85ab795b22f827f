"""The template process, which forks the workers, and the handle that process 1 has of it.

Process 1 has threads and sockets, which a worker must not inherit, so it cannot fork workers itself.  The template is
a new interpreter with one thread and no socket but its line to process 1, a pair of Unix sockets:

    template -> process 1   once: it has imported what it is to import, and forks from now on
    process 1 -> template   one message for each worker: its number, and the descriptors that are for it
    template -> process 1   the worker's process id, or why there is none

A worker is forked twice, so that it is an orphan, which the kernel gives to process 1 (PR_SET_CHILD_SUBREAPER): that
one learns how the worker ended, whether or not the template still runs.  The template ends when its line ends, and a
worker when process 1 does (PR_SET_PDEATHSIG), so nothing is left behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

from pkg.diagnostics import foreign_stacks
from pkg.service.signals import INTERRUPT

__all__ = ["Template", "end_with_process_1", "serve_template"]

PATIENCE = 20.0  # seconds for a fork; a template that takes longer is replaced
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)
MOST_DESCRIPTORS = 8
# What process 1 handles for all: a terminal and systemd send them to every process of the service.
OTHERS_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP)


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


class Template:
    """The handle that process 1 has.  `arguments`: those of the command line after `python -m pkg`."""

    def __init__(self, arguments: Sequence[str]) -> None:
        self._arguments = arguments
        self._line: socket.socket | None = None
        self.forks = False  # as far as is_ready() has seen
        self.pid = 0  # 0: it does not run
        self.born = 0.0
        _prctl(PR_SET_CHILD_SUBREAPER, 1)

    def start(self) -> None:
        """Starts the process, unless it runs.  Raises OSError if that is impossible."""
        if self._line is not None:
            return
        own, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            os.set_inheritable(its.fileno(), True)
            command = [
                sys.executable,
                *_interpreter_flags(),
                *("-m", "pkg", "template", str(its.fileno())),
                *self._arguments,
            ]
            try:
                # This interpreter itself, which may have lost its path: to an update, or to a change of user.
                self.pid = os.posix_spawn("/proc/self/exe", command, os.environ)
            except OSError:
                own.close()
                raise
        own.settimeout(PATIENCE)
        self._line, self.forks, self.born = own, False, time.monotonic()

    def is_ready(self) -> bool:
        """Whether it forks; starts it, unless it runs, and does not wait for it.  Raises OSError if it has ended."""
        self.start()
        assert self._line is not None
        if not self.forks and _events(self._line.fileno(), select.POLLIN):
            self._receive()
            self.forks = True
        return self.forks

    def fork(self, number: int, descriptors: Sequence[int]) -> int:
        """The process id of a new worker, which gets copies of the descriptors, once is_ready().  Raises OSError; the
        next is_ready() starts a new template then."""
        assert self._line is not None
        try:
            socket.send_fds(self._line, [str(number).encode()], descriptors)
        except OSError:
            self.end()
            raise
        answer = self._receive()
        if not answer.isdecimal():
            self.end()
            raise OSError(answer)
        return int(answer)

    def _receive(self) -> str:
        assert self._line is not None
        try:
            answer = self._line.recv(1024).decode()
        except OSError:
            self.end()
            raise
        if not answer:
            self.end()
            raise OSError("the template process has ended")
        return answer

    def end(self) -> None:
        """Ends the process; its workers go on."""
        if self._line is not None:
            self._line.close()
            self._line = None
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.pid = 0


def _interpreter_flags() -> list[str]:
    """Those of this interpreter, as `-X dev`: what is before `-m pkg`, or before the script."""
    flags = sys.orig_argv[1 : len(sys.orig_argv) - len(sys.argv)]
    return flags[:-1] if flags[-1:] in (["-m"], ["-c"]) else flags


def _events(descriptor: int, wanted: int) -> bool:
    poll = select.poll()  # select() takes no descriptor above 1023
    poll.register(descriptor, wanted)
    return bool(poll.poll(0))


def end_with_process_1(line_fd: int) -> None:
    """From now on the kernel kills this process, a template, when process 1 ends, also while it imports."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if _events(line_fd, 0):  # the line has ended: so has process 1
        os._exit(0)


def serve_template(line_fd: int, work: Callable[[int, Sequence[int]], int]) -> int:
    """Runs the template: forks a worker for each message, until the line ends.  Returns the exit code.

    In a worker, work(number, descriptors) runs, and its result is the exit code.
    """
    line = socket.socket(fileno=line_fd)
    os.set_inheritable(line_fd, False)
    for number in OTHERS_SIGNALS:
        signal.signal(number, _leave_to_process_1)
    for ignored in (signal.SIGUSR1, foreign_stacks.SIGNAL, INTERRUPT):  # until a worker has its handlers
        signal.signal(ignored, signal.SIG_IGN)
    process_1 = os.getppid()
    line.send(b"ready")
    while True:
        message, descriptors, _, _ = socket.recv_fds(line, 64, MOST_DESCRIPTORS)
        if not message:
            return 0
        try:
            pid = _fork_orphan()
        except OSError as error:
            answer = f"the template process cannot fork: {error.strerror}"
        else:
            if pid == 0:
                line.close()
                _end_with(process_1)
                _give_signals_to_children()
                return work(int(message), descriptors)
            answer = str(pid)
        for descriptor in descriptors:
            os.close(descriptor)
        line.send(answer.encode())


def _leave_to_process_1(*_: object) -> None:
    """A handler, and not SIG_IGN, which the programs that a worker starts would inherit."""


def _give_signals_to_children() -> None:
    """A process that the application forks ends by a signal as any does, also by one that comes at once."""
    held = threading.local()

    def hold() -> None:
        held.mask = signal.pthread_sigmask(signal.SIG_BLOCK, OTHERS_SIGNALS)

    def release() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, held.mask)

    def take() -> None:
        for number in OTHERS_SIGNALS:
            if signal.getsignal(number) is _leave_to_process_1:
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        release()

    os.register_at_fork(before=hold, after_in_parent=release, after_in_child=take)


def _fork_orphan() -> int:
    """Forks a process whose parent has ended.  Its process id, or 0 in it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            pid = os.fork()
            if pid:
                os.write(writing, str(pid).encode())
        except OSError as error:
            os.write(writing, f"-{error.errno}".encode())
            pid = -1
        if pid:
            os._exit(0)
        os.close(reading)
        os.close(writing)
        return 0
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        pid = int(pipe.read() or -1)
    os.waitpid(child, 0)  # from now on the kernel has given the worker to process 1
    if pid < 0:
        raise OSError(-pid, os.strerror(-pid))
    return pid


def _end_with(parent: int) -> None:
    """Waits until `parent` is the parent; when it ends, the kernel kills this process."""
    end = time.monotonic() + PATIENCE
    while os.getppid() != parent and time.monotonic() < end:
        time.sleep(0.001)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
