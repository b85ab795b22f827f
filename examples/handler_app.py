"""An application as a handler class of http.server:  python -m pkg examples.handler_app:Handler

A shelf of notes in memory: GET /, POST / with a line of text, GET /N.
"""

from __future__ import annotations

import threading

from pkg import RequestHandler

_notes: list[str] = []
_lock = threading.Lock()


class Handler(RequestHandler):
    def do_GET(self) -> None:
        with _lock:
            notes = list(_notes)
        if self.path == "/":
            self._answer(200, "".join(f"{number}: {note}\n" for number, note in enumerate(notes)))
            return
        number = self.path.removeprefix("/")
        if number.isdecimal() and int(number) < len(notes):
            self._answer(200, notes[int(number)] + "\n")
        else:
            self.send_error(404, "No such note")

    def do_POST(self) -> None:
        note = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode().strip()
        if not note:
            self.send_error(400, "A note has text")
            return
        with _lock:
            _notes.append(note)
            number = len(_notes) - 1
        self._answer(201, f"/{number}\n", Location=f"/{number}")

    def _answer(self, status: int, text: str, **headers: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
