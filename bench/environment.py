"""Installs or builds what only the benchmark needs: packages of other servers, wrk, nginx, and our C programs.

Whatever cannot be had is left out: `Tools` says why, and the run goes on without it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Callable
from pathlib import Path

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
CACHE = BENCH / ".cache"
VENV = BENCH / ".venv"
PEER_PYTHON = VENV / "bin" / "python"

# Installed one at a time, so that a failed build does not affect the others.
PACKAGES = {
    "gunicorn": "gunicorn",
    "granian": "granian",
    "uvicorn": "uvicorn[standard]",
    "hypercorn": "hypercorn[uvloop]",
    "waitress": "waitress",
    "cheroot": "cheroot",
    "fastpysgi": "fastpysgi",
    "bjoern": "bjoern",
    "uwsgi": "uWSGI",
    "httptools": "httptools",
    "h11": "h11",
    "gunicorn_h1c": "gunicorn_h1c",
    "psycopg": "psycopg[binary,pool]",
    "starlette": "starlette",
    "fastapi": "fastapi",
    "websockets": "websockets",
    "sqlalchemy": "sqlalchemy",
    "django": "django",
}
# Required commands, each with the Debian package that contains it.
COMMANDS = {"wrk": "wrk", "nginx": "nginx-light", "valgrind": "valgrind", "haproxy": "haproxy"}
HEADERS = {"ev.h": "libev-dev"}  # required to build bjoern

Say = Callable[[str], None]


class Missing(Exception):
    """Something is not available on this machine; the text is one line that says why."""


def prepare(say: Say) -> dict[str, str]:
    """Installs everything and returns what is missing, with reasons."""
    missing: dict[str, str] = {}
    _install_commands(say, missing)
    _install_packages(say, missing)
    if (reason := missing.pop("ev.h", "")) and "bjoern" in missing:
        missing["bjoern"] = reason
    say("fetching picohttpparser, compiling the clients")
    with contextlib.suppress(Missing):  # reported by the section that needs it
        picohttpparser()
    for name in ("prober", "responder"):
        program(name)
    return missing


def _run(command: list[str | Path], timeout: float = 600) -> str:
    """The output of a command.  Raises Missing if it fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Missing(f"{command[0]}: {error}") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise Missing(lines[-1])
    return done.stdout


def _install_commands(say: Say, missing: dict[str, str]) -> None:
    wanted = {name: package for name, package in COMMANDS.items() if shutil.which(name, path=_path()) is None}
    wanted |= {name: package for name, package in HEADERS.items() if not Path("/usr/include", name).exists()}
    if not wanted:
        return
    packages = sorted(set(wanted.values()))
    reason = f"install Debian's {' '.join(packages)}"
    if os.geteuid() == 0 and shutil.which("apt-get"):
        say(f"installing {' '.join(packages)}")
        try:
            _run(["apt-get", "update", "-q"])
            _run(["apt-get", "install", "-y", "-q", "--no-install-recommends", *packages])
        except Missing as error:
            reason = str(error)
    for name, package in wanted.items():
        found = shutil.which(name, path=_path()) if name in COMMANDS else Path("/usr/include", name).exists()
        if not found:
            missing[name] = f"{package}: {reason}"


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/local/sbin"


def command(name: str) -> str:
    """The full path of an installed command."""
    found = shutil.which(name, path=_path())
    if found is None:
        raise Missing(f"{name} is not installed")
    return found


def _install_packages(say: Say, missing: dict[str, str]) -> None:
    """Installs into an environment of the interpreter that runs ours."""
    base = Path(getattr(sys, "_base_executable", sys.executable))
    if not PEER_PYTHON.exists():
        say("making the peers' environment")
        _run([base, "-m", "venv", VENV])
    stamp = VENV / "installed"
    have = dict(line.split("\t", 1) for line in stamp.read_text().splitlines()) if stamp.exists() else {}
    for name, package in PACKAGES.items():
        if have.get(name) == package:
            continue
        say(f"installing {package}")
        try:
            _run([PEER_PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check", package])
            have[name] = package
        except Missing as error:
            missing[name] = str(error)
    stamp.write_text("".join(f"{name}\t{package}\n" for name, package in have.items()))


def versions() -> dict[str, str]:
    """The versions of the other servers' packages."""
    listing = _run([PEER_PYTHON, "-m", "pip", "list", "--disable-pip-version-check", "--format=freeze"])
    return dict(line.lower().replace("_", "-").split("==", 1) for line in listing.splitlines() if "==" in line)


def program(name: str, *sources: str | Path, flags: tuple[str, ...] = ()) -> Path:
    """A C program of bench/, compiled if it has changed.  Raises Missing if it cannot be compiled."""
    files = [BENCH / source for source in sources or (f"{name}.c",)]
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Missing("no C compiler")
    said = "\0".join([compiler, *flags]).encode() + b"".join(
        path.read_bytes() for path in [*files, *sorted((ROOT / "ext" / "http").glob("http1*"))]
    )
    target = CACHE / f"{name}-{hashlib.sha256(said).hexdigest()[:12]}"
    if not target.exists():
        CACHE.mkdir(exist_ok=True)
        _run([compiler, "-O3", "-o", target, *flags, *files])
    return target


def picohttpparser() -> Path:
    """The folder with picohttpparser.c, which the source package of gunicorn_h1c contains."""
    folder = CACHE / "gunicorn_h1c"
    found = sorted(folder.rglob("picohttpparser.c"))
    if not found:
        CACHE.mkdir(exist_ok=True)
        _run([PEER_PYTHON, "-m", "pip", "download", "-q", "--no-deps", "--no-binary", ":all:",
              "--disable-pip-version-check", "-d", CACHE, "gunicorn_h1c"])  # fmt: skip
        for archive in CACHE.glob("gunicorn_h1c*.tar.gz"):
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
        found = sorted(folder.rglob("picohttpparser.c"))
    if not found:
        raise Missing("the source package of gunicorn_h1c has no picohttpparser.c")
    return found[0].parent


def machine() -> dict[str, str | int]:
    """The machine and software on which the figures were measured."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "Model")):
            model = line.split(":", 1)[1].strip()
            break
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{os.uname().sysname} {os.uname().release.split('-')[0]} {os.uname().machine}",
        "python": sys.version.split()[0],
        "python_build": "optimised" if "--enable-opt" in (sysconfig.get_config_var("CONFIG_ARGS") or "") else "plain",
    }
