"""What a page of the admin listener answers, and how it refuses."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Problem", "Reply", "json_reply", "text"]


class Problem(Exception):
    """The request cannot be served: the status says whose fault that is, the text what to do."""

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
    return Reply(json.dumps(document, indent=2, default=str).encode() + b"\n", "application/json", status)


def text(text: str, status: int = 200) -> Reply:
    return Reply(text.encode("utf-8", "backslashreplace"), status=status)
