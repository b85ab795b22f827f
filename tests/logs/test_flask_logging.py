"""The ways of logging that Flask's documentation names (docs/logging.rst), in the process: the request is answered, and
a line is in the log once for each handler that writes it there.

Its "Basic Configuration" is in test_logging_config.py.
"""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import get, wait_for
from tests.support.processes import running

APPLICATION = """
import logging, logging.handlers
from flask import Flask, has_request_context, request
from flask.logging import default_handler

app = Flask(__name__)
CONFIGURE

@app.route("/")
def view():
    app.logger.error("from the view")
    logging.getLogger("other").error("from a library")
    return "hi"
"""

OWN = "from the view"
FLASKS = "ERROR in application: from the view"  # as its default handler writes it, to wsgi.errors

# What an application does, and the view's lines in the log.  The first is the service's own.
WAYS = {
    "nothing": ("", [OWN]),
    "the default handler removed": ("app.logger.removeHandler(default_handler)", [OWN]),
    "the default handler on the root logger": ("logging.getLogger().addHandler(default_handler)", [OWN, FLASKS]),
    "the default handler on each logger": (
        "for log in (app.logger, logging.getLogger('other')):\n    log.addHandler(default_handler)",
        [FLASKS, OWN],
    ),
    "fields of the request": (
        """
class WithRequest(logging.Formatter):
    def format(self, record):
        record.url = request.url if has_request_context() else "-"
        return super().format(record)

default_handler.setFormatter(WithRequest("%(url)s asked: %(message)s"))
logging.getLogger().addHandler(default_handler)
""",
        [OWN, "http://test/ asked: from the view"],
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_log(tmp_path: Path, way: str) -> None:
    configure, wanted = WAYS[way]
    with running(tmp_path, APPLICATION.replace("CONFIGURE", configure), PKG_ADMIN="off") as process:
        for _ in range(2):
            assert get(process.address, "/").body == b"hi"
        assert process.stop() == 0
        lines = [text for text in process.messages() if OWN in text]
        assert process.errors() == ""
        assert len(lines) == 2 * len(wanted)
        assert all(line.endswith(end) for line, end in zip(lines, wanted + wanted, strict=True))
        assert sum("from a library" in text for text in process.messages()) == len(lines)


class Mailbox(socketserver.StreamRequestHandler):
    """Takes mail by SMTP, one at a time (RFC 5321)."""

    mails: list[str] = []  # noqa: RUF012 - one for each test, set by the fixture

    def handle(self) -> None:
        self.wfile.write(b"220 here\r\n")
        for line in self.rfile:
            if line.upper().startswith(b"DATA"):
                self.wfile.write(b"354 go on\r\n")
                self.mails.append("".join(text.decode() for text in iter(self.rfile.readline, b".\r\n")))
            self.wfile.write(b"221 bye\r\n" if line.upper().startswith(b"QUIT") else b"250 ok\r\n")


@pytest.fixture
def mailbox() -> Iterator[tuple[int, list[str]]]:
    mails: list[str] = []
    handler = type("Mailbox", (Mailbox,), {"mails": mails})
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1], mails
        server.shutdown()
        thread.join()


def test_errors_by_mail(tmp_path: Path, mailbox: tuple[int, list[str]]) -> None:
    port, mails = mailbox
    configure = f"""
by_mail = logging.handlers.SMTPHandler(("127.0.0.1", {port}), "shop@example.org", ["admin@example.org"], "it failed")
by_mail.setLevel(logging.ERROR)
app.logger.addHandler(by_mail)
@app.route("/fails")
def fails():
    raise RuntimeError("on purpose")
"""
    with running(tmp_path, APPLICATION.replace("CONFIGURE", configure), PKG_ADMIN="off") as process:
        assert get(process.address, "/").body == b"hi"
        assert get(process.address, "/fails").status == 500
        wait_for(lambda: len(mails) == 2, 10, "the mails")
        assert process.stop() == 0
        assert "from the view" in mails[0]
        assert "RuntimeError: on purpose" in mails[1]
        assert process.messages().count("from the view") == 1
