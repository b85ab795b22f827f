"""A setting that has been renamed is still found under its former name."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pkg.errors import ConfigurationError
from pkg.settings.declared import load
from tests.support.client import wait_for
from tests.support.faults.postgres import Postgres
from tests.support.ports import free_port
from tests.support.processes import ask, running

NAME, VARIABLE, FORMER = "database_check_interval", "PKG_DATABASE_CHECK_INTERVAL", "PKG_CHECK_INTERVAL"
RENAMED = f"{FORMER} is now called {VARIABLE}"
RENAMED_FLAG = "--check-interval is now called --database-check-interval"


@pytest.mark.parametrize(
    ("environ", "flags", "value", "origin", "warnings"),
    [
        ({FORMER: "7s"}, {}, 7.0, "environment", [RENAMED]),
        ({FORMER: "7s", VARIABLE: "8s"}, {}, 8.0, "environment", []),
        ({FORMER: " ", VARIABLE: "8s"}, {}, 8.0, "environment", []),
        ({FORMER: "7s", VARIABLE: " "}, {}, 7.0, "environment", [RENAMED]),
        ({}, {"check_interval": "9s"}, 9.0, "flag", [RENAMED_FLAG]),
        ({FORMER: "7s"}, {"check_interval": "9s"}, 9.0, "flag", [RENAMED_FLAG]),
        ({FORMER: "7s"}, {NAME: "9s"}, 9.0, "flag", []),
        ({FORMER: "8s"}, {"check_interval": "9s", NAME: "10s"}, 10.0, "flag", []),
    ],
)
def test_the_former_name(
    environ: dict[str, str], flags: dict[str, str], value: float, origin: str, warnings: list[str]
) -> None:
    settings = load(environ, flags)
    assert settings.database_check_interval == value
    assert settings.origin(NAME) == origin
    assert list(settings.warnings) == warnings


@pytest.mark.parametrize(
    ("environ", "flags", "named"),
    [({FORMER: "soon"}, {}, FORMER), ({}, {"check_interval": "soon"}, "--check-interval")],
)
def test_a_fault_names_what_was_typed(environ: dict[str, str], flags: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{named}: 'soon'"):
        load(environ, flags)


def test_the_former_flag_is_not_shown() -> None:
    command = [sys.executable, "-m", "pkg", "--help-all"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "--database-check-interval " in shown
    assert "--check-interval" not in shown


@pytest.mark.parametrize("kind", ["variable", "flag"])
def test_a_service_checks_as_often_as_the_former_name_says(tmp_path: Path, kind: str) -> None:
    admin = free_port()
    flags = ("--check-interval", "100ms") if kind == "flag" else ()
    environ = {} if kind == "flag" else {FORMER: "100ms"}
    with (
        Postgres() as server,
        running(
            tmp_path, "app = None", *flags, app="", DATABASE_URL=server.url, PKG_ADMIN=f"127.0.0.1:{admin}", **environ
        ) as process,
    ):
        process.await_message(RENAMED_FLAG if kind == "flag" else RENAMED)

        def checks() -> int:
            return int(json.loads(ask(("127.0.0.1", admin), "/debug/pool?format=json")[2])["checks"])

        first = wait_for(checks)
        wait_for(lambda: checks() >= first + 15)  # every 2 seconds, as without it, that would take 30
