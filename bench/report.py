"""The tables of a run, as Markdown: for the terminal, and for docs/benchmarks.md between two markers.

It reads results.json only, so that the page says what was measured and nothing else.
"""

from __future__ import annotations

import itertools
import statistics
from pathlib import Path
from typing import Any

from bench import plots
from bench.peers import BY_NAME, PEERS

BEGIN = "<!-- bench: begin, written by `python -m bench --report --docs docs/benchmarks.md` -->"
END = "<!-- bench: end -->"
LEVEL = 0.01  # share by which two runs of the same server differ
NO, IS_LEVEL, YES = "**no**", "level", "yes"
ORDER = {NO: 0, IS_LEVEL: 1, YES: 2}

Results = dict[str, Any]
Row = dict[str, Any]

LOOP_CASES = {
    "event loop blocked": "blocked for 3 s",
    "callbacks": "callbacks of 0.1 to 10 ms",
    "lock held by the event loop": "lock held for 3 s",
}


def terminal(results: Results) -> str:
    """All tables."""
    parts = [
        goals(results), latency(results), event_loops(results), probes(results), hosting(results), asgi(results),
        orm(results), workers(results), steady(results), api(results), footprint(results), parsing(results),
        overhead(results), notes(results), settings(results),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def page(results: Results) -> str:
    """For a reader: first the goals and the pictures beside results.json, then all figures."""
    words = {
        "latency": "how long a health probe waits under load",
        "throughput": "requests per second of CPU",
        "restarts": "requests lost in a rolling update",
        "tails": "how long requests take at a constant rate",
        "memory": "memory by the number of worker processes",
    }
    pictures = [f"![{words[name]}](../bench/{name}.svg)" for name in plots.draw(results)]
    tables = [latency, event_loops, steady, hosting, asgi, orm, workers, api, probes, footprint, parsing, overhead]
    how = notes(results)
    parts = [
        goals(results), *pictures, *(table(results) for table in tables), how and f"## How it was measured\n\n{how}",
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part)


def update(path: Path, results: Results) -> None:
    """Replaces the text between the markers.  Raises ValueError if the file has none."""
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise ValueError(f"{path} has no lines {BEGIN!r} and {END!r}")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n\n{page(results)}\n\n{END}{after}")


# ------------------------------------------------------------------------- goals


def goals(results: Results) -> str:
    """The goals of this server, the measured values, the server compared with, and whether the goal is met.

    Those that are not met come first.
    """
    body: list[list[str]] = []

    def judge(what: str, wanted: str, measured: str, holds: bool, level: bool = False) -> None:
        body.append([what, wanted, measured, YES if holds else IS_LEVEL if level else NO])

    probe = {(r["server"], r["case"]): r["cpu_us"] for r in results.get("probes", []) if r["cpu_us"]}
    for case in ("keep-alive", "one connection each"):
        ours, nginx = probe.get(("pkg", case)), probe.get(("nginx", case))
        if ours and nginx:
            judge(f"CPU per probe, {case}", f"nginx, `return 200`: {nginx:.1f} µs", f"{ours:.1f} µs", ours <= nginx)

    waits = {(r["server"], r["case"], r["path"]): r["ms"]["p99"] for r in results.get("latency", [])}
    for case, words in (("saturated", "application saturated"), ("lock held", "interpreter lock held for 3 s")):
        if (ours := waits.get(("pkg", case, "/healthz"))) is not None:
            others = [v for (name, c, path), v in waits.items() if name != "pkg" and (c, path) == (case, "/healthz")]
            beside = f"; the others {_duration(min(others))} to {_duration(max(others))}" if others else ""
            judge(f"Probe p99, {words}", "under 5 ms", _duration(ours) + beside, ours < 5)
    for case in LOOP_CASES:
        if (ours := waits.get(("pkg-asgi", case, "/healthz"))) is not None:
            theirs = waits.get(("uvicorn", case, "/healthz"))
            beside = f"; {_title('uvicorn')} {_duration(theirs)}" if theirs else ""
            judge(f"Probe p99, {case}", "under 5 ms", _duration(ours) + beside, ours < 5)

    hosted: dict[str, dict[str, float]] = {}
    for row in results.get("hosting", []):
        if row["connections"] == 32 and row["cpu_us"]:
            hosted.setdefault(row["case"], {})[row["server"]] = row["cpu_us"]
    hello = hosted.pop("hello", {})
    for name, factor in (("fastpysgi", 1.0), ("bjoern", 1.0), ("granian", 1.8), ("gunicorn", 15.0)):
        if "pkg" in hello and name in hello:
            ours, theirs = hello["pkg"], hello[name]
            wanted = f"{_title(name)}: {theirs:.1f} µs" + (f", {factor:g} times as fast" if factor > 1 else "")
            judge(
                "Hello world, CPU per request",
                wanted,
                f"{ours:.1f} µs, {theirs / ours:.1f} times",
                ours * factor <= theirs,
            )

    queries: dict[str, dict[str, float]] = {}
    for row in results.get("orm", []):
        queries.setdefault(row["case"], {})[row["server"]] = row["cpu_us"]
    for case, costs in (*hosted.items(), *queries.items()):
        others = {name: cost for name, cost in costs.items() if name != "pkg"}
        if "pkg" in costs and others:
            best = min(others, key=others.__getitem__)
            ours, theirs = costs["pkg"], others[best]
            judge(f"{case[0].upper()}{case[1:]}, CPU per request", f"the best other, {_title(best)}: {theirs:.1f} µs",
                  f"{ours:.1f} µs, {theirs / ours:.2f} times", ours <= theirs)  # fmt: skip

    several: dict[str, dict[str, float]] = {}
    for row in (row for row in results.get("workers", []) if "cpu_us" in row):
        several.setdefault(row["case"], {})[row["server"]] = row["cpu_us"]
    alone = several.pop("hello, one process", {}).get("pkg")
    for case, costs in several.items():
        others = {name: cost for name, cost in costs.items() if name != "pkg"}
        if "pkg" in costs and others:
            best = min(others, key=others.__getitem__)
            ours, theirs = costs["pkg"], others[best]
            judge(f"{case[0].upper()}{case[1:]}, CPU per request", f"the best other, {_title(best)}: {theirs:.1f} µs",
                  f"{ours:.1f} µs, {theirs / ours:.2f} times", ours <= theirs)  # fmt: skip
        if "pkg" in costs and alone and case.startswith("hello"):
            judge(f"{case[0].upper()}{case[1:]}, CPU beside one process", f"1.3 times {alone:.1f} µs at most",
                  f"{costs['pkg'] / alone:.2f} times", costs["pkg"] <= 1.3 * alone)  # fmt: skip

    hosted = {}
    for row in results.get("asgi", []):
        hosted.setdefault(row["case"], {})[row["server"]] = row["cpu_us"]
    for case, costs in hosted.items():
        ours, others = costs.get("pkg"), [(1.0, name) for name in costs if name != "pkg"]
        if case == "hello":
            others = [(2.5, "uvicorn"), (1.7, "granian"), (1.0, "fastpysgi")]
        elif others:
            others = [min(others, key=lambda other: costs[other[1]])]
        for factor, name in others:
            if ours and name in costs:
                wanted = f"{_title(name)}: {costs[name]:.1f} µs" + (f", {factor:g} times as fast" if factor > 1 else "")
                judge(f"ASGI, {case}, CPU per {_unit(case)}", wanted,
                      f"{ours:.1f} µs, {costs[name] / ours:.2f} times", ours * factor <= costs[name])  # fmt: skip

    rates = {row["server"]: row["rate"] for row in results.get("api-4", [])}
    if "pkg" in rates and len(rates) > 1:
        best = max(rates.keys() - {"pkg"}, key=rates.__getitem__)
        judge("HttpArena's API-4, responses a second", f"the best other, {_title(best)}: {rates[best]:,.0f}",
              f"{rates['pkg']:,.0f}, {rates['pkg'] / rates[best]:.2f} times", rates["pkg"] >= rates[best])  # fmt: skip

    tails: dict[tuple[str, int, str], dict[str, float]] = {}
    for row in results.get("steady", []):
        tails.setdefault((row["case"], row["rate"], row["path"]), {})[row["server"]] = row["ms"]["p99"]
    for (case, rate, path), waits in tails.items():
        others = {name: wait for name, wait in waits.items() if name != "pkg"}
        if "pkg" in waits and others:
            best = min(others, key=others.__getitem__)
            judge(f"p99 of `{path}`, {case}, {rate:,}/s", f"the best other, {_title(best)}: {_duration(others[best])}",
                  _duration(waits["pkg"]), waits["pkg"] <= others[best],
                  level=waits["pkg"] <= others[best] * (1 + LEVEL))  # fmt: skip
    failures: dict[str, dict[str, int]] = {}
    for row in results.get("steady", []):
        failed = failures.setdefault(row["case"], {})
        failed[row["server"]] = max(failed.get(row["server"], 0), row["failed"])
    for case, failed in failures.items():
        others_failed = [f"{_title(name)} {n:,}" for name, n in failed.items() if name != "pkg" and n]
        if "pkg" in failed and (failed["pkg"] or others_failed):
            beside = "; ".join([f"{failed['pkg']:,}", *others_failed])
            judge(f"Requests failed, {case}", "none", beside, failed["pkg"] == 0)

    parse = {(r["level"], r["parser"], r["case"]): r["ns"] for r in results.get("parsing", [])}
    for level, mine, theirs, factor, how in (
        ("C", "pkg", "picohttpparser", 1.0, "C"),
        ("Python", "pkg, lazy", "gunicorn_h1c, lazy", 1.0, "Python, headers when asked for"),
        ("Python", "pkg, lazy", "httptools", 5.0, "Python, headers when asked for"),
        ("Python", "pkg", "httptools", 1.0, "Python, every header made"),
    ):
        key = (level, mine, "browser")
        if key in parse and (other := parse.get((level, theirs, "browser"))):
            wanted = f"{theirs}: {other:,.0f} ns" + (f", {factor:g} times as fast" if factor > 1 else "")
            judge(f"Parse a browser's head, {how}", wanted,
                  f"{parse[key]:,.0f} ns, {other / parse[key]:.1f} times", parse[key] * factor <= other)  # fmt: skip

    for row in results.get("memory", []):
        if row["server"] == "pkg":
            idle, added = row["idle_pss"] / 1e6, row["added_rss"] / 1e6
            judge("Memory, idle (PSS)", "under 20 MB", f"{idle:.1f} MB", idle < 20)
            judge(f"Memory, {row['connections']:,} idle connections", "under 50 MB more", f"{added:.0f} MB", added < 50)
    started = {r["server"]: r["ms"] for r in results.get("startup", [])}
    if "pkg" in started:
        alone = (
            f"; the interpreter alone {started['interpreter alone']:.0f} ms" if "interpreter alone" in started else ""
        )
        judge("Start to the first 200", "under 150 ms", f"{started['pkg']:.0f} ms{alone}", started["pkg"] < 150)
    for row in results.get("restarts", []):
        if row["server"] == "pkg":
            judge(f"Requests lost, {row['restarts']} rolling restarts behind HAProxy and nginx", "none",
                  f"{row['lost']:,} of {row['lost'] + row['answered']:,}, {_dates(results, 'restarts')}",
                  row["lost"] == 0)  # fmt: skip
    body.sort(key=lambda row: ORDER[row[3]])
    return _table("Goals", ["what", "goal", "measured", "met"], body, left=4)


# ---------------------------------------------------------------------- sections


def latency(results: Results) -> str:
    rows = results.get("latency", [])
    cases = [("saturated", "/healthz", "saturated"), ("lock held", "/healthz", "lock held 3 s"),
             ("slow clients", "/healthz", "10,000 slow clients"), ("database frozen", "/healthz", "database frozen"),
             ("database frozen", "/readyz", "the same, readiness")]  # fmt: skip
    found = {(r["server"], r["case"], r["path"]): r for r in rows}
    cases = [c for c in cases if any(key[1:] == c[:2] for key in found)]
    body = [
        [_title(name), *(_waits(found.get((name, case, path))) for case, path, _ in cases)]
        for name in _servers(rows)
    ]  # fmt: skip
    return _table("Probe latency, p50 / p99", ["server", *(title for _, _, title in cases)], body)


def event_loops(results: Results) -> str:
    rows = [r for r in results.get("latency", []) if r["case"] in LOOP_CASES]
    found = {(r["server"], r["path"], r["case"]): r for r in rows}
    asked = [("pkg-asgi", "/healthz", "pkg (ASGI)"), ("pkg-asgi", "/readyz", "the same, readiness"),
             ("uvicorn", "/healthz", _title("uvicorn"))]  # fmt: skip
    body = [
        [title, *(_waits(found.get((name, path, case))) for case in LOOP_CASES)]
        for name, path, title in asked if any((name, path) == key[:2] for key in found)
    ]  # fmt: skip
    return (
        _table("Probe latency beside an event loop, p50 / p99", ["server", *LOOP_CASES.values()], body) if rows else ""
    )


def _waits(row: Row | None) -> str:
    if row is None:
        return ""
    text = f"{_duration(row['ms']['p50'])} / {_duration(row['ms']['p99'])}"
    none = sum(row["statuses"].get(kind, 0) for kind in ("cut", "late"))
    return text + (f", {none / row['probes']:.0%} unanswered" if none else "")


def steady(results: Results) -> str:
    """A row for each case, rate and kind of request, a column for each server: p50 / p99 / p99.9.

    Cases of the same servers have a table together.
    """
    found: dict[tuple[str, int, str], dict[str, Row]] = {}
    for row in results.get("steady", []):
        found.setdefault((row["case"], row["rate"], row["path"]), {})[row["server"]] = row
    parts = ["## Latency at a constant rate, p50 / p99 / p99.9 in ms"] if found else []
    for servers, group in itertools.groupby(found.items(), lambda item: _servers(list(item[1].values()))):
        body = [
            [f"{case}, {rate:,}/s", path, *(_tail(rows[name]) for name in servers)]
            for (case, rate, path), rows in group
        ]
        parts.append(_grid(["load", "request", *map(_title, servers)], body, left=2))
    return "\n\n".join(parts)


def api(results: Results) -> str:
    rows = sorted(results.get("api-4", []), key=lambda row: -row["rate"])
    body = [
        [_title(r["server"]), f"{r['rate']:,.0f}", f"{r['pss'] / 1e6:.0f} MB", f"{r['failed']:,}"] for r in rows
    ]  # fmt: skip
    title = f"HttpArena's API-4 with {rows[0]['cpus']} CPUs for servers, clients and PostgreSQL" if rows else ""
    return _table(title, ["server", "/s", "memory (PSS)", "failed"], body)


def _tail(row: Row) -> str:
    text = " / ".join(f"{ms:.0f}" if ms >= 9.95 else f"{ms:.1f}" for ms in row["ms"].values())
    return text + (f", {row['failed']:,} failed" if row["failed"] else "")


def probes(results: Results) -> str:
    rows = results.get("probes", [])
    found = {(r["server"], r["case"]): r for r in rows}
    cases = [case for case in ("keep-alive", "one connection each") if any(key[1] == case for key in found)]
    body = [
        [_title(name), *(cell for case in cases for cell in _rate_and_cpu(found.get((name, case))))]
        for name in sorted(_servers(rows), key=lambda n: found.get((n, "keep-alive"), {"cpu_us": 1e9})["cpu_us"])
    ]
    return _table("Health probes, 32 connections",
                  ["server", *(cell for case in cases for cell in (f"{case}, /s", "CPU each"))], body)  # fmt: skip


def _rate_and_cpu(row: Row | None) -> list[str]:
    if row is None or not row["cpu_us"]:
        return ["", ""]
    return [f"{row['rate']:,.0f}", f"{row['cpu_us']:.1f} µs"]


def hosting(results: Results) -> str:
    rows = results.get("hosting", [])
    found = {(r["server"], r["case"], r["connections"]): r for r in rows}
    columns = [
        (case, n) for case in ("hello", "64 KiB", "1 MiB upload", "query") for n in (1, 32, 256)
        if any(key[1:] == (case, n) for key in found) and (case == "hello" or n == 32)
    ]  # fmt: skip

    def cell(name: str, case: str, n: int) -> str:
        row, ours = found.get((name, case, n)), found.get(("pkg", case, n))
        if row is None or not row["cpu_us"]:
            return ""
        ratio = f" ({row['cpu_us'] / ours['cpu_us']:.1f}x)" if ours and ours["cpu_us"] and name != "pkg" else ""
        return f"{row['cpu_us']:,.1f} µs{ratio}"

    def rank(name: str) -> float:
        return float(found.get((name, "hello", 32), {"cpu_us": 1e9})["cpu_us"])

    body = []
    for name in sorted(_servers(rows), key=rank):
        hello = found.get((name, "hello", 32))
        body.append([_title(name), f"{hello['rate']:,.0f}" if hello else "", *(cell(name, *c) for c in columns)])
    titles = [f"{case}, {n}" if case == "hello" else case for case, n in columns]
    return _table("Hosting an application, CPU per request", ["server", "hello /s", *titles], body)


def asgi(results: Results) -> str:
    return _costs("Hosting an ASGI application, CPU per request or message", results.get("asgi", []))


def orm(results: Results) -> str:
    return _costs("One row through an ORM, CPU per request", results.get("orm", []))


def workers(results: Results) -> str:
    return _costs("Worker processes, CPU per request and memory (PSS)", results.get("workers", []))


def _costs(title: str, rows: list[Row]) -> str:
    """A column for each case, a row for each server, with its ratio to ours."""
    found = {(r["server"], r["case"]): r for r in rows}
    cases = list(dict.fromkeys(case for _, case in found))

    def cell(name: str, case: str) -> str:
        row, ours = found.get((name, case)), found.get(("pkg", case))
        if row is None:
            return ""
        if "pss" in row:
            return f"{row['pss'] / 1e6:.0f} MB"
        ratio = f" ({row['cpu_us'] / ours['cpu_us']:.1f}x)" if ours and name != "pkg" else ""
        return f"{row['cpu_us']:,.1f} µs{ratio}"

    body = [[_title(name), *(cell(name, case) for case in cases)] for name in _servers(rows)]
    return _table(title, ["server", *cases], body)


def _unit(case: str) -> str:
    return "message" if "WebSocket" in case else "request"


def footprint(results: Results) -> str:
    memory = {r["server"]: r for r in results.get("memory", [])}
    startup = {r["server"]: r for r in results.get("startup", [])}
    restarts = {r["server"]: r for r in results.get("restarts", [])}
    body = []
    for name in _servers([*memory.values(), *startup.values(), *restarts.values()]):
        m, s, r = memory.get(name), startup.get(name), restarts.get(name)
        added = f"{m['added_rss'] / 1e6:.0f} MB" if m else ""
        if m and m["connections"] < 0.99 * max(x["connections"] for x in memory.values()):
            added += f" (took {m['connections']:,})"
        body.append([
            _title(name), f"{m['idle_pss'] / 1e6:.1f} MB" if m else "", added, f"{s['ms']:.0f} ms" if s else "",
            *([f"{r['lost']:,} of {r['lost'] + r['answered']:,}" if r else ""] if restarts else []),
        ])  # fmt: skip
    lost = [f"lost in {max(r['restarts'] for r in restarts.values())} restarts"] if restarts else []
    most = max((m["connections"] for m in memory.values()), default=0)
    alone = startup.get("interpreter alone")
    started = f"first 200 (interpreter alone {alone['ms']:.0f} ms)" if alone else "first 200"
    return _table("Footprint", ["server", "idle", f"{most:,} idle connections add", started, *lost], body)


def parsing(results: Results) -> str:
    rows = results.get("parsing", [])
    cases = list(dict.fromkeys(r["case"] for r in rows))
    body = []
    for level, parser in dict.fromkeys((r["level"], r["parser"]) for r in rows):
        cells = []
        for case in cases:
            mine = [r for r in rows if (r["level"], r["parser"], r["case"]) == (level, parser, case)]
            text = f"{mine[0]['ns']:,.0f} ns" if mine else ""
            if mine and mine[0].get("instructions"):
                text += f", {mine[0]['instructions']:,.0f} instructions"
            cells.append(text)
        body.append([f"{parser} ({level})", *cells])
    return _table("Parsing a request head", ["parser", *cases], body)


def overhead(results: Results) -> str:
    """The cost of metrics and access log per request: rows of bench.overhead.run, the base case first."""
    rows = results.get("overhead", [])
    body = [[r["case"], r["cpu_us"], r["cpu_us"] - rows[0]["cpu_us"]] for r in rows if "case" in r]
    body += [
        [f"access log of {_title(r['server'])}", r["cpu_us"], r["cpu_us"] - r["plain_us"]]
        for r in rows
        if "server" in r
    ]
    text = [[name, f"{each:.2f} µs", f"{more:+.2f} µs"] for name, each, more in body]
    return _table("What observing costs, hello world, CPU per request", ["with", "each", "more"], text)


def settings(results: Results) -> str:
    """The command line of each server."""
    return "\n".join(f"{_title(name)}: {words}" for name, words in results.get("meta", {}).get("settings", {}).items())


def _spread(results: Results) -> str:
    """The spread of the rounds."""
    sections = ("probes", "hosting", "asgi", "orm", "workers")
    rows = [r for section in sections for r in results.get(section, []) if len(r.get("rounds", ())) > 1]
    if not rows:
        return ""
    middle, most = (f(r["cpu_spread"] for r in rows) for f in (statistics.median, max))
    return f" Rounds differ from their median by {middle:.0%} (the median of all rows; at most {most:.0%})."


def _dates(results: Results, section: str = "") -> str:
    """When the section was measured; without one, the first and last day of all."""
    measured = results.get("meta", {}).get("measured", {})
    days = sorted({where["date"] for name, where in measured.items() if section in ("", name)})
    return " to ".join(days[:: len(days) - 1] if len(days) > 1 else days)


def _machines(results: Results) -> str:
    """The processor of most sections, and those of others."""
    meta = results["meta"]
    where = {name: of["cpu"] for name, of in meta["measured"].items()}
    most = statistics.mode(where.values()) if where else meta["machine"]["cpu"]
    others = sorted(set(where.values()) - {most})
    return most + "".join(
        f" ({', '.join(name for name, cpu in where.items() if cpu == other)}: {other})" for other in others
    )


def notes(results: Results) -> str:
    meta = results.get("meta")
    if not meta:
        return ""
    machine = meta["machine"]
    lines = [
        f"Measured {_dates(results)}, each section in one run{' (quick)' if meta['quick'] else ''}, "
        f"on {_machines(results)}, {machine['kernel']}, Python {machine['python']}; "
        "server on one core, load on another, loopback; one process, "
        f"{meta['threads']} threads where a server has threads, access logs off where they are not the subject, "
        "rounds interleaved, most with servers started anew for each, medians. "
        f"Level: waits that differ by less than {LEVEL:.0%}, as those of two runs do. "
        f"CPU is that of the server's whole process tree; an answer other than 2xx counts as none.{_spread(results)} "
        "The query runs in a block of `pkg.connection()`, elsewhere of psycopg_pool's `connection()`; those through "
        "ORMs use ours, and elsewhere SQLAlchemy's QueuePool, Django's pool and psycopg_pool's AsyncConnectionPool. "
        "Command lines and single rounds are in `bench/results.json`."
    ]
    lines += [f"Not measured: {_title(name)}: {reason}" for name, reason in meta["missing"].items()]
    return "\n\n".join(lines)


# ----------------------------------------------------------------------- drawing


def _servers(rows: list[Row]) -> list[str]:
    """Rows in the order of the servers in `peers`."""
    there = {r["server"] for r in rows}
    return [peer.name for peer in PEERS if peer.name in there]


def _title(name: str) -> str:
    return BY_NAME[name].title if name in BY_NAME else name


def _duration(ms: float) -> str:
    if ms >= 995:
        return f"{ms / 1000:.1f} s"
    return f"{ms:.0f} ms" if ms >= 9.95 else f"{ms:.1f} ms" if ms >= 1 else f"{ms:.2f} ms"


def _table(title: str, head: list[str], body: list[list[str]], left: int = 1) -> str:
    """A Markdown table with its title, or "" if it has nothing to show."""
    return f"## {title}\n\n{_grid(head, body, left)}" if body and len(head) > 1 else ""


def _grid(head: list[str], body: list[list[str]], left: int) -> str:
    """A Markdown table that is also readable as text; the first `left` columns are left-aligned."""
    body = [[cell or "-" for cell in row] for row in body]
    widths = [max(len(row[n]) for row in [head, *body]) for n in range(len(head))]

    def line(row: list[str]) -> str:
        cells = [
            cell.ljust(width) if n < left else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join("-" * (w + 2) if n < left else "-" * (w + 1) + ":" for n, w in enumerate(widths)) + "|"
    return "\n".join([line(head), rule, *map(line, body)])
