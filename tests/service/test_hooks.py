"""`pkg.on_start` and `pkg.on_stop`: the application's functions at its start and its end, with all interfaces."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pkg
from pkg import api
from pkg.service.hooks import Hooks
from tests.support.client import SLOWNESS, get, wait_for
from tests.support.faults.postgres import Postgres
from tests.support.ports import free_port
from tests.support.processes import POOLS, Process, ask, running

SAY = """
import asyncio, functools, logging, os, time
import pkg
say = logging.getLogger("app").warning
"""
# Each serves / and what serve() does.
APPS = {
    "wsgi": """
def app(environ, start_response):
    serve(environ["PATH_INFO"])
    start_response("200 OK", [])
    return [b"ok"]
""",
    "handler": """
from http.server import BaseHTTPRequestHandler
class app(BaseHTTPRequestHandler):
    def do_GET(self):
        serve(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"ok")
""",
    "asgi": """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        for what in ("startup", "shutdown"):
            await receive()
            say(f"lifespan {what}")
            await send({"type": f"lifespan.{what}.complete"})
        return
    await asyncio.to_thread(serve, scope["path"])
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"ok"})
""",
}

ORDER = """
@pkg.on_start
def first():
    while not os.path.exists("go"):
        time.sleep(0.01)
    with pkg.connection(timeout=5) as connection:
        say("first %s", connection.execute("select 1").fetchone()[0])
    if os.fork() == 0:
        return  # this process ends
    os.wait()

def nested():
    say("nested")

def second():
    say("second")
    pkg.on_start(nested)
    pkg.on_stop(functools.partial(say, "stop of second"))

assert pkg.on_start(second) is second

@pkg.on_stop
def stop():
    with pkg.connection(timeout=5) as connection:
        say("stop %s", connection.execute("select 2").fetchone()[0])

def serve(path):
    if path == "/late":
        pkg.on_stop(lambda: say("late stop"))
        try:
            pkg.on_start(nested)
        except RuntimeError as error:
            say("refused: %s", error)
    if path == "/slow":
        say("slow")
        time.sleep(0.3)
        say("served")
"""
ASYNC = """
@pkg.on_start
async def loop_start():
    asyncio.get_running_loop().loop_start = True
    say("loop start")

@pkg.on_stop
async def loop_stop():
    assert asyncio.get_running_loop().loop_start
    await asyncio.sleep(0.01)
    say("loop stop")
"""


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with Postgres() as server:
        yield server


def said(process: Process) -> list[str]:
    return [line["message"] for line in process.lines() if line.get("logger") == "app"]


@pytest.mark.parametrize("interface", APPS)
def test_order(interface: str, postgres: Postgres, tmp_path: Path) -> None:
    is_asgi = interface == "asgi"
    source = SAY + ORDER + (ASYNC if is_asgi else "") + APPS[interface]
    port = free_port()
    with running(tmp_path, source, ready=False, PORT=str(port), DATABASE_URL=postgres.url, PKG_ADMIN="off") as process:
        address = "127.0.0.1", port
        wait_for(lambda: any("connection pool" in text or "database" in text for text in process.messages()), 15)
        assert "[-]startup" in ask(address, "/readyz?verbose")[2]
        assert said(process) == []
        (tmp_path / "go").touch()
        process.await_message("^serving ")
        process.address = address
        start = ["first 1", "second", *(["loop start"] if is_asgi else []), "nested"]
        start += ["lifespan startup"] if is_asgi else []
        assert said(process) == start
        assert get(process.address, "/late").status == 200
        place = (SAY + ORDER).splitlines().index("def nested():") + 1
        late = f"refused: on_start(nested (application.py:{place})) comes too late: the application has started"
        answers: list[int] = []
        slow = threading.Thread(target=lambda: answers.append(get(process.address, "/slow").status))
        slow.start()
        wait_for(lambda: "slow" in said(process), 10)
        assert process.stop(signal.SIGTERM, 15 * SLOWNESS) == 0
        slow.join()
        end = ["late stop", "stop of second", *(["loop stop"] if is_asgi else []), "stop 2"]
        end[:0] = ["lifespan shutdown"] if is_asgi else []
        assert said(process) == [*start, late, "slow", "served", *end]
        assert answers == [200]
        assert set(process.faults()) == set(said(process))


FAILURES = {
    "raises": ("def bad():\n    raise ValueError('no such\\nqueue')", "ValueError: no such"),
    "exits": ("import sys\ndef bad():\n    sys.exit(0)", "SystemExit: 0"),
    "generator": ("def bad():\n    yield", "TypeError: it has returned a generator, which nobody runs"),
    "coroutine": ("async def bad():\n    raise ValueError('of the loop')", "ValueError: of the loop"),
    "exit of a coroutine": ("async def bad():\n    raise SystemExit(5)", "SystemExit: 5"),
}
BEFORE = """
@pkg.on_stop
def stop():
    if "DATABASE_URL" in os.environ:
        with pkg.connection(timeout=5) as connection:
            connection.execute("select 1")
    say("stopped")

@pkg.on_start
def good():
    say("good")
"""


@pytest.mark.parametrize(
    ("interface", "how"),
    [
        ("wsgi", "raises"),
        ("wsgi", "exits"),
        ("handler", "generator"),
        ("asgi", "raises"),
        ("asgi", "coroutine"),
        ("asgi", "exit of a coroutine"),
    ],
)
def test_a_start_function_that_fails_ends_the_process(
    interface: str, how: str, postgres: Postgres, tmp_path: Path
) -> None:
    """What has been started is stopped, also on the event loop, and while the pool is open."""
    function, reason = FAILURES[how]
    last = "async def last():\n    say('last')\n" if interface == "asgi" else "def last():\n    say('last')\n"
    source = SAY + BEFORE + function + "\npkg.on_start(bad)\n" + last + "pkg.on_stop(last)" + APPS[interface]
    with running(tmp_path, source, ready=False, PKG_ADMIN="off", DATABASE_URL=postgres.url) as process:
        assert process.process.wait(15 * SLOWNESS) == 3
        assert said(process) == ["good", "last", "stopped"]
        place = next(number for number, line in enumerate(source.splitlines(), 1) if "def bad" in line)
        message = f"the start function bad (application.py:{place}) has failed"
        assert process.errors() == f"pkg: {message}: {reason}\n"
        (record,) = (line for line in process.lines() if line["severity"] == "CRITICAL")
        assert (record["logger"], record["message"]) == ("pkg.service", message)
        assert record["exception.type"] == reason.partition(":")[0]


@pytest.mark.parametrize("what", ["start", "stop"])
def test_coroutine_functions_need_an_event_loop(what: str, tmp_path: Path) -> None:
    source = SAY + BEFORE + f"@pkg.on_{what}\nasync def waits():\n    pass\n" + APPS["wsgi"]
    with running(tmp_path, source, ready=False, PKG_ADMIN="off") as process:
        assert process.process.wait(15 * SLOWNESS) == 3
        place = source.splitlines().index("async def waits():")  # of its decorator
        text = "is a coroutine function, and only an ASGI application has an event loop to run it on"
        assert process.errors() == f"pkg: waits (application.py:{place}) {text}\n"
        assert said(process) == []


@pytest.mark.parametrize("how", ["def hangs():\n    time.sleep(60)", "async def hangs():\n    await asyncio.sleep(60)"])
def test_sigterm_ends_a_start_that_hangs(how: str, tmp_path: Path) -> None:
    source = SAY + BEFORE + f"@pkg.on_start\n{how}\n" + APPS["asgi" if "async" in how else "wsgi"]
    with running(tmp_path, source, ready=False, PKG_ADMIN="off", PKG_DRAIN_TIMEOUT="2s") as process:
        wait_for(lambda: "good" in said(process), 15)
        began = time.monotonic()
        assert process.stop(signal.SIGTERM, 15 * SLOWNESS) == 0
        assert time.monotonic() - began < 2 * SLOWNESS
        assert said(process) == ["good", "stopped"]


HANGS = """
@pkg.on_stop
def last():
    say("last")

@pkg.on_stop
def fails():
    raise SystemExit("flush failed")

@pkg.on_stop
def hangs():
    time.sleep(60)

serve = print
"""


@pytest.mark.parametrize("interface", ["handler", "asgi"])
def test_a_stop_function_that_hangs_or_fails_keeps_none_of_the_others(interface: str, tmp_path: Path) -> None:
    loop = "@pkg.on_stop\nasync def hangs_too():\n    await asyncio.sleep(60)\n" if interface == "asgi" else ""
    source = SAY + HANGS + loop + APPS[interface]
    with running(tmp_path, source, PKG_ADMIN="off", PKG_DRAIN_TIMEOUT="1s") as process:
        began = time.monotonic()
        assert process.stop(signal.SIGTERM, 15 * SLOWNESS) == 0
        assert time.monotonic() - began < 3 * SLOWNESS
        assert said(process)[-1] == "last"
        errors = [line["message"] for line in process.lines() if line["severity"] == "ERROR"]
        functions = ["hangs_too", "hangs", "fails"][0 if loop else 1 :]
        assert [text.split()[3] for text in errors] == functions
        assert ["has not ended within" in text for text in errors] == [True] * (len(functions) - 1) + [False]


CLOSES = """
is_open = True

@pkg.check("store", interval=0.05)
def store():
    if not is_open:
        raise RuntimeError("closed")

@pkg.on_stop
def close():
    global is_open
    is_open = False
    time.sleep(1)
    say("closed")

serve = print
"""


@pytest.mark.parametrize("interface", APPS)
def test_what_the_application_closes_at_its_end_fails_no_check(interface: str, tmp_path: Path) -> None:
    with running(tmp_path, SAY + CLOSES + APPS[interface], PKG_ADMIN="off") as process:
        assert process.stop(signal.SIGTERM) == 0
        assert said(process).count("closed") == POOLS
        assert not [text for text in process.messages() if re.match("readiness check .* failed", text)]


def test_reload_stops_and_starts_again(tmp_path: Path) -> None:
    source = SAY + BEFORE + "serve = print\n" + APPS["wsgi"]
    with running(tmp_path, source, "--reload", PKG_ADMIN="off", PORT=str(free_port())) as process:
        (tmp_path / "other.py").touch()
        wait_for(lambda: said(process) == ["good", "stopped", "good"], 15)
        wait_for(lambda: sum(text.startswith("serving ") for text in process.messages()) == 2, 15)
        assert process.stop(signal.SIGTERM) == 0
        assert said(process) == ["good", "stopped", "good", "stopped"]


async def waits() -> None:
    pass


def test_what_is_registered_while_the_application_serves() -> None:
    hooks = Hooks([], [], lambda _: None)
    hooks.add_stop(waits)  # nobody knows yet
    with pytest.raises(pkg.StartupError, match=r"waits .* is a coroutine function"):
        hooks.start(None)
    ran: list[str] = []
    hooks = Hooks([], [], lambda _: None)
    hooks.start(None)
    with pytest.raises(TypeError, match=r"waits .* is a coroutine function"):
        hooks.add_stop(waits)
    hooks.add_stop(lambda: hooks.add_stop(lambda: ran.append("last")))
    with pytest.raises(RuntimeError, match=r"on_start\(waits .* too late: the application has started"):
        hooks.add_start(waits)
    hooks.stop(1.0)
    assert ran == ["last"]
    with pytest.raises(RuntimeError, match=r"on_stop\(waits .* too late: the application has stopped"):
        hooks.add_stop(waits)


def test_they_are_not_run_where_nothing_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "early_starts", [])
    monkeypatch.setattr(api, "early_stops", [])
    ran: list[str] = []
    pkg.on_start(lambda: ran.append("start"))
    with pkg.running(DATABASE_URL=""):
        pkg.on_start(lambda: ran.append("start"))
        pkg.on_stop(lambda: ran.append("stop"))
    assert ran == []
    with pytest.raises(TypeError, match="7 is no function"):
        pkg.on_stop(7)  # type: ignore[type-var]
