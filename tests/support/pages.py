"""The pages of the project: what they show, and a reader who does what they say.

A fenced block of a page is preceded by a comment that says what becomes of it:

    <!-- file: NAME -->            it is written to that file
    <!-- serve -->                 its command runs in the background until the next one or the page's end
    <!-- serve: database -->       the same, with a PostgreSQL behind the DATABASE_URL that it names
    <!-- serve: until aborted -->  the same, and its end aborts requests
    <!-- serve: each in turn -->   each of its commands does
    <!-- beside: PORT -->          its command runs beside the server, and listens on that port
    <!-- run -->                   its commands (`$ ...`) run; output that follows a command is what it must print
    <!-- run: database -->         the same, with that PostgreSQL
    <!-- output of the server -->  messages that the server has logged by then, or logs soon
    <!-- tested by: FILE::NAME --> that test runs it
    <!-- not run: REASON -->       it is only shown

A block of text, a drawing or a document without a comment is only shown as well; it contains no command.  In output
`...` stands for anything, in messages of the server so does every number.  Well-known ports are free ones in fact.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.image.conftest import unavailable
from tests.support.client import wait_for
from tests.support.faults.postgres import Postgres
from tests.support.load import is_reachable
from tests.support.ports import free_port
from tests.support.processes import ask

ROOT = Path(__file__).parents[2]
ONLY_SHOWN = {"text", "mermaid", "json", "yaml", "ini"}  # languages that hold no commands
_BLOCK = re.compile(r"^(?:<!-- ([^\n]+?) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_PORTS = ("8080", "9901", "8443")


class Block(NamedTuple):
    what: str  # its comment
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(match[1] or "", match[2], match[3]) for match in _BLOCK.finditer(page.read_text())]


def files_of(page: Path) -> dict[str, str]:
    """What a reader has written by the end of the page."""
    return {what.partition(": ")[2]: text for what, _, text in blocks(page) if what.startswith("file: ")}


def prose(page: Path) -> str:
    """The page without its blocks."""
    return _BLOCK.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Those that GitHub gives the page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"\[(.+?)\]\(.+?\)", r"\1", heading).strip().lower()).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(name)
    return found


def steps(text: str) -> Iterator[tuple[str, str]]:
    """(command, what it prints) of a block of a terminal."""
    assert text.startswith("$ "), text
    for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        command, _, shown = part.partition("\n")
        while command.endswith("\\"):
            more, _, shown = shown.partition("\n")
            command = f"{command}\n{more}"
        yield command, shown


def fits(shown: str, printed: str) -> bool:
    """Whether that is what is shown, where `...` stands for anything."""
    pattern = r"[\s\S]*?".join(map(re.escape, shown.strip().split("...")))
    return re.fullmatch(pattern, printed.strip()) is not None


def is_message(shown: str, messages: list[str]) -> bool:
    pattern = re.sub(r"\d+(\\\.\d+)?", r"\\d+(\\.\\d+)?", re.escape(shown)).replace(re.escape("..."), ".*")
    return any(re.fullmatch(pattern, message) for message in messages)


class Reader:
    """Somebody at the keyboard, in a folder of their own."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self._ports = {port: str(free_port()) for port in _PORTS}
        self.address = ("127.0.0.1", int(self._ports["8080"]))
        self._server: subprocess.Popen[bytes] | None = None
        self._exit_code = 0  # that it has to end with
        self.database: Postgres | None = None
        stack.callback(self._end)
        self._environ = {name: value for name, value in os.environ.items() if not name.startswith("PKG_")} | {
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"]),
            "PORT": self._ports["8080"],
            "HOST": "127.0.0.1",
            "PKG_ADMIN": f"127.0.0.1:{self._ports['9901']}",
            "PKG_DRAIN_DELAY": "0",
            "LOG_FORMAT": "json",
        }

    def follow(self, block: Block) -> None:
        what, language, text = block
        kind, _, rest = what.partition(": ")
        text = self._local(text)
        match kind:
            case "file":
                path = self.folder / rest
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            case "serve":
                for command, _ in steps(text) if rest == "each in turn" else [next(steps(text))]:
                    self._serve(command, rest)
            case "beside":
                self._beside(text, rest)
            case "run":
                for command, shown in steps(text):
                    printed = self._run(command, rest)
                    assert not shown or fits(shown, printed), f"$ {command}\n{printed}"
            case "output of the server":
                for line in text.splitlines():
                    wait_for(lambda line=line: is_message(line, self.messages()), 15, f"{line!r} in {self.messages()}")
            case "tested by":
                file, _, name = rest.partition("::")
                assert f"def {name}(" in (ROOT / file).read_text(), rest
            case "not run":
                assert rest, "no reason is given"
            case "" if language in ONLY_SHOWN:
                assert not re.search(r"^\$ ", text, re.MULTILINE), f"nobody runs this:\n{text}"
            case _:
                raise AssertionError(f"{what!r} says nothing of what becomes of the block\n{text}")

    def messages(self) -> list[str]:
        """What the present server has logged."""
        log = (self.folder / "server.log").read_text().splitlines()
        return [json.loads(line)["message"] for line in log if line.startswith("{") and line.endswith("}")]

    def _local(self, text: str) -> str:
        return re.sub(r"\b(?:" + "|".join(_PORTS) + r")\b", lambda match: self._ports[match[0]], text)

    def _with(self, rest: str) -> dict[str, str]:
        if rest != "database":
            return self._environ
        if self.database is None:
            self.database = self._stack.enter_context(Postgres())
        return self._environ | {"DATABASE_URL": self.database.url}

    def _run(self, command: str, rest: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.folder, env=self._with(rest), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def _serve(self, command: str, rest: str) -> None:
        self._end()
        environ = dict(self._environ)
        words = shlex.split(command, comments=True)
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            environ[name] = value
        if rest == "database":
            assert environ["DATABASE_URL"].startswith("postgresql")
            for name in [name for name in environ if name.startswith("DATABASE_URL")]:
                environ[name] = self._with(rest)["DATABASE_URL"]
        self._exit_code = 1 if rest == "until aborted" else 0
        with open(self.folder / "server.log", "wb") as log:
            self._server = subprocess.Popen(words, cwd=self.folder, env=environ, stdout=log)

        def is_ready() -> bool:
            assert self._server is not None and self._server.poll() is None, self.messages()
            try:
                return ask(self.address, "/readyz")[0] == 200
            except OSError:
                return False

        wait_for(is_ready, 20, "readiness")

    def _beside(self, text: str, rest: str) -> None:
        ((command, _),) = steps(text)
        words = shlex.split(command)
        if shutil.which(words[0], path=self._environ["PATH"]) is None:
            unavailable(f"{words[0]} is missing: the page is not followed to its end")
        process = subprocess.Popen(words, cwd=self.folder, env=self._environ)

        def end() -> None:
            process.terminate()
            process.wait(10)

        self._stack.callback(end)

        def is_up() -> bool:
            assert process.poll() is None, command
            return is_reachable(("127.0.0.1", int(self._ports[rest])))

        wait_for(is_up, 15, command)

    def _end(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            with contextlib.suppress(ProcessLookupError):
                server.send_signal(signal.SIGINT)
            try:
                assert server.wait(20) == self._exit_code
            finally:
                if server.poll() is None:
                    server.kill()
                    server.wait(10)
