"""The settings that docs/deploying.md gives for platforms fit, and keep to the time that a platform leaves."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from pkg.settings.declared import load
from tests.support.client import Connection, wait_for
from tests.support.processes import running
from tests.support.tables import names, tables

ROWS = {row["platform"]: row for row in tables("deploying.md", "platform", "what it does", "settings")}
SOURCE = """
import time
def app(environ, start_response):
    open("begun", "w").close()
    time.sleep(60)
    start_response("200 OK", [])
    return [b"late"]
"""


def environ_of(platform: str) -> dict[str, str]:
    return dict(name.split("=") for name in names(ROWS[platform]["settings"]))


@pytest.mark.parametrize("platform", ROWS)
def test_the_drain_fits(platform: str) -> None:
    settings = load(environ_of(platform))  # raises for a drain that is too long
    assert list(settings.warnings) == []
    assert settings.drain_delay + settings.drain_timeout + 2 <= settings.grace_period


def test_the_end_on_cloud_run(tmp_path: Path) -> None:
    """A request that does not end is aborted before the platform's SIGKILL, 10 s after its SIGTERM."""
    environ = environ_of("Cloud Run") | {"PKG_LOG_SCHEMA": "otel"}  # which the helpers read
    with running(tmp_path, SOURCE, **environ) as process, Connection(process.address) as connection:
        connection.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_for((tmp_path / "begun").exists)
        begun = time.monotonic()
        end = threading.Timer(10.0, process.process.kill)
        end.start()
        assert process.stop(signal.SIGTERM) == 1
        end.cancel()
        assert 6.0 < time.monotonic() - begun < 10.0
