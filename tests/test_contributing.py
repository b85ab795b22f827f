"""CONTRIBUTING.md names files, commands and functions: they are there."""

from __future__ import annotations

import re

from tests.tables import DOCS, names
from tests.test_architecture import defined

ROOT = DOCS.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text()


def test_files_that_are_named_exist() -> None:
    paths = {name for name in names(TEXT) if re.fullmatch(r"(tests|ext|deploy|pkg|docs|bench|\.ci)/[\w./]*", name)}
    paths = {path for path in paths if "NAME" not in path}
    assert len(paths) > 25
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_commands_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", "\n".join([*re.findall(r"^    .*", TEXT, re.MULTILINE), *names(TEXT)])))
    assert len(named) > 8
    assert named <= targets


def test_functions_that_are_named_exist() -> None:
    found = {name.removesuffix("()") for name in names(TEXT) if re.fullmatch(r"[\w.]+\(\)", name)}
    assert found
    assert found <= defined()


def test_test_functions_that_are_named_exist() -> None:
    """`tests.client.wait_for` and its like."""
    for name in names(TEXT):
        if match := re.fullmatch(r"(tests(?:\.\w+)+)\.(\w+)", name):
            path = ROOT / f"{match[1].replace('.', '/')}.py"
            assert f"def {match[2]}(" in path.read_text(), name
