"""Sentry's SDK and Datadog's agent: what they send has the id of the request, and the drain loses nothing of it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.client import get, wait_for
from tests.support.collector import Received, collecting
from tests.support.pages import files_of
from tests.support.ports import free_port
from tests.support.processes import running

ROOT = Path(__file__).parents[2]
PAGE = files_of(ROOT / "docs" / "logs-and-metrics.md")["reported.py"]
# The same without a framework: nothing but the record of the service tells of the exception.
BARE = re.sub(r"@app.get.*", "", PAGE, flags=re.S).replace("app = Flask(__name__)", "") + (
    "\ndef app(environ, start_response):\n    raise ValueError('no such article')\n"
)
TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def events(received: Received) -> list[dict[str, Any]]:
    """Of the envelopes: a line of JSON for each envelope, each item's head, and each item."""
    lines = [json.loads(line) for _, data in received for line in data.splitlines() if line.startswith(b"{")]
    return [line for line in lines if "exception" in line]


@pytest.mark.parametrize("source", [PAGE, BARE], ids=["flask", "bare"])
def test_sentry(tmp_path: Path, source: str) -> None:
    pytest.importorskip("sentry_sdk")
    with collecting() as (port, received):
        dsn = f"http://key@127.0.0.1:{port}/1"
        with running(tmp_path, source, SENTRY_DSN=dsn, NO_PROXY="127.0.0.1", PKG_ADMIN="off") as process:
            answer = get(process.address, "/")
            assert answer.status == 500
            assert get(process.address, "/readyz").status == 200
            assert process.stop(signal.SIGTERM) == 0
    (event,) = events(received)
    assert event["exception"]["values"][-1]["value"] == "no such article"
    assert event["tags"]["request_id"] == answer.header("x-request-id")


def test_datadog(tmp_path: Path) -> None:
    """Not among the tools of the tests, because it comes with a plugin of pytest that takes part in each of them."""
    agent = Path(sys.executable).with_name("ddtrace-run")
    if not agent.exists():
        pytest.skip("ddtrace is not installed")
    (tmp_path / "application.py").write_text(
        "from flask import Flask\napp = Flask(__name__)\n\n"
        "@app.get('/')\ndef view():\n    app.logger.warning('in the view')\n    return 'hi'\n"
    )
    own_port, out = free_port(), tmp_path / "out"
    with collecting() as (port, received), open(out, "wb") as file:
        environ = {
            **os.environ, "PYTHONPATH": str(ROOT), "PORT": str(own_port), "HOST": "127.0.0.1", "LOG_FORMAT": "json",
            "PKG_ADMIN": "off", "PKG_DRAIN_DELAY": "0", "DD_TRACE_AGENT_URL": f"http://127.0.0.1:{port}",
            "DD_SERVICE": "shop", "DD_TRACE_HEADER_TAGS": "X-Request-Id:request_id",
            "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false", "DD_REMOTE_CONFIGURATION_ENABLED": "false",
        }  # fmt: skip
        command = [str(agent), sys.executable, "-m", "pkg", "application:app"]
        process = subprocess.Popen(command, cwd=tmp_path, env=environ, stdout=file, stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: "serving application:app" in out.read_text(), 40, "the service")
            for path in ("/healthz", "/readyz", "/"):
                header = f"traceparent: 00-{TRACE}-{SPAN}-01\r\nX-Request-Id: seven\r\n"
                assert get(("127.0.0.1", own_port), path, header).status == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
    sent = b"".join(data for path, data in received if path.endswith("/traces"))
    assert b"GET /" in sent and b"seven" in sent and int(TRACE[16:], 16).to_bytes(8, "big") in sent
    assert b"healthz" not in sent and b"readyz" not in sent
    [line] = [line for line in map(json.loads, out.read_text().splitlines()) if line["message"] == "in the view"]
    assert line["dd.trace_id"] == line["trace_id"] == TRACE and line["request_id"] == "seven"
