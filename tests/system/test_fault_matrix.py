"""What a service does when its database is hurt in every way we know: through real HTTP, under load, to the bounds.

    time ---> | load, all well | FAULT ............ | MENDED ............ | load, all well |
    /readyz         200        | 200 .. 503 by 5 s  | 503 .. 200 by 3 s  |      200
    /healthz        200        |        200         |        200         |      200
                before: threads, descriptors                         after: as before

It does not look inside: `test_database.py` does; nor does it wait for long: `test_outages.py` does.

The application borrows in one of three ways: a block of `pkg.connection()`, SQLAlchemy on `pkg.connect`, or a block of
`pkg.aconnection()` in an event loop.  Six faults of the latter two run in CI, all of them with `-m long`.

Faults run several at a time, since most of their time is waiting; each test then judges its own row.  With
FAULT_MATRIX=FILE.md (or .json) in the environment the tables are written there, between markers if the file has them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.support.client import wait_for
from tests.support.faults.host import Host
from tests.support.faults.postgres import PASSWORD, Postgres
from tests.support.faults.proxy import Mode, Proxy
from tests.support.processes import POOLS

RED, GREEN = 5.0, 3.0  # seconds: at most so long after the fault, after its end
LATENCY = 0.05  # seconds, a wide margin: the machine is shared with the load; the table has the figures
POOL = 4
EACH = str(POOL // POOLS)  # connections; all workers' pools together have POOL
SETTINGS = {"PKG_POOL_MIN_SIZE": EACH, "PKG_POOL_MAX_SIZE": EACH, "PKG_THREADS": "16"}
AT_A_TIME = 4
WAYS = {  # and their applications, in tests.support.faults
    "pkg.connection()": "application",
    "SQLAlchemy": "sqlalchemy_application",
    "pkg.aconnection()": "asynchronous_application",
}
FIRST_WAY = next(iter(WAYS))


@dataclass
class Rig:
    """A server, a proxy before it, and what a fault leaves for its own end."""

    server: Postgres
    proxy: Proxy
    folder: Path
    rest: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    standby: Postgres | None = None

    @property
    def url_file(self) -> Path:
        return self.folder / "url"

    def fill(self) -> None:
        """Takes every slot that ordinary roles can have."""
        self.server.refuse()  # so that the slots that become free are ours
        self.server.terminate()
        self.fill_around()

    def fill_around(self) -> None:
        """The same, but the pool keeps the connections that it has."""
        self.server.refuse()
        url = self.server.url.replace("/postgres", "/template1")
        deadline = time.monotonic() + 10
        taken = time.monotonic()
        # An attempt of the service holds a slot until it is told that it is refused: such a slot becomes free again.
        while time.monotonic() < min(taken + 1.0, deadline):
            try:
                self.rest.callback(psycopg.connect(url).close)
                taken = time.monotonic()
            except psycopg.OperationalError:
                time.sleep(0.02)
        self.server.allow()

    def switch_password(self, password: str) -> None:
        self.server.set_password(password)
        self.server.terminate()


@dataclass(frozen=True)
class Fault:
    name: str
    begin: Callable[[Rig], object]
    end: Callable[[Rig], object]
    red: bool | None = True  # False: readiness must stay green; None: it may do either
    load: str = "/query"
    settings: tuple[tuple[str, str], ...] = ()
    by_file: bool = False
    loaders: int = 2


def mode(wanted: Mode) -> Callable[[Rig], object]:
    def apply(rig: Rig) -> None:
        rig.proxy.mode = wanted

    return apply


def both(*actions: Callable[[Rig], object]) -> Callable[[Rig], object]:
    def apply(rig: Rig) -> None:
        for action in actions:
            action(rig)

    return apply


def delay(seconds: float) -> Callable[[Rig], object]:
    def apply(rig: Rig) -> None:
        rig.proxy.delay = seconds

    return apply


def cut(after: int) -> Callable[[Rig], object]:
    def apply(rig: Rig) -> None:
        rig.proxy.cut_after = after

    return apply


def fail_over(rig: Rig) -> None:
    """The address leads to the replica, which nobody has promoted yet."""
    assert rig.standby is not None
    rig.server.stop()
    rig.proxy.target = rig.standby.port


def promote(rig: Rig) -> None:
    assert rig.standby is not None
    rig.standby.promote()


def nothing(rig: Rig) -> None:
    pass


FAULTS = [
    Fault("stopped", lambda r: r.server.stop(), lambda r: r.server.start()),
    Fault("killed", lambda r: r.server.kill(), lambda r: r.server.start()),
    Fault("restarted", lambda r: r.server.restart(), nothing, red=None),
    Fault("SIGSTOP", lambda r: r.server.pause(), lambda r: r.server.resume()),
    Fault(
        "SIGSTOP, every connection in use",
        lambda r: r.server.pause(),
        lambda r: r.server.resume(),
        load="/sleep?0.2",
        loaders=2 * POOL,
    ),
    Fault("backends terminated", lambda r: r.server.terminate(), nothing, red=False),
    Fault(
        "new connections refused, the others work",
        lambda r: r.server.refuse(),
        lambda r: r.server.allow(),
        red=False,
    ),
    Fault(
        "connections refused",
        both(lambda r: r.server.refuse(), lambda r: r.server.terminate()),
        lambda r: r.server.allow(),
    ),
    Fault("out of max_connections, none left", lambda r: r.fill(), lambda r: r.rest.close()),
    Fault(
        "out of max_connections, every connection in use",
        lambda r: r.fill_around(),
        lambda r: r.rest.close(),
        red=False,
        load="/sleep?4",
        loaders=POOL,
    ),
    Fault(
        "wrong password",
        lambda r: r.switch_password("another"),
        lambda r: r.server.set_password(PASSWORD),
    ),
    Fault(
        "password rotated, then the file",
        lambda r: r.switch_password("another"),
        lambda r: r.url_file.write_text(r.server.url_of("another", r.proxy.port)),
        by_file=True,
    ),
    Fault("black hole", mode(Mode.BLACK_HOLE), mode(Mode.PASS)),
    Fault("connections reset", mode(Mode.RESET), mode(Mode.PASS)),
    Fault("connections ended", mode(Mode.END), mode(Mode.PASS)),
    Fault("connections ended, new ones refused", both(mode(Mode.END), mode(Mode.REFUSE)), mode(Mode.PASS)),
    Fault("connections ended, new ones hang", both(mode(Mode.END), mode(Mode.HANG_NEW)), mode(Mode.PASS)),
    Fault("answers cut in two", both(cut(200), mode(Mode.END), mode(Mode.PASS)), cut(0)),
    Fault("40 ms away", delay(0.02), delay(0.0), red=False),
    Fault("pool saturated by slow queries", nothing, nothing, red=False, load="/sleep?1.5", loaders=3 * POOL),
    Fault(
        "failed over to a standby, then promoted",
        fail_over,
        promote,
        settings=(("PKG_DATABASE_ROLE", "primary"),),
    ),
]

SIX = ("stopped", "SIGSTOP", "backends terminated", "black hole", "password rotated, then the file",
       "pool saturated by slow queries")  # fmt: skip


def selected() -> list[Any]:
    """Each way and fault, as parameters of the test."""
    return [
        pytest.param(
            way,
            fault,
            id="-".join((WAYS[way].removesuffix("application").rstrip("_") or "connection", *fault.name.split())),
            marks=[] if way == FIRST_WAY or fault.name in SIX else [pytest.mark.long],
        )
        for way in WAYS
        for fault in FAULTS
    ]


@dataclass
class Row:
    way: str
    fault: str
    red: float | None = None  # seconds after the fault began; None: stayed green
    green: float | None = None  # seconds after it ended
    requests: str = ""  # from the fault's begin to green
    slowest: float = 0.0  # request, seconds
    latency: float = 0.0  # of probes, the 99th percentile, seconds
    late: float = 0.0  # the same of the prober's own wake-ups: how busy the machine was
    alive: bool = False  # /healthz was 200 throughout
    threads: tuple[int, int] = (0, 0)  # before, after
    descriptors: tuple[int, int] = (0, 0)
    failed_after: int = 0  # requests of the second after green plus one


@contextlib.contextmanager
def rig_of(fault: Fault, servers: threading.local, folder: Path) -> Iterator[Rig]:
    """A thread keeps its server from one fault to the next; a failover uses up one of its own."""
    with contextlib.ExitStack() as stack:
        if fault.begin is fail_over:
            server = stack.enter_context(Postgres())
            standby = stack.enter_context(server.standby())
        else:
            server, standby = servers.get(), None
        proxy = stack.enter_context(Proxy(server.port))
        folder.mkdir()
        rig = Rig(server, proxy, folder, standby=standby)
        stack.callback(rig.rest.close)
        yield rig


class Servers(threading.local):
    """One server for each thread that asks."""

    all: list[Postgres] = []  # noqa: RUF012 - shared on purpose: whoever made them closes them

    def get(self) -> Postgres:
        if not hasattr(self, "server"):
            self.server = Postgres(settings={"max_connections": 20, "superuser_reserved_connections": 3}).start()
            self.all.append(self.server)
        self.server.set_password(PASSWORD)
        return self.server


def run(way: str, fault: Fault, rig: Rig) -> Row:
    row = Row(way, fault.name)
    settings = {**SETTINGS, **dict(fault.settings)}
    url = rig.server.url_of(PASSWORD, rig.proxy.port)
    if fault.by_file:
        rig.url_file.write_text(url)
        rig.url_file.chmod(0o600)
        settings["DATABASE_URL_FILE"] = str(rig.url_file)
        url = ""
    with Host(url, app=f"tests.support.faults.{WAYS[way]}:app", **settings) as host:
        host.wait_ready(200, 10)
        with host.load(fault.load, threads=fault.loaders) as before:
            wait_for(lambda: before.statuses[200] >= 2 * fault.loaders, 20, "the load")
        threads, descriptors = at_rest(host)
        row.threads, row.descriptors = (threads, 0), (descriptors, 0)
        with host.load(fault.load, threads=fault.loaders) as load:
            time.sleep(random.uniform(1.0, 3.0))  # any phase of the check
            load.statuses.clear()
            load.slowest = 0.0
            hurt(fault, rig, host, row)
        row.requests, row.slowest = str(load), load.slowest
        with host.load(fault.load, threads=fault.loaders) as after:
            wait_for(lambda: sum(after.statuses.values()) >= 2 * fault.loaders, 20, "the load")
        row.failed_after = sum(count for status, count in after.statuses.items() if status != 200)
        with contextlib.suppress(AssertionError):
            wait_for(
                lambda: host.threads <= row.threads[0] and host.descriptors <= row.descriptors[0],
                8.0,
                "as many threads and descriptors as before",
            )
        row.threads = (row.threads[0], host.threads)
        row.descriptors = (row.descriptors[0], host.descriptors)
        probes = list(host.probes)
    row.latency = percentile([p.latency for p in probes if p.path != "-"])
    row.late = percentile([p.latency for p in probes if p.path == "-"])
    row.alive = all(p.status == 200 for p in probes if p.path == "/healthz")
    return row


def at_rest(host: Host) -> tuple[int, int]:
    """Threads and descriptors, once neither has changed for half a second.

    A load leaves queries behind that are cancelled, and whose connections may be replaced.
    """
    last, since = (host.threads, host.descriptors), time.monotonic()

    def is_settled() -> bool:
        nonlocal last, since
        now = (host.threads, host.descriptors)
        if now != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since > 0.5

    wait_for(is_settled, 8.0, "threads and descriptors that stay as they are")
    return last


def percentile(values: list[float]) -> float:
    return sorted(values)[len(values) * 99 // 100]


def hurt(fault: Fault, rig: Rig, host: Host, row: Row) -> None:
    begun = time.monotonic()
    fault.begin(rig)
    if fault.red:
        row.red = host.wait_ready(503, 15) - begun
        time.sleep(1.0)
    else:
        time.sleep(RED + 1.0)
        red = [p for p in host.probes if p.path == "/readyz" and p.at > begun and p.status != 200]
        row.red = red[0].at - begun if red else None
    ended = time.monotonic()
    fault.end(rig)
    row.green = host.wait_ready(200, 15) - ended


Rows = dict[tuple[str, str], "Future[Row]"]


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rows]:
    """The rows of the ways and faults that this run selects, as they become known."""
    wanted: list[tuple[str, Fault]] = [
        (item.callspec.params["way"], item.callspec.params["fault"])
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test_fault
    ]
    servers, folder = Servers(), tmp_path_factory.mktemp("faults")

    def work(number: int, way: str, fault: Fault) -> Row:
        with rig_of(fault, servers, folder / str(number)) as rig:
            return run(way, fault, rig)

    with ThreadPoolExecutor(AT_A_TIME) as executor:
        try:
            futures = {(way, fault.name): executor.submit(work, n, way, fault) for n, (way, fault) in enumerate(wanted)}
            yield futures
        finally:
            executor.shutdown(cancel_futures=True)
            for server in servers.all:
                server.close()
            servers.all.clear()
    write(
        [
            future.result()
            for future in futures.values()
            if future.done() and not future.cancelled() and not future.exception()
        ]
    )


@pytest.mark.parametrize(("way", "fault"), selected())
def test_fault(way: str, fault: Fault, rows: Rows) -> None:
    row = rows[way, fault.name].result(170)
    print(row)
    assert row.alive, "liveness has nothing to do with the database"
    assert row.latency < LATENCY + row.late
    if fault.red is False:
        assert row.red is None, "readiness must not turn red"
    elif fault.red:
        assert row.red is not None
        assert row.red <= RED
    assert row.green is not None
    assert row.green <= GREEN
    assert row.failed_after == 0, "requests after green"
    assert row.threads[1] <= row.threads[0]
    assert row.descriptors[1] <= row.descriptors[0]


def red(row: Row) -> str:
    return "stays green" if row.red is None else f"{row.red:.1f} s"


def write(rows: list[Row]) -> None:
    target = os.environ.get("FAULT_MATRIX")
    if not target:
        return
    if target.endswith(".json"):
        Path(target).write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
        return
    by_connection = [
        "| fault | red after | green after its end | what requests saw meanwhile | slowest "
        "| probes p99 | threads | descriptors |",
        "|---|---|---|---|---|---|---|---|",
    ]
    by_connection += [
        f"| {row.fault} | {red(row)} | {row.green:.1f} s "
        f"| {row.requests} | {row.slowest:.1f} s | {row.latency * 1000:.1f} ms "
        f"| {row.threads[0]} / {row.threads[1]} | {row.descriptors[0]} / {row.descriptors[1]} |"
        for row in rows
        if row.way == FIRST_WAY
    ]
    found = {(row.way, row.fault): row for row in rows}
    by_way = ["| fault, red after, green after its end | " + " | ".join(WAYS) + " |", "|---|" + "---|" * len(WAYS)]
    by_way += [
        f"| {fault} | "
        + " | ".join(f"{red(row)}, {row.green:.1f} s" if (row := found.get((way, fault))) else "" for way in WAYS)
        + " |"
        for fault in dict.fromkeys(row.fault for row in rows)
    ]
    path = Path(target)
    text = path.read_text() if path.exists() else "<!-- matrix -->\n<!-- /matrix -->\n\n<!-- ways -->\n<!-- /ways -->\n"
    for name, lines in (("matrix", by_connection), ("ways", by_way)):
        before, _, rest = text.partition(f"<!-- {name} -->\n")
        table = "\n".join(lines)
        text = f"{before}<!-- {name} -->\n{table}\n<!-- /{name} -->{rest.partition(f'<!-- /{name} -->')[2]}"
    path.write_text(text)
