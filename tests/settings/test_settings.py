"""Every setting: how its text is read, its bounds, where it comes from, and that no secret gets out."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pkg.errors import ConfigurationError
from pkg.settings import declared as settings
from pkg.settings.database_url import redact_url
from pkg.settings.declared import HEADINGS, SETTINGS, load
from pkg.settings.kinds import Setting
from pkg.settings.page import markdown
from pkg.settings.secrets import read_secret

# Enough of everything else that no check across settings speaks up while one value is at its bound.
ROOMY = {
    "PKG_GRACE_PERIOD": "24h",
    "PKG_BUFFER_SIZE": "1TiB",
    "PKG_POOL_MAX_SIZE": "1000",
    "PKG_POOL_MIN_SIZE": "1",
    "PKG_MAX_HEADER_SIZE": "65535",
    "PKG_MAX_TARGET_SIZE": "64",
    "PKG_BODY_BUFFER_SIZE": "1KiB",
    "PKG_RESPONSE_BUFFER_SIZE": "1KiB",
    "PKG_DRAIN_DELAY": "0",
    "PKG_DRAIN_TIMEOUT": "0",
    "PKG_STUCK_TIMEOUT": "0",
}
PASSWORD = "hunter2"
BOUNDED = [setting for setting in SETTINGS if setting.low is not None]


def faults(environ: dict[str, str], flags: dict[str, str] | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigurationError) as caught:
        load(environ, flags)
    assert caught.value.exit_code == 2
    assert str(caught.value) == "\n".join(caught.value.faults)
    return caught.value.faults


# --- declarations


def test_defaults_are_those_of_the_contract() -> None:
    values = {row.name: row.value for row in load({}).describe()}
    assert values == {
        "host": "0.0.0.0",
        "port": "8080",
        "listen": "",
        "health": "",
        "health_on_main": "true",
        "app": "",
        "interface": "auto",
        "lifespan": "auto",
        "loop": "auto",
        "script_name": "",
        "reload": "false",
        "threads": "8",
        "workers": "0",
        "preload": "false",
        "min_ready_workers": "0",
        "retry_idempotent": "true",
        "max_requests": "0",
        "max_worker_memory": "0",
        "trusted_proxies": "",
        "proxy_protocol": "false",
        "proxy_protocol_optional": "false",
        "pool": "true",
        "database_url": "",
        "database_url_file": "",
        "database_role": "any",
        "database_required": "true",
        "pool_min_size": "2",
        "pool_max_size": "10",
        "pool_timeout": "5s",
        "connect_timeout": "3s",
        "prepare_statements": "true",
        "database_check_interval": "2s",
        "max_connections": "10000",
        "max_queue": "1024",
        "max_header_size": "32KiB",
        "max_headers": "100",
        "max_target_size": "8KiB",
        "max_body_size": "100MiB",
        "body_buffer_size": "64KiB",
        "body_spool": "",
        "body_spool_size": "32MiB",
        "stream_bodies": "false",
        "response_buffer_size": "1MiB",
        "buffer_size": "32MiB",
        "header_timeout": "10s",
        "body_timeout": "30s",
        "min_body_rate": "500",
        "queue_timeout": "10s",
        "request_timeout": "0s",
        "write_timeout": "30s",
        "idle_timeout": "75s",
        "max_message_size": "16MiB",
        "websocket_compression": "true",
        "websocket_ping_interval": "20s",
        "websocket_ping_timeout": "20s",
        "drain_delay": "5s",
        "drain_timeout": "20s",
        "grace_period": "30s",
        "liveness_timeout": "30s",
        "stuck_timeout": "0s",
        "slow_callback_duration": "100ms",
        "liveness_path": "/healthz",
        "readiness_path": "/readyz",
        "log_level": "info",
        "log_format": "auto",
        "log_schema": "otel",
        "access_log": "true",
        "admin": "127.0.0.1:9901",
        "admin_token": "",
        "admin_token_file": "",
    }


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_declaration_is_complete(setting: Setting[object]) -> None:
    well_known = {"host", "port", "database_url", "database_url_file", "log_level", "log_format", "script_name"}
    upper = setting.name.upper()
    if setting.name == "workers":  # gunicorn's, uvicorn's, and Heroku's
        assert setting.environment == "WEB_CONCURRENCY"
        return
    assert setting.environment == (upper if setting.name in well_known else f"PKG_{upper}")
    assert setting.flag == ("APP" if setting.name == "app" else "--" + setting.name.replace("_", "-"))
    assert setting.help[:1].isupper() and setting.help.endswith(".")
    assert (setting.low is None) == (setting.high is None)
    if isinstance(setting.default, int | float) and not isinstance(setting.default, bool):
        assert setting.low is not None, "a number needs bounds"
    # The default is what its own text means, so that help, docs and `config` say what can be typed.
    shown = setting.kind.show(setting.default)
    assert setting.parse(shown) == setting.default if shown else setting.default == ""


def test_headings_name_settings() -> None:
    assert set(HEADINGS) <= {setting.name for setting in SETTINGS}
    assert SETTINGS[0].name in HEADINGS


# --- conversion


@pytest.mark.parametrize("setting", BOUNDED, ids=lambda setting: setting.name)
def test_bounds(setting: Setting[float]) -> None:
    """Both bounds are taken, what lies just outside is refused, and the refusal names variable, value and bounds."""
    assert setting.low is not None and setting.high is not None
    step = 0.001 if isinstance(setting.default, float) else 1
    for value in (setting.low, setting.high):
        loaded = load(ROOMY | {setting.environment: repr(value)})
        assert getattr(loaded, setting.name) == value
        assert type(getattr(loaded, setting.name)) is type(setting.default)
    for value in (setting.low - step, setting.high + step):
        text = f"{value:.3f}" if isinstance(value, float) else str(value)
        (fault,) = faults(ROOMY | {setting.environment: text})
        bounds = f"in the range {setting.kind.show(setting.low)} to {setting.kind.show(setting.high)}"
        assert fault == f"{setting.environment}: '{text}' is not {bounds}"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 5.0),
        ("0.5", 0.5),
        ("500ms", 0.5),
        ("5s", 5.0),
        ("2m", 120.0),
        ("0.5m", 30.0),
        ("1h", 3600.0),
        (" 5 s ", 5.0),
        ("0", 0.0),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert load({"PKG_DRAIN_DELAY": text, "PKG_GRACE_PERIOD": "24h"}).drain_delay == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("65536", 65536),
        ("64k", 65536),
        ("64K", 65536),
        ("64Ki", 65536),
        ("64KiB", 65536),
        ("64 kib", 65536),
        ("1MiB", 1 << 20),
        ("1m", 1 << 20),
        ("1GiB", 1 << 30),
        ("1T", 1 << 40),
        ("100b", 100),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert load({"PKG_MAX_BODY_SIZE": text}).max_body_size == size


@pytest.mark.parametrize("text", ["true", "1", "yes", "on", "TRUE"])
def test_true(text: str) -> None:
    assert load({"PKG_PROXY_PROTOCOL": text, "PKG_TRUSTED_PROXIES": "10.0.0.0/8"}).proxy_protocol is True


@pytest.mark.parametrize("text", ["false", "0", "no", "off", "Off"])
def test_false(text: str) -> None:
    assert load({"PKG_ACCESS_LOG": text}).access_log is False


@pytest.mark.parametrize(
    ("environ", "name", "value"),
    [
        ({"HOST": "::"}, "host", "::"),
        ({"HOST": "[::1]"}, "host", "::1"),
        ({"HOST": "fe80::1%eth0"}, "host", "fe80::1%eth0"),
        ({"HOST": "localhost"}, "host", "localhost"),
        ({"PKG_APP": "shop.web:make.app"}, "app", "shop.web:make.app"),
        ({"SCRIPT_NAME": "/shop/v1.2"}, "script_name", "/shop/v1.2"),
        ({"LOG_LEVEL": "WARN"}, "log_level", "warning"),
        ({"LOG_FORMAT": "Text"}, "log_format", "text"),
        ({"PKG_ADMIN": "OFF"}, "admin", "off"),
        ({"PKG_ADMIN": "[::1]:99"}, "admin", "[::1]:99"),
        ({"PKG_ADMIN": "localhost:0"}, "admin", "localhost:0"),
        ({"PKG_ADMIN": "0.0.0.0:99", "PKG_ADMIN_TOKEN": "t" * 8}, "admin", "0.0.0.0:99"),
        ({"PKG_TRUSTED_PROXIES": "10.0.0.0/8, ::1"}, "trusted_proxies", "10.0.0.0/8,::1/128"),
        ({"PKG_TRUSTED_PROXIES": "unix"}, "trusted_proxies", "unix"),
        ({"PKG_TRUSTED_PROXIES": "127.0.0.1, unix"}, "trusted_proxies", "127.0.0.1/32,unix"),
        ({"PORT": ""}, "port", 8080),
        ({"PORT": "  "}, "port", 8080),
        ({"PORT": " 80 "}, "port", 80),
    ],
)
def test_accepted(environ: dict[str, str], name: str, value: object) -> None:
    assert getattr(load(environ), name) == value


@pytest.mark.parametrize(
    ("environ", "fault"),
    [
        ({"PORT": "http"}, "PORT: 'http' is not a whole number"),
        ({"PORT": "8_0"}, "PORT: '8_0' is not a whole number"),
        ({"PORT": "\uff18\uff10"}, "PORT: '\\uff18\\uff10' is not a whole number"),
        ({"PORT": "9" * 5000}, f"PORT: '{'9' * 197}...' is not a whole number"),
        (
            {"PORT": "tcp://10.0.0.1:80"},
            "PORT: 'tcp://10.0.0.1:80' is a Kubernetes service link, not a port: set PORT in the container's env, or "
            "enableServiceLinks: false",
        ),
        (
            {"PKG_POOL_TIMEOUT": "nan"},
            "PKG_POOL_TIMEOUT: 'nan' is not a duration such as 5, 0.5, 500ms, 5s, 2m or 1h",
        ),
        ({"PKG_POOL_TIMEOUT": "1e3"}, "PKG_POOL_TIMEOUT: '1e3' is not a duration such as 5, 0.5, 500ms, 5s, 2m or 1h"),
        ({"PKG_POOL_TIMEOUT": "5d"}, "PKG_POOL_TIMEOUT: '5d' is not a duration such as 5, 0.5, 500ms, 5s, 2m or 1h"),
        (
            {"PKG_MAX_BODY_SIZE": "1.5MiB"},
            "PKG_MAX_BODY_SIZE: '1.5MiB' is not a size such as 65536, 64k, 64KiB, 1MiB or 1GiB",
        ),
        (
            {"PKG_MAX_BODY_SIZE": "1MB"},
            "PKG_MAX_BODY_SIZE: '1MB' is not a size such as 65536, 64k, 64KiB, 1MiB or 1GiB",
        ),
        ({"PKG_ACCESS_LOG": "maybe"}, "PKG_ACCESS_LOG: 'maybe' is neither true nor false"),
        ({"LOG_LEVEL": "loud"}, "LOG_LEVEL: 'loud' is not one of debug, info, warning, error, critical"),
        ({"PKG_APP": "shop"}, "PKG_APP: 'shop' is not module:attribute or module:factory()"),
        ({"PKG_APP": "shop:app:x"}, "PKG_APP: 'shop:app:x' is not module:attribute or module:factory()"),
        ({"PKG_APP": "shop/web.py:app"}, "PKG_APP: 'shop/web.py:app' is not module:attribute or module:factory()"),
        (
            {"SCRIPT_NAME": "/shop/"},
            "SCRIPT_NAME: '/shop/' is not a path such as /shop (it begins with a slash and does not end with one)",
        ),
        (
            {"SCRIPT_NAME": "shop"},
            "SCRIPT_NAME: 'shop' is not a path such as /shop (it begins with a slash and does not end with one)",
        ),
        ({"HOST": "0.0.0.0:80"}, "HOST: '0.0.0.0:80' is not a host name or an IP address (the port is set with PORT)"),
        ({"HOST": "http://x"}, "HOST: 'http://x' is not a host name or an IP address (the port is set with PORT)"),
        ({"PKG_ADMIN": "9901"}, "PKG_ADMIN: '9901' is neither off nor host:port"),
        ({"PKG_ADMIN": "::1:9901"}, "PKG_ADMIN: '::1:9901' is neither off nor host:port"),
        ({"PKG_ADMIN": "127.0.0.1:65536"}, "PKG_ADMIN: '127.0.0.1:65536' is neither off nor host:port"),
        (
            {"PKG_TRUSTED_PROXIES": "10.0.0.1/8"},
            "PKG_TRUSTED_PROXIES: '10.0.0.1/8' is not a comma-separated list of networks such as 10.0.0.0/8, "
            "fd00::/8, unix",
        ),
        ({"DATABASE_URL_FILE": "/a\nb"}, "DATABASE_URL_FILE: '/a\\nb' contains control characters"),
        ({"PKG_APP": "caf\udce9:app"}, "PKG_APP: 'caf\\udce9:app' is not valid UTF-8"),
        ({"PKG_ADMIN_TOKEN": "short"}, "PKG_ADMIN_TOKEN: must be 8 to 512 visible ASCII characters"),
        ({"PKG_ADMIN_TOKEN": "sécret-sécret"}, "PKG_ADMIN_TOKEN: must be 8 to 512 visible ASCII characters"),
        ({"PKG_STUCK_TIMEOUT": "500ms"}, "PKG_STUCK_TIMEOUT: 500ms is neither 0 (off) nor at least 1s"),
    ],
)
def test_refused(environ: dict[str, str], fault: str) -> None:
    assert faults(environ) == (fault,)


# --- several settings together


@pytest.mark.parametrize(
    ("environ", "fault"),
    [
        (
            {"PKG_DRAIN_DELAY": "9"},
            "PKG_GRACE_PERIOD: 30s is too short for drain_delay 9s + drain_timeout 20s + 2s",
        ),
        ({"PKG_POOL_MIN_SIZE": "11"}, "PKG_POOL_MIN_SIZE: 11 is more than pool_max_size (10)"),
        (
            {"PKG_MAX_TARGET_SIZE": "2k", "PKG_MAX_HEADER_SIZE": "1k"},
            "PKG_MAX_TARGET_SIZE: 2KiB is more than max_header_size (1KiB)",
        ),
        ({"PKG_BODY_BUFFER_SIZE": "33m"}, "PKG_BODY_BUFFER_SIZE: 33MiB is more than buffer_size (32MiB)"),
        ({"PKG_RESPONSE_BUFFER_SIZE": "33m"}, "PKG_RESPONSE_BUFFER_SIZE: 33MiB is more than buffer_size (32MiB)"),
        (
            {"PKG_PROXY_PROTOCOL": "on"},
            "PKG_PROXY_PROTOCOL: requires trusted_proxies, the networks from which it is accepted",
        ),
        (
            {"PKG_ADMIN": "0.0.0.0:9901"},
            "PKG_ADMIN: 0.0.0.0:9901 is not a loopback address: set admin_token or admin_token_file",
        ),
        (
            {"PKG_ADMIN": "127.0.0.evil.example:9901"},
            "PKG_ADMIN: 127.0.0.evil.example:9901 is not a loopback address: set admin_token or admin_token_file",
        ),
        ({"PKG_ADMIN": "127.0.0.1:8080"}, "PKG_ADMIN: 127.0.0.1:8080 uses the port of the service itself"),
    ],
)
def test_across_settings(environ: dict[str, str], fault: str) -> None:
    assert faults(environ) == (fault,)


def test_drain_plan_may_fill_the_grace_period() -> None:
    assert load({"PKG_DRAIN_DELAY": "8"}).drain_delay == 8.0


def test_port_of_the_default_admin_listener_is_no_fault() -> None:
    assert load({"PORT": "9901"}).origin("admin") == "default"


def test_all_faults_at_once() -> None:
    environ = {
        "PORT": "x",
        "PKG_THREADS": "0",
        "DATABASE_URL": f"mysql://u:{PASSWORD}@h/db",
        "PKG_DRAIN_DELAY": "29",
        "PKG_ADMIN": "0.0.0.0:1",
        "PKG_ADMIN_TOKEN_FILE": "/nonexistent/token",
        "LOG_FORMAT": "xml",
    }
    found = faults(environ, {"max_headers": "7"})
    assert [fault.partition(":")[0] for fault in found] == [
        "PORT",
        "PKG_THREADS",
        "DATABASE_URL",
        "--max-headers",
        "LOG_FORMAT",
        "PKG_ADMIN_TOKEN_FILE",
        "PKG_GRACE_PERIOD",  # and nothing about the admin listener's token: its file is wrong, that is said already
    ]
    assert PASSWORD not in "\n".join(found)


# --- where values come from


def test_flag_beats_environment_beats_default() -> None:
    loaded = load({"PORT": "1", "PKG_THREADS": "2"}, {"port": "3"})
    assert (loaded.port, loaded.threads, loaded.max_queue) == (3, 2, 1024)
    origins = {row.name: row.origin for row in loaded.describe()}
    assert (origins["port"], origins["threads"], origins["max_queue"]) == ("flag", "environment", "default")
    assert loaded.origin("port") == "flag"


def test_faults_name_the_flag_when_it_was_the_flag() -> None:
    assert faults({"PORT": "1"}, {"port": "-1"}) == ("--port: '-1' is not in the range 0 to 65535",)
    assert faults({}, {"app": "x"}) == ("APP: 'x' is not module:attribute or module:factory()",)
    assert faults({}, {"port": ""}) == ("--port: '' is not a whole number",)
    assert faults({}, {"nonsense": "1"}) == ("nonsense is not a setting",)


def test_settings_are_frozen() -> None:
    loaded = load({})
    with pytest.raises(AttributeError):
        loaded.port = 1
    with pytest.raises(AttributeError):
        loaded.anything = 1
    assert loaded.port == 8080


@pytest.mark.parametrize(
    ("name", "value", "warning"),
    [
        ("PKG_DRAIN_DELY", "1", "PKG_DRAIN_DELY is not a setting: did you mean PKG_DRAIN_DELAY?"),
        ("PKG_PORT", "8080", "PKG_PORT is not a setting: did you mean PORT?"),
        (
            "PKG_DATABASE_URL",
            f"postgres://u:{PASSWORD}@h",
            "PKG_DATABASE_URL is not a setting: did you mean DATABASE_URL?",
        ),
        ("PKG_ZZZZZZ", "1", "PKG_ZZZZZZ is not a setting"),
        ("PKG_\udcff", "1", "PKG_\\udcff is not a setting"),
    ],
)
def test_unknown_variable_is_a_warning(name: str, value: str, warning: str) -> None:
    assert load({name: value}).warnings == (warning,)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PKG_SERVICE_HOST", "10.0.0.1"),
        ("PKG_SERVICE_PORT", "80"),
        ("PKG_SERVICE_PORT_HTTP", "80"),
        ("PKG_PORT", "tcp://10.0.0.1:80"),
        ("PKG_PORT_8080_TCP", "tcp://10.0.0.1:8080"),
        ("PKG_PORT_8080_TCP_PROTO", "tcp"),
        ("PKG_PORT_8080_TCP_PORT", "8080"),
        ("PKG_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("PKG_PORT_53_UDP", "udp://10.0.0.1:53"),
        ("PKG_WEB_SERVICE_HOST", "10.0.0.1"),
        ("PKG_WEB_PORT", "tcp://10.0.0.1:80"),
        ("PKG_WEB_PORT_80_TCP_ADDR", "10.0.0.1"),
        ("PACKAGE", "not ours"),
    ],
)
def test_service_links_of_kubernetes_are_no_warning(name: str, value: str) -> None:
    assert load({name: value}).warnings == ()


# --- the database's URL


@pytest.mark.parametrize(
    ("url", "value", "shown"),
    [
        ("postgresql://", "postgresql://", "postgresql://"),
        ("postgres://h/db", "postgresql://h/db", "postgresql://h/db"),
        ("postgresql+psycopg://h/db", "postgresql://h/db", "postgresql://h/db"),
        ("POSTGRES://h/db", "postgresql://h/db", "postgresql://h/db"),
        ("postgresql://u@h/db", "postgresql://u@h/db", "postgresql://u@h/db"),
        (f"postgres://u:{PASSWORD}@h:5433/db", f"postgresql://u:{PASSWORD}@h:5433/db", "postgresql://u:***@h:5433/db"),
        (f"postgres://:{PASSWORD}@h", f"postgresql://:{PASSWORD}@h", "postgresql://:***@h"),
        ("postgres://u:p%40%2F%3A@[::1]:1/db", "postgresql://u:p%40%2F%3A@[::1]:1/db", "postgresql://u:***@[::1]:1/db"),
        ("postgres://u:a:b@h1:1,h2,:3/db", "postgresql://u:a:b@h1:1,h2,:3/db", "postgresql://u:***@h1:1,h2,:3/db"),
        ("postgres://%2Fvar%2Frun/db", "postgresql://%2Fvar%2Frun/db", "postgresql://%2Fvar%2Frun/db"),
        (
            f"postgres://h/db?sslmode=require&password={PASSWORD}",
            f"postgresql://h/db?sslmode=require&password={PASSWORD}",
            "postgresql://h/db?sslmode=require&password=***",
        ),
        (
            f"postgres://h/db?pass%77ord={PASSWORD}&sslpassword=x&unheard={PASSWORD}",
            f"postgresql://h/db?pass%77ord={PASSWORD}&sslpassword=x&unheard={PASSWORD}",
            "postgresql://h/db?password=***&sslpassword=***&***=***",
        ),
    ],
)
def test_database_url(url: str, value: str, shown: str) -> None:
    loaded = load({"DATABASE_URL": url})
    assert loaded.database_url == value
    (row,) = (row for row in loaded.describe() if row.name == "database_url")
    assert (row.value, row.origin, row.default) == (shown, "environment", "")
    assert PASSWORD not in repr(loaded)


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://u:{PASSWORD}@h/db",
        f"postgresql+psycopg2://u:{PASSWORD}@h/db",
        f"u:{PASSWORD}@h/db",
        f"host=h password={PASSWORD}",
        f"postgres:/u:{PASSWORD}@h/db",
        f"postgres://u:{PASSWORD}@{PASSWORD}@h/db",
        f"postgres://u:{PASSWORD}/x@h/db",
        f"postgres://u:{PASSWORD}?x@h/db",
        f"postgres://u:1?{PASSWORD}@h/db",
        f"postgres://u:{PASSWORD}%zz@h/db",
        f"postgres://u:{PASSWORD} x@h/db",
        f"postgres://u:{PASSWORD}\n@h/db",
        f"postgres://u:{PASSWORD}@h:{PASSWORD}/db",
        f"postgres://u:{PASSWORD}@h:0/db",
        f"postgres://u:{PASSWORD}@h:65536/db",
        f"postgres://u:{PASSWORD}@::1/db",
        f"postgres://u:{PASSWORD}@[::1/db",
        f"postgres://u:{PASSWORD}@h/db?{PASSWORD}",
        f"postgres://u:{PASSWORD}@h/db?={PASSWORD}",
        f"postgres://u:{PASSWORD}@h/db?a=b={PASSWORD}",
        f"postgres://u:{PASSWORD}@h/db?target_session_attrs={PASSWORD}",
        f"postgres://h/db;password={PASSWORD}",
        f"postgres://h/db&password={PASSWORD}",
        f"postgres://h&password={PASSWORD}",
        f"postgres://u:{PASSWORD}\udcff@h/db",
    ],
)
def test_wrong_database_url_is_refused_without_its_password(url: str, tmp_path: Path) -> None:
    (fault,) = faults({"DATABASE_URL": url})
    assert fault.startswith("DATABASE_URL: ") and "\n" not in fault
    assert PASSWORD not in fault
    assert redact_url(url) == "***"
    path = tmp_path / "url"
    path.write_bytes(url.encode("utf-8", "surrogateescape"))
    (fault,) = faults({"DATABASE_URL_FILE": str(path)})
    assert fault.startswith(f"DATABASE_URL_FILE: {str(path)!a} ")
    assert PASSWORD not in fault


def test_url_where_it_does_not_belong_loses_its_password() -> None:
    for name in ("PKG_APP", "PORT", "HOST", "PKG_DATABASE_ROLE", "DATABASE_URL_FILE"):
        (fault,) = faults({name: f"postgres://u:{PASSWORD}/@{PASSWORD}@h/db"})
        assert PASSWORD not in fault and "://***@h/db" in fault


@pytest.mark.parametrize(
    ("query", "explicit", "role", "origin"),
    [
        ("", None, "any", "default"),
        ("?target_session_attrs=any", None, "any", "default"),
        ("?target_session_attrs=read-write", None, "primary", "implied"),
        ("?sslmode=disable&target_session_attrs=primary", None, "primary", "implied"),
        ("?target_session_attrs=read%2Dwrite", None, "primary", "implied"),
        ("?target_session_attrs=standby", None, "any", "default"),
        ("?target_session_attrs=read-write", "any", "any", "environment"),
        ("", "primary", "primary", "environment"),
    ],
)
def test_role_implied_by_the_url(query: str, explicit: str | None, role: str, origin: str, tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text(f"postgres://h/db{query}\n")
    environ = {"PKG_DATABASE_ROLE": explicit} if explicit else {}
    for source in ({"DATABASE_URL": f"postgres://h/db{query}"}, {"DATABASE_URL_FILE": str(path)}):
        loaded = load(environ | source)
        assert (loaded.database_role, loaded.origin("database_role")) == (role, origin)


# --- secrets in files


def test_database_url_file_is_kept_as_a_path(tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text(f"\n postgres://u:{PASSWORD}@h/db \n")
    loaded = load({"DATABASE_URL_FILE": str(path)})
    assert loaded.database_url_file == str(path)
    assert loaded.database_url == ""  # it is read again for each connection: an old copy would be the wrong one
    row = next(row for row in loaded.describe() if row.name == "database_url")
    assert (row.value, row.origin) == ("postgresql://u:***@h/db", "file")
    assert read_secret(str(path)) == f"postgres://u:{PASSWORD}@h/db"
    assert PASSWORD not in repr(loaded)


def test_admin_token_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("a-long-token\n")
    loaded = load({"PKG_ADMIN_TOKEN_FILE": str(path), "PKG_ADMIN": "0.0.0.0:1"})
    assert loaded.admin_token == "a-long-token"
    row = next(row for row in loaded.describe() if row.name == "admin_token")
    assert (row.value, row.origin) == ("***", "file")
    assert "a-long-token" not in repr(loaded)


def test_wrong_secret_files(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "latin").write_bytes(b"postgres://u:\xff@h")
    (tmp_path / "long").write_bytes(b"x" * 65537)
    os.mkfifo(tmp_path / "fifo")
    for name, reason in (
        ("missing", "cannot be read: No such file or directory"),
        ("empty", "is empty"),
        ("latin", "is not valid UTF-8"),
        ("long", "is longer than 64KiB"),
        ("fifo", "cannot be read: it is not a regular file"),
        ("", "cannot be read: it is not a regular file"),
    ):
        path = os.path.join(tmp_path, name) if name else str(tmp_path)
        for variable in ("DATABASE_URL_FILE", "PKG_ADMIN_TOKEN_FILE"):
            assert faults({variable: path}) == (f"{variable}: {path!a} {reason}",)


def test_secret_file_without_permission(tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text("postgres://h")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:  # who may read everything
        os.seteuid(65534)
    try:
        (fault,) = faults({"DATABASE_URL_FILE": str(path)})
    finally:
        os.seteuid(user)
    assert fault == f"DATABASE_URL_FILE: {str(path)!a} cannot be read: Permission denied"


def test_value_and_file_together_are_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "url"
    path.write_text("postgres://h")
    assert faults({"DATABASE_URL": "postgres://h", "DATABASE_URL_FILE": str(path)}) == (
        "DATABASE_URL and DATABASE_URL_FILE are both set; set only one of them",
    )
    assert faults({"DATABASE_URL_FILE": str(path)}, {"database_url": "postgres://h"}) == (
        "--database-url and DATABASE_URL_FILE are both set; set only one of them",
    )


# --- docs/settings.md


def test_markdown_has_one_row_for_each_setting() -> None:
    table = markdown()
    names = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", table, re.MULTILINE)
    assert names == [(setting.name, setting.environment) for setting in SETTINGS]
    rows = [line for line in table.partition("\n## ")[2].splitlines() if line.startswith("|")]
    assert len(rows) == len(SETTINGS) + 2 * len(settings.HEADINGS)
    assert all(len(re.findall(r"(?<!\\)\|", row)) == 6 for row in rows)


def test_the_page_is_of_these_settings() -> None:
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    wanted = f"{markdown()}\n"
    assert page.read_text() == wanted, "write it again: python -m pkg config --markdown >docs/settings.md"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("drain_delay", "500ms", 0.5), ("drain_delay", "2s", 2.0), ("idle_timeout", "5m", 300.0),
        ("idle_timeout", "1h", 3600.0), ("idle_timeout", "90", 90.0), ("body_buffer_size", "65536", 65536),
        ("body_buffer_size", "64k", 65536), ("body_buffer_size", "64KiB", 65536), ("buffer_size", "1MiB", 1 << 20),
        ("trusted_proxies", "10.0.0.0/8,fd00::/8", "10.0.0.0/8,fd00::/8"),
        *(("access_log", word, True) for word in ("true", "yes", "on", "1")),
        *(("access_log", word, False) for word in ("false", "no", "off", "0")),
    ],
)  # fmt: skip
def test_values_are_written_as_the_page_says(name: str, text: str, value: object) -> None:
    assert f"`{text}`" in markdown()
    assert getattr(load({}, {name: text}), name) == value
