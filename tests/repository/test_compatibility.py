"""docs/compatibility.json is the list of what a version promises, and what the code is: neither changes alone."""

from __future__ import annotations

import json
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pkg.diagnostics import metrics
from tests.support import promises

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"

SECTIONS = list(json.loads(promises.LIST.read_text()))


@cache
def of_code() -> dict[str, Any]:
    return promises.promises()


def lines(section: Any) -> list[str]:
    return promises.written(section).splitlines()


@pytest.mark.parametrize("section", SECTIONS)
def test_the_list_says_what_the_code_does(section: str) -> None:
    listed = json.loads(promises.LIST.read_text())[section]
    assert lines(listed) == lines(of_code()[section]), (
        "a promise has changed: if that is meant, run `make compatibility` and name the change in CHANGELOG.md"
    )


def test_the_file_is_as_the_command_writes_it() -> None:
    assert list(of_code()) == SECTIONS
    assert promises.LIST.read_text() == promises.written(of_code())


def test_a_metric_that_goes_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "COUNTERS", metrics.COUNTERS[1:])
    gone = set(of_code()["metrics"]) - set(promises.metric_families())
    assert gone == {"http_server_active_requests"}


def test_nothing_is_promised_for_nothing() -> None:
    """A collector that finds nothing would compare nothing."""
    for section, entries in of_code().items():
        assert entries, section
    for name in ("timestamp", "exception.stacktrace", "code.stacktrace", "logging.error", "log.dropped", "span_id"):
        assert name in of_code()["log_fields"]
    assert {"APP", "--port"} <= {setting["flag"] for setting in of_code()["settings"].values()}
    assert of_code()["names"]["Server"]["limits"]["max_connections"] == "int"
    assert "/readyz/database" in of_code()["health_pages"]


def test_the_page_names_every_section_of_the_list() -> None:
    text = PAGE.read_text()
    assert [section for section in SECTIONS if f"`{section}`" not in text] == []


def test_the_page_gives_the_versions_of_pyproject() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = PAGE.read_text()
    assert f"`{project['requires-python']}`" in text
    for requirement in project["dependencies"]:
        name, _, bounds = requirement.partition(">=")
        assert f"| `{name}` | `>={bounds}` |" in text
    major, minor = map(int, psycopg.__version__.split(".")[:2])
    assert (major, minor) <= (3, 3)  # what these tests run on is among them
