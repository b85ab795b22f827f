"""What `make wheel` makes: a source archive, and a hardened manylinux wheel that is all one needs."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from deploy.wheel import build
from tests.diagnostics.test_installation import QUERY
from tests.support.client import wait_for
from tests.support.elf import dynamic
from tests.support.faults.postgres import Postgres
from tests.support.processes import ask, running

ROOT = Path(__file__).resolve().parents[2]
BUILD = str(ROOT / "deploy/wheel/build.py")


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("build")
    run(sys.executable, BUILD, "--out", folder, sys.executable)
    (source,) = folder.glob("*.tar.gz")
    (wheel,) = folder.glob("*.whl")
    return {"source": source, "wheel": wheel}


def extension_of(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".so"))
        return archive.read(name)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_archives_hold_what_they_should(archives: dict[str, Path]) -> None:
    with tarfile.open(archives["source"]) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    with zipfile.ZipFile(archives["wheel"]) as wheel:
        installed = {name for name in wheel.namelist() if ".dist-info/" not in name and name[-1] != "/"}
    there = {path.relative_to(ROOT).as_posix() for folder in ("ext", "pkg") for path in (ROOT / folder).rglob("*.*")}
    sources = {name for name in there if not name.endswith((".so", ".pyc"))}
    assert {"pkg/__init__.py", "pkg/py.typed", "pkg/_core.pyi", "pkg/cli/main.py", "pkg/http/__init__.py"} <= sources
    assert sources <= packed
    extension = {name for name in installed if re.fullmatch(r"pkg/_core\..*\.so", name)}
    assert len(extension) == 1
    assert installed - extension == {name for name in sources if name.startswith("pkg/")}  # no C, no tests


# --- the wheel -----------------------------------------------------------------------------------------------------


def assert_is_manylinux_and_hardened(wheel: Path) -> None:
    match = re.fullmatch(r"pkg_service-\d[^-]*-cp3\d+-cp3\d+t?-manylinux_2_(\d+)_\w+\.whl", wheel.name)
    assert match is not None, wheel.name
    shown = " ".join(run(sys.executable, "-m", "auditwheel", "show", wheel).split())
    assert f'platform tag: "manylinux_2_{match[1]}_' in shown
    found, wanted, needed = dynamic(extension_of(wheel))
    assert found == {"position independent", "relro", "no executable stack", "bound at start"}
    assert "__stack_chk_fail" in wanted, "no stack protector"
    assert [name for name in wanted if re.fullmatch(r"__(mem|str|v?sn?|f)\w+_chk", name)], "no _FORTIFY_SOURCE"
    assert {re.split(r"[-.]", name)[0] for name in needed} <= {"libc", "libpthread", "ld"}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_wheel_is_manylinux_and_hardened(archives: dict[str, Path]) -> None:
    assert_is_manylinux_and_hardened(archives["wheel"])


def test_the_wheel_has_the_image_s_flags() -> None:
    """Two of the image's are not the wheel's; see deploy/wheel/build.py."""
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", "")
    match = re.search(r'ENV CFLAGS="(.*?)"\s+LDFLAGS="(.*?)"', text)
    assert match is not None
    compiler, linker = (set(shlex.split(flags)) for flags in match.groups())
    assert compiler - set(build.CFLAGS.split()) == {"-Os"}
    assert set(build.CFLAGS.split()) - compiler == {"-U_FORTIFY_SOURCE"}
    assert {flag.replace(",-z,pack-relative-relocs", "") for flag in linker} == set(build.LDFLAGS.split())


def test_what_is_no_python_for_a_wheel_is_told_apart(tmp_path: Path) -> None:
    assert build.look(sys.executable) == build.find()[0]
    other = tmp_path / "python3.19"
    facts = '["/usr/bin/pypy", "pypy", [3, 11], false, true]', '["/usr/bin/python", "cpython", [3, 10], false, true]'
    for answer in facts:
        other.write_text(f"#!/bin/sh\necho '{answer}'\n")
        other.chmod(0o755)
        assert str(build.look(str(other))).endswith("CPython 3.11 or later is required")
    other.write_text('#!/bin/sh\necho \'["/usr/bin/python3.19", "cpython", [3, 19], true, false]\'\n')
    assert "apt-get install python3.19t-dev" in str(build.look(str(other)))
    other.write_text("#!/bin/sh\necho 'pyenv: python3.19: command not found' >&2\nexit 127\n")
    assert build.look(str(other)) == f"{other} is not a Python that runs on this machine"
    done = subprocess.run([sys.executable, BUILD, "--out", tmp_path, other], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, f"{other} is not a Python that runs on this machine\n")


# --- installed -----------------------------------------------------------------------------------------------------


def install(folder: Path, python: str | Path, requirement: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Python of a new environment, outside the checkout, with this and its dependencies.  PATH is its own."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    run(python, "-m", "venv", folder)
    monkeypatch.setenv("PATH", str(folder / "bin"))
    assert not [name for name in ("cc", "gcc", "clang", "make", "pg_config") if shutil.which(name)]
    # Not from the checkout, where pip would take it for an installation.
    own = folder / "bin" / "python"
    run(own, "-m", "pip", "install", "-q", "--disable-pip-version-check", requirement, cwd=folder)
    return own


def serves(folder: Path, python: Path, implementation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = run(python.with_name("pkg"), "--version", cwd=folder)
    assert re.fullmatch(rf"pkg \d\S* \(Python 3\S+; psycopg 3\S+ \({implementation}\), libpq \d+\.\d+\)\n", said)
    monkeypatch.setattr(sys, "executable", str(python))
    with Postgres() as server, running(folder, QUERY, DATABASE_URL=server.url) as service:
        assert "another project's distribution" not in service.messages()[0]
        assert ask(service.address, "/healthz")[::2] == (200, "ok")
        assert ask(service.address, "/")[::2] == (200, "42")
        wait_for(lambda: ask(service.address, "/readyz")[0] == 200)
        assert service.stop(signal.SIGTERM) == 0


SUITE = """
import pkg
import pytest

@pytest.mark.usefixtures("pkg_running")
def test_it():
    with pkg.connection() as conn:
        assert conn.execute("select 42").fetchone() == (42,)
"""


def brings_its_fixture(folder: Path, python: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pytest finds it in what is installed, for a test that names it."""
    run(python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "pytest", cwd=folder)
    (folder / "test_it.py").write_text(SUITE)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    with Postgres() as server:
        monkeypatch.setenv("DATABASE_URL", server.url)
        assert "1 passed" in run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_it.py", cwd=folder)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("extra", "implementation"), [("[binary]", "binary"), ("", "python")])
def test_the_wheel_serves_where_there_is_no_compiler(
    archives: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: str, implementation: str
) -> None:
    python = install(tmp_path / "venv", sys.executable, f"{archives['wheel']}{extra}", monkeypatch)
    serves(tmp_path, python, implementation, monkeypatch)
    if extra:
        brings_its_fixture(tmp_path, python, monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_source_archive_installs_with_psycopg_c(
    archives: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONPATH", raising=False)
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    pip = (python, "-m", "pip", "install", "-q", "--disable-pip-version-check")
    run(*pip, f"{archives['source']}[c]", cwd=tmp_path)
    serves(tmp_path, python, "c", monkeypatch)


OTHERS = [pytest.param(python.path, id=python.name) for python in build.find()[1:]]


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", OTHERS)
def test_the_wheel_of_another_python(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every one that is found here beside the one that runs this."""
    run(sys.executable, BUILD, "--out", tmp_path, path)
    (wheel,) = tmp_path.glob("*.whl")
    assert_is_manylinux_and_hardened(wheel)
    python = install(tmp_path / "venv", path, f"{wheel}[binary]", monkeypatch)
    serves(tmp_path, python, "binary", monkeypatch)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_another_distribution_of_our_folder_s_name_is_named_and_put_right(
    archives: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pip installs it, and by the commands that the line tells."""
    other = tmp_path / "pkg-0.2-py3-none-any.whl"
    with zipfile.ZipFile(other, "w") as wheel:
        files = {
            "pkg/__init__.py": "",
            "pkg-0.2.dist-info/METADATA": "Metadata-Version: 2.1\nName: pkg\nVersion: 0.2\n",
            "pkg-0.2.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        for name, content in files.items():
            wheel.writestr(name, content)
        record = "".join(f"{name},,\n" for name in [*files, "pkg-0.2.dist-info/RECORD"])
        wheel.writestr("pkg-0.2.dist-info/RECORD", record)
    python = install(tmp_path / "venv", sys.executable, str(archives["wheel"]), monkeypatch)
    pip = (python, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "-q", "--no-deps", other, cwd=tmp_path)
    assert run(python, "-c", "import pkg; print(hasattr(pkg, 'connection'))", cwd=tmp_path) == "False\n"

    monkeypatch.setattr(sys, "executable", str(python))
    with running(tmp_path, "", app="", ready=False) as service:
        service.await_message(r"^serving ")
        first = service.messages()[0]
    assert first.startswith("another project's distribution, pkg 0.2, is installed in the same folder as pkg-service")
    remove, renew = first.partition("run: ")[2].split("; ")
    run(*pip, *remove.split()[1:], "--yes", cwd=tmp_path)
    run(*pip, *renew.replace("pkg-service", f"-q --no-deps {archives['wheel']}").split()[1:], cwd=tmp_path)
    assert run(python, "-c", "import pkg; print(hasattr(pkg, 'connection'))", cwd=tmp_path) == "True\n"
    with running(tmp_path, "", app="", ready=False) as service:
        service.await_message(r"^serving ")
        assert service.messages()[0].startswith("DATABASE_URL is not set")
