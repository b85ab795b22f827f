"""Tables of the pages in docs/, for tests that hold them against the program."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def tables(page: str, *columns: str) -> list[dict[str, str]]:
    """The rows of every table of a page whose header begins with these columns, as column: text."""
    found: list[dict[str, str]] = []
    header: list[str] = []
    for line in (DOCS / page).read_text().splitlines():
        if not line.startswith("|"):
            header = []
            continue
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not header:
            header = cells
        elif header[: len(columns)] == list(columns) and set(line) - set("|-: "):
            assert len(cells) == len(header), line
            found.append(dict(zip(header, cells, strict=True)))
    assert found, f"{page} has no table of {columns}"
    return found


def names(text: str) -> list[str]:
    """What is in backquotes, but not in fenced blocks."""
    return re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
