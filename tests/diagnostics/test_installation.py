"""What is installed below and beside the service: which psycopg and libpq, and what is said if one is missing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

from pkg.diagnostics import installation as _installation
from tests.support.faults.postgres import Postgres
from tests.support.ports import free_port
from tests.support.processes import ask, running

ROOT = Path(__file__).resolve().parents[2]
NOWHERE = "postgresql://nobody@127.0.0.1:1/none"
HELLO = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'hello']\n"
QUERY = """
import pkg

def app(environ, start_response):
    with pkg.connection() as connection:
        (one,) = connection.execute("select 40 + %s", (2,)).fetchone()
    start_response("200 OK", [])
    return [str(one).encode()]
"""

# Python reads a sitecustomize.py on its path at each start.
NO_LIBPQ = "import ctypes.util\nctypes.util.find_library = lambda name: None\n"
NO_PSYCOPG = """
import sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name == "psycopg":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Finder)
"""


def serve(folder: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A start that fails, in an environment of its own."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    return subprocess.run(
        [sys.executable, "-m", "pkg", *arguments], cwd=folder, capture_output=True, text=True, timeout=60,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": path, "PORT": "0", "PKG_ADMIN": "off", **environ},
    )  # fmt: skip


# --- psycopg and libpq ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hidden", "environ", "said"),
    [
        pytest.param(
            NO_LIBPQ, {"PSYCOPG_IMPL": "python"},
            "libpq, the client library of PostgreSQL, is missing: install it (on Debian: apt-get install libpq5), or "
            "install the psycopg that contains it: pip install 'pkg-service[binary]'",
            id="libpq",
        ),
        pytest.param(NO_PSYCOPG, {}, "psycopg is missing: pip install 'pkg-service[binary]'", id="psycopg"),
        pytest.param(
            "", {"PSYCOPG_IMPL": "nonsense"}, "psycopg cannot be loaded: requested psycopg implementation 'nonsense'",
            id="another implementation",
        ),
    ],
)  # fmt: skip
def test_a_missing_driver_is_one_line(tmp_path: Path, hidden: str, environ: dict[str, str], said: str) -> None:
    (tmp_path / "sitecustomize.py").write_text(hidden)
    done = serve(tmp_path, DATABASE_URL=NOWHERE, **environ)
    assert done.returncode == 3
    assert done.stderr.startswith(f"pkg: DATABASE_URL is set, but {said}")
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stdout
    version = serve(tmp_path, "--version", **environ)
    assert (version.returncode, version.stderr) == (0, "")
    assert version.stdout.startswith("pkg ") and said in version.stdout


def test_the_driver_is_not_wanted_without_a_database(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_PSYCOPG)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    with running(tmp_path, HELLO, PYTHONPATH=path, PKG_ADMIN="127.0.0.1:0") as service:
        assert ask(service.address, "/readyz")[0] == 200
        assert ask(service.address, "/")[::2] == (200, "hello")


@pytest.mark.parametrize("implementation", ["c", "python"])
def test_both_implementations_serve_and_are_named(tmp_path: Path, implementation: str) -> None:
    port = free_port()
    with Postgres() as server:
        admin = {"PKG_ADMIN": f"127.0.0.1:{port}", "PSYCOPG_IMPL": implementation}
        with running(tmp_path, QUERY, DATABASE_URL=server.url, **admin) as service:
            assert ask(service.address, "/")[::2] == (200, "42")
            document = json.loads(ask(("127.0.0.1", port), "/statusz", Accept="application/json")[2])
            number = psycopg.pq.version()
            assert document["service"]["psycopg"] == {
                "version": psycopg.__version__,
                "implementation": implementation,
                "libpq": f"{number // 10000}.{number % 10000}",
            }
            text = ask(("127.0.0.1", port), "/statusz", Accept="text/plain")[2]
            assert f", psycopg {psycopg.__version__} ({implementation}), libpq {number // 10000}." in text


# --- the core ------------------------------------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with a copy of the package, as pip would have it."""
    shutil.copytree(ROOT / "pkg", tmp_path / "pkg", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_a_missing_core_is_one_line(site: Path) -> None:
    for core in (site / "pkg").glob("_core*.so"):
        core.unlink()
    # An editable installation would find the core that is gone: without site-packages' start-up files (-S).
    done = subprocess.run(
        [sys.executable, "-S", "-m", "pkg"], cwd=site, env={"PYTHONPATH": str(site), "PORT": "0"},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 3
    assert done.stderr.startswith("pkg: the installation is incomplete: ") and done.stderr.count("\n") == 1


# --- another distribution of our package's name --------------------------------------------------------------------


def add_distribution(site: Path, name: str, *files: str) -> None:
    info = site / f"{name}.dist-info"
    info.mkdir()
    (info / "RECORD").write_text("".join(f"{file},sha256=x,0\n" for file in files))


def test_the_first_line_names_another_distribution_over_ours(site: Path) -> None:
    add_distribution(site, "pkg_service-0.1.0", "pkg/__init__.py")
    add_distribution(site, "pkg-0.2", "pkg-0.2.dist-info/METADATA", "pkg/__init__.py")
    with running(site, HELLO, PYTHONPATH=str(site)) as service:
        first = service.lines()[0]
    assert first["severity"] == "WARNING"
    assert first["message"].startswith("another project's distribution, pkg 0.2, is installed in the same folder as ")
    assert first["message"].endswith("pip uninstall pkg; pip install --force-reinstall pkg-service")


@pytest.mark.parametrize(
    ("name", "files"),
    [
        pytest.param("pkg_service-0.1.0", ["pkg/__init__.py"], id="ours"),
        pytest.param("pkg-0.3", ["pkg_tools/__init__.py", "../../../bin/pkg"], id="pkg without a file in our folder"),
        pytest.param("pkg_resources-1", ["pkg/x.py"], id="a longer name"),
    ],
)
def test_others_are_not_named(tmp_path: Path, name: str, files: list[str]) -> None:
    add_distribution(tmp_path, name, *files)
    assert _installation.conflict(str(tmp_path / "pkg")) == ""


def test_no_folder_to_look_into_is_no_conflict(tmp_path: Path) -> None:
    assert _installation.conflict(str(tmp_path / "archive.zip" / "pkg")) == ""
    (tmp_path / "pkg-1.dist-info").mkdir()  # without a RECORD, as distributions' packages may be
    assert _installation.conflict(str(tmp_path / "pkg")) == ""
