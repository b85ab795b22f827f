"""Responses of the admin listener's pages, their errors, and which media type a client accepts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from pkg.logs.records import printable_json, printable_lines

__all__ = ["Problem", "Reply", "accepts", "json_reply", "text"]


class Problem(Exception):
    """The request cannot be served.  The status says whose fault it is, the text what to do."""

    def __init__(self, status: int, text: str, **headers: str) -> None:
        super().__init__(text)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Reply(NamedTuple):
    body: bytes
    media_type: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: Mapping[str, str] = {}


def json_reply(document: Any, status: int = 200) -> Reply:
    # UTF-8 instead of escapes: strict parsers refuse the escape of a lone surrogate, as in the name of a file.
    text = json.dumps(document, indent=2, default=str, ensure_ascii=False)
    return Reply(printable_json(text).encode("utf-8", "replace") + b"\n", "application/json", status)


def text(text: str, status: int = 200) -> Reply:
    """Text for a terminal, with all control characters escaped except for line ends."""
    return Reply(printable_lines(text).encode("utf-8", "backslashreplace"), status=status)


def accepts(accept: str, media_type: str) -> bool:
    """Whether the header names the media type with a quality other than 0 (RFC 9110, 12.4.2)."""
    for part in accept.split(","):
        name, *parameters = (text.strip().lower() for text in part.split(";"))
        if name == media_type:
            quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
            return quality.strip("0.") != "" or quality == ""
    return False
