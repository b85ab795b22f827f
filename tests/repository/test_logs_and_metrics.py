"""docs/logs-and-metrics.md against a running service: no field and no metric is missing there, or only there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pkg.logs.records import text_access
from tests.support import promises
from tests.support.client import wait_for
from tests.support.faults.postgres import Postgres
from tests.support.ports import free_port
from tests.support.processes import Process, ask, running
from tests.support.tables import DOCS, names, tables

PAGE = "logs-and-metrics.md"
METRICS = tables(PAGE, "metric", "type", "unit", "labels")
FIELDS = tables(PAGE, "field", "type", "in")
SOURCE = """
import logging, time, pkg
log = logging.getLogger("shop")

def app(environ, start_response):
    match environ["PATH_INFO"]:
        case "/order":
            with pkg.connection() as connection:
                connection.execute("select 1")
            log.warning("stock is low", extra={"article": 4711, "left": 2})
        case "/broken":
            raise ValueError("no such article")
        case "/slow":
            time.sleep(2)
        case "/format":
            log.info("%d articles", "many")
        case "/flood":
            for number in range(20_000):
                log.info("line %d", number)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello\\n"]
"""
OF_THE_APPLICATION = {"article", "left"}
TRACE = {
    "traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "User-Agent": "curl/8.5.0",
}


@pytest.fixture(scope="module")
def admin_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, admin_port: int) -> Iterator[Process]:
    environ = {"PKG_ADMIN": f"127.0.0.1:{admin_port}", "PKG_REQUEST_TIMEOUT": "1s", "PKG_TRUSTED_PROXIES": "::1/128"}
    with (
        Postgres() as server,
        running(tmp_path_factory.mktemp("service"), SOURCE, DATABASE_URL=server.url, **environ) as process,
    ):
        process.await_message("readiness check database ok")
        for path in ("/order", "/broken", "/slow", "/format"):
            ask(process.address, path, **TRACE)
        process.await_message("GET /slow 504")
        process.await_message("took longer than 1 s")
        yield process


def blocks(language: str) -> Iterator[str]:
    for text in re.findall(rf"^```{language}\n(.*?)^```$", (DOCS / PAGE).read_text(), re.MULTILINE | re.DOTALL):
        yield from text.splitlines()


def masked(message: str) -> str:
    return re.sub(r"\d[\d.:]*", "N", message)


def test_the_log_has_the_fields_of_the_page(service: Process, tmp_path: Path) -> None:
    seen: dict[str, tuple[str, set[str]]] = {}
    for line in [*service.lines(), *lines_of_another(tmp_path)]:
        kind = "access" if line["logger"] == "pkg.access" else "record"
        for name, value in line.items():
            seen.setdefault(name, (type(value).__name__, set()))[1].add(kind)
    for name in OF_THE_APPLICATION:
        del seen[name]
    told = {names(row["field"])[0]: (row["type"], set(row["in"].split(", "))) for row in FIELDS}
    assert seen == told


def lines_of_another(directory: Path) -> Iterator[dict[str, Any]]:
    """An access record of a service with several listeners, and the record that tells of lines which nobody had read in
    time."""
    directory.joinpath("application.py").write_text(SOURCE)
    port = free_port()
    environ = {"HOST": "127.0.0.1", "PORT": str(port), "PKG_ADMIN": "off", "LOG_FORMAT": "json"}
    environ["PKG_HEALTH"] = "127.0.0.1:0"
    with subprocess.Popen(
        [sys.executable, "-m", "pkg", "application:app"],
        cwd=directory,
        env={**os.environ, **environ, "DATABASE_URL": ""},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None

        def answers() -> bool:
            try:
                return ask(("127.0.0.1", port), "/format")[0] == 200
            except OSError:
                return False

        try:
            wait_for(answers, 20, "an answer")
            ask(("127.0.0.1", port), "/flood")
            records: Iterator[dict[str, Any]] = map(json.loads, process.stdout)
            wanted = ["log.dropped", "listener"]
            while wanted:
                record = next(records)
                if found := [name for name in wanted if name in record]:
                    wanted.remove(found[0])
                    yield record
        finally:
            process.kill()


def test_sample_lines_have_the_shape_of_real_ones(service: Process) -> None:
    real = {(line["logger"], masked(line["message"])): list(line) for line in service.lines()}
    samples = [json.loads(line) for line in blocks("json")]
    assert len(samples) > 5
    for sample in samples:
        expected = real[sample["logger"], masked(sample["message"])]
        if "trace_id" not in sample:  # these requests all carry one
            expected = [name for name in expected if name not in ("trace_id", "span_id")]
        assert list(sample) == expected


def test_the_access_record_as_text_is_the_one_in_json() -> None:
    (sample,) = (record for record in map(json.loads, blocks("json")) if record["logger"] == "pkg.access")
    at, method, path, status, duration, received, sent, client, agent, *ids = (
        sample[name]
        for name in (
            *("timestamp", "http.request.method", "url.path", "http.response.status_code", "duration"),
            *("http.request.body.size", "http.response.body.size", "client.address", "user_agent.original"),
            *("trace_id", "span_id", "request_id"),
        )
    )
    line = text_access((0.0, method, path, status, duration, received, sent, client, agent, *ids, "")).decode()
    assert f"{at}{line.partition('Z')[2].rstrip()}" == next(blocks("text"))


def test_the_metrics_are_those_of_the_page(service: Process, admin_port: int) -> None:
    status, _, text = ask(("127.0.0.1", admin_port), "/metrics")
    assert status == 200
    types = dict(re.findall(r"^# TYPE (\w+) (\w+)$", text, re.MULTILINE))
    told = {names(row["metric"])[0]: row["type"] for row in METRICS}
    # Those of an event loop are in tests/asgi, those of worker processes in tests/workers.
    others = ("pkg_event_loop", "pkg_executor", "pkg_worker_")
    told = {name: kind for name, kind in told.items() if not name.startswith(others)}
    # A limit that the machine does not set is not there; the next test has all of them.
    told = {name: kind for name, kind in told.items() if name in types or not name.startswith("pkg_cgroup")}
    assert types == told

    labels: dict[str, set[str]] = {name: set() for name in types}
    for name, found in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, re.MULTILINE):
        family = name if name in types else re.sub(r"_(bucket|count|sum)$", "", name)
        labels[family] |= set(re.findall(r'(\w+)="', found)) - {"le"}
    labelled = {names(row["metric"])[0]: set(names(row["labels"])) for row in METRICS}
    assert labels == {name: labelled[name] for name in told}


def test_the_metrics_of_limits_are_those_of_the_code() -> None:
    told = {names(row["metric"])[0]: row["type"] for row in METRICS}
    of_code = {name: family["type"] for name, family in promises.metric_families().items()}
    limits = [{name: kind for name, kind in of.items() if name.startswith("pkg_cgroup")} for of in (told, of_code)]
    assert limits[0] == limits[1] != {}


def test_names_end_in_their_units() -> None:
    for row in METRICS:
        (name,) = names(row["metric"])
        for unit in ("seconds", "bytes"):
            assert (row["unit"] == unit) == (unit in name.removesuffix("_total").rsplit("_", 1)[-1]), name


def test_everything_shown_is_a_metric_of_the_page() -> None:
    told = {names(row["metric"])[0] for row in METRICS}
    shown = {line.partition("{")[0].partition(" ")[0] for line in blocks("text") if re.match(r"(pkg|db|http)_", line)}
    meanings = " ".join(row["what it means"] for row in tables(PAGE, "alert", "fires if"))
    shown |= set(re.findall(r"(?:pkg|db|http)_\w+", meanings))
    assert shown
    assert {re.sub(r"_(bucket|count|sum)$", "", name) if name not in told else name for name in shown} <= told


def test_every_logger_is_named() -> None:
    told = set(names((DOCS / PAGE).read_text()))
    assert set(promises.loggers()) - {"pkg"} <= told
