"""Listening sockets that another process has opened: a descriptor, or all that systemd passes."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.activation import TAKE, names_of, taking, two_sockets
from tests.support.client import wait_for
from tests.support.listeners import accept, client_of, inherited, opened, refusal


@pytest.mark.parametrize("family", ["tcp", "unix", "abstract"])
def test_an_inherited_descriptor(tmp_path: Path, family: str) -> None:
    path = tmp_path / "app.sock"
    address: Any = {"tcp": ("127.0.0.1", 0), "unix": str(path), "abstract": f"\0{path}"}[family]
    with socket.socket(socket.AF_INET if family == "tcp" else socket.AF_UNIX) as held:
        held.bind(address)
        held.listen(7)
        assert held.getblocking()
        os.set_inheritable(descriptor := os.dup(held.fileno()), True)
        with opened(inherited(descriptor)) as (listener,):
            assert listener.is_inherited and listener.socket.fileno() == descriptor
            assert not os.get_inheritable(descriptor) and not os.get_blocking(descriptor)
            assert not os.get_blocking(held.fileno())  # the open file description is one
            if family == "tcp":
                assert listener.name == f"127.0.0.1:{held.getsockname()[1]}"
                assert held.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            else:
                assert listener.name == (f"unix:{path}" if family == "unix" else f"unix:@{path}")
            if (pending := listener.pending()) is not None:
                assert pending == (0, 7)  # its queue is as long as it was
            listener.release()
        assert path.exists() == (family == "unix")
        with client_of(held.getsockname() if family == "tcp" else address):  # others still have it
            wait_for(lambda: accept(held)).close()


def test_descriptors_that_are_no_listeners(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    ends = os.pipe()
    pair = socket.socketpair()
    with (
        open(path) as file,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
        socket.socket() as bound,
        socket.create_server(("127.0.0.1", 0)) as server,
        client_of(server.getsockname()) as client,
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as netlink,
    ):
        bound.bind(("127.0.0.1", 0))
        reasons = {
            file.fileno(): "is not a socket",
            ends[0]: "is not a socket",
            datagram.fileno(): "is not a stream socket of TCP or Unix",
            netlink.fileno(): "is not a stream socket of TCP or Unix",
            bound.fileno(): "is a socket that does not listen",
            client.fileno(): "is a socket that does not listen",
            pair[0].fileno(): "is a socket that does not listen",
        }
        for descriptor, reason in reasons.items():
            assert refusal(inherited(descriptor)) == f"descriptor {descriptor} {reason}"
            os.fstat(descriptor)  # and it is still open
        assert client.getblocking()
    os.close(ends[0])
    os.close(ends[1])
    for s in pair:
        s.close()
    assert refusal(inherited(ends[0])) == f"descriptor {ends[0]} is not open"


def test_a_descriptor_named_twice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        descriptor = os.dup(held.fileno())
        text = refusal(inherited(descriptor), inherited(descriptor))
        assert text == f"descriptor {descriptor} is already in use by another of the addresses"


@pytest.fixture
def passed(tmp_path: Path) -> Iterator[list[socket.socket]]:
    with two_sockets(tmp_path / "app.sock") as sockets:
        yield sockets


def test_sockets_of_systemd(passed: list[socket.socket], tmp_path: Path) -> None:
    variables = {"LISTEN_FDS": "2", "LISTEN_PID": "SELF", "LISTEN_FDNAMES": "web:side", "LISTEN_PIDFDID": "1"}
    with taking(TAKE, passed, variables) as (process, (named, passed_on, pid, _)):
        assert named == names_of(passed)
        assert passed_on == []
        assert pid == process.pid
    assert process.returncode == 0
    assert (tmp_path / "app.sock").is_socket()


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({}, "LISTEN_FDS is not set: was it started by systemd?"),
        ({"LISTEN_PID": "SELF"}, "LISTEN_FDS is not set: was it started by systemd?"),
        ({"LISTEN_FDS": "1"}, "LISTEN_PID is not set: was it started by systemd?"),
        ({"LISTEN_FDS": "0", "LISTEN_PID": "SELF"}, "LISTEN_FDS is '0': no socket was passed"),
        ({"LISTEN_FDS": "", "LISTEN_PID": "SELF"}, "LISTEN_FDS is '': no socket was passed"),
        ({"LISTEN_FDS": "-1", "LISTEN_PID": "SELF"}, "LISTEN_FDS is '-1': no socket was passed"),
        ({"LISTEN_FDS": "9" * 50, "LISTEN_PID": "SELF"}, f"LISTEN_FDS is '{'9' * 20}': no socket was passed"),
        ({"LISTEN_FDS": "3", "LISTEN_PID": "SELF"}, "descriptor 5 is not open"),
        (
            {"LISTEN_FDS": "3", "LISTEN_PID": "SELF", "LISTEN_FDNAMES": "web:side:shop.socket"},
            "descriptor 5 (shop.socket) is not open",
        ),
        (
            {"LISTEN_FDS": "2", "LISTEN_PID": "1"},
            r"LISTEN_PID is '1', but this is process \d+: the sockets were passed to another process, "
            "such as a shell that has started this one",
        ),
    ],
)
def test_what_systemd_has_not_passed(passed: list[socket.socket], variables: dict[str, str], reason: str) -> None:
    with taking(TAKE, passed, variables) as (process, said):
        assert re.fullmatch(f"cannot listen on systemd: {reason if 'pro' in reason else re.escape(reason)}", said), said
    assert process.returncode == 3
