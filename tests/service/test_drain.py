"""The drain by itself, on a server and a checker without a service around them; test_process.py has the whole."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own, because the drain lets faulthandler end the process if it hangs.
PROGRAM = """
import faulthandler, http.client, sys, threading, time
from pkg import RequestHandler, Server
from pkg.health.checks import Checker
from pkg.service.drain import drain
from pkg.service.signals import Signals

begun, end, said = threading.Event(), threading.Event(), []

class Handler(RequestHandler):
    def do_GET(self):
        begun.set()
        end.wait(60)
        self.send_response(204)
        self.end_headers()

def client():
    connection = http.client.HTTPConnection(*server.server_address)
    connection.request("GET", "/")
    try:
        print(connection.getresponse().status)
    except OSError as error:
        print(type(error).__name__)

server = Server(("127.0.0.1", 0), Handler, threads=1)
checker = Checker(publish=server.front.publish, renew=server.front.renew, root=True)
checker.startup_done()
server.start()
client = threading.Thread(target=client)
client.start()
begun.wait(60)
signals = Signals()
signals.ask("a test")
if sys.argv[1] == "ends":
    def end_when_draining():
        while checker.report().ready:
            time.sleep(0.01)
        end.set()
    assert checker.report().ready
    threading.Thread(target=end_when_draining).start()
timeout = {"ends": 60.0, "hangs": 2.0}[sys.argv[1]]
drained = drain(server, checker, signals, delay=0.0, timeout=timeout, say=said.append)
faulthandler.cancel_dump_traceback_later()
end.set()
client.join()
print(checker.report().ready, signals.name, drained.served, drained.aborted, drained.served_in_all, *said)
"""


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("ends", ["204", "False a test 1 0 1"]),
        ("hangs", ["RemoteDisconnected", "False a test 0 1 0 the drain deadline is in 1 s"]),
    ],
)
def test_a_drain_needs_no_more_than_its_parts(kind: str, told: list[str]) -> None:
    command = [sys.executable, "-c", PROGRAM, kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert (done.stdout.splitlines(), done.returncode) == (told, 0), done.stderr
