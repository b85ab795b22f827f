"""What is installed: this distribution, psycopg and libpq, and another project's `pkg` that conflicts with it.

It installs nothing, and imports psycopg only on request.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

__all__ = [
    "DISTRIBUTION",
    "conflict",
    "driver",
    "loaded_driver",
    "python_version",
    "show_driver",
    "version",
    "why_no_driver",
    "why_no_uvloop",
]

DISTRIBUTION = "pkg-service"  # on the package index, `pkg` is another project


def version() -> str:
    """The version of this distribution; "" in a checkout that is not installed.

    The first of its folders on the path has it in its name (Recording installed projects, packaging.python.org).
    importlib.metadata would read the same there, and cost each process that shows a version 1 MB.
    """
    begin, end = f"{DISTRIBUTION.replace('-', '_')}-", ".dist-info"
    for folder in sys.path:
        with contextlib.suppress(OSError), os.scandir(folder or ".") as entries:
            for entry in entries:
                if entry.name.startswith(begin) and entry.name.endswith(end):
                    return entry.name[len(begin) : -len(end)]
    from importlib import metadata

    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return ""


def python_version() -> str:
    """Like platform.python_version(), whose module costs 100 kB."""
    return sys.version.split()[0]


def conflict(folder: str = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) -> str:
    """What to do about another distribution called `pkg` with files in our `folder`; "" if there is none.

    pip installs both without a warning, one over the other, and removes our files when it uninstalls the other one.
    This runs at each start, so it only looks into one folder; importlib.metadata would be too slow.
    """
    beside, name = os.path.split(folder)
    try:
        with os.scandir(beside) as entries:
            found = [entry.name for entry in entries if entry.name.startswith("pkg-")]
        for info in found:
            if info.endswith(".dist-info"):
                with open(os.path.join(beside, info, "RECORD"), encoding="utf-8", errors="replace") as record:
                    if any(line.startswith(f"{name}/") for line in record):
                        return (
                            f"another project's distribution, pkg {info[4:-10]}, is installed in the same folder as "
                            f"{DISTRIBUTION}, and each overwrites files of the other; run: "
                            f"pip uninstall pkg; pip install --force-reinstall {DISTRIBUTION}"
                        )
    except OSError:
        pass  # a zip archive, or a folder that must not be listed
    return ""


# --- psycopg and libpq ---------------------------------------------------------------------------------------------


def driver() -> dict[str, str]:
    """The version of psycopg, its implementation (c, binary or python) and the version of libpq.

    Raises ImportError if psycopg cannot be loaded; see why_no_driver().
    """
    import psycopg

    return _describe(psycopg)


def loaded_driver() -> dict[str, str] | None:
    """The same if this process has already loaded psycopg, otherwise None.  It does not wait for a running import."""
    psycopg = sys.modules.get("psycopg")
    if psycopg is None or not hasattr(psycopg, "__version__") or not hasattr(psycopg, "pq"):
        return None
    return _describe(psycopg)


def _describe(psycopg: ModuleType) -> dict[str, str]:
    number = psycopg.pq.version()  # 180001 is 18.1
    return {
        "version": psycopg.__version__,
        "implementation": psycopg.pq.__impl__,
        "libpq": f"{number // 10000}.{number % 10000}",
    }


def show_driver(found: dict[str, str]) -> str:
    """The same as one line of text."""
    return f"psycopg {found['version']} ({found['implementation']}), libpq {found['libpq']}"


def why_no_uvloop(error: ImportError) -> str:
    """One line about what uvloop's ImportError means and what to install."""
    if isinstance(error, ModuleNotFoundError) and error.name == "uvloop":
        return f"it is not installed: pip install '{DISTRIBUTION}[uvloop]'"
    return f"it cannot be loaded: {' '.join(str(error).split())}"


def why_no_driver(error: ImportError) -> str:
    """One line about what psycopg's ImportError means and what to install."""
    said = str(error)
    if isinstance(error, ModuleNotFoundError) and error.name in ("psycopg", "psycopg_pool"):
        return f"{error.name} is missing: pip install '{DISTRIBUTION}[binary]'"
    # psycopg lists what it has tried.  The Python implementation comes last and needs only the library.
    if "libpq library not found" in said:
        return (
            "libpq, the client library of PostgreSQL, is missing: install it (on Debian: apt-get install libpq5), "
            f"or install the psycopg that contains it: pip install '{DISTRIBUTION}[binary]'"
        )
    return f"psycopg cannot be loaded: {' '.join(said.split())}"
