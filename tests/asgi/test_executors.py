"""The threads beside the event loop: how many there are, and what is shown of those that wait for one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import SLOWNESS, get, wait_for
from tests.support.ports import free_port
from tests.support.processes import Process, ask, running

WORK = """
import threading

running, most = 0, 0
lock, release = threading.Lock(), threading.Event()

def work():
    global running, most
    with lock:
        running += 1
        most = max(most, running)
    release.wait(30)
    with lock:
        running -= 1
    return b"done"

def end():
    release.set()
    return str(most).encode()
"""

# anyio is imported by a request, as by an application that imports late.
APPLICATION = (
    WORK
    + """
import asyncio

async def app(scope, receive, send):
    assert scope["type"] == "http"
    path = scope["path"]
    if path == "/anyio":
        import anyio.to_thread
        body = await anyio.to_thread.run_sync(work)
    elif path == "/asyncio":
        body = await asyncio.get_running_loop().run_in_executor(None, work)
    elif path == "/end":
        body = end()
    else:
        release.clear()
        import anyio
        body = b"imported"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body})
"""
)

FASTAPI = (
    WORK
    + """
import fastapi

app = fastapi.FastAPI()

@app.get("/")
def in_thread():
    return work().decode()

@app.get("/most")
async def in_loop():
    return most

@app.get("/end")
async def last():
    return int(end())
"""
)


def samples(port: int, executor: str) -> dict[str, float]:
    """The size, the busy threads and the waiting calls of an executor."""
    lines = ask(("127.0.0.1", port), "/metrics")[2].splitlines()
    found = {}
    for line in lines:
        name, _, value = line.partition(f'{{executor="{executor}"}} ')
        if value:
            found[name.removeprefix("pkg_executor_")] = float(value)
    return found


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def limited(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Process, int, str]]:
    pytest.importorskip("anyio")
    pytest.importorskip(request.param)
    port = free_port()
    with running(
        tmp_path_factory.mktemp("executors"),
        APPLICATION,
        PKG_THREADS="2",
        PKG_LOOP=request.param,
        PKG_ADMIN=f"127.0.0.1:{port}",
    ) as process:
        assert ask(process.address, "/")[2] == "imported"
        wait_for(lambda: samples(port, "anyio"))
        yield process, port, request.param
        assert process.stop() == 0
        assert "Traceback" not in process.errors()


def six(address: tuple[str, int], target: str) -> list[threading.Thread]:
    found = [threading.Thread(target=get, args=(address, target), daemon=True) for _ in range(6)]
    for thread in found:
        thread.start()
    return found


@pytest.mark.parametrize("executor", ["asyncio", "anyio"])
def test_threads_that_are_set_replace_the_limit(limited: tuple[Process, int, str], executor: str) -> None:
    process, port, loop = limited
    ask(process.address, "/")
    threads = six(process.address, f"/{executor}")
    full = {"threads": 2.0, "threads_busy": 2.0, "queue_length": 4.0}
    wait_for(lambda: samples(port, executor) == full)
    page = ask(("127.0.0.1", port), "/statusz", Accept="text/plain")[2]
    assert f"all 2 threads of {executor} are busy and 4 calls wait" in page
    assert f"event loop, of {loop}" in page
    assert "\npkg_workers 0\n" in ask(("127.0.0.1", port), "/metrics")[2]
    status = json.loads(ask(("127.0.0.1", port), "/statusz", Accept="application/json")[2])
    assert {row["name"] for row in status["executors"]} == {"asyncio", "anyio"}
    ask(process.address, "/end")
    for thread in threads:
        thread.join(10 * SLOWNESS)
        assert not thread.is_alive()
    assert ask(process.address, "/end")[2] == "2"  # so many ran at once at most
    wait_for(lambda: samples(port, executor) == {"threads": 2.0, "threads_busy": 0.0, "queue_length": 0.0})


def test_without_the_setting_they_have_limits_of_their_own(tmp_path: Path) -> None:
    pytest.importorskip("fastapi")
    port = free_port()
    with running(tmp_path, FASTAPI, PKG_ADMIN=f"127.0.0.1:{port}") as process:
        threads = six(process.address, "/")
        wait_for(lambda: samples(port, "anyio") == {"threads": 40.0, "threads_busy": 6.0, "queue_length": 0.0})
        assert samples(port, "asyncio")["threads"] > 4
        wait_for(lambda: ask(process.address, "/most")[2] == "6")
        ask(process.address, "/end")
        for thread in threads:
            thread.join(10 * SLOWNESS)
            assert not thread.is_alive()
        assert process.stop() == 0
