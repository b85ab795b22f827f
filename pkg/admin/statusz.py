"""/statusz for people: renders a snapshot as text and as HTML.

It does not filter: the snapshot must not contain secrets.  The HTML has no scripts, loads nothing, and supports light
and dark mode.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any, NamedTuple

from pkg.diagnostics.installation import show_driver
from pkg.logs.records import printable

if TYPE_CHECKING:
    from pkg._core import Counters
    from pkg.diagnostics.metrics import Executor, Listening
    from pkg.diagnostics.snapshot import Snapshot
    from pkg.diagnostics.workers import ProcessRow
    from pkg.health.report import HealthReport

__all__ = ["columns", "html", "seconds", "size", "text"]


MAX_REQUESTS = 20  # that the page shows


class Cell(NamedTuple):
    """A cell of a table: its text, and a tone (good, bad, warn, dim, code) that is shown by colour only."""

    text: str
    tone: str = ""


Rows = Sequence[tuple[Cell, ...]]


class Section(NamedTuple):
    title: str
    head: tuple[str, ...]  # empty: pairs of name and value
    rows: Rows
    empty: str = ""  # the text if there are no rows; "": the section is omitted
    closed: bool = False  # collapsed in HTML


PAGES = (
    ("/debug/threads", "threads"),
    ("/debug/requests", "requests"),
    ("/debug/pool", "pool"),
    ("/debug/profile?seconds=5", "profile"),
    ("/debug/memory", "memory"),
    ("/metrics", "metrics"),
)


# --- words for numbers ---------------------------------------------------------------------------------------------


def seconds(value: float) -> str:
    """A duration for people."""
    if value < 0.001:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1000:.3g} ms" if value < 0.9995 else "1.0 s"
    if value < 120:
        return f"{value:.1f} s"
    minutes, rest = divmod(int(value), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def size(value: float) -> str:
    """A size in bytes for people."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} GiB"


def number(value: float) -> str:
    return f"{value:,.0f}".replace(",", " ")


# --- the page ------------------------------------------------------------------------------------------------------


def _requests(d: Snapshot) -> Rows:
    requests = [request for request in d.requests if not request.is_websocket]
    rows = [
        (
            Cell(seconds(r.age), "warn" if r.age > 5 else ""),
            Cell(f"{r.method} {r.target}", "code"),
            Cell(r.worker or r.state),
            Cell(" — ".join(filter(None, (r.at, r.source, r.state if r.awaits else ""))), "code"),
        )
        for r in requests[:MAX_REQUESTS]
    ]
    if (more := max(len(requests), d.front.in_flight) - MAX_REQUESTS) > 0:
        rows.append((Cell(""), Cell(f"and {number(more)} more"), Cell(""), Cell("")))
    return rows


def _sections(d: Snapshot) -> Iterable[Section]:
    yield _health(d.health)
    yield Section("Requests in flight", ("for", "request", "worker", "where it is"), _requests(d), "none")
    yield Section("Work", (), _work(d))
    if d.processes is not None:
        head = ("worker", "process", "state", "age", "requests", "in flight", "pool", "private memory", "shared")
        yield Section("Worker processes", (*head, "CPU time", ""), _processes(d.processes), "none")
    for name, pool in d.pools.items():
        yield Section(f"Database pool {name}" if name else "Database pool", (), _pool(pool))
    yield Section(
        "Probers, and the responses they got",
        ("client", "user agent", "page", "count", "last response", "ago"),
        [
            (
                Cell(p.client),
                Cell(p.user_agent or "-"),
                Cell(p.page, "code"),
                Cell(number(p.count)),
                Cell(str(p.status), "good" if p.status == 200 else "bad"),
                Cell(seconds(p.age)),
            )
            for p in d.probers
        ],
        "none so far",
    )
    yield Section(
        "Listeners",
        ("address", "serves", "connections accepted", "waiting in the kernel's queue"),
        _listening(d.listening),
    )
    if d.executors:
        yield Section("Threads beside the event loop", ("of", "busy", "calls that wait"), _executors(d.executors))
    yield Section("Front", (), _front(d.front))
    yield Section("Process", (), _process(d))
    yield Section(
        "Settings",
        ("setting", "value", "from"),
        [
            (
                Cell(row["name"]),
                Cell(row["value"] or "-", "code"),
                Cell(row["origin"], "dim" if row["origin"] == "default" else ""),
            )
            for row in sorted(d.settings, key=lambda row: row["origin"] == "default")
        ],
        closed=True,
    )


def _processes(processes: Sequence[ProcessRow]) -> Rows:
    return [
        (
            Cell(str(row.worker or "")),
            Cell(str(row.pid or "")),
            Cell("ready", "good")
            if row.is_ready and row.worker
            else Cell(row.state if row.state != "serving" else "not ready", "warn"),
            Cell(seconds(row.age)),
            Cell(number(row.served)),
            Cell(number(row.in_flight)),
            Cell(row.pool),
            Cell(size(row.private)),
            Cell(size(row.shared)),
            Cell(seconds(row.cpu)),
            Cell(row.reason),
        )
        for row in processes
    ]


def _health(health: HealthReport) -> Section:
    tones = {"ok": "good", "degraded": "warn", "failed": "bad", "pending": "warn"}
    rows = []
    for page, states in (
        ("healthz", health.liveness),
        ("readyz", health.readiness),
    ):
        for s in states:
            detail = []
            if s.runs is not None:
                detail = [
                    f"for {seconds(s.runs.lasted)}",
                    f"took {seconds(s.runs.duration)}",
                    f"every {seconds(s.runs.interval)}",
                ]
            rows.append(
                (
                    Cell(f"/{page}/{s.name}", "code"),
                    Cell(s.status if s.required else f"{s.status} (optional)", tones.get(s.status, "")),
                    Cell(s.reason),
                    Cell(", ".join(detail), "dim"),
                )
            )
    return Section("Health", ("check", "status", "reason", ""), rows, "no checks")


def _work(d: Snapshot) -> Rows:
    workers, front, latency = d.workers, d.front, d.latency
    queued = Cell(number(front.queued), "warn" if front.queued else "")
    rows = [(Cell("waiting for a worker"), queued)]
    if workers.threads:  # none where event loops serve
        full = workers.busy >= workers.threads
        rows.insert(0, (Cell("workers busy"), Cell(f"{workers.busy} of {workers.threads}", "warn" if full else "")))
    if d.eventloop is not None:
        blocked = d.eventloop.blocked
        rows = [
            (
                Cell(f"event loop, of {d.eventloop.kind}"),
                Cell(f"blocked for {seconds(blocked)}", "bad") if blocked else Cell("not blocked"),
            ),
            (Cell("tasks"), Cell(number(d.eventloop.tasks))),
            (Cell("waiting for the event loop"), queued),
        ]
        if front.websockets_opened:
            oldest = d.eventloop.oldest_websocket
            age = f", the oldest for {seconds(oldest)}" if oldest is not None else ""
            rows.append((Cell("WebSockets open"), Cell(f"{number(front.websockets)}{age}")))
            rows.append((Cell("WebSockets opened"), Cell(number(front.websockets_opened))))
    rows += [
        (Cell("requests served"), Cell(number(front.served))),
        (Cell("aborted, shed, timed out"), Cell(" / ".join(map(number, (front.aborted, front.shed, front.timeouts))))),
    ]
    if latency.count:
        statuses = ", ".join(f"{name}: {number(n)}" for name, n in latency.by_status.items())
        rows += [
            (Cell("responses"), Cell(statuses)),
            (Cell("mean duration"), Cell(seconds(latency.mean))),
        ]
        for label, bound in (
            ("half", latency.p50_at_most),
            ("90 %", latency.p90_at_most),
            ("99 %", latency.p99_at_most),
        ):
            rows.append((Cell(f"{label} took at most"), Cell(seconds(bound) if bound else "more than 10 s")))
    return rows


def _pool(pool: Mapping[str, Any]) -> Rows:
    """The most important numbers; /debug/pool has all of them."""

    def n(key: str) -> float:
        value: float = pool.get(key, 0)
        return value

    made, waited = n("connections_num"), n("requests_queued")
    each = f", {seconds(n('connections_ms') / made / 1000)} each" if made else ""
    mean = f", {seconds(n('requests_wait_ms') / waited / 1000)} each" if waited else ""
    wrong = [
        (Cell(label), Cell(number(n(key)), "warn" if n(key) else ""))
        for label, key in (
            ("timed out waiting", "requests_errors"),
            ("failed to connect", "connections_errors"),
            ("found broken", "connections_lost"),
        )
    ]
    return [
        (Cell("in use"), Cell(f"{number(n('pool_size') - n('pool_available'))} of at most {number(n('pool_max'))}")),
        (Cell("open"), Cell(number(n("pool_size")))),
        (Cell("callers waiting"), Cell(number(n("requests_waiting")), "bad" if n("requests_waiting") else "")),
        (Cell("requested"), Cell(number(n("requests_num")))),
        (Cell("of these had to wait"), Cell(f"{number(waited)}{mean}")),
        (Cell("connections made"), Cell(f"{number(made)}{each}")),
        *wrong,
    ]


def _listening(listening: Sequence[Listening]) -> Rows:
    rows = []
    for listener in listening:
        serves = "health pages" if listener.is_health else "requests"
        waiting = Cell("not told by the kernel")
        if listener.waiting is not None and listener.limit is not None:
            waiting = Cell(
                f"{number(listener.waiting)} of at most {number(listener.limit)}",
                "bad" if listener.waiting >= listener.limit else "",
            )
        rows.append((Cell(listener.name), Cell(serves), Cell(number(listener.accepted)), waiting))
    return rows


def _executors(executors: Sequence[Executor]) -> Rows:
    return [
        (
            Cell("run_in_executor" if executor.name == "asyncio" else executor.name),
            Cell(f"{executor.busy} of at most {executor.size}", "warn" if executor.queued else ""),
            Cell(number(executor.queued), "warn" if executor.queued else ""),
        )
        for executor in executors
    ]


def _front(front: Counters) -> Rows:
    return [
        (Cell("connections"), Cell(f"{number(front.connections)} now, {number(front.accepted)} accepted")),
        (Cell("health probes answered"), Cell(number(front.probes))),
        (Cell("of these stale (503)"), Cell(number(front.stale), "bad" if front.stale else "")),
        (Cell("malformed requests"), Cell(number(front.rejected))),
        (Cell("reset by clients"), Cell(number(front.resets))),
        (Cell("accept errors"), Cell(number(front.accept_errors), "bad" if front.accept_errors else "")),
        (Cell("received, sent"), Cell(f"{size(front.bytes_in)}, {size(front.bytes_out)}")),
        (Cell("held for slow clients"), Cell(size(front.buffered))),
    ]


def _process(d: Snapshot) -> Rows:
    process, service, logs, limits = d.process, d.service, d.logs, d.limits
    rows = [(Cell("host, pid"), Cell(f"{service.host}, {service.pid}"))]
    if "resident_memory_bytes" in process:
        memory = size(process["resident_memory_bytes"])
        if limits.memory is not None and limits.memory_limit is not None:
            memory += f"; container {size(limits.memory)} of {size(limits.memory_limit)}"
        rows.append((Cell("memory"), Cell(memory)))
        rows.append((Cell("threads"), Cell(number(process["threads"]))))
    rows.append((Cell("CPU time"), Cell(seconds(process["cpu_seconds"]))))
    if limits.cpu_limit is not None:
        stops = f", stopped in {number(limits.throttled_periods or 0)} of {number(limits.periods or 0)} periods"
        rows.append((Cell("CPU limit"), Cell(f"{limits.cpu_limit:.3g} CPU{stops}")))
    if limits.oom_group:
        rows.append((Cell("a kill for memory"), Cell("ends all processes (memory.oom.group)")))
    used = number(process["open_fds"]) if "open_fds" in process else "all"
    limit = f"{used} of {number(process['max_fds'])}"
    rows.append((Cell("file descriptors"), Cell("; ".join(filter(None, (limit, d.descriptors))))))
    delay = process["interpreter_delay_seconds"]
    rows.append((Cell("wait for the interpreter lock"), Cell(seconds(delay), "warn" if delay > 0.05 else "")))
    lost = logs.dropped
    lines = f"{number(logs.written)} written, {number(lost)} lost"
    rows.append((Cell("log lines"), Cell(lines, "bad" if lost else "")))
    return rows


def _headline(d: Snapshot) -> tuple[str, str]:
    """The state in one word, and its tone."""
    service, health = d.service, d.health
    if service.phase in ("starting", "draining", "stopped"):
        return service.phase, "warn"
    if not health.live:
        return "not live", "bad"
    if not health.ready:
        return "not ready", "bad"
    return service.phase, "good"


def _facts(d: Snapshot) -> list[tuple[str, str]]:
    service = d.service
    driver = f", {show_driver(service.psycopg)}" if service.psycopg else ""
    return [
        ("up", seconds(service.uptime)),
        ("since", service.started),
        ("version", f"{service.version or 'unknown'}, Python {service.python}{driver}"),
        ("serves", f"{service.app or 'health pages only'} on {service.address}"),
    ]


def columns(table: Sequence[Sequence[str]]) -> list[str]:
    """Rows as lines of text with aligned columns; line ends in a cell are escaped."""
    table = [[printable(cell) for cell in row] for row in table]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]


def text(d: Snapshot) -> str:
    """The page for a terminal."""
    word, _ = _headline(d)
    lines = [
        f"{d.service.app or 'pkg'}: {word}",
        *(f"{name:<9}{printable(value)}" for name, value in _facts(d)),
        "",
    ]
    lines.append("What seems to be wrong" if d.findings else "Nothing seems to be wrong.")
    lines += [f"  {f.level}: {printable(f.text)}  [{f.page}]" for f in d.findings]
    for section in _sections(d):
        if not section.rows and not section.empty:
            continue
        lines += ["", section.title]
        table = [tuple(cell.text for cell in row) for row in section.rows]
        if section.head and table:
            table.insert(0, tuple(name.upper() for name in section.head))
        lines += [f"  {line}" for line in columns(table)]
        if not section.rows:
            lines.append(f"  {section.empty}")
    return "\n".join(lines) + "\n"


_STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--ink:#1c2330;--dim:#667085;--line:#e4e7ec;--good:#067647;
--goodbg:#e3f6ec;--bad:#b42318;--badbg:#fdecea;--warn:#93580a;--warnbg:#fdf3dc;--link:#175cd3}
@media(prefers-color-scheme:dark){:root{--bg:#0f141b;--card:#171e28;--ink:#e4e9f0;--dim:#8d99ab;--line:#2a3442;
--good:#5fd39a;--goodbg:#12301f;--bad:#ff8a80;--badbg:#3a1916;--warn:#f2bd63;--warnbg:#35280f;--link:#84b6ff}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:74rem;margin:0 auto;padding:1.5rem 1.25rem 3rem}
header{display:flex;flex-wrap:wrap;align-items:center;gap:.75rem;margin-bottom:.35rem}
h1{font-size:1.5rem;margin:0;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:.95rem;margin:0 0 .5rem}
.pill{padding:.15rem .7rem;border-radius:1rem;font-weight:600;font-size:.9rem}
.facts,nav{display:flex;flex-wrap:wrap;gap:0 1.2rem;color:var(--dim);margin:0 0 .35rem}
.facts span{overflow-wrap:anywhere}
a{color:var(--link);text-decoration:none}a:hover{text-decoration:underline}
.findings,.card{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:.9rem 1.1rem;
margin-top:1rem}
.findings ul{list-style:none;margin:0;padding:0}
.findings li{padding:.35rem 0;display:flex;gap:.75rem;align-items:baseline}
.findings li+li{border-top:1px solid var(--line)}
.findings .pill{font-size:.78rem;flex:none;width:4.6rem;text-align:center;padding:.05rem 0}
.findings li span{overflow-wrap:anywhere}
.findings a{margin-left:auto;white-space:nowrap;padding-left:1rem}
@media(max-width:40rem){.findings li{flex-wrap:wrap}.findings li span+span{order:1;width:100%}}
.narrow{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(25rem,100%),1fr));gap:1rem;align-items:start;
margin-top:1rem}
.narrow .card{margin:0;min-width:0}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th{text-align:left;color:var(--dim);font-weight:500;font-size:.8rem;padding:.1rem .9rem .25rem 0}
tbody td:first-child,td.dim{white-space:nowrap}
td{padding:.24rem .9rem .24rem 0;border-top:1px solid var(--line);vertical-align:top}
.pairs tr:first-child td{border-top:0}.pairs td:first-child{color:var(--dim);white-space:nowrap}
.pairs td:last-child{text-align:right;padding-right:0;font-variant-numeric:tabular-nums}
.code{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:.84rem;overflow-wrap:break-word}
.good{color:var(--good)}.bad{color:var(--bad)}.warn{color:var(--warn)}.dim{color:var(--dim)}
.pill.good{background:var(--goodbg)}.pill.bad,.pill.error{background:var(--badbg);color:var(--bad)}
.pill.warn,.pill.warning{background:var(--warnbg);color:var(--warn)}.pill.note{background:var(--line);color:var(--dim)}
summary{font-size:.95rem;font-weight:600;cursor:pointer}details table{margin-top:.5rem}
"""


def _table(section: Section) -> str:
    if not section.rows:
        return f'<p class="dim" style="margin:0">{escape(section.empty)}</p>'
    head = "".join(f"<th>{escape(name)}</th>" for name in section.head)
    rows = "".join(
        "<tr>"
        + "".join(
            f'<td class="{cell.tone}">{escape(cell.text)}</td>' if cell.tone else f"<td>{escape(cell.text)}</td>"
            for cell in row
        )
        + "</tr>"
        for row in section.rows
    )
    kind = "" if section.head else ' class="pairs"'
    top = f"<thead><tr>{head}</tr></thead>" if head else ""
    return f'<div class="scroll"><table{kind}>{top}<tbody>{rows}</tbody></table></div>'


def _card(section: Section) -> str:
    if section.closed:
        body = f"<details><summary>{escape(section.title)}</summary>{_table(section)}</details>"
    else:
        body = f"<h2>{escape(section.title)}</h2>{_table(section)}"
    return f'<section class="card">{body}</section>'


def html(d: Snapshot) -> str:
    """The page for a browser."""
    word, tone = _headline(d)
    name = escape(d.service.app or "pkg")
    facts = "".join(f"<span>{escape(key)} {escape(value)}</span>" for key, value in _facts(d))
    links = "".join(f'<a href="{escape(path)}">{escape(label)}</a>' for path, label in PAGES)
    findings = "".join(
        f'<li><span class="pill {f.level}">{f.level}</span><span>{escape(f.text)}</span>'
        f'<a href="{escape(f.page)}">{escape(f.page.partition("?")[0])}</a></li>'
        for f in d.findings
    )
    sections = [section for section in _sections(d) if section.rows or section.empty]
    wide = [section for section in sections if section.head and not section.closed]
    narrow = [section for section in sections if not section.head]
    closed = [section for section in sections if section.closed]
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{name}: {escape(word)}</title>'
        f"<style>{_STYLE}</style></head><body><main>"
        f'<header><h1>{name}</h1><span class="pill {tone}">{escape(word)}</span></header>'
        f'<p class="facts">{facts}</p><nav>{links}</nav>'
        f'<section class="findings"><h2>{"What seems to be wrong" if findings else "Nothing seems to be wrong"}</h2>'
        f"{f'<ul>{findings}</ul>' if findings else ''}</section>"
        f'{"".join(map(_card, wide))}<div class="narrow">{"".join(map(_card, narrow))}</div>'
        f"{''.join(map(_card, closed))}"
        f"</main></body></html>\n"
    )
