"""Imports go down only, and the surface is the one that was chosen."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pkg

PACKAGE = Path(pkg.__file__).parent
LAYERS = [
    {"errors"},
    {"settings", "_values", "_child", "_installation", "_other_servers"},
    {
        "health",
        "_answers",
        "database",
        "_pool",
        "_cancel",
        "_connection",
        "_conninfo",
        "_lease",
        "forwarded",
        "lifecycle",
        "loader",
        "_routes",
        "signals",
        "context",
        "logs",
        "metrics",
        "_output",
        "_records",
        "_core",
        "stacks",
        "profile",
        "_memory",
    },
    {"admin", "wsgi", "handler", "server", "status", "_statusz", "_pages", "_reply", "_lastwords", "_observers"},
    {"service", "_api"},
    {"cli", "_init", "_reload", "_client", "__main__", "__init__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports_of(path: Path) -> set[str]:
    """The package's modules that a module names anywhere, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "pkg":
                found |= {a.name for a in node.names}
            elif node.module.startswith("pkg."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("pkg.")}
    return found


def test_every_module_has_a_layer() -> None:
    assert {p.stem for p in PACKAGE.glob("*.py")} <= set(RANK)


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda p: p.stem)
def test_imports_go_down(path: Path) -> None:
    for name in imports_of(path):
        assert RANK[name] <= RANK[path.stem], f"{path.stem} imports {name}, which is above it"


def test_only_service_and_cli_see_all_settings() -> None:
    for path in PACKAGE.glob("*.py"):
        if "settings" in imports_of(path):
            assert path.stem in {"service", "cli", "settings"}, path


def test_names_are_lazy() -> None:
    code = "import sys, pkg; print(sorted(m for m in sys.modules if m.startswith(('pkg.', 'psycopg'))))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_all_names_exist() -> None:
    for name in pkg.__all__:
        assert getattr(pkg, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        pkg.no_such_name  # noqa: B018


def test_the_core_includes_no_python() -> None:
    for path in [path for floor in ("http", "front") for path in (PACKAGE.parent / "ext" / floor).glob("*.[ch]")]:
        assert "Python.h" not in path.read_text().replace("no Python header", "")
