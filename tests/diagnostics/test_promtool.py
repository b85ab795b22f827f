"""What Prometheus' own linter says of the metrics: nothing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from pkg.diagnostics import metrics
from tests.support.client import get
from tests.support.ports import free_port
from tests.support.processes import ask, running

PROMTOOL = shutil.which("promtool")
needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed (Debian: prometheus)")


def check(page: str) -> str:
    """What promtool has to say."""
    assert PROMTOOL is not None
    run = subprocess.run([PROMTOOL, "check", "metrics"], input=page, capture_output=True, text=True, timeout=60)
    return run.stdout + run.stderr


@needs_promtool
def test_promtool_finds_nothing_in_the_page(tmp_path: Path) -> None:
    source = "def app(environ, start_response):\n    start_response('500 Fails', [])\n    return []\n"
    port = free_port()
    with running(tmp_path, source, PKG_ADMIN=f"127.0.0.1:{port}") as process:
        assert get(process.address, "/").status == 500
        _, _, page = ask(("127.0.0.1", port), "/metrics")
    assert 'error_type="500"' in page and 'url_scheme="http"' in page
    assert check(page) == ""


@needs_promtool
def test_promtool_finds_nothing_in_the_pools_part() -> None:
    page = metrics.Exposition()
    stats = {"pool_size": 2, "pool_available": 1, "requests_num": 3, "usage_ms": 12}
    metrics._add_pools(page, {"": stats, "replica": stats})
    assert check(page.text()) == ""
