"""A drill: which line blocks the event loop of a FastAPI application, found over HTTP and logs alone."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import SLOWNESS, Answer, get, wait_for
from tests.support.ports import free_port
from tests.support.processes import Process, ask, running

SOURCE = """
import asyncio, ctypes, gc, os, re, time
from contextlib import asynccontextmanager
from fastapi import Depends, FastAPI
import pkg

hold_the_lock = ctypes.PyDLL(None).usleep
kept = [[number] for number in range(100_000)]

async def ticks():
    while True:
        await asyncio.sleep(3600)

@asynccontextmanager
async def lifespan(app):
    task = asyncio.create_task(ticks(), name="ticks")
    app.state.loop = asyncio.get_running_loop()
    yield
    task.cancel()

@pkg.check("upstream", interval=0.2, timeout=0.2, required=False)
async def upstream():
    assert asyncio.get_running_loop() is app.state.loop

app = FastAPI(lifespan=lifespan)

@app.get("/sleep")
async def sleep():
    time.sleep(0.3)

@app.get("/until-told")
async def until_told():
    while not os.path.exists("told"): time.sleep(0.01)

async def current_user():
    time.sleep(0.3)

@app.get("/depends")
async def depends(_: None = Depends(current_user)):
    pass

@app.get("/burn")
async def burn():
    end = time.monotonic() + 0.3
    while time.monotonic() < end: pass

@app.get("/holds")
async def holds():
    hold_the_lock(300_000)

@app.get("/regex")
async def regex():
    re.match("(a+)+$", "a" * 23 + "b")

@app.get("/collect")
async def collect():
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        gc.collect()

async def rows():
    await asyncio.get_running_loop().create_future()
    yield 1

@app.get("/rows")
async def read_rows():
    async for row in rows():
        pass
"""
BLOCKED = "the event loop has been blocked for "
MOST_TRIES = 20


class Drill:
    """The service, its admin listener, and what the log says of blocked turns."""

    def __init__(self, process: Process, admin: int, directory: Path) -> None:
        self.process, self.admin, self.directory = process, ("127.0.0.1", admin), directory

    def page(self, path: str) -> str:
        return ask(self.admin, path)[2]

    def warnings(self) -> list[dict[str, Any]]:
        return [line for line in self.process.lines() if BLOCKED in line["message"] and line["logger"] == "pkg.asgi"]


@pytest.fixture(scope="module")
def drill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drill]:
    admin = free_port()
    environ = {"PKG_ADMIN": f"127.0.0.1:{admin}", "PKG_STUCK_TIMEOUT": "1s", "PKG_DRAIN_TIMEOUT": "2s"}
    environ["PKG_LOOP"] = "asyncio"
    directory = tmp_path_factory.mktemp("drill")
    with running(directory, SOURCE, **environ) as process:
        yield Drill(process, admin, directory)


class Asking(threading.Thread):
    """A request in a thread of its own."""

    def __init__(self, drill: Drill, target: str) -> None:
        super().__init__(daemon=True)
        self._address, self._target = drill.process.address, target
        self.answer: Answer
        self.start()

    def run(self) -> None:
        with contextlib.suppress(EOFError, ConnectionError):
            self.answer = get(self._address, self._target)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("/sleep", "time.sleep(0.3)"),
        ("/depends", "time.sleep(0.3)"),
        ("/burn", "while time.monotonic() < end: pass"),
        ("/holds", "hold_the_lock(300_000)"),
        ("/regex", """re.match("(a+)+$", "a" * 23 + "b")"""),
    ],
)
def test_the_log_names_the_line(drill: Drill, path: str, source: str) -> None:
    """On a busy machine not always the first time; and whatever holds the interpreter lock may end the turn with it."""
    answers = []
    for _ in range(MOST_TRIES):
        asking = Asking(drill, path)
        probes = 0
        while asking.is_alive():
            probes += ask(drill.process.address, "/healthz")[0] == 200
            time.sleep(0.02)
        assert asking.answer.status == 200 and probes
        answers.append(asking.answer.header("x-request-id"))
        drill.process.await_message(f"^GET {path} 200")
        if any(line["message"].count(f"GET {path}") for line in drill.warnings()):
            break
    pattern = f"{BLOCKED}[0-9.]+ s at application.py:[0-9]+: {re.escape(source)}, in GET {path}"
    (record,) = (line for line in drill.warnings() if line["message"].count(f"GET {path}"))
    assert re.match(pattern, record["message"]), record["message"]
    assert record["severity"] == "WARNING" and record["request_id"] in answers
    number = int(re.search("application.py:([0-9]+)", record["message"])[1])  # type: ignore[index]
    assert SOURCE.splitlines()[number - 1].strip() == source
    assert source in record["code.stacktrace"]


def test_a_place_is_named_once_a_minute(drill: Drill) -> None:
    assert get(drill.process.address, "/sleep").status == 200
    assert get(drill.process.address, "/depends").status == 200
    assert sum("in GET /sleep" in line["message"] for line in drill.warnings()) == 1


def test_the_garbage_collector_is_not_the_line_in_which_it_ran(drill: Drill) -> None:
    for _ in range(MOST_TRIES):
        assert get(drill.process.address, "/collect").status == 200
        if found := [line for line in drill.warnings() if "GET /collect" in line["message"]]:
            break
    (record,) = found
    assert re.search(r"s by the garbage collector, which took [0-9.]+ s, in GET /collect", record["message"])


def test_the_pages_say_it_while_it_lasts(drill: Drill) -> None:
    """And what waits; then a check that is a coroutine function fails, and liveness, as stuck_timeout says."""
    first = Asking(drill, "/until-told")
    line = 'while not os.path.exists("told"): time.sleep(0.01)'
    place = f"application.py:[0-9]+: {re.escape(line)}, in GET /until-told"
    wait_for(lambda: "GET /until-told" in drill.page("/debug/requests"))
    second = Asking(drill, "/docs")
    finding = rf"error: {BLOCKED}[0-9.]+ s at {place}; 1 request in flight and 1 queued, the oldest for [0-9.]+ s"
    wait_for(lambda: re.search(finding, drill.page("/statusz")))
    document = json.loads(drill.page("/statusz?format=json"))["eventloop"]
    assert document["blocked"] > 0.5 and document["source"] == line and document["tasks"] >= 3
    metrics = drill.page("/metrics")
    assert float(re.search("^pkg_event_loop_blocked_seconds (.*)$", metrics, re.M)[1]) > 0.5  # type: ignore[index]
    wait_for(lambda: ask(drill.process.address, "/healthz")[0] == 503)
    reason = rf"/readyz/upstream +failed \(optional\) +(has been hanging for [0-9.]+ s: )?{BLOCKED}[0-9.]+ s at {place}"
    wait_for(lambda: re.search(reason, drill.page("/statusz")))
    assert re.search(f"workers +failed +{BLOCKED}more than 1 s at {place}", drill.page("/statusz"))
    (drill.directory / "told").touch()
    first.join()
    second.join()
    assert (first.answer.status, second.answer.status) == (200, 200)
    drill.process.await_message(f"liveness fails: {BLOCKED}more than 1 s at {place}")
    wait_for(lambda: ask(drill.process.address, "/healthz")[0] == 200)
    wait_for(lambda: BLOCKED not in drill.page("/statusz"))
    assert re.search("/readyz/upstream +ok", drill.page("/statusz"))


def test_all_that_waits_is_listed(drill: Drill) -> None:
    (drill.directory / "told").unlink(missing_ok=True)
    blocks = Asking(drill, "/until-told")
    wait_for(lambda: "GET /until-told" in drill.page("/debug/requests"))
    waiting = [Asking(drill, f"/openapi.json?{n}") for n in range(100)]
    wait_for(lambda: drill.page("/debug/requests").count("GET /openapi.json") == 100)
    assert "and 81 more" in drill.page("/statusz")
    (drill.directory / "told").touch()
    for asking in (blocks, *waiting):
        asking.join()
        assert asking.answer.status == 200


def test_turns_are_counted(drill: Drill) -> None:
    def counts() -> dict[str, int]:
        buckets = re.findall(r'^pkg_event_loop_lag_seconds_bucket{le="(.*)"} (\d+)$', drill.page("/metrics"), re.M)
        return {le: int(n) for le, n in buckets}

    before = counts()
    for _ in range(3):
        assert get(drill.process.address, "/sleep").status == 200
    after = wait_for(lambda: (now := counts())["+Inf"] - now["0.25"] >= before["+Inf"] - before["0.25"] + 3 and now)
    assert after["0.1"] >= 1
    wait_for(lambda: re.search("^pkg_event_loop_blocked_seconds 0(.0)?$", drill.page("/metrics"), re.M))


def test_where_each_task_waits_and_last_words(drill: Drill) -> None:
    """Ends the service."""
    asking = [Asking(drill, "/rows") for _ in range(2)]
    chain = (
        r"(?s)application.py:[0-9]+ in read_rows\n +async for row in rows\(\):\n.*in rows\n.*which waits for a future"
    )
    page = wait_for(lambda: "2 tasks, waiting" in (text := drill.page("/debug/requests")) and text)
    assert re.search(r"GET /rows +event-loop +waiting +application.py:[0-9]+ in rows", page)
    assert re.search(chain, page)
    page = drill.page("/debug/tasks")
    assert re.search(r"(?s)  ticks\n +application.py:[0-9]+ in ticks\n +await asyncio.sleep\(3600\)", page)
    names = [task["name"] for task in json.loads(drill.page("/debug/tasks?format=json"))]
    assert {"ticks", "lifespan"} < set(names)
    drill.process.process.send_signal(signal.SIGTERM)
    drill.process.await_message(r"^in flight: GET /rows for [0-9.]+ s, event-loop, at application.py:[0-9]+ in rows")
    words = wait_for(lambda: [x for x in drill.process.lines() if re.match(r"task .*\(GET /rows\)", x["message"])])
    assert re.search(chain.replace(" +", " *"), words[0]["code.stacktrace"])
    assert drill.process.process.wait(15 * SLOWNESS) == 1
    for thread in asking:
        thread.join()


def test_a_process_that_stood_still_and_one_that_has_to_end(tmp_path: Path) -> None:
    """In uvloop, if it is installed.  No line is blamed for time in which the process was stopped, nor for a turn that
    is shorter than the setting; one is, if the step before has ended, and the line of a timer without any request; the
    last words of the drain say it as well."""
    source = """
import asyncio, os, time
def blocks():
    while not os.path.exists("told as well"): time.sleep(0.01)

async def app(scope, receive, send):
    assert scope["type"] == "http"
    path = scope["path"][1:]
    if path == "timer":
        asyncio.get_running_loop().call_later(0.2, blocks)
    elif path == "later":
        await asyncio.sleep(0.05)
        while not os.path.exists("told"): time.sleep(0.01)
    else:
        time.sleep(float(path))
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body"})
"""
    environ = {"PKG_SLOW_CALLBACK_DURATION": "500ms", "PKG_ADMIN": "off", "PKG_DRAIN_TIMEOUT": "1s"}
    with running(tmp_path, source, **environ) as process:
        drill = Drill(process, 0, tmp_path)
        asking = Asking(drill, "/0.35")
        time.sleep(0.15)
        process.process.send_signal(signal.SIGSTOP)
        time.sleep(0.8)
        process.process.send_signal(signal.SIGCONT)
        asking.join()
        assert asking.answer.status == 200
        asking = Asking(drill, "/later")
        wait_for(drill.warnings)
        (tmp_path / "told").touch()
        asking.join()
        assert get(process.address, "/2").status == 200
        wait_for(lambda: len(drill.warnings()) == 2)
        for record, place in zip(drill.warnings(), ("time.sleep(0.01), in GET /later", "in GET /2"), strict=True):
            assert place in record["message"]

        assert get(process.address, "/timer").status == 200
        text = r"application.py:[0-9]+: while not os.path.exists\(.told as well.\): time.sleep\(0.01\), in a callback"
        process.await_message(f"^{BLOCKED}[0-9.]+ s at {text}")
        (tmp_path / "told as well").touch()

        asking = Asking(drill, "/30")
        time.sleep(0.6)
        process.process.send_signal(signal.SIGTERM)
        place = "application.py:[0-9]+: time.sleep.float.path.., in GET /30"
        process.await_message("^the drain deadline is in 1 s: 1 requests in flight")
        process.await_message(f"^{BLOCKED}[0-9.]+ s at {place}$")
        process.await_message("^task .* .GET /30.")
        process.kill()
        asking.join()
