"""docs/architecture.md names only what is there: files, functions, layers, threads."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.repository.test_layers import LAYERS, NAMES
from tests.support.client import get
from tests.support.faults.postgres import Postgres
from tests.support.ports import free_port
from tests.support.processes import ask, running
from tests.support.tables import DOCS, names, tables

ROOT = DOCS.parent
PAGE = "architecture.md"
TEXT = (DOCS / PAGE).read_text()
FUNCTIONS = sorted(set(re.findall(r"(?<![\w.])([A-Za-z_][\w.]*)\(\)", TEXT)))
# A file of Python or Cython: classes at the margin, functions anywhere.
_CLASS = re.compile(r"^(?:cdef )?class (\w+)")
_FUNCTION = re.compile(r"^( *)(?:async def|def|cdef|cpdef)\b[^(=]*?\b(\w+)\(")
_C_FUNCTION = re.compile(r"^[a-zA-Z_][\w \t*]*?\b(\w+)\(", re.MULTILINE)


@cache
def defined() -> frozenset[str]:
    """Functions as `name`, methods as `Class.name` and `name`."""
    return frozenset(_defined())


def _defined() -> Iterator[str]:
    for path in [*ROOT.glob("pkg/**/*.py"), *ROOT.glob("ext/**/*.pyx"), *ROOT.glob("ext/**/*.pxi")]:
        owner = ""
        for line in path.read_text().splitlines():
            if match := _CLASS.match(line):
                owner = match[1]
            elif match := _FUNCTION.match(line):
                owner = owner if match[1] else ""
                yield match[2]
                if owner:
                    yield f"{owner}.{match[2]}"
    for path in [*ROOT.glob("ext/**/*.c"), *ROOT.glob("ext/**/*.h")]:
        yield from _C_FUNCTION.findall(path.read_text())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_that_is_named_exists(name: str) -> None:
    assert name.removeprefix("pkg.") in defined()


def test_there_are_names_to_look_for() -> None:
    assert len(FUNCTIONS) > 60
    assert {"loop_turn", "Service._drain", "Response.emit", "_Handler.emit"} <= defined()
    assert not {"no_such_function", "Service.emit", "if", "return"} & defined()


def test_files_that_are_named_exist() -> None:
    paths = {name for name in names(TEXT) if re.fullmatch(r"[\w./]+\.(py|pyi|c|h|pyx|pxi|pxd|md|json)", name)}
    assert len(paths) > 25
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_the_layers_are_those_that_are_proved() -> None:
    told = {int(row["layer"]): set(names(row["rooms"])) for row in tables(PAGE, "layer", "rooms")}
    assert told == dict(enumerate(LAYERS))


def test_every_module_is_told_of() -> None:
    told = {f"{row['folder'].strip('`/')}.{name}" for row in tables(PAGE, "folder") for name in names(row["modules"])}
    assert told == {name for name in NAMES if "." in name}


def test_every_file_of_the_core_is_told_of() -> None:
    told = {name for row in tables(PAGE, "files") for name in names(row["files"])}
    there = {str(path.relative_to(ROOT)) for path in ROOT.glob("ext/**/*.*") if path.suffix != ".pxd"}
    assert told == there


def test_every_folder_of_tests_is_told_of() -> None:
    told = {name for row in tables(PAGE, "tests in") for name in names(row["tests in"])}
    assert told == {path.name for path in ROOT.glob("tests/*/") if any(path.glob("*.py"))}


def test_tests_are_in_folders() -> None:
    assert [path.name for path in ROOT.glob("tests/test_*")] == []


def test_there_is_a_drawing_for_each_walk() -> None:
    walks = re.split(r"^## ", TEXT, flags=re.MULTILINE)
    walks = [walk for walk in walks if walk.startswith("Walk ")]
    assert len(walks) == 6
    assert all(walk.count("```mermaid\n") == 1 for walk in walks)


def test_the_threads_are_those_of_a_running_service(tmp_path: Path) -> None:
    source = """
import pkg
def app(environ, start_response):
    with pkg.connection(timeout=5) as connection:
        connection.execute("select 1")
    start_response("200 OK", [])
    return [b"hello"]
"""
    port = free_port()
    with (
        Postgres() as server,
        running(tmp_path, source, DATABASE_URL=server.url, PKG_ADMIN=f"127.0.0.1:{port}") as process,
    ):
        process.await_message("readiness check database ok")
        assert get(process.address, "/").status == 200
        page = ask(("127.0.0.1", port), "/debug/threads")[2]
    running_now = set(re.findall(r"^  ([\w-]+) \(\d+\)", page, re.MULTILINE))
    told = [name for row in tables(PAGE, "thread") for name in names(row["thread"])]
    patterns = {name: re.sub("N(AME)?$", r"[\\w-]+", name) for name in told}
    for name, pattern in patterns.items():
        assert any(re.fullmatch(pattern, thread) for thread in running_now), name
    # One that asks for the page may have a connection of the check's own at this moment.
    known = [*patterns.values(), "database-check-connects"]
    assert [t for t in running_now if not any(re.fullmatch(pattern, t) for pattern in known)] == []
