"""What has happened in an application: a file of its working directory, so that all workers of a service share it."""

from __future__ import annotations

from pathlib import Path

__all__ = ["happened", "note"]

_FILE = Path("events")


def note(event: str) -> None:
    with _FILE.open("a") as file:
        file.write(f"{event}\n")


def happened() -> list[str]:
    return _FILE.read_text().splitlines() if _FILE.exists() else []
