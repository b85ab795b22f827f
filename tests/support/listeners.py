"""Listeners for tests, and clients of them."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pkg.errors import StartupError
from pkg.http.listeners import Listener, open_listeners
from pkg.settings.listen import Endpoint
from tests.support.client import SLOWNESS


def tcp(host: str = "127.0.0.1", port: int = 0) -> Endpoint:
    return Endpoint("tcp", host=host, port=port)


def unix(path: Path | str, mode: int | None = None) -> Endpoint:
    return Endpoint("unix", path=str(path), mode=mode)


def inherited(descriptor: int) -> Endpoint:
    return Endpoint("fd", fd=descriptor)


@contextlib.contextmanager
def opened(*addresses: Endpoint, health: Endpoint | None = None) -> Iterator[list[Listener]]:
    found = open_listeners(addresses, health, {})
    try:
        yield found
    finally:
        for listener in found:
            listener.release()
            listener.close()


def refusal(*addresses: Endpoint) -> str:
    """Why the last of the addresses cannot be opened."""
    with pytest.raises(StartupError) as caught:
        open_listeners(addresses, None, {})
    assert caught.value.exit_code == 3
    text = str(caught.value)
    assert "\n" not in text and text.startswith(f"cannot listen on {addresses[-1]}: ")
    return text.removeprefix(f"cannot listen on {addresses[-1]}: ")


def client_of(address: Any) -> socket.socket:
    s = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    try:
        s.settimeout(10 * SLOWNESS)
        s.connect(address)
    except BaseException:
        s.close()
        raise
    return s


def accept(s: socket.socket) -> socket.socket | None:
    try:
        return s.accept()[0]
    except BlockingIOError:
        return None
