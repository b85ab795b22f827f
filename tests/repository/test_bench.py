"""What the benchmark writes into docs/benchmarks.md is what its results file says."""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from bench import __main__ as main
from bench import environment, openloop, peers, report, trial
from bench.environment import program
from bench.load import Sample

ROOT = Path(__file__).parents[2]

SMALL: dict[str, Any] = {
    "probes": [
        {"server": "pkg", "case": "keep-alive", "connections": 32, "rate": 200_000.0, "cpu_us": 2.5},
        {"server": "nginx", "case": "keep-alive", "connections": 32, "rate": 180_000.0, "cpu_us": 3.0},
    ],
    "latency": [
        {"server": name, "case": "saturated", "path": "/healthz", "probes": 100,
         "statuses": {"200": 100 - late, "late": late},
         "ms": {"p1": p50 / 2, "p25": p50, "p50": p50, "p75": p50, "p90": p99, "p99": p99, "p99.9": p99, "max": p99}}
        for name, p50, p99, late in (("pkg", 0.1, 0.5, 0), ("gunicorn", 1600.0, 5000.0, 7))
    ],
    "hosting": [
        {"server": "pkg", "case": "hello", "connections": 32, "rate": 140_000.0, "cpu_us": 7.0},
        {"server": "granian", "case": "hello", "connections": 32, "rate": 80_000.0, "cpu_us": 12.0},
        {"server": "pkg", "case": "query", "connections": 32, "rate": 12_000.0, "cpu_us": 80.0},
        {"server": "granian", "case": "query", "connections": 32, "rate": 13_000.0, "cpu_us": 76.0},
        {"server": "uwsgi", "case": "query", "connections": 32, "rate": 11_000.0, "cpu_us": 84.0},
    ],
    "asgi": [
        {"server": "pkg", "case": "hello", "cpu_us": 8.0},
        {"server": "uvicorn", "case": "hello", "cpu_us": 20.0},
        {"server": "granian", "case": "hello", "cpu_us": 13.0},
        {"server": "pkg", "case": "WebSocket echo", "cpu_us": 9.0},
        {"server": "uvicorn", "case": "WebSocket echo", "cpu_us": 12.0},
    ],
    "steady": [
        {"case": "short and long", "share": 0.5, "rate": 300, "server": server, "path": path, "capacity": 600,
         "failed": failed, "ms": {"p50": p99 / 10, "p99": p99, "p99.9": 2 * p99}}
        for server, path, p99, failed in (
            ("pkg", "/short", 20.0, 0), ("granian", "/short", 40.0, 0),
            ("pkg", "/long", 90.0, 0), ("granian", "/long", 60.0, 3),
        )
    ],
    "api-4": [
        {"server": "pkg", "cpus": 2, "rate": 9000.0, "pss": 86e6, "failed": 0},
        {"server": "uvicorn", "cpus": 2, "rate": 7500.0, "pss": 83e6, "failed": 12},
    ],
    "workers": [
        {"case": "hello, 1 worker", "server": "pkg", "cpu_us": 7.0},
        {"case": "memory, 1 worker", "server": "pkg", "pss": 31e6},
    ],
    "memory": [{"server": "pkg", "idle_rss": 20e6, "idle_pss": 18e6, "connections": 10_000, "added_rss": 30e6}],
    "startup": [{"server": "interpreter alone", "ms": 20.0}, {"server": "pkg", "ms": 160.0}],
    "restarts": [{"server": "pkg", "restarts": 100, "answered": 900_000, "lost": 0, "seconds_to_end": 1.1,
                  "kinds": {"nginx one-shot": {"sent": 900_000, "lost": 0, "how": {}}}}],
}  # fmt: skip

GOALS = """\
## Goals

| what | goal | measured | met |
|---|---|---|---|
| Hello world, CPU per request | granian: 12.0 µs, 1.8 times as fast | 7.0 µs, 1.7 times | **no** |
| Query, CPU per request | the best other, granian: 76.0 µs | 80.0 µs, 0.95 times | **no** |
| ASGI, hello, CPU per request | granian: 13.0 µs, 1.7 times as fast | 8.0 µs, 1.62 times | **no** |
| p99 of `/long`, short and long, 300/s | the best other, granian: 60 ms | 90 ms | **no** |
| Start to the first 200 | under 150 ms | 160 ms; the interpreter alone 20 ms | **no** |
| CPU per probe, keep-alive | nginx, `return 200`: 3.0 µs | 2.5 µs |    yes |
| Probe p99, application saturated | under 5 ms | 0.50 ms; the others 5.0 s to 5.0 s |    yes |
| ASGI, hello, CPU per request | uvicorn (ASGI): 20.0 µs, 2.5 times as fast | 8.0 µs, 2.50 times |    yes |
| ASGI, WebSocket echo, CPU per message | uvicorn (ASGI): 12.0 µs | 9.0 µs, 1.33 times |    yes |
| HttpArena's API-4, responses a second | the best other, uvicorn (ASGI): 7,500 | 9,000, 1.20 times |    yes |
| p99 of `/short`, short and long, 300/s | the best other, granian: 40 ms | 20 ms |    yes |
| Requests failed, short and long | none | 0; granian 3 |    yes |
| Memory, idle (PSS) | under 20 MB | 18.0 MB |    yes |
| Memory, 10,000 idle connections | under 50 MB more | 30 MB |    yes |
| Requests lost, 100 rolling restarts behind HAProxy and nginx | none | 0 of 900,000, 2026-11-25 |    yes |
"""


def cells(table: str) -> list[list[str]]:
    """The words of a Markdown table, without how wide its columns are."""
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("-:") for cell in row] for row in rows]


def test_goals_of_a_small_run() -> None:
    meta = {"measured": {"restarts": {"date": "2026-11-25", "cpu": "Z80"}}}
    assert cells(report.goals({**SMALL, "meta": meta})) == cells(GOALS)


def test_results_are_written_after_each_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: object) -> None:
        raise OSError("no such device")

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "prepare", lambda say: {})
    monkeypatch.setattr(environment, "versions", dict)
    monkeypatch.setattr(environment, "machine", lambda: {"cpu": "Z80", "kernel": "CP/M", "python": "3"})
    monkeypatch.setattr(peers, "available", lambda missing: ([], {}))
    parts = {"probes": lambda session: [], "hosting": broken, "parsing": interrupted}
    monkeypatch.setattr(main, "SECTIONS", {name: SimpleNamespace(run=run) for name, run in parts.items()})
    output = tmp_path / "results.json"
    arguments = argparse.Namespace(only="", servers="", quick=False, output=output)
    before = {"hosting": [1], "orm": [2]}
    with pytest.raises(KeyboardInterrupt):
        main.measure(arguments, dict(before))
    written = json.loads(output.read_text())
    assert set(written) == {"meta", "probes"}
    assert written["meta"]["measured"]["probes"]["cpu"] == "Z80"
    assert written["meta"]["missing"] == {"hosting": "OSError: no such device"}

    written["meta"]["measured"] |= {name: {"date": "2026-01-01", "cpu": "6502"} for name in ("orm", "asgi")}
    assert "on 6502 (probes: Z80), CP/M" in report.notes(written)


def test_a_probe_without_an_answer_is_in_the_table() -> None:
    assert ["gunicorn", "1.6 s / 5.0 s, 7% unanswered"] in cells(report.latency(SMALL))


def test_probes_beside_an_event_loop_have_a_table_of_their_own() -> None:
    rows = [
        {**SMALL["latency"][0], "server": name, "path": path, "case": case, "ms": {"p50": 0.2, "p99": p99}}
        for name, path, p99 in (
            ("pkg-asgi", "/healthz", 2.0),
            ("pkg-asgi", "/readyz", 3.0),
            ("uvicorn", "/healthz", 3000.0),
        )
        for case in ("event loop blocked", "callbacks")
    ]
    table = cells(report.event_loops({"latency": rows}))
    assert ["pkg (ASGI)", "0.20 ms / 2.0 ms", "0.20 ms / 2.0 ms", ""] in table
    assert ["the same, readiness", "0.20 ms / 3.0 ms", "0.20 ms / 3.0 ms", ""] in table
    assert ["Probe p99, callbacks", "under 5 ms", "2.0 ms; uvicorn (ASGI) 3.0 s", "yes"] in cells(
        report.goals({"latency": rows})
    )
    assert report.event_loops(SMALL) == ""


def test_latency_at_a_constant_rate_has_a_row_for_each_kind_of_request() -> None:
    table = cells(report.steady(SMALL))
    assert ["short and long, 300/s", "/short", "2.0 / 20 / 40", "4.0 / 40 / 80"] in table
    assert ["short and long, 300/s", "/long", "9.0 / 90 / 180", "6.0 / 60 / 120, 3 failed"] in table


def test_cases_of_other_servers_have_a_table_of_their_own() -> None:
    alone = {**SMALL["steady"][0], "case": "sleeping"}
    text = report.steady({"steady": [*SMALL["steady"], alone]})
    assert text.count("##") == 1
    assert [row[2:] for row in cells(text) if row[0] == "load"] == [["pkg", "granian"], ["pkg"]]
    assert ["sleeping, 300/s", "/short", "2.0 / 20 / 40"] in cells(text)
    assert report.steady({}) == ""


def test_servers_are_started_anew_for_each_round() -> None:
    started: list[str] = []

    @contextlib.contextmanager
    def all_running(chosen: list[peers.Peer], extra: object = None) -> Iterator[list[Any]]:
        started.extend(peer.name for peer in chosen)
        yield [SimpleNamespace(peer=peer, is_alive=lambda: True, start=len(started)) for peer in chosen]

    def measure(server: Any) -> Sample:
        measured.append((server.peer.name, server.start))
        return Sample(1e5, server.start * 1e-6 if server.peer.name == "pkg" else 0.0, 1.0, 0.001, 0)

    measured: list[tuple[str, int]] = []
    session: Any = SimpleNamespace(all_running=all_running, say=lambda text: None)
    both = [peers.BY_NAME["pkg"], peers.BY_NAME["granian"]]
    trials = [
        trial.Trial("a", {"case": "a"}, measure, 3, prepare=False),
        trial.Trial("b", {"case": "b"}, measure, 1, ["pkg"]),
    ]
    rows = trial.in_turn(session, both, trials)
    assert started == ["pkg", "granian"] * 3
    assert measured == [("pkg", 2), ("granian", 2), ("pkg", 2), ("pkg", 2), *[("pkg", 4), ("granian", 4)],
                        *[("pkg", 6), ("granian", 6)]]  # fmt: skip
    # The median of three starts; a server that gave no response has no row.
    assert [(row["case"], row["server"], row["cpu_us"]) for row in rows] == [("a", "pkg", 4.0), ("b", "pkg", 2.0)]


def test_memory_of_workers_is_beside_their_cost() -> None:
    assert cells(report.workers(SMALL))[2:] == [["pkg", "7.0 µs", "31 MB"]]


def test_api_4_has_a_table() -> None:
    assert cells(report.api(SMALL))[2:] == [["pkg", "9,000", "86 MB", "0"], ["uvicorn (ASGI)", "7,500", "83 MB", "12"]]


class Slow(http.server.BaseHTTPRequestHandler):
    """It serves one connection at a time, a request in 20 ms, and ends the connection after `/last`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        time.sleep(0.02)
        self.send_response(503 if self.path == "/fails" else 200)
        self.send_header("Content-Length", "2")
        if self.path == "/last":
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"ok")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def slow() -> Iterator[int]:
    with http.server.HTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever).start()
        yield server.server_address[1]
        server.shutdown()


def test_the_open_loop_counts_from_the_time_at_which_a_request_was_due(
    slow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openloop, "CONNECTIONS", 1)
    monkeypatch.setattr(openloop, "DRAIN", 20.0)
    with openloop.Client(slow, 200.0, 0.5, {"/a": 3.0, "/b": 1.0}) as client:
        client.run()
    due = list(openloop.schedule(200.0, 0.5, {"/a": 3.0, "/b": 1.0}))
    assert due == list(openloop.schedule(200.0, 0.5, {"/a": 3.0, "/b": 1.0})) and 60 < len(due) < 140
    assert {path: len(found) for path, found in client.latencies.items()} == Counter(path for _, path in due)
    assert client.failed == 0
    # Four times as many as are served, so the last one waits for three quarters of all.
    assert max(max(found) for found in client.latencies.values()) > 0.02 * len(due) / 2


def test_the_open_loop_counts_what_is_not_answered_in_time(slow: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openloop, "CONNECTIONS", 1)
    monkeypatch.setattr(openloop, "DRAIN", 0.1)
    with openloop.Client(slow, 200.0, 0.5, {"/a": 1.0}) as client:
        client.run()
    assert len(client.latencies["/a"]) + client.failed == len(list(openloop.schedule(200.0, 0.5, {"/a": 1.0})))
    assert client.failed > 10 and client.latencies["/a"]


def test_the_open_loop_counts_failures_and_connects_again(slow: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openloop, "CONNECTIONS", 1)
    with openloop.Client(slow, 30.0, 0.5, {"/fails": 1.0, "/last": 1.0}) as client:
        client.run()
    due = Counter(path for _, path in openloop.schedule(30.0, 0.5, {"/fails": 1.0, "/last": 1.0}))
    assert client.failed == due["/fails"] > 0 and len(client.latencies["/last"]) == due["/last"] > 0


def test_the_closed_loop_says_what_the_server_is_capable_of(slow: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openloop, "CLOSED", 1)
    with openloop.Client(slow, 0.0, 0.5, {"/a": 1.0}) as client:
        assert 5 < client.run() < 50


def test_the_mixer_asks_for_each_path_in_turn_on_connections_that_end(slow: int) -> None:
    words = [str(program("mixer")), str(slow), "0.5", "1", "2", "/a", "/fails"]
    answered, refused, cut, _ = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()
    assert 4 < int(answered) < 15 and abs(int(answered) - int(refused)) <= 2 and cut == "0"


def test_report_command(tmp_path: Path) -> None:
    """The tables stand between the markers, the rest of the page as it was; the pictures are XML."""
    (tmp_path / "results.json").write_text(json.dumps(SMALL))
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    subprocess.run(
        [sys.executable, "-m", "bench", "--report", "--output", tmp_path / "results.json", "--docs", page],
        cwd=ROOT, check=True, timeout=60, capture_output=True,
    )  # fmt: skip
    text = page.read_text()
    assert text == f"before\n{report.BEGIN}\n\n{report.page(SMALL)}\n\n{report.END}\nafter\n"
    assert "old" not in text and report.goals(SMALL) in text
    for name in ("latency", "throughput", "restarts", "tails", "memory"):
        assert f"](../bench/{name}.svg)" in text
        assert ElementTree.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("nothing here\n")
    with pytest.raises(ValueError, match="has no lines"):
        report.update(page, SMALL)


def test_the_page_says_what_the_results_say(tmp_path: Path) -> None:
    results = ROOT / "bench" / "results.json"
    page = tmp_path / "benchmarks.md"
    shutil.copy(ROOT / "docs/benchmarks.md", page)
    if results.exists():
        report.update(page, json.loads(results.read_text()))
    else:  # not measured yet: then nothing is claimed
        text = page.read_text()
        between = text.partition(report.BEGIN)[2].partition(report.END)[0]
        page.write_text(text.replace(report.BEGIN + between, report.BEGIN + "\n"))
    assert page.read_text() == (ROOT / "docs/benchmarks.md").read_text()
