"""The kernel's queue of connections that nobody has accepted yet: its length and its limit.

It is read on each scrape of the metrics.  No call waits, and where the kernel does not tell, there is no number.
"""

from __future__ import annotations

import socket
import struct

__all__ = ["of_tcp", "of_unix"]

# struct tcp_info of linux/tcp.h: the state is its first byte.  Of a listening socket tcpi_unacked and tcpi_sacked are
# the queue's length and limit (tcp_get_info() in net/ipv4/tcp.c).
TCP_INFO_SIZE = 32
COUNTS_AT = 24
TCP_LISTEN = 10

NETLINK_SOCK_DIAG = 4
SOCK_DIAG_BY_FAMILY = 20
NLM_F_REQUEST = 1
UDIAG_SHOW_RQLEN = 0x10
UNIX_DIAG_RQLEN = 4
NO_COOKIE = 0xFFFFFFFF
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_REQUEST = struct.Struct("=BBHIIIII")  # struct unix_diag_req: family, protocol, pad, states, inode, show, cookie
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr: length, type
_ANSWER_SIZE = 16  # struct unix_diag_msg


def of_tcp(sock: socket.socket) -> tuple[int, int] | None:
    """Length and limit for a listening socket, None if the kernel does not tell (gVisor leaves zeros)."""
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_SIZE)
    except OSError:
        return None
    if len(info) < TCP_INFO_SIZE or info[0] != TCP_LISTEN:
        return None
    length, limit = struct.unpack_from("=II", info, COUNTS_AT)
    return (length, limit) if limit else None


def of_unix(inode: int) -> tuple[int, int] | None:
    """The same for the Unix socket with that inode number (fstat(2) of its descriptor, not of its file).

    None if there is none in this network namespace, or if the kernel does not answer sock_diag(7).
    """
    request = _REQUEST.pack(socket.AF_UNIX, 0, 0, NO_COOKIE, inode & 0xFFFFFFFF, UDIAG_SHOW_RQLEN, NO_COOKIE, NO_COOKIE)
    head = _HEADER.pack(_HEADER.size + len(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 0, 0)
    try:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        with socket.socket(socket.AF_NETLINK, kind, NETLINK_SOCK_DIAG) as kernel:
            kernel.sendto(head + request, (0, 0))
            answer = kernel.recv(4096)  # it is there: the kernel has written it before sendto() returned
    except OSError:
        return None
    return _counts(answer, inode)


def _counts(answer: bytes, inode: int) -> tuple[int, int] | None:
    at = _HEADER.size + _ANSWER_SIZE
    if len(answer) < at or _HEADER.unpack_from(answer)[1] != SOCK_DIAG_BY_FAMILY:
        return None  # NLMSG_ERROR
    if struct.unpack_from("=I", answer, _HEADER.size + 4)[0] != inode & 0xFFFFFFFF:
        return None
    end = min(len(answer), _HEADER.unpack_from(answer)[0])
    while at + _ATTRIBUTE.size <= end:
        size, kind = _ATTRIBUTE.unpack_from(answer, at)
        if size < _ATTRIBUTE.size:
            return None
        if kind == UNIX_DIAG_RQLEN and size >= _ATTRIBUTE.size + 8 and at + size <= end:
            length, limit = struct.unpack_from("=II", answer, at + _ATTRIBUTE.size)
            return length, limit
        at += (size + 3) & ~3
    return None
