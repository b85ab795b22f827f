"""Settings of several databases: `DATABASE_URL_<NAME>` declares a name, which has settings of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pkg.errors import ConfigurationError
from pkg.settings.declared import NAMED, SETTINGS, known_variables, load
from pkg.settings.kinds import Setting

PASSWORD = "hunter2"
URL = f"postgres://app:{PASSWORD}@h/db"


def faults(**environ: str) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as raised:
        load(environ)
    assert PASSWORD not in str(raised.value)
    return raised.value.faults


def names(environ: dict[str, str]) -> list[str]:
    return list(load(environ).databases)


def test_a_url_or_its_file_declares_a_name(tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text(URL)
    loaded = load({"DATABASE_URL_READ_REPLICA": URL, "DATABASE_URL_B2_FILE": str(path), "DATABASE_URL": URL})
    assert [(name, bool(own.database_url), own.database_url_file) for name, own in loaded.databases.items()] == [
        ("", True, ""),
        ("b2", False, str(path)),
        ("read_replica", True, ""),
    ]
    assert loaded.warnings == ()
    assert PASSWORD not in repr(loaded) + repr(loaded.databases) + str(loaded.describe())


def test_there_need_be_none_without_a_name() -> None:
    assert names({"DATABASE_URL_A": URL}) == ["a"]
    assert names({"DATABASE_URL_A": " "}) == []


def test_what_has_no_value_of_its_own_is_as_without_a_name() -> None:
    general = {"PKG_POOL_MAX_SIZE": "20", "PKG_DATABASE_ROLE": "primary", "PKG_DATABASE_REQUIRED": "no"}
    own = {"PKG_POOL_TIMEOUT_A": "7s", "PKG_DATABASE_ROLE_B": "primary", "PKG_DATABASE_CHECK_INTERVAL_B": "9"}
    loaded = load({"DATABASE_URL_A": URL, "DATABASE_URL_B": URL, **general, **own}, {"connect_timeout": "9s"})
    a, b = loaded.databases.values()
    assert (a.pool_max_size, a.connect_timeout, a.pool_timeout, a.database_check_interval) == (20, 9.0, 7.0, 2.0)
    assert (b.pool_max_size, b.connect_timeout, b.pool_timeout, b.database_check_interval) == (20, 9.0, 5.0, 9.0)
    # Each server has a role and an importance of its own.
    assert (a.database_role, a.database_required, b.database_role, b.database_required) == (
        "any",
        True,
        "primary",
        True,
    )


def test_the_role_is_implied_by_its_own_url() -> None:
    writable = "postgres://h/db?target_session_attrs=read-write"
    a, b = load({"DATABASE_URL_A": writable, "DATABASE_URL_B": URL}).databases.values()
    assert (a.database_role, b.database_role) == ("primary", "any")


OWN_VALUES = {
    "pool": "false",
    "database_url": "postgresql://h",
    "database_url_file": "",  # cannot be set beside the URL
    "database_role": "primary",
    "database_required": "false",
    "pool_min_size": "3",
    "pool_max_size": "4",
    "pool_timeout": "6s",
    "connect_timeout": "7s",
    "prepare_statements": "false",
    "database_check_interval": "8s",
}


@pytest.mark.parametrize("setting", NAMED, ids=lambda setting: setting.name)
def test_every_one_is_read_by_its_variable(setting: Setting[object]) -> None:
    text = OWN_VALUES[setting.name]
    loaded = load({"DATABASE_URL_A": "postgresql://h", setting.variable("a"): text})
    row = next(row for row in loaded.describe() if row.environment == setting.variable("a"))
    assert (row.name, row.value, row.origin) == (setting.called("a"), text, "environment" if text else "default")


@pytest.mark.parametrize(
    ("environ", "fault"),
    [
        (
            {"DATABASE_URL_A": f"mysql://u:{PASSWORD}@h/db"},
            "DATABASE_URL_A: the URL does not begin with postgresql://, postgres:// or postgresql+psycopg://; "
            "if only the application uses it, set PKG_POOL_A=off",
        ),
        (
            {"DATABASE_URL_A": URL, "DATABASE_URL_A_FILE": "/x"},
            "DATABASE_URL_A and DATABASE_URL_A_FILE are both set; set only one of them",
        ),
        (
            {"DATABASE_URL_A_FILE": "/nowhere"},
            "DATABASE_URL_A_FILE: '/nowhere' cannot be read: No such file or directory",
        ),
        (
            {"DATABASE_URL_A": URL, "PKG_POOL_MAX_SIZE_A": "1"},
            "PKG_POOL_MIN_SIZE_A: 2 is more than pool_max_size_a (1)",
        ),
        (
            {"DATABASE_URL_A": URL, "PKG_POOL_MIN_SIZE_A": "11"},
            "PKG_POOL_MIN_SIZE_A: 11 is more than pool_max_size_a (10)",
        ),
        # What is wrong without a name is said once.
        ({"DATABASE_URL_A": URL, "PKG_POOL_MIN_SIZE": "11"}, "PKG_POOL_MIN_SIZE: 11 is more than pool_max_size (10)"),
        (
            {"DATABASE_URL_A": URL, "PKG_POOL_MIN_SIZE": "x", "PKG_POOL_MAX_SIZE_A": "1"},
            "PKG_POOL_MIN_SIZE: 'x' is not a whole number",
        ),
        (
            {"DATABASE_URL_A": URL, "PKG_POOL_TIMEOUT_A": "0"},
            "PKG_POOL_TIMEOUT_A: '0' is not in the range 10ms to 600s",
        ),
        (
            {"DATABASE_URL_A": URL, "PKG_DATABASE_REQUIRED_A": "perhaps"},
            "PKG_DATABASE_REQUIRED_A: 'perhaps' is neither true nor false",
        ),
        ({"DATABASE_URL_A": URL, "PKG_DATABASE_ROLE_A": URL}, None),
    ],
)
def test_a_fault_names_the_variable(environ: dict[str, str], fault: str | None) -> None:
    (found,) = faults(**environ)
    assert fault is None or found == fault


def test_the_content_of_a_file_is_no_part_of_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text(f"mysql://u:{PASSWORD}@h/db")
    (fault,) = faults(DATABASE_URL_A_FILE=str(path))
    assert fault.startswith(f"DATABASE_URL_A_FILE: {str(path)!a} contains an invalid value: the URL does not begin")
    assert fault.endswith("set PKG_POOL_A=off")


def test_a_pool_is_turned_off_for_one_name_or_for_all() -> None:
    environ = {"DATABASE_URL": URL, "DATABASE_URL_A": "mysql://h", "DATABASE_URL_B": URL}
    assert names({**environ, "PKG_POOL_A": "off"}) == ["", "b"]
    for more in ({}, {"PKG_POOL_A": "on"}):
        loaded = load({**environ, "PKG_POOL": "off", **more})
        assert (loaded.databases, loaded.warnings) == ({}, ())


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        (
            "PKG_POOL_TIMEOUT_REPLCA",
            "PKG_POOL_TIMEOUT_REPLCA has no effect without DATABASE_URL_REPLCA: did you mean PKG_POOL_TIMEOUT_REPLICA?",
        ),
        ("PKG_POOL_MAX_SIZE_X", "PKG_POOL_MAX_SIZE_X has no effect without DATABASE_URL_X"),
        (
            "PKG_POOL_MX_SIZE_REPLICA",
            "PKG_POOL_MX_SIZE_REPLICA is not a setting: did you mean PKG_POOL_MAX_SIZE_REPLICA?",
        ),
        ("PKG_POOL_REPLCA", "PKG_POOL_REPLCA is not a setting: did you mean PKG_POOL_REPLICA?"),
        ("PKG_POOL_MAX_SIZ", "PKG_POOL_MAX_SIZ is not a setting: did you mean PKG_POOL_MAX_SIZE?"),
        ("PKG_DATABASE_URL_REPLICA", "PKG_DATABASE_URL_REPLICA is not a setting: did you mean DATABASE_URL_REPLICA?"),
    ],
)
def test_a_variable_of_no_database_is_a_warning(name: str, warning: str) -> None:
    assert load({"DATABASE_URL_REPLICA": URL, name: "3"}).warnings == (warning,)


@pytest.mark.parametrize(
    "name",
    ["", "2ND", "_A", "replica", "A-B", "A" * 41, "FILE_FILE", "MAIN", "DATABASE", "TIMEOUT", "MAX_SIZE_A", "\udcff"],
)
def test_what_cannot_be_a_name_is_ignored_with_a_warning(name: str) -> None:
    loaded = load({f"DATABASE_URL_{name}": URL})
    (warning,) = loaded.warnings
    assert warning.startswith(f"ignoring DATABASE_URL_{ascii(name)[1:-1]}: the name of a database is")
    assert loaded.databases == {} and PASSWORD not in warning


def test_no_variable_means_two_things() -> None:
    """PKG_POOL_TIMEOUT_A could be of the pool of TIMEOUT_A, but for the names that are refused."""
    others = (
        "MIN_SIZE",
        "MAX_SIZE",
        "TIMEOUT",
        "SIZE",
        "REQUIRED",
        "INTERVAL",
        "STATEMENTS",
        "ROLE",
        "A",
        "URL",
        "POOL",
    )
    environ = {f"DATABASE_URL_{first}{last}": URL for first in others for last in ("", "_A", "_FILE", "_A_FILE")}
    found = [variable for name in load_names(environ) for variable in (setting.variable(name) for setting in NAMED)]
    assert len(set(found)) == len(found)
    assert not set(found) & {setting.environment for setting in SETTINGS}


def load_names(environ: dict[str, str]) -> list[str]:
    prefix = "DATABASE_URL_"
    known = known_variables(environ)
    return sorted(
        {v.removeprefix(prefix).lower() for v in known if v.startswith(prefix) and not v.endswith("_FILE")} - {"file"}
    )


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("DATABASE_URL_SERVICE_HOST", "10.0.0.1"),
        ("DATABASE_URL_SERVICE_PORT", "5432"),
        ("DATABASE_URL_SERVICE_PORT_PG", "5432"),
        ("DATABASE_URL_PORT", "tcp://10.0.0.1:5432"),
        ("DATABASE_URL_PORT_5432_TCP", "tcp://10.0.0.1:5432"),
        ("DATABASE_URL_PORT_5432_TCP_PROTO", "tcp"),
        ("DATABASE_URL_PORT_5432_TCP_PORT", "5432"),
        ("DATABASE_URL_PORT_5432_TCP_ADDR", "10.0.0.1"),
        ("DATABASE_URL_REPLICA_SERVICE_HOST", "10.0.0.1"),
        ("DATABASE_URL_REPLICA_PORT", "udp://10.0.0.1:53"),
        ("DATABASE_URL_REPLICA_PORT_5432_TCP_ADDR", "10.0.0.1"),
    ],
)
def test_service_links_of_kubernetes_are_no_names(variable: str, text: str) -> None:
    loaded = load({variable: text})
    assert (loaded.databases, loaded.warnings) == ({}, ())
    assert len(loaded.describe()) == len(SETTINGS)


def test_a_url_is_not_taken_for_a_service_link() -> None:
    assert names({"DATABASE_URL_PORT": URL, "DATABASE_URL_SERVICE_HOST": URL}) == ["port", "service_host"]


def test_config_shows_them() -> None:
    environ = {"PATH": os.environ["PATH"], "DATABASE_URL_REPLICA": URL, "PKG_POOL_MAX_SIZE_REPLICA": "4"}
    command = [sys.executable, "-m", "pkg", "config", "--pool-min-size", "1"]
    shown = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=True).stdout
    rows = [line.split() for line in shown.splitlines() if "_replica" in line]
    assert ["database_url_replica", "postgresql://app:***@h/db", "environment", "DATABASE_URL_REPLICA", "-"] in rows
    assert ["pool_max_size_replica", "4", "environment", "PKG_POOL_MAX_SIZE_REPLICA", "10"] in rows
    assert ["pool_min_size_replica", "1", "default", "1"] in rows
    assert PASSWORD not in shown


def test_the_help_and_the_page_name_their_variables() -> None:
    command = [sys.executable, "-m", "pkg", "--help-all"]
    text = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text()
    for setting in NAMED:
        assert setting.variable("<name>") in text and f"`{setting.variable('<name>')}`" in page
