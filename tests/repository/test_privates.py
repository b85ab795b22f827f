"""A module uses no name of another one that begins with an underscore."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.repository.test_layers import MODULES, name_of

# Names of other libraries that have no public spelling, or are public in spite of their spelling.
PUBLIC = {"_asdict", "_replace", "_exit", "_current_frames"}
FOREIGN = {
    "database.connection": {  # of psycopg, as the class there says
        "_get_tx_start_command",
        "_pipeline",
        "_prepared",
        "_registry",
    },
    "database.pool": {"_pool"},  # of psycopg_pool: to which pool a connection has to go back
    # Of SQLAlchemy: how many connections a pool may have, and what opens one for it with the engine's own arguments.
    "integrations.sqlalchemy": {"_max_overflow", "_invoke_creator"},
    "integrations.django.readiness": {"_connection_pools"},  # of Django, which closes a pool before it makes another
    "service.routes": {"_router"},  # of falcon
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def own_names(tree: ast.Module) -> set[str]:
    """What a module defines itself: functions, classes, variables, and attributes of `self` and `cls`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            found.add(node.attr)
    return found


def is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def reaches(tree: ast.Module) -> set[str]:
    """Private names of others that a module uses."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and not is_self(node.value):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "pkg":
            found |= {alias.name for alias in node.names if is_private(alias.name) and alias.name != "_core"}
    return found - own_names(tree) - PUBLIC


def test_reaches_are_found() -> None:
    source = """
from pkg.health.checks import _judge
from pkg import _core
class A:
    def __init__(self, other):
        self._own = other._foreign
        other._own = self._inherited
        other._written = 1
"""
    assert reaches(ast.parse(source)) == {"_judge", "_foreign", "_written"}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_module_reaches_into_another(path: Path) -> None:
    assert reaches(ast.parse(path.read_text())) == FOREIGN.get(name_of(path), set())
