"""Writes deploy/prometheus/dashboard.json, a dashboard for Grafana whose queries name only metrics that there are.

python -m tests.support.dashboard
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

__all__ = ["FILE", "ROWS", "checked", "written"]

_ROOT = Path(__file__).parents[2]
FILE = _ROOT / "deploy" / "prometheus" / "dashboard.json"
_METRICS: dict[str, Any] = json.loads((_ROOT / "docs" / "compatibility.json").read_text())["metrics"]
_SUFFIXES = {"histogram": ("_bucket", "_count", "_sum"), "summary": ("_count", "_sum")}
_SELECTION = 'job=~"$job",instance=~"$instance"'
_TARGET_LABELS = ("job", "instance")

_DURATION = "http_server_request_duration_seconds"
_POOL = "db_client_connection"
_BY_WORKER = "{{instance}} {{worker}}"
_BY_POOL = f"{{{{instance}}}} {{{{{_POOL}_pool_name}}}}"


def _rate(metric: str, more: str = "") -> str:
    return f"rate({metric}{{{_SELECTION}{more}}}[$__rate_interval])"


def _now(metric: str, more: str = "") -> str:
    return f"{metric}{{{_SELECTION}{more}}}"


def _quantile(quantile: float, metric: str) -> str:
    return f"histogram_quantile({quantile}, sum by (le) ({_rate(metric + '_bucket')}))"


def _class(digit: int) -> str:
    selected = f',http_response_status_code=~"{digit}.."'
    return f"sum({_rate(_DURATION + '_count', selected)})"


# Of each row its panels: title, unit, and the queries by what the legend says.
ROWS: dict[str, list[tuple[str, str, dict[str, str]]]] = {
    "Requests": [
        ("Requests by status", "reqps", {f"{digit}xx": _class(digit) for digit in (2, 3, 4, 5)}),
        ("Share of 5xx", "percentunit", {"share": f"({_class(5)} or vector(0)) / sum({_rate(_DURATION + '_count')})"}),
        ("Duration", "s", {"p50": _quantile(0.5, _DURATION), "p99": _quantile(0.99, _DURATION)}),
        ("In flight", "short", {"{{instance}}": _now("http_server_active_requests")}),
        ("Wait in the queue", "s", {"p95": _quantile(0.95, "pkg_request_queue_duration_seconds")}),
        ("Queue", "short", {"{{instance}}": _now("pkg_queue_length")}),
        ("Workers", "short", {"busy": f"sum({_now('pkg_workers_busy')})", "all": f"sum({_now('pkg_workers')})"}),
    ],
    "Health": [
        ("Ready", "short", {"{{instance}}": _now("pkg_ready")}),
        ("Live", "short", {"{{instance}}": _now("pkg_live")}),
        ("Checks", "short", {"{{instance}} {{type}} {{name}}": _now("pkg_healthcheck")}),
        ("Probes", "reqps", {"{{instance}}": _rate("pkg_probes_total")}),
    ],
    "Database pool": [
        (
            "Connections",
            "short",
            {
                _BY_POOL + f" {{{{{_POOL}_state}}}}": _now(f"{_POOL}s"),
                _BY_POOL + " max": _now(f"{_POOL}_max"),
            },
        ),
        ("Waiting for a connection", "short", {_BY_POOL: _now(f"{_POOL}_pending_requests")}),
        (
            "Mean wait",
            "s",
            {_BY_POOL: f"{_rate(f'{_POOL}_wait_time_seconds_sum')} / {_rate(f'{_POOL}_wait_time_seconds_count')}"},
        ),
        ("Timeouts", "ops", {_BY_POOL: _rate(f"{_POOL}_timeouts_total")}),
    ],
    "Event loop": [
        ("Lag", "s", {"p99": _quantile(0.99, "pkg_event_loop_lag_seconds")}),
        ("Blocked", "s", {"{{instance}}": _now("pkg_event_loop_blocked_seconds")}),
    ],
    "Worker processes": [
        ("Serve and are ready", "short", {_BY_WORKER: _now("pkg_worker_ready")}),
        ("Deaths", "ops", {_BY_WORKER: _rate("pkg_worker_deaths_total")}),
        ("Requests of each", "short", {_BY_WORKER: _now("pkg_worker_requests_in_flight")}),
        ("Memory of its own", "bytes", {_BY_WORKER: _now("pkg_worker_private_memory_bytes")}),
    ],
    "Connections": [
        ("Open", "short", {"{{instance}}": _now("pkg_connections")}),
        (
            "Accepted and reset",
            "ops",
            {
                "{{instance}} accepted": _rate("pkg_connections_accepted_total"),
                "{{instance}} reset": _rate("pkg_connection_resets_total"),
            },
        ),
        (
            "Shed and timed out",
            "ops",
            {"{{instance}} shed": _rate("pkg_requests_shed_total"), "{{instance}} late": _rate("pkg_timeouts_total")},
        ),
    ],
    "Process and container": [
        ("CPU", "short", {"{{instance}}": _rate("process_cpu_seconds_total")}),
        ("Resident memory", "bytes", {"{{instance}}": _now("process_resident_memory_bytes")}),
        (
            "Share of throttled periods",
            "percentunit",
            {
                "{{instance}}": _rate("pkg_cgroup_cpu_throttled_periods_total")
                + " / "
                + _rate("pkg_cgroup_cpu_periods_total")
            },
        ),
        (
            "Memory of the limit",
            "percentunit",
            {"{{instance}}": f"{_now('pkg_cgroup_memory_bytes')} / {_now('pkg_cgroup_memory_limit_bytes')}"},
        ),
        (
            "Descriptors of the limit",
            "percentunit",
            {"{{instance}}": f"{_now('process_open_fds')} / {_now('process_max_fds')}"},
        ),
        ("Log lines dropped", "ops", {"{{instance}}": _rate("pkg_log_lines_dropped_total")}),
    ],
    "Restarts": [("Time since the start", "s", {"{{instance}}": f"time() - {_now('process_start_time_seconds')}"})],
}


def checked(query: str) -> str:
    """The query, if each metric of it and each label that it selects by is there; else an AssertionError."""
    for name, selectors in re.findall(r"(\w+)\{([^}]*)\}", query):
        family = _family(name)
        for label in re.findall(r"(\w+)\s*[=!]", re.sub(r'"[^"]*"', "", selectors)):
            assert label in family["labels"] or label in _TARGET_LABELS, f"{name} has no label {label}"
    # A name without selectors would be of every job.
    bare = re.sub(r'\{[^}]*\}|"[^"]*"', "{}", query)
    for name in re.findall(r"\b(?:pkg|process|http|db|python)_\w+\b(?!\{)", bare):
        raise AssertionError(f"{name} is not selected by job and instance")
    return query


def _family(name: str) -> dict[str, Any]:
    for family, about in _METRICS.items():
        if name in [family + suffix for suffix in _SUFFIXES.get(about["type"], ("",))]:
            found: dict[str, Any] = about
            return found
    raise AssertionError(f"there is no metric {name}")


def written() -> str:
    """The dashboard as it stands in the file."""
    return json.dumps(_dashboard(), indent=1) + "\n"


def _dashboard() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    y = 0
    for row, content in ROWS.items():
        panels.append(_panel(len(panels), "row", row, {"h": 1, "w": 24, "x": 0, "y": y}, collapsed=False, panels=[]))
        y += 1
        for place, (title, unit, queries) in enumerate(content):
            position = {"h": 7, "w": 8, "x": place % 3 * 8, "y": y + place // 3 * 7}
            kind = "stat" if title in ("Ready", "Live") else "timeseries"
            targets = [
                {"refId": chr(ord("A") + number), "expr": checked(query), "legendFormat": legend}
                for number, (legend, query) in enumerate(queries.items())
            ]
            panel = _panel(len(panels), kind, title, position, targets=targets)
            panel |= {"datasource": _DATASOURCE, "fieldConfig": {"defaults": {"unit": unit}, "overrides": []}}
            panels.append(panel)
        y += (len(content) + 2) // 3 * 7
    return {
        "title": "pkg",
        "uid": "pkg",
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": panels,
    }


_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}


def _panel(number: int, kind: str, title: str, position: dict[str, int], **more: Any) -> dict[str, Any]:
    return {"id": number + 1, "type": kind, "title": title, "gridPos": position, **more}


def _variables() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"name": "datasource", "type": "datasource", "query": "prometheus"}]
    for name, query in (
        ("job", "label_values(pkg_info, job)"),
        ("instance", 'label_values(pkg_info{job=~"$job"}, instance)'),
    ):
        found.append(
            {
                "name": name,
                "type": "query",
                "datasource": _DATASOURCE,
                "query": query,
                "refresh": 2,
                "includeAll": True,
                "multi": True,
                "current": {"text": ["All"], "value": ["$__all"]},
            }
        )
    return found


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(written())
