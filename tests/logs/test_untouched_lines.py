"""Lines stay whole beside prints of the application, and what strangers send leaves an operator's terminal alone."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.support.client import Connection, wait_for
from tests.support.ports import free_port
from tests.support.processes import ask, running

ROOT = Path(__file__).parents[2]
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def test_no_line_is_cut_by_a_print(tmp_path: Path) -> None:
    """The pipe's reader is slow, so that it is full nearly always; the application prints in two ways."""
    (tmp_path / "application.py").write_text("""
import logging, os, sys
log = logging.getLogger("shop")
def app(environ, start_response):
    os.write(1, b"PRINTED\\n")
    sys.stdout.write("PRINTED\\n")
    log.warning("x" * 300)
    start_response("200 OK", [("Content-Length", "0")])
    return []
""")
    port = free_port()
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "PORT": str(port), "HOST": "127.0.0.1", "PKG_ADMIN": "off"}
    environ |= {"PKG_DRAIN_DELAY": "0", "LOG_FORMAT": "json"}
    command = [sys.executable, "-m", "pkg", "application:app"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, env=environ)
    assert process.stdout is not None
    got: list[bytes] = []

    def read() -> None:
        assert process.stdout is not None
        while data := os.read(process.stdout.fileno(), 4096):
            got.append(data)
            time.sleep(0.002)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        wait_for(lambda: b"serving" in b"".join(got), 15, "the service")

        def ask_often() -> None:
            with Connection(("127.0.0.1", port), 30) as connection:
                for _ in range(150):
                    assert connection.request("GET", "/").status == 200

        clients = [threading.Thread(target=ask_often) for _ in range(4)]
        for client in clients:
            client.start()
        for client in clients:
            client.join()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()
    lines = b"".join(got).split(b"\n")
    assert lines.pop() == b""
    assert lines.count(b"PRINTED") == 2 * 600
    for line in lines:
        assert line == b"PRINTED" or json.loads(line)


def test_no_control_character_reaches_a_terminal(tmp_path: Path) -> None:
    source = """
import threading, time, pkg
threading.Thread(target=time.sleep, args=(60,), name="mine\\x1b[2J\\nreadyz: fine", daemon=True).start()
@pkg.check("dep", interval=0.2)
def dep():
    raise RuntimeError("upstream said: \\x1b]0;owned\\x07\\x9b2J\\u202e\\nreadyz: everything is fine")
def app(environ, start_response):
    time.sleep(2)
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""
    port = free_port()
    with running(tmp_path, source, PKG_ADMIN=f"127.0.0.1:{port}", LOG_FORMAT="json") as process:
        with Connection(process.address) as prober, Connection(process.address) as client:
            prober.send(b"GET /healthz HTTP/1.1\r\nHost: x\r\nUser-Agent: \x9b31mRED \xc2\x9b32m \xe2\x80\xae\r\n\r\n")
            assert prober.receive().status == 200
            client.send(b"GET /x\x9b2J\xc2\x9b31m HTTP/1.1\r\nHost: x\r\n\r\n")
            address = ("127.0.0.1", port)
            wait_for(lambda: "upstream said" in ask(address, "/statusz")[2], 10, "the check's reason")
            for path in ("/statusz", "/debug/requests", "/debug/threads", "/metrics"):
                for accept in ("text/plain", "application/json"):
                    status, _, text = ask(address, path, Accept=accept)
                    assert status == 200 and not CONTROL.search(text), (path, accept)
                    assert not any(line.startswith("readyz: ") for line in text.splitlines())
                    assert accept == "text/plain" or json.loads(text) is not None
        for command in (["status"], ["threads"], ["status", "--json"]):
            run = subprocess.run(
                [sys.executable, "-m", "pkg", "admin", *command],
                env={**os.environ, "PKG_ADMIN": f"127.0.0.1:{port}"},
                capture_output=True,
                timeout=30,
                check=True,
            )
            assert not CONTROL.search(run.stdout.decode())
