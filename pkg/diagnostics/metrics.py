"""Metrics in Prometheus' text format or as JSON, collected from the parts on each request.

It keeps no state: each part has its own counters, and only the admin pages import this module.

Names are OpenTelemetry's where it has one (semantic-conventions:
docs/http/http-metrics.md, docs/db/database-metrics.md),
in Prometheus' spelling; `process_*` and `python_*` are those of prometheus/client_python, so that dashboards made for
it work; the rest begins with `pkg_`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pkg._core import COUNTERS, Counters
from pkg.diagnostics import installation, procfs
from pkg.logs.records import printable_lines

if TYPE_CHECKING:
    from pkg._core import Exemplar
    from pkg.diagnostics.cgroup import Limits
    from pkg.diagnostics.workers import ProcessRow
    from pkg.health.report import HealthReport
    from pkg.logs.sink import LogLines

__all__ = ["OPENMETRICS", "TEXT", "Exposition", "collect", "process"]

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"

Kind = Literal["counter", "gauge", "histogram", "summary"]
Labels = Mapping[str, object]
Sample = tuple[str, Labels, float]


class Listening(NamedTuple):
    """How a listener is.

    `accepted`: connections since the start.  `waiting` and `limit`: how many wait in the kernel's accept queue, and how
    many fit in; None if the kernel does not tell.
    """

    name: str
    is_health: bool
    accepted: int
    waiting: int | None
    limit: int | None


class Executor(NamedTuple):
    """Threads beside the event loop of an ASGI application, of run_in_executor() (asyncio) or of anyio.

    `size`: the maximum number of threads.  `queued`: calls that wait for one.
    """

    name: str
    size: float
    busy: int
    queued: int


class Turns(NamedTuple):
    """Of event loops: the count of each bucket and the sum of the seconds of all turns that have ended, and the seconds
    of the present one, by worker process; "" where there is none."""

    counts: Sequence[int]
    total: float
    blocked: Mapping[str, float]


class Exposition:
    """The page: families in the order in which they are added."""

    def __init__(self) -> None:
        self._families: list[tuple[str, Kind, str, list[Sample]]] = []
        self._exemplars: dict[str, str] = {}  # by series

    def family(self, name: str, kind: Kind, help: str, samples: Iterable[Sample] | float | None) -> None:
        """Adds one metric.  `samples`: (suffix, labels, value) each, or a single value; without samples nothing is
        added.

        Counters are named without `_total`, which is added where necessary.
        """
        if isinstance(samples, int | float):
            samples = (("", {}, samples),)
        if found := list(samples or ()):
            total = "_total" if kind == "counter" else ""
            named = [(f"{name}{suffix}{total}", labels, value) for suffix, labels, value in found]
            self._families.append((name, kind, help, named))

    def histogram(
        self,
        name: str,
        help: str,
        bounds: Sequence[float],
        series: Iterable[tuple[Labels, Sequence[int], float]],
        exemplars: Iterable[tuple[Labels, Exemplar]] = (),
    ) -> None:
        """Adds a histogram.  `series`: labels, the count of each single bucket (one more than bounds), and the sum.

        `exemplars`: requests with the labels of their series.  Only OpenMetrics shows them.
        """
        names = [_number(float(bound)) for bound in (*bounds, float("inf"))]
        for labels, it in exemplars:
            bucket = _series(f"{name}_bucket", {**labels, "le": names[it.bucket]})
            self._exemplars[bucket] = f' # {{trace_id="{it.trace_id}"}} {_number(it.seconds)} {it.at:.3f}'
        samples: list[Sample] = []
        for labels, counts, total in series:
            count = 0
            for bound, n in zip(names, counts, strict=True):
                count += n
                samples.append(("_bucket", {**labels, "le": bound}, count))
            samples += [("_count", labels, count), ("_sum", labels, total)]
        self.family(name, "histogram", help, samples)

    def text(self, *, openmetrics: bool = False) -> str:
        lines = []
        for name, kind, help, samples in self._families:
            shown = f"{name}_total" if kind == "counter" and not openmetrics else name
            help = help.replace("\\", r"\\").replace("\n", r"\n")
            lines += [f"# HELP {shown} {help}", f"# TYPE {shown} {kind}"]
            for sample, labels, value in samples:
                series = _series(sample, labels)
                exemplar = self._exemplars.get(series, "") if openmetrics else ""
                lines.append(f"{series} {_number(value)}{exemplar}")
        return "\n".join([*lines, *(["# EOF"] if openmetrics else []), ""])

    def document(self) -> list[dict[str, Any]]:
        """The same as plain data, for programs that do not read Prometheus' format."""
        return [
            {
                "name": name,
                "type": kind,
                "help": help,
                "samples": [
                    {"name": sample, "labels": {key: str(label) for key, label in labels.items()}, "value": value}
                    for sample, labels, value in samples
                ],
            }
            for name, kind, help, samples in self._families
        ]


def _series(name: str, labels: Labels) -> str:
    text = ",".join(f'{key}="{_escape(str(label))}"' for key, label in labels.items())
    return f"{name}{{{text}}}" if text else name


def _escape(label: str) -> str:
    return printable_lines(label).replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    if isinstance(value, int):
        return str(value)
    return {float("inf"): "+Inf", float("-inf"): "-Inf"}.get(value) or repr(value)


# --- the process ---------------------------------------------------------------------------------------------------


def _boot_time() -> float:
    with open("/proc/stat", "rb") as file:
        for line in file:
            if line.startswith(b"btime "):
                return float(line.split()[1])
    return 0.0


def process() -> dict[str, float]:
    """Numbers about this process from /proc, under the names of client_python without `process_`.

    Numbers that cannot be read are missing; without a free descriptor none can be read.
    """
    found: dict[str, float] = {}
    try:
        fields = procfs.stat("self")
        found["cpu_seconds"] = procfs.cpu_seconds(fields)
        found["virtual_memory_bytes"] = float(fields[20])
        found["resident_memory_bytes"] = float(int(fields[21]) * os.sysconf("SC_PAGE_SIZE"))
        found["threads"] = float(fields[17])
        found["start_time_seconds"] = int(fields[19]) / os.sysconf("SC_CLK_TCK") + _boot_time()
    except OSError:
        found["cpu_seconds"] = time.process_time()
    found["max_fds"] = float(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    with contextlib.suppress(OSError):
        found["open_fds"] = float(len(os.listdir("/proc/self/fd")) - 1)  # without the one that reads the directory
    return found


_PROCESS: tuple[tuple[str, Kind, str], ...] = (
    ("virtual_memory_bytes", "gauge", "Virtual memory size in bytes."),
    ("resident_memory_bytes", "gauge", "Resident memory size in bytes."),
    ("start_time_seconds", "gauge", "Start time of the process since unix epoch in seconds."),
    ("cpu_seconds", "counter", "Total user and system CPU time spent in seconds."),
    ("open_fds", "gauge", "Number of open file descriptors."),
    ("max_fds", "gauge", "Maximum number of open file descriptors."),
)


def _add_process(page: Exposition) -> None:
    found = process()
    page.family("pkg_threads", "gauge", "Threads of the process.", found.get("threads"))
    for name, kind, help in _PROCESS:
        page.family(f"process_{name}", kind, help, found.get(name))


# By the names of cgroup.Limits.  Not cAdvisor's `container_*`: a sum over both would count twice.
_CGROUP: tuple[tuple[str, str, Kind, str], ...] = (
    ("cpu_limit", "cpu_limit_cpus", "gauge", "CPUs that the control group may use at once."),
    ("cpu_seconds", "cpu_seconds", "counter", "CPU time of all processes of the control group."),
    ("periods", "cpu_periods", "counter", "Periods of the CPU limit in which the control group ran."),
    ("throttled_periods", "cpu_throttled_periods", "counter", "Of these, those in which the limit stopped it."),
    ("throttled_seconds", "cpu_throttled_seconds", "counter", "Time for which it was stopped, summed over CPUs."),
    ("memory_limit", "memory_limit_bytes", "gauge", "Memory that the control group may use (memory.max)."),
    ("memory_high", "memory_high_bytes", "gauge", "Memory from which on the kernel slows it down (memory.high)."),
    ("memory", "memory_bytes", "gauge", "Memory of the control group, file cache included."),
    ("anon", "memory_anon_bytes", "gauge", "Of this, what no file stands behind."),
    ("file", "memory_file_bytes", "gauge", "Of this, cached files, which the kernel can take back."),
    ("high_events", "memory_high_events", "counter", "Times that it was slowed down because of memory.high."),
    ("oom_kills", "oom_kills", "counter", "Processes of the control group that were killed for want of memory."),
)


def _add_cgroup(page: Exposition, limits: Limits) -> None:
    for field, name, kind, help in _CGROUP:
        page.family(f"pkg_cgroup_{name}", kind, help, getattr(limits, field))


def _add_python(page: Exposition) -> None:
    stats = list(enumerate(gc.get_stats()))
    for name, key, help in (
        ("objects_collected", "collected", "Objects collected during gc"),
        ("objects_uncollectable", "uncollectable", "Uncollectable objects found during GC"),
        ("collections", "collections", "Number of times this generation was collected"),
    ):
        page.family(f"python_gc_{name}", "counter", help, [("", {"generation": g}, s[key]) for g, s in stats])
    version = installation.python_version()
    major, minor, patch = version.split(".", 2)
    labels = {
        "implementation": "CPython",  # which the extension is for
        "major": major,
        "minor": minor,
        "patchlevel": patch,
        "version": version,
    }
    page.family("python_info", "gauge", "Python platform information", [("", labels, 1.0)])


# --- the parts -----------------------------------------------------------------------------------------------------


def _add_front(page: Exposition, stats: Counters, threads: int) -> None:
    for key, name, kind, help in COUNTERS:
        page.family(name, kind, help, getattr(stats, key))
    page.family("pkg_workers", "gauge", "Worker threads; an event loop serves without any.", threads)
    page.family("pkg_workers_busy", "gauge", "Worker threads busy with a request.", workers_busy(stats, threads))


def _add_eventloop(page: Exposition, turns: Turns) -> None:
    from pkg._core import QUEUE_WAIT_BOUNDS

    page.histogram(
        "pkg_event_loop_lag_seconds",
        "Time that the event loop was busy from one wait to the next; what comes meanwhile waits.",
        QUEUE_WAIT_BOUNDS,
        [({}, turns.counts, turns.total)],
    )
    page.family(
        "pkg_event_loop_blocked_seconds",
        "gauge",
        "Time for which the event loop has been busy now; 0 while it waits.",
        [("", {"worker": name} if name else {}, round(now, 6)) for name, now in turns.blocked.items()],
    )


def _add_listeners(page: Exposition, listening: Sequence[Listening]) -> None:
    def samples(values: Iterable[float | None]) -> list[Sample]:
        named = zip(listening, values, strict=True)
        return [("", {"listener": listener.name}, value) for listener, value in named if value is not None]

    page.family(
        "pkg_listener_connections_accepted",
        "counter",
        "Client connections accepted, by listener.",
        samples(listener.accepted for listener in listening),
    )
    page.family(
        "pkg_listener_queue_length",
        "gauge",
        "Connections that wait in the kernel's accept queue, by listener.",
        samples(listener.waiting for listener in listening),
    )
    page.family(
        "pkg_listener_queue_limit",
        "gauge",
        "Connections that fit into the kernel's accept queue, by listener.",
        samples(listener.limit for listener in listening),
    )


def _add_executors(page: Exposition, executors: Sequence[Executor]) -> None:
    for name, help, values in (
        (
            "pkg_executor_threads",
            "Maximum number of threads beside the event loop, by executor.",
            [e.size for e in executors],
        ),
        ("pkg_executor_threads_busy", "Threads busy with a call, by executor.", [e.busy for e in executors]),
        ("pkg_executor_queue_length", "Calls that wait for a thread, by executor.", [e.queued for e in executors]),
    ):
        samples = [("", {"executor": e.name}, value) for e, value in zip(executors, values, strict=True)]
        page.family(name, "gauge", help, samples)


def workers_busy(stats: Counters, threads: int) -> int:
    """Workers on a request, from the counters of the front."""
    return int(max(0, min(threads, stats.in_flight - stats.queued)))


def _add_pools(page: Exposition, pools: Mapping[str, Mapping[str, Any]]) -> None:
    """From the numbers of psycopg_pool's get_stats() (psycopg: docs/advanced/pool.rst, "Pool stats"), by name.

    The one without a name is `main`, as it was before there were others.
    """
    prefix = "db_client_connection"
    every = [({f"{prefix}_pool_name": name or "main"}, stats) for name, stats in pools.items()]

    count: list[Sample] = []
    for labels, stats in every:
        available = stats.get("pool_available", 0)
        count.append(("", {**labels, f"{prefix}_state": "idle"}, available))
        count.append(("", {**labels, f"{prefix}_state": "used"}, stats.get("pool_size", 0) - available))
    # db.client.connection.count is what OpenTelemetry calls it; that ending is for histograms and summaries only.
    page.family(f"{prefix}s", "gauge", "Connections of the pool by state.", count)
    for name, kind, key, help in (
        ("max", "gauge", "pool_max", "Maximum size of the pool."),
        ("idle_min", "gauge", "pool_min", "Minimum size of the pool."),
        ("pending_requests", "gauge", "requests_waiting", "Callers waiting for a connection."),
        ("requests", "counter", "requests_num", "Connections requested from the pool."),
        ("timeouts", "counter", "requests_errors", "Callers that timed out waiting for a connection."),
        ("returned_bad", "counter", "returns_bad", "Connections that were broken when they were returned."),
        ("lost", "counter", "connections_lost", "Connections that the pool found broken."),
        ("create_errors", "counter", "connections_errors", "Attempts to connect that failed."),
    ):
        samples = [("", labels, stats.get(key, 0)) for labels, stats in every]
        page.family(f"{prefix}_{name}", kind, help, samples)  # type: ignore[arg-type]
    for name, total, times, help in (
        ("wait_time", "requests_wait_ms", "requests_queued", "Time spent waiting for a connection."),
        ("use_time", "usage_ms", "requests_num", "Time between taking a connection and returning it."),
        ("create_time", "connections_ms", "connections_num", "Time to establish a connection."),
    ):
        page.family(
            f"{prefix}_{name}_seconds",
            "summary",
            help,
            [
                sample
                for labels, stats in every
                for sample in (("_count", labels, stats.get(times, 0)), ("_sum", labels, stats.get(total, 0) * 1e-3))
            ],
        )


def _add_workers(page: Exposition, processes: Sequence[ProcessRow]) -> None:
    """Worker processes, by their place: a successor goes on under the number of the one that it replaces.  While a
    place has both, it is shown as the one that takes its requests."""
    places: dict[int, ProcessRow] = {}
    for row in sorted(processes, key=lambda row: (row.is_ready, row.state == "serving", row.age)):
        places[row.worker] = row
    rows = [({"worker": place}, row) for place, row in sorted(places.items()) if place]
    there = [(labels, row) for labels, row in rows if row.pid is not None]
    page.family(
        "pkg_worker_ready",
        "gauge",
        "1 if the worker process serves and its checks pass.",
        [("", labels, int(row.is_ready)) for labels, row in rows],
    )
    gauges: Sequence[tuple[str, str, Callable[[ProcessRow], float | None]]] = (
        ("requests_in_flight", "Requests that the worker process has.", lambda row: row.in_flight),
        ("private_memory_bytes", "Memory of the worker process that no other process has.", lambda row: row.private),
        ("open_fds", "Open file descriptors of the worker process.", lambda row: row.open_fds),
        ("max_fds", "The most that it may have open.", lambda row: row.max_fds or None),
        ("age_seconds", "Time since the worker process was started.", lambda row: row.age),
    )
    for name, help, of in gauges:
        known = [("", labels, value) for labels, row in there if (value := of(row)) is not None]
        page.family(f"pkg_worker_{name}", "gauge", help, known)
    deaths = [("", labels, row.deaths) for labels, row in rows]
    page.family("pkg_worker_deaths", "counter", "Worker processes that have died, or were killed.", deaths)


def _add_health(page: Exposition, report: HealthReport) -> None:
    page.family("pkg_live", "gauge", "1 if /healthz answers 200.", int(report.live))
    page.family("pkg_ready", "gauge", "1 if /readyz answers 200.", int(report.ready))
    # Like kubernetes_healthcheck (kubernetes: component-base/metrics/prometheus/slis).
    kinds = (("livez", report.liveness), ("readyz", report.readiness))
    for name, help, passing in (
        ("pkg_healthcheck", "1 if the check passes.", ("ok", "degraded")),
        ("pkg_healthcheck_degraded", "1 if the check passes, but is degraded.", ("degraded",)),
    ):
        samples = [
            ("", {"name": state.name, "type": kind}, int(state.status in passing))
            for kind, states in kinds
            for state in states
        ]
        page.family(name, "gauge", help, samples)


def _request_labels(method: str, status: int) -> Labels:
    """The attributes of http.server.request.duration: `error.type` is the status of a failure, or _OTHER where there is
    no status.  The scheme is that of our own connections; TLS ends in front of them."""
    labels: dict[str, object] = {"http_request_method": method, "url_scheme": "http"}
    if status:
        labels["http_response_status_code"] = status
    if not status or status >= 500:
        labels["error_type"] = str(status or "_OTHER")
    return labels


def collect(
    *,
    front: Any,
    threads: int,
    phase: str,
    health: HealthReport | None = None,
    pools: Mapping[str, Mapping[str, Any]] | None = None,
    logs: LogLines | None = None,
    proxy_waits: tuple[Sequence[int], float] | None = None,
    listening: Sequence[Listening] = (),
    executors: Sequence[Executor] = (),
    processes: Sequence[ProcessRow] = (),
    limits: Limits | None = None,
    version: str = "",
    turns: Turns | None = None,
) -> Exposition:
    """The whole page.  `front` has stats(), durations(), exemplars() and queue_waits(); `health` is the checker's
    report; `pools`: the numbers of each pool by name, "" for the one without; `listening`: how each listener is;
    `executors`: how the threads beside an event loop are; `limits`: those of the control group; `turns`: of the event
    loop, if one serves."""
    from pkg import _core

    page = Exposition()
    page.histogram(
        "http_server_request_duration_seconds",
        "Duration of requests from a complete head to the end of the response, without probes. "
        "Requests that were cut off before a response have no status.",
        _core.DURATION_BOUNDS,
        [(_request_labels(method, status), counts, total) for method, status, counts, total in front.durations()],
        [(_request_labels(it.method, it.status), it) for it in front.exemplars()],
    )
    page.histogram(
        "pkg_request_queue_duration_seconds",
        "Time that requests have waited for a worker thread, or for the event loop, including those refused after "
        "queue_timeout.",
        _core.QUEUE_WAIT_BOUNDS,
        [({}, *front.queue_waits())],
    )
    if proxy_waits is not None:
        page.histogram(
            "pkg_request_proxy_duration_seconds",
            "Time from X-Request-Start of a trusted proxy to the arrival of the request.",
            _core.QUEUE_WAIT_BOUNDS,
            [({}, *proxy_waits)],
        )
    if turns is not None:
        _add_eventloop(page, turns)
    _add_front(page, front.stats(), threads)
    _add_listeners(page, listening)
    _add_executors(page, executors)
    _add_workers(page, processes)
    if pools:
        _add_pools(page, pools)
    if health is not None:
        _add_health(page, health)
    phases = ("starting", "ready", "draining", "stopped")
    page.family("pkg_phase", "gauge", "1 for the current phase.", [("", {"phase": p}, int(p == phase)) for p in phases])
    if logs is not None:
        page.family("pkg_log_lines_written", "counter", "Log lines written.", logs.written)
        page.family(
            "pkg_log_lines_dropped",
            "counter",
            "Log lines lost because the output was blocked or failed.",
            logs.dropped,
        )
        page.family("pkg_log_lines_queued", "gauge", "Log lines waiting to be written.", logs.queued)
    page.family("pkg_info", "gauge", "Version of this package.", [("", {"version": version}, 1)])
    _add_process(page)
    if limits is not None:
        _add_cgroup(page, limits)
    _add_python(page)
    return page
