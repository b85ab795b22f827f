"""A Flask application that knows nothing of OpenTelemetry: the Dockerfile beside it starts the agent."""

from __future__ import annotations

from flask import Flask

app = Flask(__name__)


@app.get("/")
def index() -> str:
    app.logger.warning("in the view")
    return "hello\n"
