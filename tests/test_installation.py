"""What is installed beside the service: another distribution of its package's name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pkg import _installation
from tests.processes import running

ROOT = Path(__file__).resolve().parent.parent
HELLO = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'hello']\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with a copy of the package, as pip would have it."""
    shutil.copytree(ROOT / "pkg", tmp_path / "pkg", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


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
    assert first["message"].startswith("the distribution pkg 0.2, another project, is installed into the folder of ")
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
