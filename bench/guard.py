"""`make bench-guard`: did this change make a hot path slower?  Counts instructions, here and in the parent commit.

Both are copied, compiled and counted in the same run, with the same compiler, flags, interpreter and libraries; more
than ALLOWED percent beyond the noise that was measured is exit code 1, and the table names the operation.  A change
that is meant to cost more says so in its commit message, and may then cost that much:

    Bench-guard: WSGI hello +3 %, because responses now carry a Date

What is counted are all the instructions that `python -m pkg` spends under callgrind, by all of its threads, without
those of the kernel.  What keeps the noise out:

- Each operation is counted N and 2N times, and the difference counts: start-up and the counting itself cancel out.
  The median of several such pairs is taken in each process, and the median of the processes of each commit.
- Addresses differ from process to process, and with them what a hash table or the C library does with them: 3 % of a
  probe where a head lies at the end of a page.  So the heap of each process begins at another place, and how far the
  middle ones differ is the noise.  Where that is more than NOISY percent, one more is started.
- One client, one worker: no request ever waits for another.  Hash seeds are fixed; what counts has been warmed up.
- guard.c takes the clock out: what happens by time happens a fixed factor more seldom, as under callgrind everything
  takes about that much longer, and the core's own clock does not depend on how busy the machine is.

It measures no time: `python -m bench` does, beside the peers.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COUNTED = ("ext", "pkg", "setup.py", "pyproject.toml")  # what decides how many instructions there are
BUILT_WITH = ("README.md", "LICENSE")

ALLOWED = 1.0  # percent
NOISY = 0.5  # percent between processes of the same commit: then one more of each is counted
UNKNOWN = 2.0  # percent: then nothing can be said
PROCESSES = (4, 5)  # of each commit: at least, at most
# An access line is the difference of two counts, each of which is three or four times as large and agrees within 0.2 %
# from build to build of the same source; that of the line was measured to be up to 0.95 %.
LEAST_NOISE = {"access line": 1.0}  # percent
ENOUGH = 210.0  # seconds; on a machine that is so busy the processes counted until then have to do, if they are two

OPERATIONS = ("parse", "probe", "probe, new connection", "WSGI hello", "access line", "lend")
HEADS = 5_000  # parsed by the first of two runs of the parser; the second one parses twice as many

# WSGI hello, and with a query string so many loans of a connection before it.
APPLICATION = """\
import pkg, pkg._core

BODY = [b"Hello, world!\\n"]

def app(environ, start_response):
    if environ["PATH_INFO"] == "/where":
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [pkg._core.__file__.encode()]
    if environ["QUERY_STRING"]:
        for _ in range(int(environ["QUERY_STRING"])):
            with pkg.connection():
                pass
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "14")])
    return BODY
"""
REQUEST = "GET {} HTTP/1.1\r\nHost: 10.244.1.7:8080\r\nUser-Agent: kube-probe/1.33\r\nAccept: */*\r\n{}\r\n"


class Failed(Exception):
    """Nothing can be said about the change; the text is one line that says why."""


def run(command: Sequence[str | Path], cwd: Path = ROOT, **environment: str) -> str:
    """Its output.  Failed: it failed."""
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    except OSError as error:
        raise Failed(f"{command[0]}: {error.strerror}") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise Failed(f"{' '.join(map(str, command[:3]))}: {lines[-1]}")
    return done.stdout


# ------------------------------------------------------------------------ the two trees


@dataclasses.dataclass(frozen=True)
class Tree:
    """A copy of what is counted.  Both have paths of the same length, which are part of what is executed."""

    title: str
    folder: Path


def export(commit: str, folder: Path) -> None:
    """An archive and not a worktree: a run that is killed leaves nothing behind in the repository."""
    archive = folder / "archive.tar"
    names = run(["git", "ls-tree", "--name-only", commit]).split("\n")
    run(["git", "archive", "-o", archive, commit, *(name for name in COUNTED + BUILT_WITH if name in names)])
    run(["tar", "-xf", archive, "-C", folder])
    archive.unlink()


def copy(folder: Path) -> None:
    """The working tree, with what is not committed, and without what was built in it."""
    listed = run(["git", "ls-files", "-z", "-co", "--exclude-standard", "--", *COUNTED, *BUILT_WITH])
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def build(trees: Sequence[Tree], say: Callable[[str], None]) -> None:
    """The extension, of both at the same time."""
    say("compiling the extension of both")
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    running = [
        subprocess.Popen(command, cwd=t.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                         stderr=subprocess.STDOUT, text=True)
        for t in trees
    ]  # fmt: skip
    for tree, process in zip(trees, running, strict=True):
        text, _ = process.communicate()
        if process.returncode:
            raise Failed(f"{tree.title} does not compile: {text.strip().splitlines()[-1]}")


# ---------------------------------------------------------------------------- counting


def _total(file: Path) -> int:
    found = re.search(r"^(?:totals|summary): (\d+)", file.read_text(), re.MULTILINE)
    if found is None:
        raise Failed("callgrind has written no count")
    return int(found[1])


@dataclasses.dataclass(frozen=True)
class Count:
    """Instructions for one operation, and about how many of them each function took itself."""

    instructions: float
    functions: dict[str, float]


def _functions(file: Path, times: int) -> dict[str, float]:
    """A function's name comes with a number, and later as that number alone; a call's costs are the callee's."""
    names: dict[str, str] = {}
    found: dict[str, float] = {}
    name, is_call = "", False
    with open(file) as lines:
        for line in lines:
            if match := re.match(r"c?fn=(\(\d+\))(?: (.+))?", line):
                if match[2]:
                    names[match[1]] = match[2].partition("'")[0]
                if line[0] == "f":
                    name = names[match[1]]
            elif line.startswith("calls="):
                is_call = True
            elif is_call:
                is_call = False
            elif match := re.match(r"[-+*\d]\S* (\d+)$", line):
                found[name] = found.get(name, 0.0) + int(match[1]) / times
    return found


def valgrind() -> str:
    found = shutil.which("valgrind")
    if found is None or not Path("/usr/include/valgrind/callgrind.h").exists():
        raise Failed("valgrind is not installed: apt-get install valgrind")
    return found


def count_parse(tree: Tree, folder: Path) -> Count:
    """One head of a browser's request, in C."""
    program = folder / f"parse-{tree.folder.name}"
    if not program.exists():
        http = tree.folder / "ext" / "http"
        if not http.exists():  # commits before the core had folders
            http = http.parent
        flags = ["-O3", f"-I{http}", *os.environ.get("PKG_CFLAGS", "").split()]
        run([os.environ.get("CC", "cc"), *flags, "-o", program, ROOT / "bench" / "parse.c", http / "http1.c"])
    counts = []
    for heads in (HEADS, 2 * HEADS):
        out = folder / "parse.out"
        run([valgrind(), "--tool=callgrind", f"--callgrind-out-file={out}", program, "ours", "browser", str(heads)])
        counts.append(_total(out))
    return Count((counts[1] - counts[0]) / HEADS, _functions(out, 2 * HEADS))


class Service:
    """`python -m pkg` of a tree, under callgrind, with one worker; `count()` asks it for something from outside."""

    def __init__(
        self, tree: Tree, folder: Path, preload: Path, database: str, number: int, *, access_log: bool
    ) -> None:
        """`number` of the process: where its heap begins depends on it."""
        self.tree = tree
        self._folder = Path(tempfile.mkdtemp(dir=folder, prefix="run-"))
        self._parts = 0
        (self._folder / "application.py").write_text(APPLICATION)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._address = probe.getsockname()
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(os.path.relpath(self._folder / "orders"))
        listener.listen()
        listener.settimeout(60)
        environment = {
            "PATH": os.environ.get("PATH", os.defpath), "HOME": str(self._folder), "LANG": "C.UTF-8",
            "PYTHONPATH": f"{tree.folder}:{self._folder}", "PYTHONHASHSEED": "0",
            "LD_PRELOAD": str(preload), "GUARD_SOCKET": "orders", "GUARD_SHIFT": str(1 + 1040 * number),
            "MALLOC_ARENA_MAX": "1", "DATABASE_URL": database,
            "HOST": "127.0.0.1", "PORT": str(self._address[1]), "PKG_THREADS": "1", "PKG_ADMIN": "off",
            "LOG_LEVEL": "info", "LOG_FORMAT": "json", "PKG_ACCESS_LOG": "on" if access_log else "off",
        }  # fmt: skip
        command = [
            valgrind(), "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={self._folder / 'part'}",
            "--dump-line=no", f"--log-file={self._folder / 'valgrind'}", sys.executable, "-m", "pkg", "application:app",
        ]  # fmt: skip
        with open(self._folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                command, cwd=self._folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            with listener:
                self._orders, _ = listener.accept()
            self._orders.settimeout(60)
            self._client = self._connect()
            self._await_ready()
            where = self._ask("/where").partition(b"\r\n\r\n")[2].decode()
            if tree.folder.resolve() not in Path(where).resolve().parents:
                raise Failed(f"{where} is not what was to be counted")
            self._order(b"s")
        except (OSError, EOFError) as error:
            self.end()
            raise Failed(f"{tree.title} does not serve: {error or type(error).__name__}; {self._last_line()}") from None
        except BaseException:
            self.end()
            raise

    def _last_line(self) -> str:
        return ((self._folder / "log").read_text(errors="replace").strip().splitlines() or ["it wrote nothing"])[-1]

    def _connect(self) -> socket.socket:
        end = time.monotonic() + 60
        while True:
            try:
                client = socket.create_connection(self._address, 60)
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                return client
            except ConnectionRefusedError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise
                time.sleep(0.02)

    def _await_ready(self) -> None:
        """All checks have been made, so that none is among what is counted."""
        end = time.monotonic() + 60
        while b" 200 " not in self._ask("/readyz")[:20]:
            if time.monotonic() > end:
                raise TimeoutError("it does not get ready")
            time.sleep(0.05)

    def _order(self, order: bytes) -> None:
        self._orders.sendall(order)
        if self._orders.recv(1) != order:
            raise EOFError("it does not find pkg._core")

    def _rest(self) -> None:
        """Waits until all of its threads sleep: whatever was asked for has been done to its end."""
        asleep, end = 0, time.monotonic() + 60
        tasks = Path(f"/proc/{self._process.pid}/task")
        while asleep < 2:
            if time.monotonic() > end:
                raise TimeoutError("it does not come to rest")
            states = []
            for task in os.listdir(tasks):
                with contextlib.suppress(OSError):
                    states.append((tasks / task / "stat").read_text().rpartition(")")[2].split()[0])
            asleep = asleep + 1 if "R" not in states else 0

    def _ask(self, target: str) -> bytes:
        self._client.sendall(REQUEST.format(target, "").encode())
        answer = self._client.recv(65536)
        if not answer:
            raise EOFError("it has closed the connection")
        return answer

    def _expect(self, target: str, times: int) -> None:
        for _ in range(times):
            answer = self._ask(target)
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise EOFError(f"it responds to {target} with {answer[9:12].decode()}")

    def probe(self, times: int) -> None:
        self._expect("/healthz", times)

    def probe_once_each(self, times: int) -> None:
        """A connection for each.  The service comes to rest in between, so that it does not matter which is faster."""
        for _ in range(times):
            with self._connect() as client:
                self._rest()
                client.sendall(REQUEST.format("/healthz", "Connection: close\r\n").encode())
                while client.recv(65536):
                    pass
                self._rest()
            self._rest()

    def hello(self, times: int) -> None:
        self._expect("/", times)

    def hello_with_access_line(self, times: int) -> None:
        """Up to the moment at which all of the lines have been written."""
        log = self._folder / "log"
        wanted, end = log.read_bytes().count(b"\n") + times, time.monotonic() + 60
        self._expect("/", times)
        while log.read_bytes().count(b"\n") < wanted:
            if time.monotonic() > end:
                raise TimeoutError("lines are missing from its log")
            time.sleep(0.01)

    def lend(self, times: int) -> None:
        self._expect(f"/?{times}", 1)

    def count(self, operation: Callable[[int], None], times: int, pairs: int) -> Count:
        try:
            for _ in range(3):
                operation(times)
            counts: tuple[list[int], list[int]] = [], []
            for _ in range(pairs):
                for n, found in zip((times, 2 * times), counts, strict=True):
                    self._rest()
                    self._order(b"d")
                    operation(n)
                    self._rest()
                    self._order(b"d")
                    self._parts += 2
                    found.append(_total(self._folder / f"part.{self._parts}"))
        except (OSError, EOFError) as error:
            raise Failed(f"{self.tree.title}: {error or type(error).__name__}; {self._last_line()}") from None
        instructions = (statistics.median(counts[1]) - statistics.median(counts[0])) / times
        return Count(instructions, _functions(self._folder / f"part.{self._parts}", 2 * times))

    def end(self) -> None:
        """At once: by its clock a shutdown would take minutes."""
        for name in ("_client", "_orders"):
            if hasattr(self, name):
                getattr(self, name).close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def count(
    tree: Tree, folder: Path, preload: Path, database: str, number: int, wanted: Collection[str]
) -> dict[str, Count]:
    """One process without and one with an access log: the operations wanted, without `parse`."""
    counts = {}
    with Service(tree, folder, preload, database, number, access_log=False) as service:
        hello = counts["WSGI hello"] = service.count(service.hello, 60, 6)  # first: from here on the worker leads
        for name, operation, times in (
            ("probe", service.probe, 100),
            ("probe, new connection", service.probe_once_each, 50),
            ("lend", service.lend, 30),
        ):
            if name in wanted:
                counts[name] = service.count(operation, times, 5)
    if "access line" in wanted:
        with Service(tree, folder, preload, database, number, access_log=True) as service:
            whole = service.count(service.hello_with_access_line, 60, 6)
        functions = {name: n - hello.functions.get(name, 0.0) for name, n in whole.functions.items()}
        counts["access line"] = Count(whole.instructions - hello.instructions, functions)
    return counts


# ---------------------------------------------------------------------------- judging


@dataclasses.dataclass(frozen=True)
class Row:
    """What one operation took in each process, and what it may cost more, in percent."""

    operation: str
    before: list[Count]
    after: list[Count]
    allowed: float = ALLOWED

    @staticmethod
    def _noise(counts: list[Count]) -> float:
        """How far the middle ones are apart, in percent."""
        ordered = sorted(count.instructions for count in counts)
        middle = ordered[len(ordered) // 3 : len(ordered) - len(ordered) // 3]
        return (middle[-1] / middle[0] - 1) * 100

    @property
    def counts(self) -> tuple[float, float]:
        before, after = (statistics.median(c.instructions for c in counts) for counts in (self.before, self.after))
        return before, after

    @property
    def change(self) -> float:
        before, after = self.counts
        return (after / before - 1) * 100

    @property
    def measured_noise(self) -> float:
        return max(self._noise(self.before), self._noise(self.after))

    @property
    def noise(self) -> float:
        return max(LEAST_NOISE.get(self.operation, 0.0), self.measured_noise)

    @property
    def growth(self) -> list[tuple[float, str]]:
        """The functions that take most instructions more by themselves."""
        before, after = self.before[-1].functions, self.after[-1].functions
        return sorted(((n - before.get(name, 0.0), name) for name, n in after.items()), reverse=True)[:4]

    @property
    def is_slower(self) -> bool:
        return self.change > self.allowed + self.noise


def table(rows: Sequence[Row]) -> str:
    lines = [f"{'instructions each':<24}{'before':>10}{'after':>10}{'change':>10}{'noise':>9}{'allowed':>10}"]
    for row in rows:
        before, after = row.counts
        lines.append(
            f"{row.operation:<24}{before:>10,.0f}{after:>10,.0f}{row.change:>+8.2f} %{row.noise:>7.2f} %"
            f"{row.allowed:>8g} %{'  SLOWER' if row.is_slower else ''}"
        )
    return "\n".join(lines)


def allowances(messages: str) -> dict[str, float]:
    """What commit messages allow, in percent by operation; two commits' add up.  Failed: a line cannot be read."""
    found: dict[str, float] = {}
    for line in messages.splitlines():
        if not line.startswith("Bench-guard:"):
            continue
        match = re.fullmatch(r"Bench-guard: (.+?) \+(\d+(?:\.\d+)?) ?%, because \S.*", line.rstrip())
        if match is None or match[1] not in OPERATIONS:
            raise Failed(
                f"{line!r} is not `Bench-guard: OPERATION +N %, because ...` with one of: {'; '.join(OPERATIONS)}"
            )
        found[match[1]] = found.get(match[1], 0.0) + float(match[2])
    return found


def compare(
    trees: tuple[Tree, Tree], folder: Path, operations: Sequence[str], allowed: dict[str, float],
    say: Callable[[str], None],
) -> list[Row]:  # fmt: skip
    """Counts in both trees, the one from before first."""
    rows = {name: Row(name, [], [], max(ALLOWED, allowed.get(name, 0.0))) for name in operations}
    with contextlib.ExitStack() as stack:
        preload, database = folder / "guard.so", ""
        if set(operations) - {"parse"}:
            valgrind()
            build(trees, say)
            flags = ["-O2", "-shared", "-fPIC", "-pthread"]
            run([os.environ.get("CC", "cc"), *flags, "-o", preload, ROOT / "bench" / "guard.c"])
            say("starting PostgreSQL")
            database = stack.enter_context(_postgres())
        begin = time.monotonic()
        for number in range(PROCESSES[1]):
            # The parser alone allocates nothing: it is as exact with two.
            noisy = [r.operation for r in rows.values() if number < (PROCESSES[0] if r.operation != "parse" else 2)]
            noisy += [r.operation for r in rows.values() if r.operation not in noisy and r.measured_noise > NOISY]
            if not noisy or (number >= 2 and time.monotonic() - begin > ENOUGH):
                break
            # Before, after; after, before: what changes slowly on the machine meets both.
            for index in (0, 1) if number % 2 == 0 else (1, 0):
                say(f"counting {trees[index].title}, round {number + 1}")
                counts = {"parse": count_parse(trees[index], folder)} if "parse" in noisy else {}
                if set(noisy) - {"parse"}:
                    counts |= count(trees[index], folder, preload, database, number, noisy)
                for name in rows.keys() & counts.keys():
                    (rows[name].before, rows[name].after)[index].append(counts[name])
    return list(rows.values())


@contextlib.contextmanager
def _postgres() -> Iterator[str]:
    from tests.support.faults.postgres import NoServer, Postgres

    try:
        server = Postgres()
    except NoServer as error:
        raise Failed(str(error)) from None
    with server:
        yield server.url


# ----------------------------------------------------------------------- the command


def commit_of(name: str) -> str | None:
    try:
        return run(["git", "rev-parse", "--verify", "--quiet", f"{name}^{{commit}}"]).strip()
    except Failed:
        return None


def differs(commit: str) -> bool:
    """Whether the working tree does, in what is counted."""
    new = run(["git", "ls-files", "-o", "--exclude-standard", "--", *COUNTED])
    return bool(run(["git", "diff", "--name-only", commit, "--", *COUNTED]).strip() or new.strip())


def choose(against: str | None) -> tuple[str | None, str, str]:
    """The commit to compare with, what is compared, and the messages of the commits in between."""
    changed = differs("HEAD")
    if against is not None:
        commit = commit_of(against)
        if commit is None:
            raise Failed(f"there is no commit {against}")
    else:  # what is not committed is compared with what it would be committed on
        commit = commit_of("HEAD" if changed else "HEAD^")
        if commit is None:
            return None, "", ""
    title = "the working tree" if changed else run(["git", "rev-parse", "--short", "HEAD"]).strip()
    return commit, title, run(["git", "log", "--format=%B", f"{commit}..HEAD"])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="make bench-guard",
        description="Counts the instructions of the hot paths here and in the parent commit: " + "; ".join(OPERATIONS),
        epilog="Exit code 0: none takes more than 1 %% more, or what a `Bench-guard: OPERATION +N %%, because ...` "
        "line of the commit message allows; 1: one did; 2: it could not be counted.",
    )
    parser.add_argument("--against", metavar="COMMIT", help="instead of the parent, or of HEAD if there are changes")
    parser.add_argument("--only", metavar="OPERATION", action="append", choices=OPERATIONS, help="this one; repeatable")
    parser.add_argument("--always", action="store_true", help="count even if nothing that is counted has changed")
    options = parser.parse_args(arguments)
    begin = time.monotonic()

    def say(text: str) -> None:
        sys.stderr.write(f"[{time.monotonic() - begin:4.0f} s] {text}\n")

    try:
        try:
            run(["git", "rev-parse", "HEAD"])
        except Failed as error:
            if options.against is not None:
                raise
            print(f"bench-guard: nothing to compare with, as this is no checkout: {error}")
            return 0
        commit, title, messages = choose(options.against)
        if commit is None:
            print(
                "bench-guard: nothing to compare with: the parent commit is not here (a shallow checkout, or the first)"
            )
            return 0
        allowed = allowances(messages)
        before = run(["git", "log", "-1", "--format=%h %s", commit]).strip()
        if not options.always and not differs(commit):
            print(f"bench-guard: nothing to count: {', '.join(COUNTED)} are as in {before}")
            return 0
        with tempfile.TemporaryDirectory(prefix="guard-") as name:
            folder = Path(name).resolve()
            trees = Tree(before.split()[0], folder / "base"), Tree(title, folder / "head")
            for tree in trees:
                tree.folder.mkdir()
            export(commit, trees[0].folder)
            copy(trees[1].folder)
            rows = compare(trees, folder, options.only or OPERATIONS, allowed, say)
    except Failed as error:
        sys.stderr.write(f"bench-guard: {error}\n")
        return 2
    print(f"before: {before}\nafter:  {title}\n\n{table(rows)}\n")
    return verdict(rows)


def verdict(rows: Sequence[Row]) -> int:
    """Says it in a line for each operation that does not pass; the exit code."""
    slower = [row for row in rows if row.is_slower]
    noisy = [row for row in rows if row.noise > UNKNOWN]
    for row in slower:
        print(f"bench-guard: {row.operation} takes {row.change:.2f} % more instructions; {row.allowed:g} % are allowed")
        print("  most of it in " + ", ".join(f"{name} {more:+,.0f}" for more, name in row.growth if more >= 1))
        print(f"  if it is meant to: Bench-guard: {row.operation} +{row.change:.1f} %, because ...")
    for row in noisy:
        print(f"bench-guard: {row.operation} could not be counted: two processes of the same commit differ too much")
    return 1 if slower else 2 if noisy else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # in order, with what was started
    sys.exit(main())
