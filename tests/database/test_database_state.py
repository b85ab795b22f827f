"""What belongs to one database is in its object: modules hold only what belongs to the process."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

from pkg.database import database, lending

FOLDER = Path(database.__file__).parent
# The sockets of sessions that a forked child must not use, and whether a warning about this process' libpq was logged.
OF_THE_PROCESS = {"_closing", "_generation", "_said"}


def test_modules_set_only_what_belongs_to_the_process() -> None:
    found = set()
    for path in FOLDER.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Global):
                found |= set(node.names)
    assert found == OF_THE_PROCESS


def test_a_lease_holds_lending_and_never_the_database() -> None:
    assert set(lending.Lease.__slots__) == {"_deadline", "_timeout"}
    assert set(lending.Lease.__mro__[1].__slots__) == {"_code", "_conn", "_instruction", "_lending"}
    assert next(iter(inspect.signature(lending.Lease).parameters)) == "lending"
    imports = {
        node.module for node in ast.walk(ast.parse(inspect.getsource(lending))) if isinstance(node, ast.ImportFrom)
    }
    assert "pkg.database.database" not in imports
