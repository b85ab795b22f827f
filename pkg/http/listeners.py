"""Listening sockets: our own ones, TCP and Unix, and those that another process has opened and passed to us.

It accepts nothing and reads no settings: addresses come as objects with the attributes of `settings.listen.Endpoint`.

The path of a Unix socket is a name for whoever looks at the directory, and nothing ties it to the life of its server:

    opened     by bind(2); the file of a server that has ended is removed before, a living server's never
    freed      by release(): when the drain stops listening, and again at the end, where it does nothing more
    left       after SIGKILL; the next start finds that nobody listens and replaces it

Two servers that start at once, or one that starts while another ends, take turns: each holds the directory's lock from
its look at the file until it has listened or removed it.

An inherited socket also belongs to others: the process that opened it, and the servers before and after us.  Here it is
neither bound, unlinked, nor listened on again (which would change the length of its queue).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
import struct
import time
from collections.abc import Iterator, MutableMapping
from typing import NamedTuple, Protocol

from pkg.errors import StartupError
from pkg.settings.kinds import show_address

__all__ = ["Address", "Listener", "open_listeners"]

_log = logging.getLogger("pkg.server")

# As many as the kernel allows (net.core.somaxconn): connections that wait there are not lost, others are.
BACKLOG = 4096
FIRST_FD = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
MAX_FDS = 1024  # descriptors that systemd may pass; more are a mistake in LISTEN_FDS
# Seconds for other servers to finish with the directory, which takes them milliseconds.  Whatever else holds a lock on
# a directory may hold it for good.
START_PATIENCE = 2.0
RELEASE_PATIENCE = 0.2
LOCK_INTERVAL = 0.01
# LISTEN_PIDFDID, of newer versions, names the same process as LISTEN_PID by the inode of its pidfd.
_ACTIVATION = ("LISTEN_FDS", "LISTEN_PID", "LISTEN_PIDFDID", "LISTEN_FDNAMES")


class Address(Protocol):
    """What is read of an `Endpoint`, whose `str()` is the text in messages."""

    kind: str
    host: str
    port: int
    path: str
    mode: int | None
    fd: int


class _File(NamedTuple):
    """The file of a Unix socket that this process has bound."""

    path: str  # absolute, as the application may change the working directory
    identity: tuple[int, int, int]
    owner: int  # process id; a forked child has a copy of this object and must not remove its parent's file


class Listener:
    """A socket that listens: non-blocking, closed on exec.

    `name`: the address for logs and metrics, as in `0.0.0.0:8080` or `unix:/run/app.sock`.  `is_health`: it serves the
    health pages only.  `host`: host and port.  `is_inherited`: other processes may hold the same socket, so it must not
    be shut down.
    """

    def __init__(self, sock: socket.socket, name: str, *, is_inherited: bool = False, is_health: bool = False) -> None:
        self.socket = sock
        self.name = name
        self.is_health = is_health
        self.is_inherited = is_inherited
        # For SERVER_NAME and SERVER_PORT, which must not be empty (PEP 3333).
        self.host: tuple[str, int] = ("localhost", 80) if sock.family == socket.AF_UNIX else sock.getsockname()[:2]
        self._inode = os.fstat(sock.fileno()).st_ino
        self._file: _File | None = None

    @property
    def address(self) -> tuple[str, int | None]:
        """For the `server` of ASGI: host and port, or the path of a Unix socket and None."""
        if self.socket.family == socket.AF_UNIX:
            return os.fsdecode(self.socket.getsockname()), None
        return self.host

    def __repr__(self) -> str:
        return f"<Listener {self.name}>"

    def release(self) -> None:
        """Removes the file of a Unix socket, if it is still this one's and this process has bound it.  Idempotent.

        From then on another server can listen on the path.  Connections that wait in the queue are not lost, so it is
        called before the listener is closed: then no client finds a path on which nobody listens.
        """
        file, self._file = self._file, None
        if file is None or file.owner != os.getpid():
            return
        try:
            with _alone(os.path.dirname(file.path), RELEASE_PATIENCE):
                if _identity(os.lstat(file.path)) == file.identity:
                    os.unlink(file.path)
        except FileNotFoundError:
            pass
        except OSError as error:  # the directory's permissions have changed; the server ends all the same
            _log.info("cannot remove the socket %s: %s", file.path, error.strerror)

    def close(self) -> None:
        """Closes this process's descriptor.  The path of a Unix socket stays; see `release()`."""
        self.socket.close()

    def pending(self) -> tuple[int, int] | None:
        """How many connections wait in the kernel's accept queue, and how many fit in.

        None if the kernel does not tell, or if the listener is closed.  Takes at most five system calls, none of which
        blocks.
        """
        from pkg.http.accept_queue import of_tcp, of_unix

        return of_unix(self._inode) if self.socket.family == socket.AF_UNIX else of_tcp(self.socket)


def open_listeners(
    endpoints: tuple[Address, ...] | list[Address],
    health: Address | None = None,
    environ: MutableMapping[str, str] = os.environ,
) -> list[Listener]:
    """Opens all of them, in their order and that of `health` at the end; `systemd` gives as many as were passed.

    With `systemd` the variables of sd_listen_fds(3) are removed from `environ`, so that no child takes them as its own.

    Raises StartupError with one line if one cannot be opened, and MemoryError if the kernel has no memory for it.
    Then those that were opened are closed again, and their paths are free.
    """
    listeners: list[Listener] = []
    try:
        for endpoint in [*endpoints, health] if health is not None else endpoints:
            listeners += _open(endpoint, environ, {listener.socket.fileno() for listener in listeners})
        if health is not None:
            listeners[-1].is_health = True
    except BaseException:
        for listener in listeners:
            listener.release()
            listener.close()
        raise
    return listeners


def _open(endpoint: Address, environ: MutableMapping[str, str], taken: set[int]) -> list[Listener]:
    try:
        match endpoint.kind:
            case "tcp":
                return [_open_tcp(endpoint.host, endpoint.port)]
            case "unix":
                return [_open_unix(endpoint.path, endpoint.mode)]
            case "fd":
                return [_inherit(endpoint.fd, f"descriptor {endpoint.fd}", taken)]
            case _:
                return _activated(environ, taken)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise MemoryError from None
        reason = error.strerror or str(error)
    except (_Refusal, UnicodeError) as error:  # a host name that IDNA cannot encode is a UnicodeError
        reason = str(error)
    raise StartupError(f"cannot listen on {endpoint}: {reason}")


class _Refusal(Exception):
    """Why an address cannot be used, in words; becomes a StartupError."""


# --------------------------------------------------------------- TCP


def _open_tcp(host: str, port: int) -> Listener:
    """Like socketserver, it takes the first address of a host name."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        _send_at_once(sock)
        sock.bind((host, port))
        sock.listen(BACKLOG)  # of two servers that have bound a port with SO_REUSEADDR, this fails in the second
        return Listener(sock, _name(sock))
    except BaseException:
        sock.close()
        raise


def _send_at_once(sock: socket.socket) -> None:
    # Accepted sockets inherit the option.  Without it a response in two segments waits up to 40 ms for the client's
    # delayed acknowledgement.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _name(sock: socket.socket) -> str:
    address = sock.getsockname()
    if sock.family != socket.AF_UNIX:
        return show_address(address[0], address[1])
    path = os.fsdecode(address)
    return f"unix:@{path[1:]}" if path.startswith("\0") else f"unix:{path}"  # an abstract one as ss(8) shows it


# --------------------------------------------------------------- Unix


def _open_unix(path: str, mode: int | None) -> Listener:
    whole = os.path.abspath(path)
    directory = os.path.dirname(whole)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with _alone(directory, START_PATIENCE):
            _bind(sock, path, directory)
            try:
                listener = Listener(sock, f"unix:{path}")
                listener._file = _File(whole, _identity(os.lstat(whole)), os.getpid())
                # Until it listens nobody can connect, so nobody can who may not.  The process's umask would do the
                # same, but also for the files that other threads create meanwhile.
                if mode is not None:
                    os.chmod(whole, mode)
                sock.listen(BACKLOG)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(whole)
                raise
            return listener
    except BaseException:
        sock.close()
        raise


def _bind(sock: socket.socket, path: str, directory: str) -> None:
    """Binds the socket, if need be in place of the file of a server that has ended."""
    try:
        try:
            sock.bind(path)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            _remove_dead(path)
            sock.bind(path)
    except FileNotFoundError:
        raise _Refusal(f"there is no directory {directory}") from None
    except PermissionError as error:
        raise _Refusal(f"{error.strerror}: user {os.geteuid()} may not write in {directory}") from None


def _remove_dead(path: str) -> None:
    """Removes the file if no server listens on it.  Raises _Refusal if one does, or if it is not a socket."""
    try:
        state = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(state.st_mode):
        raise _Refusal("the file exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.setblocking(False)
        error = client.connect_ex(path)
        if error == 0:
            raise _Refusal(f"{os.strerror(errno.EADDRINUSE)} (pid {_listening_process(client) or 'unknown'})")
    match error:
        case errno.ECONNREFUSED:
            try:
                os.unlink(path)
            except PermissionError as denied:  # another user's, in a directory with the sticky bit
                raise _Refusal(f"{denied.strerror}: a server that has ended has left its file there") from None
        case errno.ENOENT:
            pass
        case errno.EAGAIN | errno.EINPROGRESS:  # its queue is full, which only a server has that lives
            raise _Refusal(f"{os.strerror(errno.EADDRINUSE)} (pid unknown, as no connection fits in its queue)")
        case errno.EPROTOTYPE:
            raise _Refusal("the file is a socket of another type than a stream, and in use")
        case _:
            raise _Refusal(f"the file exists, and whether a server listens on it is unknown: {os.strerror(error)}")


def _listening_process(client: socket.socket) -> int:
    """The process that has called listen(2); 0 if it is in another PID namespace (unix(7), SO_PEERCRED)."""
    try:
        pid: int = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    except OSError:
        return 0
    return pid


def _identity(state: os.stat_result) -> tuple[int, int, int]:
    """What tells a file from a later one on the same path.

    As long as the socket is open the kernel holds its inode, so no other file has its number.  Once it is closed,
    filesystems give the number of a removed file to the next one, so the time of its creation belongs to it.  For a
    socket this is the modification time: connections do not change it, nor do chmod(1) and chown(1), which change
    st_ctime.
    """
    return state.st_dev, state.st_ino, state.st_mtime_ns


@contextlib.contextmanager
def _alone(directory: str, patience: float) -> Iterator[None]:
    """Holds the lock of the directory, which leaves no file behind and ends with the process.

    If it cannot be had, as for a directory that this user cannot read, on NFS, or after `patience` seconds, it goes on
    without: then two servers that start in the same millisecond can take the path from each other.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        is_locked = _lock(descriptor, patience)
        try:
            yield
        finally:
            if is_locked:  # not by close(): a child forked in this moment has the descriptor, too
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, patience: float) -> bool:
    end = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= end:
                _log.info("another process holds a lock on the socket's directory; continuing without it")
                return False
            time.sleep(LOCK_INTERVAL)
        except OSError:
            return False
        else:
            return True


# --------------------------------------------------------------- inherited


def _inherit(descriptor: int, called: str, taken: set[int]) -> Listener:
    """Takes over a descriptor.  Raises _Refusal if it is not a listening socket, and leaves it open then."""
    if descriptor in taken:
        raise _Refusal(f"{called} is already in use by another of the addresses")
    try:
        sock = socket.socket(fileno=descriptor)
    except OSError as error:
        reasons = {errno.EBADF: "is not open", errno.ENOTSOCK: "is not a socket"}
        raise _Refusal(f"{called} {reasons.get(error.errno or 0, error.strerror)}") from None
    try:
        if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX) or sock.type != socket.SOCK_STREAM:
            raise _Refusal(f"{called} is not a stream socket of TCP or Unix")
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise _Refusal(f"{called} is a socket that does not listen")
        # O_NONBLOCK belongs to the open file description, which all holders share: another one that accepts without
        # waiting for the socket to be readable gets EAGAIN.  There is no other way: of several holders that are woken
        # for one connection, all but one would wait in accept(2).
        sock.setblocking(False)
        sock.set_inheritable(False)
        # TCP_NODELAY acts on what the other holders accept, too.  gunicorn sets it all the same, and uvicorn does not
        # and has its users wait 40 ms (its issue 3149).  It is set here: no holder receives anything else than before,
        # at most in more packets, and the alternative is a system call for each connection.
        if sock.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):
                _send_at_once(sock)
        return Listener(sock, _name(sock), is_inherited=True)
    except BaseException:
        sock.detach()
        raise


def _activated(environ: MutableMapping[str, str], taken: set[int]) -> list[Listener]:
    """All descriptors that systemd has passed to this process (sd_listen_fds(3))."""
    number, process = environ.get("LISTEN_FDS"), environ.get("LISTEN_PID")
    if number is None:
        raise _Refusal("LISTEN_FDS is not set: was it started by systemd?")
    if process is None:
        raise _Refusal("LISTEN_PID is not set: was it started by systemd?")
    if not number.isascii() or not number.isdecimal() or len(number) > 4 or not 1 <= int(number) <= MAX_FDS:
        raise _Refusal(f"LISTEN_FDS is {number[:20]!r}: no socket was passed")
    if process != str(os.getpid()):
        raise _Refusal(
            f"LISTEN_PID is {process[:20]!r}, but this is process {os.getpid()}: "
            "the sockets were passed to another process, such as a shell that has started this one"
        )
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    listeners: list[Listener] = []
    try:
        for n in range(int(number)):
            name = f" ({names[n]})" if n < len(names) and names[n] and names[n].isprintable() else ""
            listeners.append(_inherit(FIRST_FD + n, f"descriptor {FIRST_FD + n}{name}", taken))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    for name in _ACTIVATION:
        environ.pop(name, None)
    return listeners
