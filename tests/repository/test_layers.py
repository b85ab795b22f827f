"""Imports go down only, by folder, and the surface is the one that was chosen."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pkg

PACKAGE = Path(pkg.__file__).parent
CORE_SOURCE = PACKAGE.parent / "ext" / "binding" / "core.pyx"
# The rooms: the folders, and the modules that belong to none.
LAYERS = [
    {"errors", "lifecycle", "child", "_core"},
    {"health", "logs", "settings"},
    {"asgi", "database", "diagnostics", "http"},
    {"admin", "api"},
    {"service"},
    {"supervisors"},
    {"cli", "integrations", "__main__", "__init__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def name_of(path: Path) -> str:
    """A module's name below `pkg`: `logs.sink`, `errors`, `logs` for the folder's own file."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


NAMES = {name_of(path) for path in MODULES} | {"_core"}


def imports_of(path: Path) -> Iterator[str]:
    """The package's modules that a module names anywhere, in functions and for types too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "pkg" or node.module.startswith("pkg."):
                for alias in node.names:
                    whole = f"{node.module}.{alias.name}".removeprefix("pkg.")
                    yield whole if whole in NAMES else node.module.removeprefix("pkg.")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("pkg."):
                    yield alias.name.removeprefix("pkg.")


CORE = {"_core": set(re.findall(r"^ *from pkg\.([\w.]+) import", CORE_SOURCE.read_text(), re.MULTILINE))}


def room_of(name: str) -> str:
    return name.partition(".")[0]


def test_nobody_imports_integrations() -> None:
    for path in MODULES:
        if room_of(name_of(path)) != "integrations":
            assert "integrations" not in {room_of(name) for name in imports_of(path)}, path


def test_every_room_has_a_layer() -> None:
    assert {room_of(name) for name in NAMES} == set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_down(path: Path) -> None:
    own = room_of(name_of(path))
    for name in imports_of(path):
        assert RANK[room_of(name)] <= RANK[own], f"{name_of(path)} imports {name}, which is above it"


def test_folders_of_a_layer_do_not_know_each_other() -> None:
    for path in MODULES:
        own = room_of(name_of(path))
        for other in {room_of(name) for name in imports_of(path)} & FOLDERS - {own}:
            assert own not in FOLDERS or RANK[other] < RANK[own], f"{name_of(path)} imports from {other}"


def circles(arrows: dict[str, set[str]]) -> list[str]:
    """Those from which a way leads back to themselves."""

    def reached(name: str) -> set[str]:
        found: set[str] = set()
        ahead = [name]
        while ahead:
            new = arrows.get(ahead.pop(), set()) - found
            found |= new
            ahead += new
        return found

    return sorted(name for name in arrows if name in reached(name))


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": {"e"}, "e": set()}) == ["a", "b", "c"]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": {"d"}}) == []


def test_no_modules_import_each_other() -> None:
    """Not through others either, and not in functions or for types."""
    assert circles({name_of(path): set(imports_of(path)) for path in MODULES} | CORE) == []


def test_no_rooms_import_each_other() -> None:
    arrows: dict[str, set[str]] = {}
    for name, others in ({name_of(path): set(imports_of(path)) for path in MODULES} | CORE).items():
        own = room_of(name)
        arrows.setdefault(own, set()).update({room_of(other) for other in others} - {own})
    assert circles(arrows) == []


def test_a_folder_says_what_it_is_for_and_imports_nothing() -> None:
    """Whoever imports one of its modules imports the folder, too: `probe` passes one, the service nine."""
    for folder in FOLDERS:
        (only,) = ast.parse((PACKAGE / folder / "__init__.py").read_text()).body
        assert isinstance(only, ast.Expr) and isinstance(only.value, ast.Constant), folder


def test_only_service_and_cli_see_all_settings() -> None:
    for path in MODULES:
        if "settings.declared" in imports_of(path):
            assert room_of(name_of(path)) in {"service", "cli", "settings"}, path


def test_no_public_name_is_that_of_a_module() -> None:
    """Importing a module sets its name in the package, and would replace `pkg.check` with a module called `check`."""
    assert not set(pkg.__all__) & {room_of(name) for name in NAMES}


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
