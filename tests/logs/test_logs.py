"""What is logged, that it stays one valid line, and that no output, however blocked or broken, holds anybody up."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import io
import json
import logging
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import termios
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from pkg import _core
from pkg.logs import context
from pkg.logs import records as _records
from pkg.logs import sink as logs
from pkg.logs.schemas import ECS, GCP, OTEL, Schema

ROOT = Path(__file__).parents[2]
DEADLINE = 30.0
HEAD = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
log = logging.getLogger("shop")


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest's own handlers on the root logger, which render what is logged in the caller, give way in these tests."""
    monkeypatch.setattr(logs, "_is_console", lambda handler: True)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.002)


class Pipe:
    """A pipe with a log at one end; the other is read when a test says so."""

    def __init__(self, **options: Any) -> None:
        self.read_end, write_end = os.pipe()
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
        self.capacity = fcntl.fcntl(write_end, fcntl.F_GETPIPE_SZ)
        self.stream = open(write_end, "wb", buffering=0)  # noqa: SIM115 - closed by close()
        self.sink = logs.configure(format="json", stream=self.stream, **options)

    def fill(self) -> None:
        """Logs until not one more such line fits into the pipe and the writer is left with lines in its hand."""
        while not self.is_full():
            log.info("x" * 1000)
            # One at a time: two that the writer gathers do not fit where there is room for one, and it waits with both.
            assert self.sink.flush(DEADLINE)
        while self.sink.stats().queued == 0:
            log.info("x" * 1000)
            time.sleep(0.001)

    def is_full(self) -> bool:
        """As the writer sees it: without RWF_NOWAIT it asks poll(), and a byte makes a pipe of one page full."""
        there = int.from_bytes(fcntl.ioctl(self.read_end, termios.FIONREAD, bytes(4)), sys.byteorder)
        return self.capacity - there < (1000 if self.sink._output._nowait else self.capacity)

    def lines(self, until: Callable[[], bool]) -> list[dict[str, Any]]:
        """Reads until the condition holds and the pipe is empty; every line has to be a JSON object."""
        data = b""
        os.set_blocking(self.read_end, False)
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            is_last = until()
            with contextlib.suppress(BlockingIOError):
                while received := os.read(self.read_end, 65536):
                    data += received
            if is_last:
                break
            time.sleep(0.001)
        else:
            pytest.fail("waited in vain for the log")
        assert data.endswith(b"\n")
        return [json.loads(line) for line in data.splitlines()]

    def close_reader(self) -> None:
        if self.read_end >= 0:
            os.close(self.read_end)
            self.read_end = -1

    def close(self) -> None:
        self.close_reader()
        self.sink.close(DEADLINE)
        self.stream.close()


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def written() -> Iterator[Callable[..., list[str]]]:
    """Runs a function with logging configured and gives the lines it wrote."""

    def run(action: Callable[[], object], **options: Any) -> list[str]:
        stream = io.StringIO()
        sink = logs.configure(**{"format": "json", "stream": stream, **options})
        try:
            action()
        finally:
            assert sink.close(DEADLINE)
        return stream.getvalue().split("\n")[:-1]

    yield run
    assert not [thread for thread in threading.enumerate() if thread.name == "pkg-logs"]


def one(lines: list[str]) -> dict[str, Any]:
    assert len(lines) == 1, lines
    assert lines[0].isascii() and lines[0].isprintable()
    record = json.loads(lines[0])
    assert isinstance(record, dict)
    return record


TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


# --- application records as JSON


def test_record(written: Callable[..., list[str]]) -> None:
    before = datetime.datetime.now(datetime.UTC)
    record = one(written(lambda: log.warning("%d items for %s", 3, "é")))
    after = datetime.datetime.now(datetime.UTC)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", record["timestamp"])
    at = datetime.datetime.fromisoformat(record.pop("timestamp"))
    microsecond = datetime.timedelta(microseconds=1)
    assert before - microsecond <= at <= after + microsecond
    assert record == {"severity": "WARNING", "message": "3 items for é", "logger": "shop"}


@pytest.mark.parametrize(
    ("at", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000000Z"),
        (1.5, "1970-01-01T00:00:01.500000Z"),
        (951782399.999999, "2000-02-28T23:59:59.999999Z"),
        (951782400.0, "2000-02-29T00:00:00.000000Z"),
        (1709164800.25, "2024-02-29T00:00:00.250000Z"),
    ],
)
def test_timestamp(at: float, text: str) -> None:
    assert abs(_seconds(_records._timestamp(at)) - _seconds(text)) <= 1e-6
    assert len(_records._timestamp(at)) == len(text)


def _seconds(text: str) -> float:
    return datetime.datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("extra", "fields"),
    [
        (
            {"user": "u", "n": 1, "f": 0.5, "b": True, "none": None},
            {"user": "u", "n": 1, "f": 0.5, "b": True, "none": None},
        ),
        ({"d": {"a": [1, "x"]}}, {"d": {"a": [1, "x"]}}),
        ({"f": float("nan"), "g": float("inf")}, {"f": "nan", "g": "inf"}),
        ({"l": [float("nan")]}, {"l": "[nan]"}),
        ({"n": 1 << 70}, {"n": str(1 << 70)}),
        ({"o": Path("/x")}, {"o": "/x"}),
        ({"d": {"p": Path("/x")}}, {"d": {"p": "/x"}}),
        (
            {"severity": "x", "timestamp": 1, "logger": 2},
            {"extra.severity": "x", "extra.timestamp": 1, "extra.logger": 2},
        ),
        ({"k\n\x7f": "v\x7f\u2028"}, {"k\n\x7f": "v\x7f\u2028"}),
        ({"s": "\ud83d\ude00 \udc80"}, {"s": "\N{GRINNING FACE} \ufffd"}),
        ({"l": ["\udc80"]}, {"l": "['\\udc80']"}),
        # Not text once and an object another time, by what a user writes: stores of logs refuse one of the two.
        (
            {"d": {"note": "\N{GRINNING FACE}\x7f", "path": "C:\\ud"}},
            {"d": {"note": "\N{GRINNING FACE}\x7f", "path": "C:\\ud"}},
        ),
        ({"s": "x" * 8193}, {"s": "x" * 8192 + "... (1 more)"}),
    ],
)
def test_extra_fields(written: Callable[..., list[str]], extra: dict[str, Any], fields: dict[str, Any]) -> None:
    record = one(written(lambda: log.info("m", extra=extra)))
    assert {key: record[key] for key in fields} == fields
    assert (record["severity"], record["message"], record["logger"]) == ("INFO", "m", "shop")


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def test_what_cannot_be_shown_does_not_lose_the_record(written: Callable[..., list[str]]) -> None:
    loop: list[Any] = []
    loop.append(loop)
    record = one(written(lambda: log.info("m", extra={"bad": Unprintable(), "loop": loop})))
    assert record["bad"] == "<Unprintable: RuntimeError in str()>"
    assert record["loop"] == "[[...]]"
    record = one(written(lambda: log.info("%d of %s", "x", 2)))
    assert record["message"] == "%d of %s" and record["logging.error"].startswith("TypeError: ")
    record = one(written(lambda: log.info(Unprintable())))
    assert record["message"] == "Unprintable" and record["logging.error"] == "RuntimeError: no"


def test_exception(written: Callable[..., list[str]]) -> None:
    class Odd(Exception):
        pass

    def fail() -> None:
        try:
            raise Odd("first\nsecond")
        except Odd:
            log.exception("failed")

    record = one(written(fail))
    assert (record["severity"], record["message"]) == ("ERROR", "failed")
    assert record["exception.type"] == f"{Odd.__module__}.{Odd.__qualname__}"
    assert record["exception.message"] == "first\nsecond"
    assert record["exception.stacktrace"].startswith("Traceback (most recent call last):\n")
    assert "raise Odd" in record["exception.stacktrace"]

    record = one(written(lambda: log.error("m", exc_info=ValueError(1))))
    assert record["exception.type"] == "ValueError"
    record = one(written(lambda: log.error("m", exc_info=True)))
    assert "exception.type" not in record
    record = one(written(lambda: log.error("m", stack_info=True)))
    assert "test_logs.py" in record["code.stacktrace"]
    record = one(written(lambda: log.error("m", exc_info=UnprintableError())))
    assert record["exception.type"].endswith("UnprintableError") and record["message"] == "m"


def test_no_key_twice(written: Callable[..., list[str]]) -> None:
    def act() -> None:
        try:
            raise ValueError
        except ValueError:
            log.exception("m", extra={"exception.stacktrace": "mine", "exception.type": "mine"})

    (line,) = written(act)
    keys = [key for key, _ in json.loads(line, object_pairs_hook=lambda pairs: pairs)]
    assert len(keys) == len(set(keys))
    record = json.loads(line)
    assert record["exception.stacktrace"].startswith("Traceback") and record["extra.exception.stacktrace"] == "mine"


class UnprintableError(Exception):
    __str__ = Unprintable.__str__


def test_huge_records_are_cut(written: Callable[..., list[str]]) -> None:
    def fail(depth: int) -> None:
        if depth:
            fail(depth - 1)
        else:
            raise ValueError("y" * 200_000)

    def act() -> None:
        try:
            fail(10)
        except ValueError:
            log.exception("x" * 1_000_000)

    record = one(written(act))
    assert record["message"] == "x" * 32768 + "... (967232 more)"
    assert len(json.dumps(record)) < 150_000
    assert record["exception.stacktrace"].startswith("Traceback") and record["exception.stacktrace"].endswith("yyy")


@hypothesis_settings(database=None, deadline=None)  # no files, and no verdict on a busy machine's speed
@given(message=st.text(st.characters(), max_size=200), key=st.text(max_size=20), value=st.text(st.characters()))
def test_any_text_is_one_valid_line(message: str, key: str, value: str) -> None:
    record = logging.makeLogRecord({"msg": message, "name": value, "levelname": "INFO", f"x{key}": value})
    line = _records.json_record(record).decode("ascii")
    assert line.endswith("\n") and line[:-1].isprintable()
    decoded = json.loads(line)
    decoded[f"x{key}"].encode()  # no lone surrogates: a strict parser takes it too
    if not re.search("[\ud800-\udfff]", message):
        assert decoded["message"] == message
    text = _records.text_record(record).decode()
    assert text.endswith("\n") and len(text.splitlines()) == 1


@hypothesis_settings(database=None, deadline=None)  # no files, and no verdict on a busy machine's speed
@given(raw=st.binary(max_size=200), agent=st.binary(max_size=200))
def test_any_bytes_of_a_request_are_one_valid_line(raw: bytes, agent: bytes) -> None:
    item = (0.0, "GET", raw.decode("latin-1"), 200, 0.1, 0, 2, "::1", agent.decode("latin-1"), None, None, "r", "")
    line = _records.json_access(item).decode("ascii")
    assert line.endswith("\n") and line[:-1].isprintable()
    path = raw.partition(b"?")[0]
    assert json.loads(line)["url.path"] in (path.decode("latin-1"), path.decode("utf-8", "replace"))
    text = _records.text_access(item).decode()
    assert text.endswith("\n") and len(text.splitlines()) == 1


# --- context


def test_context_goes_into_records(written: Callable[..., list[str]]) -> None:
    def act() -> None:
        outer = context.bind(TRACE, SPAN, "r1")
        inner = context.bind(request_id="r2")
        log.info("inner")
        assert context.bound.get() == ("", "", "r2")
        context.bound.reset(inner)
        log.info("outer")
        thread = threading.Thread(target=log.info, args=("another thread",))
        thread.start()
        thread.join()
        context.bound.reset(outer)
        log.info("none")

    records = [json.loads(line) for line in written(act)]
    ids = [{key: record.get(key) for key in ("trace_id", "span_id", "request_id")} for record in records]
    assert ids == [
        {"trace_id": None, "span_id": None, "request_id": "r2"},
        {"trace_id": TRACE, "span_id": SPAN, "request_id": "r1"},
        {"trace_id": None, "span_id": None, "request_id": None},
        {"trace_id": None, "span_id": None, "request_id": None},
    ]


# --- access records


def test_access(written: Callable[..., list[str]]) -> None:
    def act() -> None:
        logs.access("POST", "/a/b?token=secret", 201, 0.0123456, 10, 20, "::1", "curl/8", TRACE, SPAN, "r1")

    record = one(written(act))
    del record["timestamp"]
    assert record == {
        "severity": "INFO",
        "message": "POST /a/b 201",
        "logger": "pkg.access",
        "http.request.method": "POST",
        "url.path": "/a/b",
        "http.response.status_code": 201,
        "duration": 0.012346,
        "http.request.body.size": 10,
        "http.response.body.size": 20,
        "client.address": "::1",
        "user_agent.original": "curl/8",
        "trace_id": TRACE,
        "span_id": SPAN,
        "request_id": "r1",
    }


def ended(head: bytes, *ids: str, status: int = 200, client: str = "127.0.0.1") -> _core.Request:
    request = _core.parse_head(head)
    assert request is not None
    request.status, request.response_size, request.client_address = status, 12, (client, 1)
    request.context = ids or None
    return request


# Texts as clients send them: most without what has to be escaped, of all lengths.
_plain = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), max_size=300)
_any = st.one_of(_plain, st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f")))
_ids = st.one_of(st.just(""), _plain, st.text(max_size=20))


def taken(record: dict[str, Any]) -> float:
    """Takes the duration out of an access record; in seconds."""
    if "httpRequest" in record:
        return float(record["httpRequest"].pop("latency").removesuffix("s"))
    return float(record.pop("duration")) if "duration" in record else record.pop("event.duration") / 1e9


@hypothesis_settings(database=None, deadline=None)
@given(
    target=_plain.filter(lambda text: "#" not in text),
    agent=_any,
    status=st.sampled_from([200, 404, 499, 500, 599]),
    client=st.sampled_from(["127.0.0.1", "2001:db8::1", "", "unknown"]),
    ids=st.one_of(st.just(()), st.tuples(_ids, _ids, _ids)),
    length=st.integers(0, 2**40),
    schema=st.sampled_from([OTEL, GCP, GCP._replace(trace_prefix="projects/a/traces/"), ECS]),
)
def test_access_lines_of_the_core_are_those_of_python(
    target: str, agent: str, status: int, client: str, ids: tuple[str, ...], length: int, schema: Schema
) -> None:
    head = f"GET /{target} HTTP/1.1\r\nHost: a\r\nUser-Agent: {agent}\r\nContent-Length: {length}\r\n\r\n"
    request = ended(head.encode("latin-1"), *ids, status=status, client=client)
    before = time.time()
    _core.set_access_schema(schema.number, schema.trace_prefix)
    try:
        line = request.access_line()
    finally:
        _core.set_access_schema(OTEL.number, "")
    given = (request.method, request.target, status, request.duration, length, 12, client)
    python = _records.json_access(
        (before, *given, request.header(b"user-agent"), *(ids or (None, None, None)), ""), schema
    )
    if line is None:
        assert len(python) > 500 or not python.isascii() or b"\\" in python
        return
    ours, theirs = json.loads(line), json.loads(python)
    at = [datetime.datetime.fromisoformat(record.pop(next(iter(record)))).timestamp() for record in (ours, theirs)]
    assert at[1] - at[0] + 60 >= 0 and -1e-5 <= at[0] - at[1] < 60
    assert -1 < taken(ours) - taken(theirs) <= 0
    assert list(ours.items()) == list(theirs.items())
    assert line.count(b"\n") == 1 and line.endswith(b"}\n")


@pytest.mark.parametrize(
    ("head", "is_rendered"),
    [
        (b"GET /a/b?token=secret HTTP/1.1\r\nHost: a\r\nUser-Agent: curl/8\r\n\r\n", True),
        (b'GET /a/b?token=secret HTTP/1.1\r\nHost: a\r\nUser-Agent: "curl"\r\n\r\n', False),
        (b"GET /a/b?token=secret HTTP/1.1\r\nHost: a\r\nUser-Agent: " + b"x" * 900 + b"\r\n\r\n", False),
    ],
)
@pytest.mark.parametrize("format", ["json", "text"])
def test_access_of_a_request(written: Callable[..., list[str]], head: bytes, is_rendered: bool, format: str) -> None:
    request = ended(head, "", "", "r1")
    assert (request.access_line() is not None) == is_rendered
    line = one_line(written(lambda: logs.access_of(request), format=format))
    assert "GET /a/b 200" in line and "r1" in line and "secret" not in line
    if format == "json":
        assert json.loads(line)["user_agent.original"] == request.header(b"user-agent")


def test_access_of_a_request_whose_context_is_something_else(written: Callable[..., list[str]]) -> None:
    request = ended(HEAD)
    for context_ in ((), ("a", "b"), (1, 2, 3), "abc", ("\N{SNOWMAN}", "", "")):
        request.context = context_
        assert request.access_line() is None
    request.context = (TRACE, SPAN)
    assert one(written(lambda: logs.access_of(request)))["span_id"] == SPAN
    with pytest.raises(ValueError, match="not an address and a port"):
        request.client_address = ()  # type: ignore[assignment]


def one_line(lines: list[str]) -> str:
    (line,) = lines
    return line


def test_access_without_what_is_not_known(written: Callable[..., list[str]]) -> None:
    record = one(written(lambda: logs.access("GET", "/", 500, 0.0, 0, 0, "", None)))
    assert record["severity"] == "ERROR"
    assert not {"user_agent.original", "trace_id", "span_id", "request_id"} & set(record)


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/caf\xc3\xa9", "/café"),  # UTF-8, as browsers mean it
        (b"/caf\xe9", "/café"),  # Latin-1
        (b"/\x1b[31m\r\n", "/\x1b[31m\r\n"),
        (b"/" + b"x" * 5000, "/" + "x" * 4095),
    ],
)
def test_access_of_odd_paths(written: Callable[..., list[str]], raw: bytes, path: str) -> None:
    record = one(written(lambda: logs.access("GET", raw.decode("latin-1"), 200, 0.0, 0, 0, "c", "a" * 2000)))
    assert record["url.path"] == path
    assert record["user_agent.original"] == "a" * 1024


@pytest.mark.parametrize(
    ("options", "statuses"),
    [
        ({}, [200, 404, 500]),
        ({"level": "debug"}, [200, 404, 500]),
        ({"level": "warning"}, [500]),
        ({"level": "error"}, [500]),
        ({"level": "critical"}, []),
        ({"access_log": False}, []),
        ({"access_log": False, "level": "error"}, []),
    ],
)
def test_access_and_levels(written: Callable[..., list[str]], options: dict[str, Any], statuses: list[int]) -> None:
    def act() -> None:
        for status in (200, 404, 500):
            logs.access("GET", "/", status, 0.0, 0, 0, "c")
            logs.access_of(ended(HEAD, status=status))

    lines = written(act, **options)
    assert [json.loads(line)["http.response.status_code"] for line in lines][::2] == statuses
    assert len(lines) == 2 * len(statuses)


def test_wrong_access_record_does_not_end_logging(written: Callable[..., list[str]]) -> None:
    def act() -> None:
        logs.access("GET", "/", 200, "slow", 0, 0, "c")  # type: ignore[arg-type]
        log.info("still here")

    lines = written_ignoring_loss(act)
    assert lines[0]["message"] == "still here"
    assert lines[1]["log.dropped"] == 1


def written_ignoring_loss(act: Callable[[], None]) -> list[dict[str, Any]]:
    stream = io.StringIO()
    sink = logs.configure(format="json", stream=stream)
    act()
    assert not sink.close(DEADLINE) and sink.dropped == 1
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_access_without_a_sink_is_nothing() -> None:
    logs.access("GET", "/", 200, 0.0, 0, 0, "c")
    logs.access_of(ended(HEAD))
    assert not logs.is_open()


# --- text


def test_text(written: Callable[..., list[str]]) -> None:
    def act() -> None:
        token = context.bind(request_id="r1")
        log.warning("two\nlines \x1b[31m é", extra={"user": "a b", "n": 1})
        context.bound.reset(token)
        logs.access("GET", "/a\x1b?x", 200, 0.0125, 0, 12, "::1", "curl 8", request_id="r1")
        try:
            raise ValueError("no")
        except ValueError:
            log.exception("failed")

    lines = written(act, format="text")
    stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"
    assert re.fullmatch(
        stamp + re.escape(r' WARNING  shop: two\nlines \x1b[31m é request_id=r1 user="a b" n=1'), lines[0]
    )
    assert re.fullmatch(stamp + re.escape(r' INFO     pkg.access: GET /a\x1b 200 12.5ms 12B ::1 "curl 8" r1'), lines[1])
    assert re.fullmatch(stamp + r" ERROR    shop: failed", lines[2])
    assert lines[3] == "    Traceback (most recent call last):"
    assert lines[-1] == "    ValueError: no"
    assert all(line.startswith("    ") for line in lines[3:])


def test_auto_is_text_on_a_terminal_only() -> None:
    controller, terminal = os.openpty()
    with open(terminal, "wb", buffering=0) as stream, open(controller, "rb", buffering=0) as reader:
        sink = logs.configure(format="auto", stream=stream)
        log.info("hello")
        assert sink.close(DEADLINE)
        assert re.search(rb"Z INFO     shop: hello\r\n", reader.read(200))
    pipe = Pipe()
    try:
        pipe.sink = logs.configure(format="auto", stream=pipe.stream)
        log.info("hello")
        assert pipe.lines(lambda: pipe.sink.flush(DEADLINE))[0]["message"] == "hello"
    finally:
        pipe.close()


# --- what configure does to logging, and takes back


def test_former_state_is_restored() -> None:
    root, own = logging.getLogger(), logging.getLogger("pkg")
    handler = logging.NullHandler()
    own.addHandler(handler)
    try:
        before = (root.handlers[:], root.level, own.handlers[:], own.level, own.propagate, warnings.showwarning)
        for _ in range(3):
            sink = logs.configure(level="debug", stream=io.StringIO())
            assert root.level == logging.DEBUG and len(root.handlers) == 1
            assert sink.close() and sink.close()
            after = (root.handlers[:], root.level, own.handlers[:], own.level, own.propagate, warnings.showwarning)
            assert after == before
    finally:
        own.removeHandler(handler)


def test_configure_again_closes_the_former_sink() -> None:
    first, second = io.StringIO(), io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:]
    logs.configure(format="json", stream=first)
    log.info("one")
    sink = logs.configure(format="json", stream=second)
    log.info("two")
    sink.close()
    assert json.loads(first.getvalue())["message"] == "one"
    assert json.loads(second.getvalue())["message"] == "two"
    assert root.handlers == before


def test_level_can_be_changed(written: Callable[..., list[str]]) -> None:
    def act() -> None:
        sink = logs._sink
        assert sink is not None and sink.level == "warning"
        log.info("no")
        logs.access("GET", "/", 200, 0.0, 0, 0, "c")
        sink.set_level("debug")
        assert sink.level == "debug"
        log.debug("yes")
        logs.access("GET", "/", 200, 0.0, 0, 0, "c")
        sink.set_level("error")
        log.warning("no")

    assert [json.loads(line)["message"] for line in written(act, level="warning")] == ["yes", "GET / 200"]


def test_warnings_are_logged(written: Callable[..., list[str]]) -> None:
    def act() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("old", DeprecationWarning, stacklevel=1)

    assert "DeprecationWarning: old" in one(written(act))["message"]


def test_applications_that_configure_logging_do_not_silence_the_service(written: Callable[..., list[str]]) -> None:
    import logging.config

    def act() -> None:
        own = logging.getLogger("pkg.health")
        others = [
            x for x in logging.Logger.manager.loggerDict.values() if isinstance(x, logging.Logger) and not x.disabled
        ]
        logging.config.dictConfig({"version": 1, "root": {"level": "ERROR", "handlers": []}})
        own.error("heard")
        own.error("heard as well")
        for logger in others:  # of other tests
            logger.disabled = False

    assert [json.loads(line)["message"] for line in written(act)] == ["heard", "heard as well"]


def test_records_after_close_go_to_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    sink = logs.configure(format="json", stream=io.StringIO())
    handler = sink._handler
    sink.close()
    handler.handle(logging.makeLogRecord({"msg": "late", "levelname": "INFO", "name": "x"}))
    assert json.loads(capfd.readouterr().err)["message"] == "late"
    code = """
import logging
from pkg.logs import sink
sink.configure().close()
logging.getLogger("x").warning("later")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.stderr) == ("", "later\n")


def test_a_process_that_forgets_to_close_still_gets_its_last_lines() -> None:
    code = "import logging; from pkg.logs import sink; sink.configure(format='json'); logging.info('last')"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60)
    assert result.stderr == b""
    assert json.loads(result.stdout)["message"] == "last"


def test_logging_from_a_signal_handler(written: Callable[..., list[str]]) -> None:
    def act() -> None:
        former = signal.signal(signal.SIGUSR2, lambda *_: log.info("signal"))
        try:
            for _ in range(200):
                os.kill(os.getpid(), signal.SIGUSR2)
                log.info("main")
        finally:
            signal.signal(signal.SIGUSR2, former)

    messages = [json.loads(line)["message"] for line in written(act)]
    assert messages.count("main") == 200 and "signal" in messages


def test_a_forked_child_logs_as_its_parent_does() -> None:
    """It has no writer thread, and multiprocessing ends it without atexit."""
    code = """
import logging, os
from pkg.logs import sink as logs
from pkg.logs.schemas import ECS, GCP, OTEL, Schema
sink = logs.configure(format="json")
logging.info("parent")
pid = os.fork()
if pid == 0:
    logging.info("child", extra={"pid": os.getpid()})
    assert logs._sink.flush() and logs._sink.stats().queued == 0
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
if os.fork() == 0:
    logs.access("GET", "/child", 200, 0.1, 0, 0, "127.0.0.1")
    raise SystemExit(0 if sink.close(10) else 1)
assert os.wait()[1] == 0
logging.info("later")
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (0, "")
    messages = [json.loads(line)["message"] for line in result.stdout.splitlines()]
    assert sorted(messages) == ["GET /child 200", "child", "later", "parent"]


def test_a_forked_child_does_not_wait_for_a_full_pipe(pipe: Pipe) -> None:
    pipe.fill()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        pid = os.fork()
    if pid == 0:
        try:
            for _ in range(100):
                log.info("x" * 1000)  # as long as what did not fit: a short line still may
        finally:
            os._exit(0 if pipe.sink.dropped >= 100 else 1)
    ended: list[tuple[int, int]] = []
    wait_until(lambda: bool(ended.append(os.waitpid(pid, os.WNOHANG)) or ended[-1][0]), "the child to end")
    assert ended[-1] == (pid, 0)


def test_many_threads_lose_nothing(written: Callable[..., list[str]]) -> None:
    def work(number: int) -> None:
        for n in range(500):
            logs.access("GET", f"/{number}/{n}", 200, 0.0, 0, 0, "c")
            log.info("%d/%d", number, n)

    def act() -> None:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    records = [json.loads(line) for line in written(act)]
    seen = {record["url.path"] for record in records if record["logger"] == "pkg.access"}
    assert seen == {f"/{number}/{n}" for number in range(8) for n in range(500)}
    for number in range(8):
        own = [r["message"] for r in records if r["logger"] == "shop" and r["message"].startswith(f"{number}/")]
        assert own == [f"{number}/{n}" for n in range(500)]


# --- outputs that do not take what they are given


def flush_and_tell(sink: logs.Sink, flushed: threading.Event) -> None:
    if sink.flush(DEADLINE):
        flushed.set()


def test_full_pipe_holds_nobody_up(pipe: Pipe) -> None:
    pipe.fill()
    started = time.monotonic()
    for n in range(logs.MAX_LINES + 1000):
        logs.access("GET", f"/{n}", 200, 0.0, 0, 0, "c")
    log.error("important")
    assert not pipe.sink.flush(0.05)
    assert time.monotonic() - started < 5
    assert pipe.sink.stats().queued <= logs.MAX_LINES
    dropped = pipe.sink.dropped
    assert dropped > 1000

    flushed = threading.Event()
    thread = threading.Thread(target=flush_and_tell, args=(pipe.sink, flushed))
    thread.start()
    lines = pipe.lines(flushed.is_set)
    thread.join()
    # Access records do not push out what explains them, and one line says how many are missing.
    assert [line["message"] for line in lines].count("important") == 1
    reports = [line for line in lines if line["logger"] == "pkg.logs"]
    assert [report["log.dropped"] for report in reports] == [dropped]
    assert reports[0]["severity"] == "WARNING"
    assert pipe.sink.stats() == (len(lines) - 1, dropped, 0)

    log.info("and on it goes")
    assert pipe.lines(lambda: pipe.sink.flush(0.05))[-1]["message"] == "and on it goes"


def test_full_pipe_bounds_the_bytes(pipe: Pipe) -> None:
    pipe.fill()
    message = "x" * _records.MAX_MESSAGE
    for _ in range(2 * logs.MAX_BYTES // len(message)):
        log.info(message)
    held = pipe.sink._bytes_put - pipe.sink._bytes_taken
    assert 0 < held <= logs.MAX_BYTES
    assert pipe.sink.dropped > 0


def test_full_pipe_bounds_the_bytes_of_access_records(pipe: Pipe) -> None:
    """Clients choose how long theirs are."""
    pipe.fill()
    target, agent = "/" + "x" * 8000, "y" * 8000
    for _ in range(logs.MAX_LONG_LINES + 500):
        logs.access("GET", target, 200, 0.1, 0, 0, "127.0.0.1", agent)
    assert pipe.sink.stats().queued <= logs.MAX_LONG_LINES
    assert pipe.sink.dropped >= 400
    assert logs.MAX_LONG_LINES * (logs.MAX_PATH + logs.MAX_USER_AGENT) < logs.MAX_BYTES
    dropped = pipe.sink.dropped
    logs.access("GET", "/", 200, 0.1, 0, 0, "127.0.0.1", "curl/8")
    request = ended(HEAD)
    line = request.access_line()
    while pipe.sink.stats().queued < logs.MAX_ACCESS_LINES:
        logs.access_of(request)
    assert pipe.sink.dropped == dropped, "there is room for others"
    logs.access_of(request)
    assert pipe.sink.dropped == dropped + 1
    assert line is not None and logs.MAX_ACCESS_LINES * 1024 < logs.MAX_BYTES, (
        "a line is at most ACCESS_RECORD_MAX_SIZE"
    )


def test_close_does_not_wait_for_a_full_pipe(pipe: Pipe) -> None:
    pipe.fill()
    started = time.monotonic()
    assert not pipe.sink.close(0.2)
    assert time.monotonic() - started < 5
    assert not pipe.sink._thread.is_alive()
    assert pipe.sink.dropped > 0
    assert pipe.sink.stats().queued == 0


def test_flags_of_a_shared_pipe_are_left_alone(pipe: Pipe) -> None:
    pipe.fill()
    assert os.get_blocking(pipe.stream.fileno())


def test_full_pipe_on_a_kernel_without_nowait(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> int:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "pwritev", unsupported)
    pipe = Pipe()
    try:
        pipe.fill()
        log.info("y" * 20000)  # longer than the pipe: goes through in pieces
        flushed = threading.Event()
        thread = threading.Thread(target=flush_and_tell, args=(pipe.sink, flushed))
        thread.start()
        lines = pipe.lines(flushed.is_set)
        thread.join()
        assert lines[-1]["message"] == "y" * 20000
        pipe.fill()
        assert not pipe.sink.close(0.1)
        assert not pipe.sink._thread.is_alive()
    finally:
        pipe.close()


def test_closed_pipe(pipe: Pipe) -> None:
    pipe.close_reader()
    log.info("to nobody")
    assert pipe.sink.flush(DEADLINE)
    logs.access("GET", "/", 200, 0.0, 0, 0, "c")
    assert pipe.sink.flush(DEADLINE)
    assert pipe.sink.stats() == (0, 2, 0)


def test_socket_as_output() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        stream: Any = ours.makefile("wb", buffering=0)
        sink = logs.configure(format="json", stream=stream)
        for _ in range(1000):
            log.info("x" * 1000)
        assert not sink.flush(0.05)
        reader = theirs.makefile("rb")
        lines = [json.loads(reader.readline()) for _ in range(1000)]
        assert sink.close(DEADLINE)
    assert {line["message"] for line in lines} == {"x" * 1000}


def test_full_disk(tmp_path: Path) -> None:
    """A file that may not grow (RLIMIT_FSIZE stands in for ENOSPC); when it may again, a line is a line of its own."""
    path = tmp_path / "log"
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open(path, "wb", buffering=0) as stream:
        sink = logs.configure(format="json", stream=stream)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (250, limits[1]))
            log.info("fits")
            assert sink.flush(DEADLINE)
            for _ in range(3):
                log.info("x" * 200)
                assert sink.flush(DEADLINE)
            assert sink.dropped == 3
            assert path.stat().st_size == 250  # in the middle of a line
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            signal.signal(signal.SIGXFSZ, former)
        log.info("again")
        assert sink.close(DEADLINE)
    lines = path.read_text().splitlines()
    assert json.loads(lines[0])["message"] == "fits"
    assert [json.loads(line)["message"] for line in lines[2:]] == [
        "again",
        "3 log lines were dropped: the output was blocked or failed",
    ]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_device_full() -> None:
    with open("/dev/full", "wb", buffering=0) as stream:
        sink = logs.configure(format="json", stream=stream)
        log.info("lost")
        assert sink.flush(DEADLINE)
        assert sink.dropped == 1
        sink.close(DEADLINE)


def closed_file() -> IO[Any]:
    stream = io.StringIO()
    stream.close()
    return stream


def test_closed_stream() -> None:
    sink = logs.configure(format="json", stream=closed_file())
    log.info("lost")
    assert sink.flush(DEADLINE)
    assert sink.dropped == 1
    sink.close()


def test_closed_descriptor_whose_number_is_taken_again(tmp_path: Path) -> None:
    """If somebody closes stdout, its number may become a client's socket: nothing must be written there."""
    first, second = tmp_path / "first", tmp_path / "second"
    with open(second, "wb") as other:
        with open(first, "wb", buffering=0) as stream:
            number = stream.fileno()
            sink = logs.configure(format="json", stream=stream)
        os.dup2(other.fileno(), number)
        try:
            log.info("where to?")
            assert sink.close(DEADLINE)
        finally:
            os.close(number)
    assert second.read_bytes() == b""
    assert json.loads(first.read_bytes())["message"] == "where to?"


def test_process_without_stdout() -> None:
    code = (
        "import logging, sys; from pkg.logs.sink import configure; sink = configure(format='json')\n"
        "logging.warning('x'); sink.close(); sys.exit(7 if sink.dropped == 1 else 8)"
    )
    command = f'exec "{sys.executable}" -c "$CODE" >&-'
    result = subprocess.run(["sh", "-c", command], cwd=ROOT, env=os.environ | {"CODE": code}, timeout=60)
    assert result.returncode == 7


def test_ten_thousand_access_lines_at_once_are_written() -> None:
    stream = io.BytesIO()
    sink = logs.configure(format="json", stream=stream)
    for n in range(10_000):
        logs.access("GET", "/hello", 200, 0.001, 0, 12, "10.0.0.1", "curl/8.0", None, None, f"{n:032x}")
    assert sink.close(DEADLINE)
    assert sink.stats() == (10_000, 0, 0)
    assert len(stream.getvalue().splitlines()) == 10_000
