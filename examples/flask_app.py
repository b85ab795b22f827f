"""A Flask application on PostgreSQL:  DATABASE_URL=postgresql://... python -m pkg examples.flask_app:app

The pool, readiness and the drain are the host's; the application asks for a connection where it needs one.
"""

from __future__ import annotations

from flask import Flask, abort, request

import pkg

app = Flask(__name__)


@pkg.check("schema", interval=2)
def schema_is_there() -> None:
    """Not ready before the table exists: the first run makes it."""
    with pkg.connection(timeout=1) as conn:
        conn.execute("create table if not exists notes (id bigserial primary key, text text not null)")


@app.get("/notes")
def notes() -> list[dict[str, object]]:
    with pkg.connection(timeout=2) as conn:
        return [{"id": id, "text": text} for id, text in conn.execute("select id, text from notes order by id")]


@app.post("/notes")
def add_note() -> tuple[dict[str, object], int]:
    text = request.form.get("text", "").strip()
    if not text:
        abort(400, "a note has text")
    with pkg.connection(timeout=2) as conn:
        row = conn.execute("insert into notes (text) values (%s) returning id", (text,)).fetchone()
    return {"id": row[0], "text": text}, 201
