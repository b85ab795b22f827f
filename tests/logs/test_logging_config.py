"""Applications and agents that configure `logging` themselves: neither silences the other, in the real process."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pkg.logs import sink as logs
from tests.support.client import get
from tests.support.processes import running

ROOT = Path(__file__).parents[2]

# A configuration with the default of dictConfig, which disables every logger that it does not name, at each moment.
CONFIGURE = """
import logging, logging.config
def configure():
    logging.config.dictConfig({"version": 1, "handlers": {"null": {"class": "logging.NullHandler"}},
        "root": {"level": "ERROR", "handlers": ["null"]}})
"""
ANSWER = """
def answer(environ, start_response):
    environ["wsgi.errors"].write("to the stream\\n")
    if environ["PATH_INFO"] == "/fails":
        raise RuntimeError("on purpose")
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""
MOMENTS = {
    "at import": ("application:app", "configure()\napp = answer\n"),
    "in a factory": ("application:make()", "def make():\n    configure()\n    return answer\n"),
    "at the first request": (
        "application:app",
        "def app(environ, start_response):\n    configure()\n    return answer(environ, start_response)\n",
    ),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_configuration_of_logging_does_not_silence_the_service(tmp_path: Path, moment: str) -> None:
    app, source = MOMENTS[moment]
    with running(tmp_path, CONFIGURE + ANSWER + source, app=app, PKG_ADMIN="off") as process:
        assert get(process.address, "/").status == 200
        assert get(process.address, "/fails").status == 500
        assert process.stop() == 0
        messages = process.messages()
    assert messages.count("to the stream") == 2
    assert sum(text == "GET /fails failed" for text in messages) == 1
    assert any(text.startswith("draining after") for text in messages)
    assert any(text.startswith("stopped: ") for text in messages)


def test_djangos_logging_does_not_silence_the_service(tmp_path: Path) -> None:
    source = """
import django
from django.conf import settings
settings.configure(DEBUG=False, SECRET_KEY="x", ROOT_URLCONF="application", ALLOWED_HOSTS=["*"], LOGGING={
    "version": 1, "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"}})
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
urlpatterns = [path("", lambda request: HttpResponse("ok"))]
app = get_wsgi_application()
"""
    with running(tmp_path, source, PKG_ADMIN="off") as process:
        assert get(process.address, "/").status == 200
        assert process.stop() == 0
        assert any(text.startswith("stopped: ") for text in process.messages())


def test_flasks_documented_configuration_logs_each_line_once(tmp_path: Path) -> None:
    """Its root handler writes to wsgi.errors, which is the log (flask: docs/logging.rst, "Basic Configuration")."""
    source = """
from logging.config import dictConfig
dictConfig({"version": 1,
    "formatters": {"default": {"format": "[%(asctime)s] %(levelname)s in %(module)s: %(message)s"}},
    "handlers": {"wsgi": {"class": "logging.StreamHandler", "stream": "ext://flask.logging.wsgi_errors_stream",
                          "formatter": "default"}},
    "root": {"level": "INFO", "handlers": ["wsgi"]}})
from flask import Flask
import logging
app = Flask(__name__)
@app.route("/")
def view():
    app.logger.info("hello")
    return "hi"
@app.route("/back")
def back():  # a handler on the stream's own logger: its line would come back for ever
    from flask.logging import wsgi_errors_stream
    log = logging.getLogger("wsgi.errors")
    log.addHandler(logging.StreamHandler(wsgi_errors_stream))
    log.error("round")
    return "hi"
"""
    with running(tmp_path, source, PKG_ADMIN="off") as process:
        assert get(process.address, "/").status == 200
        assert get(process.address, "/back").status == 200
        assert process.stop() == 0
        messages = process.messages()
    assert sum("hello" in text for text in messages) == 1
    assert 1 <= messages.count("round") <= 2  # by the logger, and by the handler that was added, but no more


def test_what_an_agent_has_put_on_the_root_logger_stays(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("""
import logging, os
class Agent(logging.Handler):
    def emit(self, record):
        os.write(2, f"AGENT {record.name}: {record.getMessage()}\\n".encode())
logging.getLogger().addHandler(Agent())
logging.getLogger().addHandler(logging.StreamHandler())  # as basicConfig(): the console is ours
old = logging.getLogRecordFactory()
def factory(*args, **kwargs):
    record = old(*args, **kwargs)
    record.agent_field = "kept"
    return record
logging.setLogRecordFactory(factory)
""")
    source = """
import logging
def app(environ, start_response):
    logging.getLogger("shop").warning("hello")
    start_response("200 OK", [("Content-Length", "0")])
    return []
"""
    with running(tmp_path, source, PKG_ADMIN="off", PYTHONPATH=f"{tmp_path}:{ROOT}") as process:
        assert get(process.address, "/").status == 200
        assert process.stop() == 0
        record = next(line for line in process.lines() if line["message"] == "hello")
        errors = process.errors()
    assert record["agent_field"] == "kept"
    assert errors.count("AGENT shop: hello\n") == 1
    assert "AGENT pkg.service: serving" in errors  # the service's own as well
    assert errors.replace("AGENT shop: hello\n", "").count("hello") == 0


def test_every_logger_of_the_service_is_one_that_cannot_be_disabled() -> None:
    """Their names are literals: users' filters have them, so that a module may move and its logger may not."""
    asked = []
    for path in [*(ROOT / "pkg").rglob("*.py"), *(ROOT / "ext").rglob("*.p[yx]?")]:
        asked += re.findall(r"getLogger\(([^)]+)\)", path.read_text())
    names = {name.strip('"') for name in asked if re.fullmatch(r'"[\w.]+"', name)}
    assert set(asked) - {f'"{name}"' for name in names} == {"name", 'f"pkg.{name}"'}  # loops over these names
    assert names | {"pkg.logs"} == {*logs.OWN, *(f"pkg.{name}" for name in logs._BELOW)}
