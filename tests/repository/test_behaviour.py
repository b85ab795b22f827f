"""The tables of docs/behaviour.md against the C sources and a running service."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import pkg
from pkg import _core
from pkg.settings.declared import SETTINGS
from tests.support.client import Connection, get
from tests.support.processes import Process, running
from tests.support.tables import DOCS, names, tables

PAGE = "behaviour.md"
ROOT = DOCS.parent
RULES = tables(PAGE, "rule", "status", "specified in", "example")
REFUSALS = tables(PAGE, "status", "text", "when")
EXCEPTIONS = tables(PAGE, "exception", "status")
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
SOURCE = """
import pkg

def app(environ, start_response):
    name = environ["PATH_INFO"][1:]
    if name == "BodyError":
        raise pkg.BodyError(400, "for a test")
    if name:
        raise getattr(pkg, name, ValueError)("for a test")
    environ["wsgi.input"].read()
    start_response("200 OK", [])
    return [b"hello"]
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with running(tmp_path_factory.mktemp("service"), SOURCE, PKG_ADMIN="off") as process:
        yield process


def sources() -> str:
    return "\n".join(path.read_text() for path in sorted(ROOT.glob("ext/**/*.[ch]")))


def rule(row: dict[str, str]) -> str:
    return names(row["rule"])[0]


def example(row: dict[str, str]) -> bytes:
    (text,) = names(row["example"])
    text = re.sub(r"\{(.+?)\*(\d+)\}", lambda match: match[1] * int(match[2]), text)
    return text.encode().decode("unicode_escape").encode("latin-1")


def is_of_a_body(row: dict[str, str]) -> bool:
    return rule(row).startswith(("CHUNK_", "TRAILER"))


def test_the_rules_are_those_of_the_parser() -> None:
    # The front has one answer for whatever is wrong with chunks.
    listed = {name: "400" if name.startswith("TRAILER") else status
              for name, status in re.findall(r"^ +X\((\w+), (\d{3}), \"", sources(), re.MULTILINE)}  # fmt: skip
    assert {rule(row): row["status"] for row in RULES} == listed


@pytest.mark.parametrize("row", RULES, ids=rule)
def test_an_example_breaks_its_rule(row: dict[str, str]) -> None:
    if rule(row) == "HOST":  # judged by the front, which lets the health pages have any
        assert _core.parse_head(example(row)) is not None
        return
    with pytest.raises(_core.ParseError) as caught:
        if is_of_a_body(row):
            _core.ChunkedDecoder().decode(example(row))
        else:
            _core.parse_head(example(row))
    assert caught.value.name == rule(row)


@pytest.mark.parametrize("row", RULES, ids=rule)
def test_an_example_gets_its_status(service: Process, row: dict[str, str]) -> None:
    with Connection(service.address) as connection:
        connection.send((CHUNKED if is_of_a_body(row) else b"") + example(row))
        answer = connection.receive()
        assert str(answer.status) == row["status"]
        assert answer.closes and answer.header("content-type") == "text/plain; charset=utf-8"
        assert len(answer.body.splitlines()) == 1


def test_the_refusals_are_those_of_the_front() -> None:
    text = sources()
    found = set(re.findall(r"conn_refuse\(f, c, (\d{3}), \"(.+?)\\n\"", text))
    found |= {("503", text) for text in re.findall(r"eventloop_carries\(f\) \? \".+?\" : \"(.+?)\\n\"", text)}
    found |= {("504", text) for text in re.findall(r"char text\[\] = \"(the request took .+?)\\n\"", text)}
    found.remove(("431", "request head too large"))  # the parser says so first, and its rule is HEAD_SIZE
    assert {(row["status"], names(row["text"])[0]) for row in REFUSALS} == found


@pytest.mark.parametrize("row", EXCEPTIONS, ids=lambda row: row["exception"])
def test_what_becomes_of_an_exception(service: Process, row: dict[str, str]) -> None:
    name = (*names(row["exception"]), "KeyError")[0]
    level = row["log"].split(maxsplit=1)[0].strip(",;")
    if row["status"] == "none":
        with pytest.raises((EOFError, ConnectionResetError)):
            get(service.address, f"/{name}")
        return
    answer = get(service.address, f"/{name}")
    assert str(answer.status) == row["status"]
    assert (answer.header("retry-after") == "1") == ("Retry-After" in row["log"])
    record = service.await_message(rf"^GET /{name}(: | failed)")
    line = next(line for line in service.lines() if line["message"] == record.string)
    assert (line["severity"], "exception.stacktrace" in line) == (level, "traceback" in row["log"])


def test_every_public_exception_of_a_request_is_there() -> None:
    told = {name for row in EXCEPTIONS for name in names(row["exception"])}
    at_start = {"ConfigurationError", "StartupError", "NotRunningError", "Error"}
    assert told | at_start == {name for name in pkg.__all__ if isinstance(getattr(pkg, name), type)
                               and issubclass(getattr(pkg, name), Exception)}  # fmt: skip


def test_defaults_are_those_of_the_settings() -> None:
    """`name` (value)"""
    settings = {setting.name: setting for setting in SETTINGS}
    told = re.findall(r"`(\w+)`\s\(([\w.:]+)\)", Path(DOCS / PAGE).read_text())
    told = [(name, value) for name, value in told if name in settings]
    assert len(told) > 15
    for name, value in told:
        assert settings[name].parse(value) == settings[name].default, name
