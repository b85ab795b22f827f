"""The pages of the admin listener, as text, JSON or HTML, and the few actions that it allows.

It knows nothing about sockets or access control.  A page contains nothing secret: settings are redacted, targets have
no query, and stacks have no values.
"""

from __future__ import annotations

import contextlib
import json
import linecache
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from pkg.admin import statusz
from pkg.admin.reply import Problem, Reply, accepts, json_reply, text
from pkg.diagnostics import metrics, stacks, tasks
from pkg.diagnostics.memory import MAX_SECONDS as MAX_TRACING
from pkg.diagnostics.memory import Memory
from pkg.diagnostics.profile import MAX_HZ, MAX_SECONDS, Busy, Profiler
from pkg.diagnostics.snapshot import Status, show_pools
from pkg.logs.records import printable

__all__ = ["Pages", "Query", "form_of"]

_log = logging.getLogger("pkg.admin")

MAX_LEVEL_SECONDS = 3600.0
MAX_MEMBERS = 20  # of a group of tasks that are named


class Query(NamedTuple):
    """The request for a page."""

    values: Mapping[str, str]
    form: str  # text, json or html
    accept: str
    method: str

    def number(self, name: str, default: float, low: float, high: float) -> float:
        text = self.values.get(name, "")
        try:
            value = float(text.removesuffix("s")) if text else default
        except ValueError:
            value = float("nan")
        if not low <= value <= high:
            raise Problem(400, f"{name} must be a number from {low:g} to {high:g}")
        return value

    def choice(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        value = self.values.get(name) or default
        if value not in choices:
            raise Problem(400, f"{name} must be one of: {', '.join(choices)}")
        return value


class Pages:
    """All pages.  `level()` and `set_level(name)` read and set the log level; `drain(why)` starts the drain."""

    def __init__(
        self,
        status: Status,
        *,
        level: Callable[[], str],
        set_level: Callable[[str], object],
        drain: Callable[[str], object],
    ) -> None:
        self._status = status
        self._drain = drain
        self._levels = _Levels(level, set_level)
        self._profiler = Profiler()
        self._memory = Memory()
        self._table: dict[str, tuple[str, Callable[[Query], Reply], str]] = {
            "/": ("GET", self._index, "list of these pages"),
            "/statusz": ("GET", self._statusz, "what runs, its state, and what seems to be wrong"),
            "/metrics": ("GET", self._metrics, "metrics for Prometheus"),
            "/debug/threads": ("GET", self._threads_page, "every thread's stack, grouped by stack"),
            "/debug/requests": ("GET", self._requests, "requests in flight, and where each one is"),
            "/debug/tasks": ("GET", self._tasks, "asyncio's tasks of an ASGI application, and what each waits for"),
            "/debug/pool": ("GET", self._pool, "the database pool"),
            "/debug/profile": (
                "GET",
                self._profile,
                "sampled stacks: ?seconds=10&hz=100&format=folded|speedscope&all=1",
            ),
            "/debug/memory": (
                "GET, POST",
                self._memory_page,
                "what allocated memory; POST ?seconds=60 turns tracing on",
            ),
            "/debug/log-level": (
                "GET, POST",
                self._log_level,
                "the log level; POST ?level=debug&seconds=300 changes it",
            ),
            "/drain": ("POST", self._drain_page, "drain and exit, like SIGTERM"),
        }

    def prime(self) -> None:
        """Renders the important pages once, so that everything they import is loaded while there are free
        descriptors.  Other processes are not asked."""
        for path in ("/statusz", "/metrics", "/debug/requests", "/debug/tasks"):
            with contextlib.suppress(Exception):  # reported when somebody requests the page
                Pages.answer(self, "GET", path, "")
        # Not /debug/threads, which reads the sources of all threads: 0.4 MB.  A line of one loads what reading imports.
        _ = stacks.Frame(stacks.__file__, 1, "").source
        linecache.clearcache()

    def close(self) -> None:
        """Ends a profile, tracing or changed log level that a page has started."""
        self._profiler.stop()
        self._memory.stop()
        self._levels.revert()

    def answer(self, method: str, target: str, accept: str) -> Reply:
        """The requested page.  Raises Problem if there is none, or not with this method or these parameters."""
        path, _, query = target.partition("?")
        path = path.rstrip("/") or "/"
        if path not in self._table:
            raise Problem(404, f"no such page; the pages are: {' '.join(self._table)}")
        allowed, page, _ = self._table[path]
        if "GET" in allowed:
            allowed = allowed.replace("GET", "GET, HEAD")
        if method not in allowed.split(", "):
            raise Problem(405, f"{path} allows only {allowed}", Allow=allowed)
        try:
            values = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=20))
        except ValueError:
            raise Problem(400, "too many parameters") from None
        return page(Query(values, form_of(values.get("format", ""), accept), accept, method))

    def _index(self, query: Query) -> Reply:
        if query.form == "json":
            return json_reply(
                {
                    path: {"methods": methods.split(", "), "about": about}
                    for path, (methods, _, about) in self._table.items()
                }
            )
        rows = [(methods, path, about) for path, (methods, _, about) in self._table.items()]
        return text("\n".join(statusz.columns(rows)) + "\n")

    def _statusz(self, query: Query) -> Reply:
        snapshot = self._status.collect()
        if query.form == "json":
            return json_reply(snapshot.document())
        if query.form == "html":
            page = statusz.html(snapshot).encode("utf-8", "backslashreplace")
            return Reply(page, "text/html; charset=utf-8")
        return text(statusz.text(snapshot))

    def _metrics(self, query: Query) -> Reply:
        page = self._status.metrics()
        openmetrics = accepts(query.accept, "application/openmetrics-text")
        if query.form == "json" and not openmetrics:
            return json_reply(page.document())
        return Reply(
            page.text(openmetrics=openmetrics).encode("utf-8", "backslashreplace"),
            metrics.OPENMETRICS if openmetrics else metrics.TEXT,
        )

    def _threads_page(self, query: Query) -> Reply:
        taken = stacks.capture()
        requests = {r.thread: r for r in self._status.requests(taken) if r.thread and not r.tasks}
        if query.form == "json":
            return json_reply(
                [
                    {
                        "name": stack.name,
                        "native_id": stack.native_id,
                        "daemon": stack.daemon,
                        "state": stack.state,
                        "cpu": stack.cpu,
                        "request": request.document() if (request := requests.get(stack.native_id)) else None,
                        "frames": [{**frame._asdict(), "source": frame.source} for frame in stack.frames],
                    }
                    for stack in taken
                ]
            )
        lines = [f"{len(taken)} threads"]
        for members, frames in stacks.grouped(taken):
            lines += ["", f"{len(members)} threads at" if len(members) > 1 else "1 thread at"]
            for stack in members:
                request = requests.get(stack.native_id)
                what = f"  {request.method} {request.target} for {request.age:.1f} s" if request else ""
                state = f"{stack.state or 'unknown'}, {stack.cpu:.2f} s of CPU"
                lines.append("  " + printable(f"{stack.name} ({stack.native_id}), {state}{what}"))
            lines.append(stacks.text(frames))
        return text("\n".join(lines) + "\n")

    def _requests(self, query: Query) -> Reply:
        found = self._status.requests()
        hidden = self._status.not_listed(found)
        if query.form == "json":
            facts = {"X-Requests-Not-Listed": str(hidden)}
            return json_reply([request.document() for request in found])._replace(headers=facts)
        if not found:
            return text("no request is in flight\n")
        rows = [("AGE", "REQUEST", "WORKER", "STATE", "WHERE")]
        for r in found:
            where = " — ".join(filter(None, (r.at, r.source)))
            rows.append((f"{r.age:.3f} s", f"{r.method} {r.target}", r.worker or "-", r.state, where))
        lines = statusz.columns(rows)
        if hidden:
            lines += ["", f"{len(found)} of {len(found) + hidden} shown"]
        lines += _groups([task for request in found for task in request.tasks])
        return text("\n".join(lines) + "\n")

    def _tasks(self, query: Query) -> Reply:
        found = self._status.tasks()
        if query.form == "json":
            return json_reply(None if found is None else [task.document() for task in found])
        if found is None:
            return text("there is no event loop: the application is not an ASGI application, or has not started\n")
        return text("\n".join([f"{len(found)} tasks", *_groups(found)]) + "\n")

    def _pool(self, query: Query) -> Reply:
        pools = self._status.pools()
        if not pools.keys() - {""}:  # there are no names to tell
            if query.form == "json":
                return json_reply(pools.get(""))
            if not pools:
                return text("there is no connection pool: DATABASE_URL is not set, or PKG_POOL is off\n")
            return text("\n".join(_pool_lines(pools[""])) + "\n")
        named = show_pools(pools)
        if query.form == "json":
            return json_reply(named)
        return text("\n".join("\n".join([name, *_pool_lines(stats), ""]) for name, stats in named.items()))

    def _profile(self, query: Query) -> Reply:
        seconds = query.number("seconds", 10.0, 0.01, MAX_SECONDS)
        hz = query.number("hz", 100.0, 1.0, MAX_HZ)
        form = query.choice("format", "speedscope" if query.form == "json" else "folded", ("folded", "speedscope"))
        try:
            profile = self._profiler.sample(seconds, hz, all_threads=query.values.get("all", "") in ("1", "true"))
        except Busy:
            raise Problem(409, "another profile is being sampled; try again when it has finished") from None
        facts = {
            "X-Samples": str(profile.samples),
            "X-Rounds": str(profile.rounds),
            "X-Idle-Samples": str(profile.idle),
            "X-Lost-Samples": str(profile.lost),
        }
        if form == "folded":
            return text(profile.folded())._replace(headers=facts)
        name = f"pkg-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
        facts["Content-Disposition"] = f'attachment; filename="{name}.speedscope.json"'
        return Reply(json.dumps(profile.speedscope(name)).encode(), "application/json", headers=facts)

    def _memory_page(self, query: Query) -> Reply:
        if query.method == "POST":
            self._memory.start(query.number("seconds", 60.0, 1.0, MAX_TRACING))
        document = self._memory.report()
        if query.form == "json":
            return json_reply(document)
        resident = document["resident_memory_bytes"]
        lines = [
            f"resident memory  {statusz.size(resident) if resident else 'unknown'}",
            f"objects tracked by the collector  {document['gc']['objects']}",
        ]
        if not document["tracing"]:
            lines.append("allocations are not traced; POST /debug/memory?seconds=60 turns tracing on for 60 s")
        else:
            current, peak = statusz.size(document["traced_bytes"]), statusz.size(document["peak_bytes"])
            lines += [f"traced  {current}, at most {peak}", ""]
            rows = [("SIZE", "BLOCKS", "ALLOCATED AT")]
            rows += [
                (statusz.size(line["size"]), str(line["count"]), f"{line['file']}:{line['line']}")
                for line in document["lines"]
            ]
            lines += statusz.columns(rows)
        return text("\n".join(lines) + "\n")

    def _log_level(self, query: Query) -> Reply:
        if query.method == "POST":
            level = query.choice("level", "", ("debug", "info", "warning", "error", "critical"))
            self._levels.change(level, query.number("seconds", 300.0, 1.0, MAX_LEVEL_SECONDS))
        level, usual, left = self._levels.state()
        if query.form == "json":
            return json_reply({"level": level, "usual": usual, "reverts_in": left})
        return text(f"{level}\n" if left is None else f"{level} for {left:.0f} s, then {usual} again\n")

    def _drain_page(self, query: Query) -> Reply:
        self._drain("POST /drain")
        if query.form == "json":
            return json_reply({"phase": "draining"}, 202)
        return text("draining\n", 202)


class _Levels:
    """Changes the log level for a while."""

    def __init__(self, level: Callable[[], str], set_level: Callable[[str], object]) -> None:
        self._level, self._set = level, set_level
        self._lock = threading.Lock()
        self._usual: str | None = None
        self._until = 0.0
        self._timer: threading.Timer | None = None

    def change(self, level: str, seconds: float) -> None:
        with self._lock:
            timer = threading.Timer(seconds, self.revert)
            timer.daemon = True
            timer.start()  # started first: if there is no thread for it, nothing would restore the level
            if self._timer is not None:
                self._timer.cancel()
            if self._usual is None:
                self._usual = self._level()
            self._timer, self._until = timer, time.monotonic() + seconds
            self._set(level)
        _log.warning("log level changed to %s for %g s, then back to %s", level, seconds, self._usual)

    def revert(self) -> None:
        with self._lock:
            if self._timer is None or self._usual is None:
                return
            self._timer.cancel()
            self._set(self._usual)
            self._timer = self._usual = None
        _log.warning("log level changed back to %s", self._level())

    def state(self) -> tuple[str, str, float | None]:
        """The current level, the usual level, and the seconds until the usual one is restored, or None."""
        with self._lock:
            level = self._level()
            if self._usual is None:
                return level, level, None
            return level, self._usual, round(max(0.0, self._until - time.monotonic()), 1)


def _pool_lines(stats: Mapping[str, Any]) -> list[str]:
    taken = [("taken", text) for text in stats.get("taken", ())]
    return statusz.columns([(name, str(value)) for name, value in stats.items() if name != "taken"] + taken)


def _groups(found: Iterable[tasks.TaskState]) -> list[str]:
    """Tasks as lines of text: those that wait at the same place together."""
    lines = []
    for members in tasks.grouped(found):
        first = members[0]
        what = "1 task" if len(members) == 1 else f"{len(members)} tasks"
        lines += ["", f"{what}, {first.state}"]
        for task in members[:MAX_MEMBERS]:
            of = f", of {task.serves} for {task.serves.age:.1f} s" if task.serves is not None else ""
            lines.append("  " + printable(f"{task.name}{of}"))
        if len(members) > MAX_MEMBERS:
            lines.append(f"  and {len(members) - MAX_MEMBERS} more")
        lines.append(tasks.text(first))
    return lines


def form_of(wanted: str, accept: str) -> str:
    if wanted in ("text", "json", "html"):
        return wanted
    if accepts(accept, "text/html"):
        return "html"
    return "json" if accepts(accept, "application/json") else "text"
