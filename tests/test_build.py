"""What `python -m build` makes: a source archive that a wheel can be built from, and a wheel that is all one needs."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.processes import ask, running

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("ext", "pkg", "LICENSE", "README.md", "pyproject.toml", "setup.py")


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Built from a copy: setuptools writes into the folder that it builds from."""
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        copy = shutil.copy if (ROOT / name).is_file() else shutil.copytree
        copy(ROOT / name, folder / name)
    for built in (folder / "pkg").glob("*.so"):
        built.unlink()
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder)
    (source,) = folder.glob("dist/*.tar.gz")
    (wheel,) = folder.glob("dist/*.whl")
    return {"source": source, "wheel": wheel}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_archives_hold_what_they_should(archives: dict[str, Path]) -> None:
    with tarfile.open(archives["source"]) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    with zipfile.ZipFile(archives["wheel"]) as wheel:
        installed = {name for name in wheel.namelist() if ".dist-info/" not in name}
    there = {path.relative_to(ROOT).as_posix() for folder in ("ext", "pkg") for path in (ROOT / folder).glob("*.*")}
    sources = {name for name in there if not name.endswith(".so")}
    assert sources <= packed
    extension = {name for name in installed if re.fullmatch(r"pkg/_core\..*\.so", name)}
    assert len(extension) == 1
    assert installed - extension == {name for name in sources if name.startswith("pkg/")}  # no C, no tests


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_wheel_runs_in_an_environment_of_its_own(
    archives: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its dependencies, and nothing else of this checkout or its environment."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    # Not from here, where pip would take the checkout for an installation.
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", archives["wheel"], cwd=tmp_path)
    assert run(tmp_path / "venv" / "bin" / "pkg", "--version", cwd=tmp_path).startswith("pkg ")
    assert run(python, "-c", "import psycopg; print(psycopg.pq.__impl__)", cwd=tmp_path) == "c\n"

    monkeypatch.setattr(sys, "executable", str(python))
    source = "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'hello']\n"
    with running(tmp_path, source) as service:
        assert ask(service.address, "/healthz")[::2] == (200, "ok")
        assert ask(service.address, "/")[::2] == (200, "hello")
        assert service.stop(signal.SIGTERM) == 0
