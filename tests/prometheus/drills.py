"""Drills: a service with one cause of trouble each, and the alerts that have to fire for it.

    python -m tests.prometheus.drills [NAME...]

scrapes each twice a second and writes tests/prometheus/recorded/NAME.yaml, a test for `promtool test rules`, in which
there are 15 s between two scrapes.  It runs as root, for the drills in a control group; CI only replays.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

from tests.support.client import Connection, get, wait_for
from tests.support.faults.postgres import Postgres
from tests.support.ports import free_ports
from tests.support.processes import ask

__all__ = ["DRILLS", "RECORDED", "RULES", "Drill"]

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RULES = ROOT / "deploy" / "prometheus" / "alerts.yaml"
RECORDED = HERE / "recorded"
EVERY, STANDS_FOR, SCRAPES = 0.5, 15, 48  # seconds between scrapes, as if it were so many, and how many there are
QUIET = 6  # scrapes before the trouble begins
CUT = (OSError, EOFError, AssertionError)  # what a client of a service in trouble may get instead of an answer
TARGET = '{instance="shop:9901",job="pkg"'


class Scene:
    """A service on ports of its own, which can be started again."""

    def __init__(self, app: str = "app", **environ: str) -> None:
        self.port, self.admin = free_ports(2)
        self.app, self.environ = app, environ
        self.groups: list[Path] = []
        self.descriptors = 0
        self.stdout = subprocess.DEVNULL
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        def prepare() -> None:
            for group in self.groups:
                (group / "cgroup.procs").write_text("0")
            if self.descriptors:
                resource.setrlimit(resource.RLIMIT_NOFILE, (self.descriptors, self.descriptors))

        environ = {"HOST": "127.0.0.1", "PORT": str(self.port), "PKG_ADMIN": f"127.0.0.1:{self.admin}"}
        environ |= {"PKG_DRAIN_DELAY": "0", "LOG_FORMAT": "json", "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pkg", f"tests.prometheus.application:{self.app}"],
            env=environ | self.environ, cwd=ROOT, stdout=self.stdout, preexec_fn=prepare,
        )  # fmt: skip
        wait_for(self.serves, 20, "the service's start")

    def serves(self) -> bool:
        with contextlib.suppress(*CUT):
            return get(("127.0.0.1", self.port), "/ok").status > 0
        return False

    def stop(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def scrape(self) -> str:
        """The page; "" if it does not come in time."""
        with contextlib.suppress(*CUT):
            status, _, page = ask(("127.0.0.1", self.admin), "/metrics", timeout=EVERY)
            assert status == 200, page
            return page
        return ""

    @contextlib.contextmanager
    def load(self, path: str, threads: int = 1, pause: float = 0.02) -> Iterator[None]:
        """Requests for that path, each on a connection of its own, until the end of the block."""
        over = threading.Event()

        def run() -> None:
            while not over.wait(pause):
                with contextlib.suppress(*CUT):
                    get(("127.0.0.1", self.port), path)

        runners = [threading.Thread(target=run, daemon=True) for _ in range(threads)]
        for runner in runners:
            runner.start()
        try:
            yield
        finally:
            over.set()


class Drill(NamedTuple):
    """`scene` makes what is needed, `trouble` does what is wrong for the length of its block, `alerts` have to fire.
    `workers`: worker processes."""

    scene: Callable[[], contextlib.AbstractContextManager[Scene]]
    trouble: Callable[[Scene], contextlib.AbstractContextManager[object]]
    alerts: frozenset[str]
    workers: int = 0


# --- scenes --------------------------------------------------------------------------------------------------------


def service(app: str = "app", **environ: str) -> Callable[[], contextlib.AbstractContextManager[Scene]]:
    @contextlib.contextmanager
    def made() -> Iterator[Scene]:
        yield Scene(app, **environ)

    return made


def with_database(**environ: str) -> Callable[[], contextlib.AbstractContextManager[Scene]]:
    @contextlib.contextmanager
    def made() -> Iterator[Scene]:
        with Postgres() as server:
            scene = Scene(DATABASE_URL=server.url, **environ)
            scene.server = server  # type: ignore[attr-defined]
            yield scene

    return made


@contextlib.contextmanager
def few_descriptors() -> Iterator[Scene]:
    scene = Scene(PKG_MAX_CONNECTIONS="16", PKG_THREADS="2")
    scene.descriptors = 100
    yield scene


@contextlib.contextmanager
def unread_output() -> Iterator[Scene]:
    reader, writer = os.pipe()
    scene = Scene(LOG_LEVEL="info")
    scene.stdout = writer
    try:
        yield scene
    finally:
        os.close(reader)
        os.close(writer)


def limited(**files: str) -> Callable[[], contextlib.AbstractContextManager[Scene]]:
    """In control groups of version 1 with these limits, by the names of their files."""

    @contextlib.contextmanager
    def made() -> Iterator[Scene]:
        scene = Scene()
        for file, value in files.items():
            group = Path("/sys/fs/cgroup", file.partition("_")[0], f"pkg-drill-{os.getpid()}")
            group.mkdir(exist_ok=True)
            (group / file.replace("_", ".", 1)).write_text(value)
            if group not in scene.groups:
                scene.groups.append(group)
        try:
            yield scene
        finally:
            for group in scene.groups:
                wait_for(lambda group=group: not (group / "cgroup.procs").read_text(), 10)  # type: ignore[misc]
                group.rmdir()

    return made


# --- troubles ------------------------------------------------------------------------------------------------------


def load(
    path: str, threads: int = 1, pause: float = 0.02
) -> Callable[[Scene], contextlib.AbstractContextManager[None]]:
    return lambda scene: scene.load(path, threads, pause)


@contextlib.contextmanager
def database_away(scene: Scene) -> Iterator[None]:
    scene.server.stop()  # type: ignore[attr-defined]
    with scene.load("/ok"):
        yield


@contextlib.contextmanager
def slow_clients(scene: Scene) -> Iterator[None]:
    """They send half a head, again and again."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(0.1):
            with (
                contextlib.suppress(*CUT),
                Connection(("127.0.0.1", scene.port)) as connection,
            ):
                connection.send(b"GET / HTTP/1.1\r\n")
                over.wait(1.2)

    threading.Thread(target=run, daemon=True).start()
    try:
        yield
    finally:
        over.set()


@contextlib.contextmanager
def lock_held(scene: Scene) -> Iterator[None]:
    """A request that holds the interpreter lock now and then, and probes meanwhile."""
    with scene.load("/hold_the_lock", pause=2.0), scene.load("/healthz", pause=0.1):
        yield


@contextlib.contextmanager
def restarted(scene: Scene) -> Iterator[None]:
    over = threading.Event()

    def run() -> None:
        for _ in range(4):
            if over.wait(3.0):
                return
            scene.stop()
            scene.start()

    runner = threading.Thread(target=run, daemon=True)
    runner.start()
    try:
        yield
    finally:
        over.set()
        runner.join()


@contextlib.contextmanager
def worker_killed(scene: Scene) -> Iterator[None]:
    """One of them after the other."""
    over = threading.Event()

    def run() -> None:
        assert scene.process is not None
        while not over.wait(3.0):
            found = subprocess.run(["pgrep", "--parent", str(scene.process.pid)], capture_output=True, text=True)
            for pid in found.stdout.split()[1:2]:  # after the template
                os.kill(int(pid), signal.SIGKILL)

    threading.Thread(target=run, daemon=True).start()
    try:
        with scene.load("/ok"):
            yield
    finally:
        over.set()


def alerts(*names: str) -> frozenset[str]:
    return frozenset(f"Pkg{name}" for name in names)


DRILLS = {
    "steady": Drill(with_database(), load("/query", 2), alerts()),
    "database-away": Drill(with_database(), database_away, alerts("NotReady", "DatabaseUnreachable")),
    "broken": Drill(service(), load("/broken", 2), alerts("Errors")),
    "stuck": Drill(
        service(PKG_THREADS="2", PKG_STUCK_TIMEOUT="1s"), load("/endless", 3), alerts("NotLive", "QueueWaits")
    ),
    "restarts": Drill(service(), restarted, alerts("Restarts")),
    "full-queue": Drill(
        service(PKG_THREADS="1", PKG_MAX_QUEUE="2"), load("/slow", 8), alerts("RequestsShed", "Errors", "QueueWaits")
    ),
    "slow-clients": Drill(service(PKG_HEADER_TIMEOUT="1s"), slow_clients, alerts("Timeouts")),
    "slow-requests": Drill(
        service(PKG_REQUEST_TIMEOUT="1s"), load("/slower", 2, pause=0.3), alerts("RequestTimeouts", "Errors")
    ),
    "long-queue": Drill(service(PKG_THREADS="1"), load("/slow", 4), alerts("QueueWaits")),
    "lock-held": Drill(service(PKG_LIVENESS_TIMEOUT="1s"), lock_held, alerts("ProbesStale")),
    "blocked-loop": Drill(service("blocking"), load("/block", 1), alerts("EventLoopBlocked")),
    "full-pool": Drill(
        with_database(PKG_POOL_MAX_SIZE="1", PKG_POOL_MIN_SIZE="1", PKG_THREADS="6"),
        load("/slow_query", 5), alerts("PoolExhausted"),
    ),
    "unread-log": Drill(unread_output, load("/broken", 4, pause=0), alerts("LogLinesDropped", "Errors")),
    "descriptors": Drill(few_descriptors, load("/descriptors", 1, pause=0.1), alerts("FewDescriptors", "Errors")),
    "throttled": Drill(limited(cpu_cfs_quota_us="20000"), load("/burn", 3), alerts("Throttled")),
    "memory": Drill(limited(memory_limit_in_bytes="80M"), load("/memory", 1, pause=0.2), alerts("MemoryShort")),
    "workers-killed": Drill(service(), worker_killed, alerts("WorkersDie"), 2),
    "killed": Drill(limited(memory_limit_in_bytes="80M"), load("/child", 1, pause=5), alerts("KilledForMemory")),
}  # fmt: skip


# The same with two worker processes, where other alerts may fire: of a worker's trouble the service often recovers.
WITH_WORKERS = {name: drill.alerts for name, drill in DRILLS.items() if not drill.workers} | {
    "stuck": alerts("Errors", "QueueWaits", "WorkersDie"),
    "full-queue": alerts("RequestsShed", "Errors"),
    "long-queue": alerts(),
    "lock-held": alerts("WorkersDie"),
    "memory": alerts("KilledForMemory", "WorkersDie"),
}
DRILLS |= {
    f"{name}-with-workers": DRILLS[name]._replace(alerts=expected, workers=2) for name, expected in WITH_WORKERS.items()
}


# --- recording -----------------------------------------------------------------------------------------------------


def _wanted() -> tuple[str, ...]:
    """Beginnings of the lines of the page that the rules look at."""
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    text = " ".join(rule["expr"] for rule in rules)
    for character in "{}()[]=,/":
        text = text.replace(character, " ")
    names = {word for word in text.split() if word.startswith(("pkg_", "http_", "db_", "process_"))}
    return tuple(f"{name}{after}" for name in sorted(names) for after in "{ ")


def _series(pages: list[str]) -> dict[str, list[str]]:
    """Values of each time series, "_" where it was not there."""
    found: dict[str, list[str]] = {}
    wanted = _wanted()
    for number, page in enumerate(pages):
        for line in page.splitlines():
            if line.startswith(wanted):
                name, _, value = line.rpartition(" ")
                own, _, labels = name.removesuffix("}").partition("{")
                full = f"{own}{TARGET}{',' if labels else ''}{labels}}}"
                found.setdefault(full, ["_"] * len(pages))[number] = value
    return found


def _runs(values: list[str]) -> str:
    """In promtool's notation, equal ones together."""
    out: list[str] = []
    at = 0
    while at < len(values):
        end = at
        while end + 1 < len(values) and values[end + 1] == values[at]:
            end += 1
        count = end - at
        out.append(values[at] if not count else f"_x{count + 1}" if values[at] == "_" else f"{values[at]}+0x{count}")
        at = end + 1
    return " ".join(out)


def record(drill: Drill) -> str:
    """Runs the drill.  The text of a file for `promtool test rules`."""
    pages: list[str] = []
    with drill.scene() as scene:
        scene.environ["WEB_CONCURRENCY"] = str(drill.workers)
        scene.start()
        try:
            with contextlib.ExitStack() as stack:
                begun = time.monotonic()
                for number in range(SCRAPES):
                    if number == QUIET:
                        stack.enter_context(drill.trouble(scene))
                    pages.append(scene.scrape())
                    time.sleep(max(0.0, begun + (number + 1) * EVERY - time.monotonic()))
        finally:
            scene.stop()
    firing = sorted(drill.alerts)
    samples = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in firing]
    expression = 'count by (alertname) (count_over_time(ALERTS{alertstate="firing"}[10m]) > 0)'
    end = f"{(SCRAPES - 1) * STANDS_FOR}s"
    test = {
        "rule_files": ["../../../deploy/prometheus/alerts.yaml"],
        "evaluation_interval": f"{STANDS_FOR}s",
        "tests": [
            {
                "interval": f"{STANDS_FOR}s",
                "input_series": [{"series": k, "values": _runs(v)} for k, v in sorted(_series(pages).items())],
                "promql_expr_test": [{"expr": expression, "eval_time": end, "exp_samples": samples}],
            }
        ],
    }
    return yaml.safe_dump(test, sort_keys=False, width=1 << 16)


def main(names: list[str]) -> None:
    RECORDED.mkdir(exist_ok=True)
    for name in names or DRILLS:
        text = record(DRILLS[name])
        (RECORDED / f"{name}.yaml").write_text(text)
        print(name, len(text), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
