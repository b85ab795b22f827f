"""A Flask application in its own image.  It shows how little that takes, not how to write Flask applications."""

from __future__ import annotations

from flask import Flask

import pkg

app = Flask(__name__)


@app.get("/")
def index() -> dict[str, str]:
    with pkg.connection(timeout=2) as conn:
        row = conn.execute("select version()").fetchone()
    return {"database": row[0] if row else ""}
