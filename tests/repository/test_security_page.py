"""SECURITY.md names tests, settings and bounds: they are there, with these values."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pkg.settings.declared import SETTINGS
from tests.conformance.cases import CASES
from tests.support.tables import DOCS, names, tables

ROOT = DOCS.parent
PAGE = "../SECURITY.md"
TEXT = (ROOT / "SECURITY.md").read_text()
CONSTANTS = tables(PAGE, "constant", "value", "bounds")


def sources() -> str:
    return "\n".join(path.read_text() for path in sorted(ROOT.glob("ext/**/*.[ch]")))


def test_files_that_are_named_exist() -> None:
    paths = {name for name in names(TEXT) if re.fullmatch(r"(tests|ext|deploy|pkg)/[\w./]+", name)}
    assert len(paths) > 20
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("row", CONSTANTS, ids=lambda row: names(row["constant"])[0])
def test_a_bound_is_that_of_the_sources(row: dict[str, str]) -> None:
    (name,) = names(row["constant"])
    found = re.findall(rf"^(?:#define +{name} +|    {name} = )(\d+)", sources(), re.MULTILINE)
    assert found == [row["value"]]


def test_settings_that_are_named_exist() -> None:
    table = {name for row in tables(PAGE, "what it can try") for name in names(row["what bounds it"])}
    assert len(table) > 10
    assert table <= {setting.name for setting in SETTINGS}


def test_there_are_as_many_cases_as_it_says() -> None:
    found = re.search(r"(\d+) cases by section of the RFCs, (\d+) of them to be refused", TEXT)
    assert found is not None
    assert (int(found[1]), int(found[2])) == (len(CASES), sum(case.refusal > 0 for case in CASES))


def test_every_fuzz_target_is_named() -> None:
    for path in Path(ROOT / "tests" / "fuzz").glob("fuzz_*.c"):
        assert f"`tests/fuzz/{path.name}`" in TEXT
