"""The pages of docs/: what they show is run as they show it, and no link leads nowhere.

A fenced block is preceded by a comment that says what becomes of it:

    <!-- file: NAME -->        it is written to that file
    <!-- serve -->             its command runs in the background, on a free port, until the next one or the page's end
    <!-- serve: database -->   the same, with a PostgreSQL behind the DATABASE_URL that it names
    <!-- run -->               its commands (`$ ...`) run; where output follows a command, that is what it must print
    <!-- not run: REASON -->   it is only shown
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.client import wait_for
from tests.faults.postgres import Postgres
from tests.processes import ask, free_port

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("docs/*.md"), ROOT / "CHANGELOG.md", *ROOT.glob("CONTRIBUTING.md")])
BLOCK = re.compile(r"^(?:<!-- (.+?) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str]]:
    """(what its comment says, text) of each fenced block."""
    return [(match[1] or "", match[3]) for match in BLOCK.finditer(page.read_text())]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", there.read_text(), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name}: {target}"


class Session:
    """A reader at the keyboard, in an empty folder."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self._folder, self._stack = folder, stack
        self._port, self._admin = free_port(), free_port()
        self._server: subprocess.Popen[bytes] | None = None
        stack.callback(self._end)
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        self._environ = os.environ | {
            "PATH": path,
            "PORT": str(self._port),
            "HOST": "127.0.0.1",
            "PKG_ADMIN": f"127.0.0.1:{self._admin}",
            "PKG_DRAIN_DELAY": "0",
        }

    def follow(self, what: str, text: str) -> None:
        kind, _, rest = what.partition(": ")
        match kind:
            case "file":
                (self._folder / rest).write_text(text)
            case "serve":
                self._serve(text, rest)
            case "run":
                for command, shown in steps(text):
                    printed = self._run(command)
                    assert not shown or printed.rstrip("\n") == shown.rstrip("\n"), f"$ {command}\n{printed}"
            case "not run":
                assert rest, "no reason is given"
            case _:
                raise AssertionError(f"{what!r} says nothing of what becomes of the block\n{text}")

    def _run(self, command: str) -> str:
        command = command.replace("8080", str(self._port)).replace("9901", str(self._admin))
        done = subprocess.run(
            ["bash", "-c", command], cwd=self._folder, env=self._environ, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def _serve(self, text: str, rest: str) -> None:
        self._end()
        ((command, _),) = steps(text)
        environ = dict(self._environ)
        words = shlex.split(command)
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            environ[name] = value
        if rest == "database":
            assert environ["DATABASE_URL"].startswith("postgresql://")
            environ["DATABASE_URL"] = self._stack.enter_context(Postgres()).url
        self._server = subprocess.Popen(words, cwd=self._folder, env=environ, stdout=subprocess.DEVNULL)

        def is_ready() -> bool:
            assert self._server is not None and self._server.poll() is None
            try:
                return ask(("127.0.0.1", self._port), "/readyz")[0] == 200
            except OSError:
                return False

        wait_for(is_ready, 20, "readiness")

    def _end(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.send_signal(signal.SIGINT)
            try:
                assert server.wait(20) == 0
            finally:
                if server.poll() is None:
                    server.kill()
                    server.wait(10)


def steps(text: str) -> Iterator[tuple[str, str]]:
    """(command, what it prints) of a block of a terminal."""
    assert text.startswith("$ "), text
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        yield command, shown


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent.name == "docs"], ids=lambda page: page.name)
def test_a_page_can_be_followed(page: Path, tmp_path: Path) -> None:
    pytest.importorskip("flask")
    with contextlib.ExitStack() as stack:
        session = Session(tmp_path, stack)
        if page.name != "getting-started.md":  # the others go on with its application
            for what, text in blocks(ROOT / "docs" / "getting-started.md"):
                if what.startswith("file:"):
                    session.follow(what, text)
        for what, text in blocks(page):
            session.follow(what, text)
