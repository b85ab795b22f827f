"""Bodies that arrive while the application is still being imported, before there is an event loop."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from tests.support.client import wait_for
from tests.support.ports import free_port
from tests.support.processes import ask, running

APP = """
import time
while not __import__("os").path.exists("go"):
    time.sleep(0.05)
async def app(scope, receive, send):
    assert scope["type"] == "http"
    length, more = 0, True
    while more:
        message = await receive()
        length += len(message.get("body", b""))
        more = message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(length).encode()})
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.parametrize("size", [100, 70_000, 3_000_000])
def test_an_early_body_is_read(tmp_path: Path, size: int, loop: str) -> None:
    port = free_port()
    answers: list[str] = []
    with running(tmp_path, APP, ready=False, PORT=str(port), PKG_ADMIN="off", PKG_LOOP=loop):

        def is_open() -> bool:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
            except OSError:
                return False
            return True

        wait_for(is_open, 15, "the listener")
        body = b"x" * size
        thread = threading.Thread(
            target=lambda: answers.append(ask(("127.0.0.1", port), "/", "POST", body=body, timeout=20)[2])
        )
        thread.start()
        thread.join(0.7)
        (tmp_path / "go").touch()
        thread.join()
    assert answers == [str(size)]
