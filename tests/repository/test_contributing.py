"""CONTRIBUTING.md names functions: they are there, as the files and commands are (test_docs.py)."""

from __future__ import annotations

import re

from tests.repository.test_architecture import defined
from tests.support.tables import DOCS, names

ROOT = DOCS.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def test_functions_that_are_named_exist() -> None:
    found = {name.removesuffix("()") for name in names(TEXT) if re.fullmatch(r"[\w.]+\(\)", name)}
    assert found
    assert found <= defined()


def test_test_functions_that_are_named_exist() -> None:
    """`tests.support.client.wait_for` and its like."""
    for name in names(TEXT):
        if match := re.fullmatch(r"(tests(?:\.\w+)+)\.(\w+)", name):
            path = ROOT / f"{match[1].replace('.', '/')}.py"
            assert f"def {match[2]}(" in path.read_text(), name
