"""The pages: what they show is run as they show it, no link leads nowhere, and what they name is there."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest

from pkg.settings import other_servers
from pkg.settings.declared import SETTINGS, known_variables
from tests.support.pages import ROOT, Block, Reader, anchors, blocks, prose
from tests.system import test_fault_matrix

DOCS = sorted(ROOT.glob("docs/*.md"))
PAGES = [*DOCS, *sorted(ROOT.glob("*.md"))]
FOLLOWED = [ROOT / "README.md", *DOCS]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        there = (page.parent / name).resolve() if name else page
        assert there.exists(), f"{page.name}: {target}"
        assert ROOT in there.parents, f"{page.name}: {target} is outside of the project"
        assert not anchor or anchor in anchors(there), f"{page.name}: {target}; it has {sorted(anchors(there))}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_a_page_names_is_there(page: Path) -> None:
    """Files of the project, targets of the Makefile, settings."""
    text = page.read_text()
    for name in re.findall(r"`((?:bench|deploy|docs|examples|ext|pkg|tests)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists(), f"{page.name}: {name}"
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in re.findall(r"(?:`|^\$ |^    )make ([a-z0-9-]+)", text, re.MULTILINE):
        assert name in targets, f"{page.name}: make {name}"
    if page.name != "CHANGELOG.md":  # which remembers
        known = known_variables(dict.fromkeys(re.findall(r"\bDATABASE_URL_[A-Z_]*[A-Z]\b", text), "postgresql://"))
        for name in re.findall(r"\bPKG_[A-Z_]*[A-Z]\b", text):
            assert name in known, f"{page.name}: {name}"


@pytest.mark.parametrize("page", DOCS, ids=name_of)
def test_the_index_has_every_page(page: Path) -> None:
    index = (ROOT / "docs/README.md").read_text()
    assert page.name == "README.md" or f"]({page.name})" in index


def test_the_readme_is_read_to_its_end() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 160


@pytest.mark.parametrize("page", FOLLOWED, ids=name_of)
def test_a_page_can_be_followed(page: Path, tmp_path: Path) -> None:
    found = blocks(page)
    if not found:
        return
    pytest.importorskip("flask")
    with contextlib.ExitStack() as stack:
        reader = Reader(tmp_path, stack)
        if page.parent.name == "docs" and page.name != "getting-started.md":  # the others go on with its application
            for block in blocks(ROOT / "docs/getting-started.md"):
                if block.what.startswith("file:"):
                    reader.follow(block)
        for block in found:
            reader.follow(block)


def spoken() -> list[str]:
    """Commands within a sentence or a table that ask a running server; the one that ends it comes last."""
    text = "".join(page.read_text() for page in FOLLOWED)
    found = set(re.findall(r"`(curl [^`]+|python3? -m pkg (?:config|probe|admin|--\w)[^`]*)`", text))
    return sorted((command for command in found if "..." not in command), key=lambda c: (c.endswith("/drain"), c))


def test_commands_within_sentences_work(tmp_path: Path) -> None:
    pytest.importorskip("flask")
    commands = spoken()
    assert len(commands) > 10
    with contextlib.ExitStack() as stack:
        reader = Reader(tmp_path, stack)
        for block in blocks(ROOT / "README.md"):
            if block.what.startswith(("file:", "serve:")):
                reader.follow(block)
        (tmp_path / "docs").mkdir()
        for command in commands:
            command = command.replace("curl ", "curl -sf ").replace("seconds=10'", "seconds=1'")
            reader.follow(Block("run", "console", f"$ {command}\n"))


def rows(page: str, marker: str) -> list[str]:
    """The first column of the table between two markers, without its head."""
    text = (ROOT / page).read_text().partition(f"<!-- {marker} -->")[2].partition(f"<!-- /{marker} -->")[0]
    return re.findall(r"^\| (.+?) \|", text, re.MULTILINE)[1:]


def test_the_matrix_has_every_fault() -> None:
    for table in ("matrix", "ways"):
        assert rows("docs/databases.md", table) == [fault.name for fault in test_fault_matrix.FAULTS]


def test_the_drain_table_has_every_server() -> None:
    from bench.restarts import SERVERS

    assert rows("docs/shutdown.md", "drain") == [server.title for server in SERVERS.values()]


OTHERS = [ROOT / "docs/from-gunicorn.md", ROOT / "docs/from-uvicorn.md"]


@pytest.mark.parametrize("page", OTHERS, ids=name_of)
def test_there_are_the_flags_that_replace_others(page: Path) -> None:
    ours = {setting.flag for setting in SETTINGS} | {f"--no-{setting.flag[2:]}" for setting in SETTINGS}
    table = re.findall(r"^\| (.+?) \| (.+?) \|.*\|$", page.read_text(), re.MULTILINE)
    assert len(table) > 15
    for _, here in table:
        assert set(re.findall(r"--[a-z][\w-]+", here)) <= ours


def test_flags_that_the_program_answers_are_on_a_page() -> None:
    text = "".join(page.read_text() for page in OTHERS)
    assert [flag for flag in other_servers._INSTEAD if flag.startswith("--") and flag not in text] == []


def quoted(page: str) -> list[str]:
    """Messages that a page quotes, each in a cell of its own: `... text`."""
    return re.findall(r"^\| `([^`]+)` \|", (ROOT / page).read_text(), re.MULTILINE)


@pytest.mark.parametrize("message", quoted("docs/troubleshooting.md"))
def test_a_quoted_message_is_one_of_the_program_s(message: str) -> None:
    """Its fixed parts stand in the source, in order; `...` and numbers are what a format fills in."""
    source = "\n".join(_joined(path.read_text()) for path in [*ROOT.glob("pkg/**/*.py"), *ROOT.glob("ext/*/*.[chp]*")])
    parts = [re.escape(part) for part in re.split(r"\.\.\.|\b\d+(?:\.\d+)?\b", message)]
    is_found = re.search(r"[^\n]*?".join(parts), source) is not None
    assert is_found, message


def _joined(text: str) -> str:
    """Python's and C's adjacent string literals as one."""
    return re.sub(r'"\s*\n\s*f?"', "", text)
