"""deploy/prometheus/dashboard.json: every query of it, run by a real Prometheus on real services."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.prometheus import picture
from tests.support import dashboard
from tests.support.client import wait_for
from tests.support.faults.postgres import Postgres
from tests.support.ports import free_ports
from tests.support.processes import ask, running
from tests.support.prometheus import Prometheus

WSGI = """
import pkg

def app(environ, start_response):
    with pkg.connection() as connection:
        connection.execute("SELECT 1")
    start_response("200 OK", [])
    return [b"ok"]
"""
ASGI = """
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})
"""
# What these services need not have: other classes of status, and a control group with limits.
MAY_BE_EMPTY = ("3xx", "4xx", "5xx")
REQUESTS = 'http_server_request_duration_seconds_count{http_response_status_code="200"}'

PANELS = [panel for panel in json.loads(dashboard.FILE.read_text())["panels"] if panel["type"] != "row"]


def test_the_file_is_what_the_command_writes() -> None:
    assert dashboard.FILE.read_text() == dashboard.written(), "run `make dashboard`"


@pytest.mark.parametrize(
    "query",
    [
        'pkg_no_such{job=~"$job"}',
        'pkg_ready{colour="red"}',
        'http_server_request_duration_seconds{job=~"$job"}',
        "sum(pkg_ready)",
    ],
)
def test_a_query_of_what_is_not_there_is_refused(query: str) -> None:
    with pytest.raises(AssertionError):
        dashboard.checked(query)


def test_the_picture_is_of_the_dashboard() -> None:
    """And the page shows it."""
    text = picture.PICTURE.read_text()
    for row, titles in picture.SHOWN.items():
        for title in titles:
            assert title in [panel[0] for panel in dashboard.ROWS[row]]
            assert f">{title}</text>" in text, "run `python -m tests.prometheus.picture`"


def test_no_datasource_is_named_but_the_variable() -> None:
    assert {panel["datasource"]["uid"] for panel in PANELS} == {"${datasource}"}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    if shutil.which("prometheus") is None:
        pytest.skip("needs prometheus")
    ports = free_ports(3)
    folder = tmp_path_factory.mktemp
    with contextlib.ExitStack() as stack:
        # First, because it takes some seconds until it scrapes.
        found = stack.enter_context(
            Prometheus(folder("prometheus"), [("127.0.0.1", port) for port in ports], interval="0.2s")
        )
        url = stack.enter_context(Postgres()).url
        services = [
            stack.enter_context(running(folder(name), source, PKG_ADMIN=f"127.0.0.1:{port}", **environ))
            for name, source, port, environ in (
                ("wsgi", WSGI, ports[0], {"DATABASE_URL": url}),
                ("asgi", ASGI, ports[1], {"PKG_INTERFACE": "asgi"}),
                ("workers", WSGI, ports[2], {"DATABASE_URL": url, "WEB_CONCURRENCY": "2"}),
            )
        ]

        def scraped_under_load() -> bool:
            for process in services:
                assert ask(process.address, "/")[0] == 200
            enough = f"count(count_over_time({REQUESTS}[5s]) >= 3)"
            return [series["value"][1] for series in found.query(enough)] == ["3"]

        wait_for(scraped_under_load, 20.0)
        yield found


@pytest.mark.parametrize("panel", PANELS, ids=[panel["title"] for panel in PANELS])
def test_each_query_is_answered(prometheus: Prometheus, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        query = target["expr"].replace("$__rate_interval", "5s").replace("$job", "pkg").replace("$instance", ".*")
        found = prometheus.query(query)
        assert found or target["legendFormat"] in MAY_BE_EMPTY or "pkg_cgroup_" in query, query
