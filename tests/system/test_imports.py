"""What a process imports: little, as every module delays the first response, and nothing that it does not use."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.repository.test_layers import FOLDERS
from tests.support.faults.postgres import Postgres
from tests.support.processes import running

# Times are negative where two threads import at once.
LINE = re.compile(r"^import time: +-?\d+ \| +-?\d+ \| +([\w.]+)$", re.MULTILINE)
PROFILE = {"PYTHONPROFILEIMPORTTIME": "1", "PKG_ADMIN": "127.0.0.1:0"}  # another process may have the usual port
# The folders that a service passes; `database` is the ninth.  All others are for what it does not do unless asked.
NEEDED = {"admin", "cli", "diagnostics", "health", "http", "logs", "service", "settings"}
# Of another way to serve, of several processes, of what integrations are for.
OTHERS = {"asyncio", "multiprocessing", "_multiprocessing", "mmap", "concurrent", "sqlalchemy", "django"}


def folders(modules: set[str]) -> set[str]:
    """The folders of the package among the modules.  Each takes about 0.2 ms."""
    return {name.removeprefix("pkg.") for name in modules} & FOLDERS


@pytest.mark.parametrize("has_database", [False, True])
def test_a_service_imports_what_it_needs(tmp_path: Path, has_database: bool) -> None:
    with contextlib.ExitStack() as stack:
        database = {"DATABASE_URL": stack.enter_context(Postgres()).url} if has_database else {}
        process = stack.enter_context(running(tmp_path, "", app="", **PROFILE, **database))
        assert process.stop() == 0
        modules = set(LINE.findall(process.errors()))
    assert {"pkg.cli.main", "pkg.service.service", "pkg.http.server", "pkg.admin.pages"} <= modules
    assert folders(modules) == (NEEDED | {"database"} if has_database else NEEDED)
    if not has_database:  # psycopg imports asyncio by itself
        assert {name.partition(".")[0] for name in modules} & (OTHERS | {"psycopg", "psycopg_pool"}) == set()


def test_a_probe_imports_one_folder() -> None:
    command = [sys.executable, "-m", "pkg", "probe", "--port", "1"]
    done = subprocess.run(command, env=os.environ | PROFILE, capture_output=True, text=True, timeout=60)
    modules = set(LINE.findall(done.stderr))
    assert "socket" in modules
    assert folders(modules) == {"cli"}
    assert {name.partition(".")[0] for name in modules} & {*OTHERS, "typing", "argparse", "http", "logging"} == set()
