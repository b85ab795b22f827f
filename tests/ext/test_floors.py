"""The floors of ext/: http is pure, and no circle of includes or calls joins the C files of a folder."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.ext.test_c import EXT, WARNINGS, cc
from tests.support.tables import names, tables

# What a floor may include of the others.
BELOW = {"http": {"http"}, "front": {"http", "front"}, "binding": {"http", "front", "binding"}}
# All that bytes in, decision out takes of the C library.
PURE = {"gmtime_r", "memchr", "memcmp", "memcpy", "memmove", "memset", "snprintf", "strcmp", "strftime", "strlen",
        "inet_pton", "__cpu_model", "__tls_get_addr", "__stack_chk_fail", "_GLOBAL_OFFSET_TABLE_"}  # fmt: skip
TABLE = {"calloc", "malloc", "free"}  # of published pages, whose caller owns it
FOLDERS = ("http", "front")

_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", re.DOTALL)
_INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
_DEFINITION = re.compile(r"^(?!static\b(?! inline))[a-zA-Z_][\w \t*]*?\b(\w+)\([^;{}]*\)\s*\{", re.MULTILINE)
_WORD = re.compile(r"\b([A-Za-z_]\w*)\b")


def files(folder: str) -> list[Path]:
    found = sorted((EXT / folder).glob("*.[ch]"))
    assert found
    return found


@cache
def code(path: Path) -> str:
    """Without comments and texts."""
    return _COMMENT.sub(" ", path.read_text())


def included(path: Path) -> list[Path]:
    return [
        found
        for name in _INCLUDE.findall(path.read_text())
        for found in [path.parent / name if (path.parent / name).exists() else EXT / name]
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Names that depend on each other in a circle; empty if there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_a_circle_is_found() -> None:
    assert circle({"a": {"b"}, "b": {"c"}, "c": set()}) == []
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}


# ------------------------------------------------------------------------- floors


@pytest.mark.parametrize("folder", BELOW)
def test_a_floor_includes_only_itself_and_those_below(folder: str) -> None:
    for path in sorted((EXT / folder).glob("*.*")):
        wanted = {found.parent.name for found in included(path)}
        wanted |= set(re.findall(r'extern from "(\w+)/', path.read_text()))
        assert wanted <= BELOW[folder], path


@pytest.mark.parametrize("source", sorted((EXT / "http").glob("*.c")), ids=lambda p: p.name)
def test_http_compiles_alone_and_calls_nothing_that_has_effects(source: Path, tmp_path: Path) -> None:
    """In a folder that has nothing else; what the object file wants from elsewhere is all that it can do."""
    alone = tmp_path / "http"
    alone.mkdir()
    for path in files("http"):
        (alone / path.name).write_text(path.read_text())
    cc(*WARNINGS, "-O1", "-c", alone / source.name, "-o", tmp_path / "x.o")
    listing = subprocess.run(["nm", "-u", tmp_path / "x.o"], capture_output=True, text=True, check=True)
    calls = {line.split()[-1] for line in listing.stdout.splitlines()}
    own = {name for path in files("http") for name in _DEFINITION.findall(code(path))}
    assert calls - own <= PURE | (TABLE if source.name == "pages.c" else set())


def test_http_includes_no_header_for_sockets_files_or_threads() -> None:
    for path in files("http"):
        headers = set(re.findall(r"^\s*#\s*include\s+<([^>]+)>", path.read_text(), re.MULTILINE))
        assert headers.isdisjoint({"sys/socket.h", "unistd.h", "fcntl.h", "poll.h", "sys/epoll.h", "pthread.h"}), path


# ------------------------------------------------------------------------ circles


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_circle_of_includes(folder: str) -> None:
    graph = {
        path.name: {found.name for found in included(path) if found.parent == path.parent} for path in files(folder)
    }
    assert circle(graph) == []


def calls(folder: str) -> dict[str, set[str]]:
    """For each file, named without .c or .h, the others whose functions it names."""
    owners = {name: path.stem for path in files(folder) for name in _DEFINITION.findall(code(path))}
    graph: dict[str, set[str]] = {path.stem: set() for path in files(folder)}
    for path in files(folder):
        named = {owners[word] for word in _WORD.findall(code(path)) if word in owners} if path.suffix == ".c" else set()
        if path.suffix == ".h":  # a declaration is no call
            for body in re.findall(r"^static inline[^;{}]*\{.*?^\}", code(path), re.MULTILINE | re.DOTALL):
                named |= {owners[word] for word in _WORD.findall(body) if word in owners}
        graph[path.stem] |= named - {path.stem}
    return graph


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_circle_of_calls(folder: str) -> None:
    assert circle(calls(folder)) == []


def test_the_calls_are_those_of_the_code() -> None:
    graph = calls("front")
    assert {"loop", "handoff"} <= graph["leader"]
    assert {"probe", "spool", "handoff"} <= graph["conn"]
    assert "conn" in graph["listener"]
    assert [stem for stem, named in graph.items() if "loop" in named] == ["leader"]


def test_the_table_of_the_core_is_in_the_order_of_its_calls() -> None:
    """docs/architecture.md: whatever a file calls stands in a row above it, or in its own."""
    rows = [[Path(name).stem for name in names(row["files"])] for row in tables("architecture.md", "files")]
    rank = {stem: number for number, stems in enumerate(rows) for stem in stems}
    for folder in FOLDERS:
        for stem, others in calls(folder).items():
            for other in others:
                assert rank[other] <= rank[stem], f"{stem} calls {other}"


# ------------------------------------------------------------------- parts of the front


def parts() -> dict[str, str]:
    """Each part of struct front, with the file that owns it, as the comment before its type names it."""
    text = (EXT / "front" / "state.h").read_text()
    owners = {name: stem for stem, name in re.findall(r"^/\* (\w+)\.[ch]\b[^*]*\*/\nstruct (front_\w+) \{", text, re.M)}
    found = {member: owners[name] for name, member in re.findall(r"^    struct (front_\w+) (\w+);", text, re.M)}
    assert set(owners.values()) == set(found.values())
    return found


def test_a_part_of_the_front_is_touched_by_its_file_alone() -> None:
    assert {"queue", "table", "published", "listener", "leader", "ending"} < set(parts())
    for part, owner in parts().items():
        users = {path.stem for path in files("front") if re.search(rf"\bf->{part}\b(?!\()", code(path))}
        assert users == {owner}, part


# --------------------------------------------------------------------------- the door


def test_only_one_file_moves_bytes_of_sockets() -> None:
    """So that what they go through on their way can be put there.  area.c passes descriptors to a worker."""
    calls = r"\b(recv|recvfrom|recvmsg|send|sendto|sendmsg|sendfile|splice|MSG_\w+)\b"
    users = {path.name for folder in FOLDERS for path in files(folder) if re.search(calls, code(path))}
    assert users == {"io.h", "area.c"}
    for path in (EXT / "binding").glob("*.*"):
        assert "sys/socket.h" not in path.read_text() and "sys/sendfile.h" not in path.read_text(), path


def test_the_binding_knows_the_front_by_its_three_headers() -> None:
    """And nothing of a connection or of what carries a request; the others are of no part of the front."""
    named = set()
    for path in (EXT / "binding").glob("*.*"):
        named |= {
            name for folder, name in re.findall(r"[\"<](front|http)/(\w+)\.h", path.read_text()) if folder == "front"
        }
    assert named == {"carrier", "exchange", "front", "init", "request_id", "tally"}
    seam = [EXT / "front" / f"{stem}.h" for stem in named]
    assert {found.name for path in seam for found in included(path)} == {
        "front.h", "limits.h", "counters.h", "tally.h", "http1.h", "pages.h", "proxy.h",
    }  # fmt: skip


# ------------------------------------------------------------------------------ once


@pytest.mark.parametrize(
    ("what", "pattern", "home"),
    [
        ("the minimum rate", r"\.min_body_rate", {"front/pace.h"}),
        ("dates", r"\b(strftime|gmtime_r?)\b", {"http/date.c"}),
        ("digits", r"c?'0' \+|\+ c?'0'", {"http/text.h"}),
        (
            "names of fields",
            r"\| 0x20\b",
            {"http/text.h", "http/http1.c"},
        ),  # of "HTTP"
        ("100 (Continue)", r"100 Continue", {"front/body.h"}),
    ],
)
def test_what_exists_once(what: str, pattern: str, home: set[str]) -> None:
    found = set()
    for path in [*EXT.glob("*/*.[ch]"), *EXT.glob("*/*.p*")]:
        text = re.sub(r"/\*.*?\*/|#(?!include|define)[^\n]*", " ", path.read_text(), flags=re.DOTALL)
        if re.search(pattern, text):
            found.add(path.relative_to(EXT).as_posix())
    assert found == home, what
