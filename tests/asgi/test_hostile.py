"""Applications that do what none should: one process lives through all of it, and answers everybody else."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Iterator

import pytest

from tests.support.apps.hostile_app import RAISED
from tests.support.client import SLOWNESS, Connection, get, wait_for
from tests.support.processes import Process, running


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def hostile(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    directory = tmp_path_factory.mktemp("hostile")
    environ = {"PKG_ADMIN": "off", "PKG_LIFESPAN": "off", "PKG_DRAIN_TIMEOUT": "1s", "PKG_LOOP": request.param}
    with running(directory, "", app="tests.support.apps.hostile_app:app", **environ) as process:
        before = state(process)
        yield process
        wait_for(lambda: all(value <= before[name] for name, value in state(process).items()))
        assert get(process.address, "/never_ends").body == b"ok"
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(15 * SLOWNESS) == 0, process.errors()


def state(process: Process) -> dict[str, int]:
    found: dict[str, int] = json.loads(get(process.address, "/state").body)
    return found


def is_served(process: Process) -> bool:
    return get(process.address, "/fine").body == b"ok"


@pytest.mark.parametrize(
    ("target", "status", "body"),
    [
        ("/classes_of_its_own", 299, b"ok"),
        ("/nonsense", 200, b"ok"),
        ("/many_tasks_send", 200, b"x" * 5_000_000),
        ("/many_tasks_receive", 200, b"ok"),
        ("/messages_after_the_end", 200, b"ok"),
        ("/other_threads", 200, b"ok"),
        ("/many_empty_parts", 200, b"ok"),
        ("/content_with_204", 204, b""),
        ("/content_with_304", 304, b""),
        ("/task_that_exits", 200, b"ok"),
        ("/callback_that_exits", 200, b"ok"),
        ("/callback_that_interrupts", 200, b"ok"),
        ("/stop", 200, b"ok"),
        ("/close", 200, b"ok"),
        ("/cancel_all", 200, b"ok"),
        ("/cancelled_while_sending?more", 200, b"x" * 30_000_000 + b"end"),
        ("/cancels_itself", 200, b"ok"),
        ("/fork_that_raises", 200, b"1"),
        ("/fork_that_waits", 200, b"1"),
        ("/fork_that_responds", 200, b"0"),
    ],
)
def test_responses_stay_whole_and_connections_open(hostile: Process, target: str, status: int, body: bytes) -> None:
    with Connection(hostile.address) as c:
        for _ in range(2):
            answer = c.request("GET", target)
            assert (answer.status, answer.body == body) == (status, True), answer.body[:100]
        assert c.request("GET", "/fine").body == b"ok"
    assert is_served(hostile)


@pytest.mark.parametrize("target", ["/headers_that_send", "/exits_in_its_response"])
def test_a_response_that_cannot_be_completed_is_cut_off(hostile: Process, target: str) -> None:
    with Connection(hostile.address) as c, pytest.raises((EOFError, ConnectionResetError)):
        c.request("GET", target)
    assert is_served(hostile)


def test_a_last_message_that_is_cancelled_is_sent_or_cut_off(hostile: Process) -> None:
    """It is not repeated, and nothing else follows."""
    with Connection(hostile.address) as c:
        c.send(b"GET /cancelled_while_sending HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.1)
        with contextlib.suppress(EOFError, ConnectionResetError):
            assert c.receive().body == b"x" * 30_000_000
    assert is_served(hostile)


@pytest.mark.parametrize("who", ["itself", "another"])
def test_a_task_that_the_application_cancels_is_500(hostile: Process, who: str) -> None:
    text = f"GET /is_cancelled?{who} failed"
    with Connection(hostile.address) as c:
        answer = c.request("GET", f"/is_cancelled?{who}")
        assert (answer.status, answer.body) == (500, b"Internal Server Error\n")
    wait_for(lambda: text in hostile.messages())
    assert is_served(hostile)


@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("when", ["/raises", "/raises_later"])
def test_what_is_raised_is_500(hostile: Process, when: str, kind: str) -> None:
    with Connection(hostile.address) as c:
        answer = c.request("GET", f"{when}?{kind}")
        assert (answer.status, answer.body) == (500, b"Internal Server Error\n")
    assert is_served(hostile)
