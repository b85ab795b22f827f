"""Metrics: what the page says is what happened, and every line of it is valid."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from typing import Any

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics

from pkg import _core
from pkg.diagnostics import metrics
from pkg.health.report import CheckState, HealthReport
from pkg.logs.sink import LogLines
from tests.support.client import Connection, get, wait_for
from tests.support.servers import serving_app


class Front:
    """The numbers of a front, without one."""

    def __init__(self, durations: Any = (), **stats: float) -> None:
        self._durations = list(durations)
        self._stats = _core.Counters(**dict.fromkeys(_core.Counters._fields, 0) | stats)  # type: ignore[arg-type]

    def stats(self) -> _core.Counters:
        return self._stats

    def durations(self) -> Any:
        return self._durations

    def exemplars(self) -> Any:
        return []

    def queue_waits(self) -> Any:
        return [0] * (len(_core.QUEUE_WAIT_BOUNDS) + 1), 0.0


HEALTH = HealthReport(
    live=True,
    ready=False,
    liveness=[CheckState("interpreter", "ok", "", True, None)],
    readiness=[
        CheckState("startup", "ok", "", True, None),
        CheckState("database", "failed", 'no "such\\ host\n', True, None),
        CheckState("cache", "degraded", "slow", False, None),
        CheckState("queue", "pending", "", False, None),
    ],
)
POOL = {
    "pool_min": 2, "pool_max": 10, "pool_size": 7, "pool_available": 3, "requests_waiting": 4, "requests_num": 100,
    "requests_queued": 20, "requests_wait_ms": 1500, "requests_errors": 5, "usage_ms": 2500, "connections_num": 9,
    "connections_ms": 90, "connections_errors": 1, "connections_lost": 2, "returns_bad": 3,
}  # fmt: skip


def page(*, openmetrics: bool = False, **more: Any) -> str:
    arguments: dict[str, Any] = {"front": Front(in_flight=5, queued=2), "threads": 8, "phase": "ready"}
    parts = {**arguments, "health": HEALTH, "pools": {"": POOL}, **more}
    return metrics.collect(**parts).text(openmetrics=openmetrics)


def values(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, f"{key} twice"
            found[key] = sample.value
    return found


def value(text: str, name: str, /, **labels: str) -> float:
    return values(text)[name, tuple(sorted(labels.items()))]


def lint(text: str) -> None:
    """The rules of promtool check metrics that can be broken here (prometheus: util/promlint)."""
    assert text.endswith("\n") and "\n\n" not in text
    typed: dict[str, str] = {}
    helped: set[str] = set()
    families: list[str] = []
    for line in text.splitlines():
        if line == "# EOF":
            continue
        if line.startswith("# HELP "):
            name, _, help = line[7:].partition(" ")
            assert help and name not in helped, line
            helped.add(name)
            continue
        if line.startswith("# TYPE "):
            name, kind = line[7:].split()
            assert name not in typed and name in helped, line
            typed[name] = kind
            assert (kind == "counter") == name.endswith("_total"), line
            continue
        match = re.fullmatch(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(?:[a-z_]+="(?:[^"\\\n]|\\[\\n"])*",?)+\})? (\S+)', line)
        assert match is not None, line
        float(match[3])
        family = re.sub(r"_(bucket|count|sum)$", "", match[1]) if match[1] not in typed else match[1]
        assert family in typed, line
        if not families or families[-1] != family:
            families.append(family)
        for unit in ("milliseconds", "kilobytes", "minutes"):
            assert unit not in match[1]
    assert [name for name, count in Counter(families).items() if count > 1] == [], "a family is not in one piece"
    assert set(families) == set(typed), "a family without samples"


def test_the_page_is_valid() -> None:
    text = page(logs=LogLines(5, 1, 0), version='1.0"\\\n')
    lint(text)
    assert value(text, "pkg_info", version='1.0"\\\n') == 1
    assert value(text, "pkg_log_lines_dropped_total") == 1


def test_openmetrics() -> None:
    front = Front([("GET", 200, [1] * 15, 3.0)], served=7)
    text = page(front=front, openmetrics=True, logs=LogLines(5, 1, 0))
    assert text.endswith("\n# EOF\n")
    samples = {s.name: s.value for family in openmetrics.text_string_to_metric_families(text) for s in family.samples}
    assert samples["pkg_requests_served_total"] == 7
    assert samples["http_server_request_duration_seconds_count"] == 15


def test_json_says_the_same() -> None:
    parts: Any = {"front": Front([("GET", 200, [1] * 15, 3.0)]), "threads": 8, "phase": "ready", "health": HEALTH}
    page = metrics.collect(**parts, pools={"": POOL})
    document = json.loads(json.dumps(page.document()))
    samples = {
        (sample["name"], tuple(sorted(sample["labels"].items()))): sample["value"]
        for family in document
        for sample in family["samples"]
    }
    assert samples == values(page.text())
    types = {family["name"]: family["type"] for family in document}
    assert types["pkg_requests"] == "counter" and types["http_server_request_duration_seconds"] == "histogram"


def test_histogram() -> None:
    counts = [3, 0, 2, *[0] * 11, 1]
    text = page(front=Front([("GET", 200, counts, 12.5), ("_OTHER", 400, [0] * 14 + [2], 25)]))
    lint(text)
    labels = {"http_request_method": "GET", "http_response_status_code": "200", "url_scheme": "http"}
    name = "http_server_request_duration_seconds"
    cumulated = [value(text, f"{name}_bucket", **labels, le=le) for le in ("0.005", "0.01", "0.025", "10.0", "+Inf")]
    assert cumulated == [3, 3, 5, 5, 6]
    assert value(text, f"{name}_count", **labels) == 6
    assert value(text, f"{name}_sum", **labels) == 12.5
    bounds = [float(b) for b in re.findall(r'status_code="200",le="([^"]+)"', text)]
    # open-telemetry/semantic-conventions: docs/http/http-metrics.md
    assert bounds[:-1] == [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10]
    assert tuple(bounds[:-1]) == _core.DURATION_BOUNDS


def test_workers_and_queue() -> None:
    text = page()
    assert value(text, "http_server_active_requests") == 5
    assert value(text, "pkg_queue_length") == 2
    assert value(text, "pkg_workers") == 8
    assert value(text, "pkg_workers_busy") == 3


def test_pool() -> None:
    text = page()
    pool = {"db_client_connection_pool_name": "main"}
    assert value(text, "db_client_connections", **pool, db_client_connection_state="used") == 4
    assert value(text, "db_client_connections", **pool, db_client_connection_state="idle") == 3
    assert value(text, "db_client_connection_max", **pool) == 10
    assert value(text, "db_client_connection_pending_requests", **pool) == 4
    assert value(text, "db_client_connection_timeouts_total", **pool) == 5
    assert value(text, "db_client_connection_wait_time_seconds_sum", **pool) == 1.5
    assert value(text, "db_client_connection_wait_time_seconds_count", **pool) == 20
    assert value(text, "db_client_connection_use_time_seconds_sum", **pool) == 2.5
    assert "db_client" not in page(pools={})


def test_health() -> None:
    text = page()
    shown = {
        labels[0][1]: v for (name, labels), v in values(text).items() if name == "pkg_healthcheck" and len(labels) == 2
    }
    assert shown == {"interpreter": 1, "startup": 1, "database": 0, "cache": 1, "queue": 0}
    assert value(text, "pkg_healthcheck_degraded", name="cache", type="readyz") == 1
    assert (value(text, "pkg_live"), value(text, "pkg_ready")) == (1, 0)
    assert "such" not in text  # reasons are not metrics


@pytest.mark.parametrize("phase", ["starting", "ready", "draining", "stopped"])
def test_phase(phase: str) -> None:
    shown = {labels[0][1]: v for (name, labels), v in values(page(phase=phase)).items() if name == "pkg_phase"}
    assert shown == {p: int(p == phase) for p in ("starting", "ready", "draining", "stopped")}


def test_process_has_the_names_and_values_of_client_python() -> None:
    from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    theirs = {sample.name: sample.value for family in registry.collect() for sample in family.samples}
    ours = {name: v for (name, _), v in values(page()).items()}
    assert set(theirs) <= set(ours)
    assert ours["process_start_time_seconds"] == pytest.approx(theirs["process_start_time_seconds"], abs=1.5)
    assert ours["process_resident_memory_bytes"] == pytest.approx(theirs["process_resident_memory_bytes"], rel=0.1)
    assert ours["process_max_fds"] == theirs["process_max_fds"]
    assert ours["process_open_fds"] == pytest.approx(theirs["process_open_fds"], abs=1)
    assert ours["process_cpu_seconds_total"] == pytest.approx(theirs["process_cpu_seconds_total"], abs=1)


def test_process_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when no descriptor is left."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(24, os.strerror(24))

    monkeypatch.setattr(os, "listdir", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    found = metrics.process()
    assert "open_fds" not in found and found["cpu_seconds"] > 0
    text = page()
    monkeypatch.undo()
    lint(text)


# --- from a real front ---------------------------------------------------------------------------------------------


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    import time

    if environ["PATH_INFO"] == "/slow":
        time.sleep(0.03)
    if environ["PATH_INFO"] == "/fails":
        raise RuntimeError("on purpose")
    start_response("204 No Content" if environ["REQUEST_METHOD"] == "DELETE" else "200 OK", [])
    return []


def durations(server: Any) -> dict[tuple[str, int], tuple[list[int], float]]:
    return {(method, status): (counts, total) for method, status, counts, total in server.front.durations()}


def counted(server: Any) -> int:
    return sum(sum(counts) for counts, _ in durations(server).values())


def test_durations_of_a_real_front() -> None:
    with serving_app(app) as server:
        with Connection(server.server_address) as c:
            for _ in range(3):
                c.request("GET", "/")
            c.request("GET", "/slow")
            c.request("DELETE", "/")
            c.request("PURGE", "/")
            c.request("GET", "/fails")
        get(server.server_address, "/", method="CONNECT")
        # A response is out before it is counted.
        wait_for(lambda: counted(server) == 8)
        found = durations(server)
        assert set(found) == {("GET", 200), ("DELETE", 204), ("_OTHER", 200), ("GET", 500), ("_OTHER", 400)}
        counts, total = found["GET", 200]
        assert sum(counts) == 4 and sum(counts[3:]) >= 1 and 0.03 <= total < 5
        lint(metrics.collect(front=server.front, threads=server.threads, phase="ready").text())


def test_durations_are_bounded() -> None:
    """However many statuses an application invents, there are 128 series and every request is counted."""

    def inventive(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response(f"{environ['PATH_INFO'][1:]} Whatever", [("Content-Length", "0")])
        return []

    with serving_app(inventive) as server:
        with Connection(server.server_address) as c:
            for status in range(200, 400):
                if status not in (204, 304):
                    assert c.request("GET", f"/{status}").status == status
        wait_for(lambda: counted(server) == 198)
        found = durations(server)
        assert 100 <= len(found) <= 128
        assert sum(found["_OTHER", 0][0]) == 198 - (len(found) - 1)


ANSWERS = ((200, b"Content-Length: 2\r\n", b"ok"),) * 3


def test_probers_of_a_real_front() -> None:
    with serving_app(app) as server:
        server.front.publish([(path, 0, ANSWERS, ANSWERS, None) for path in ("/healthz", "/readyz")])
        server.front.renew(0, 60)
        with Connection(server.server_address) as c:
            for _ in range(3):
                c.request("GET", "/healthz?verbose", "User-Agent: kube-probe/1.31\r\n")
            c.request("GET", "/healthz/", "user-agent: kube-probe/1.31\r\n")
            c.request("GET", "/readyz", "User-Agent: kube-probe/1.31\r\n")
            c.request("POST", "/readyz", f"User-Agent: {'x' * 100}\r\n")
            c.request("OPTIONS", "*")
            c.request("GET", "/")  # not a page
        found = {(p.page, p.user_agent): (p.count, p.status) for p in server.front.probers()}
        assert found == {
            ("/healthz", "kube-probe/1.31"): (4, 200),
            ("/readyz", "kube-probe/1.31"): (1, 200),
            ("/readyz", "x" * 48): (1, 405),
            ("*", ""): (1, 200),
        }
        assert {p.client for p in server.front.probers()} == {"127.0.0.1"}
        assert all(0 <= p.age < 60 for p in server.front.probers())


def test_probers_are_bounded() -> None:
    """Who has been silent longest gives way."""
    with serving_app(app) as server:
        server.front.publish([("/healthz", 0, ANSWERS, ANSWERS, None)])
        server.front.renew(0, 60)
        with Connection(server.server_address) as c:
            for n in range(100):
                c.request("GET", "/healthz", f"User-Agent: {n}\r\n")
                c.request("GET", "/healthz", "User-Agent: steady\r\n")
        found = {p.user_agent: p.count for p in server.front.probers()}
        assert len(found) == 32
        assert found["steady"] == 100 and "99" in found and "0" not in found


def test_targets_in_flight_come_without_their_query() -> None:
    import threading

    go = threading.Event()

    def waiting(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        go.wait(10)
        start_response("200 OK", [])
        return []

    with serving_app(waiting) as server, Connection(server.server_address) as c:
        c.send(b"GET /reset?token=secret HTTP/1.1\r\nHost: x\r\n\r\n")
        try:
            (request,) = wait_for(server.front.requests)
            assert request.target == "/reset"
        finally:
            go.set()
        assert c.receive().status == 200
