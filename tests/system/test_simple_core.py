"""`python -m pkg` with nothing set stays simple: one process, few threads and descriptors, and only what it needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import pkg
from tests.support.client import get, wait_for
from tests.support.processes import Process, running

# What other ways to serve need, or databases, or what applications are written with.
NOT_NEEDED = {"asyncio", "concurrent", "mmap", "multiprocessing", "platform", "sysconfig", "uvloop", "websockets"}
NOT_NEEDED |= {"django", "flask", "peewee", "psycopg", "psycopg_pool", "sqlalchemy", "sqlite3", "starlette"}
MODULES = 120  # not its own, and not those of the interpreter's start
THREADS, DESCRIPTORS, MEMORY = 16, 16, 20_000_000
START = 0.035  # seconds from the interpreter's own start to the first 200, on a quick and quiet machine
MARGIN = 6  # this one may be slow and busy

# Run by the service's own interpreter at its start.
SITE = """
import atexit, sys
before = set(sys.modules)
def tell():
    import json
    with open("modules.json", "w") as file:
        json.dump(sorted(set(sys.modules) - before), file)
atexit.register(tell)
"""


class Plain(Process):
    def command(self, arguments: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "pkg"]


def cpu_time(process: Process) -> float:
    """Of all threads so far, in seconds."""
    tasks = Path(f"/proc/{process.process.pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def own_start() -> float:
    """CPU time of an interpreter that does nothing, in seconds."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    _, child.returncode, used = os.wait4(child.pid, 0)
    return used.ru_utime + used.ru_stime


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Process]:
    (tmp_path / "sitecustomize.py").write_text(SITE)
    path = os.pathsep.join([str(tmp_path), str(Path(pkg.__file__).parent.parent)])
    with running(tmp_path, "", kind=Plain, PYTHONPATH=path) as process:
        yield process


def test_it_imports_only_what_it_needs(plain: Process, tmp_path: Path) -> None:
    assert get(plain.address, "/readyz").status == 200
    assert plain.stop() == 0
    modules = json.loads((tmp_path / "modules.json").read_text())
    assert "pkg._core" in modules and "http.server" in modules
    assert {name.partition(".")[0] for name in modules} & NOT_NEEDED == set()
    others = [name for name in modules if name.partition(".")[0] != "pkg"]
    assert len(others) <= MODULES, others


def test_it_is_one_small_process(plain: Process) -> None:
    assert get(plain.address, "/readyz").status == 200
    folder = Path(f"/proc/{plain.process.pid}")
    tasks = list((folder / "task").iterdir())
    assert [child for task in tasks for child in (task / "children").read_text().split()] == []
    assert len(tasks) <= THREADS
    # The connection of the request, and what is imported after the start, are there for a moment.
    wait_for(lambda: len(list((folder / "fd").iterdir())) <= DESCRIPTORS, 5, f"at most {DESCRIPTORS} descriptors")
    rollup = (folder / "smaps_rollup").read_text()
    assert next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")) * 1024 < MEMORY


def test_it_starts_soon(tmp_path: Path) -> None:
    took = []
    for _ in range(3):
        with running(tmp_path, "", kind=Plain) as process:
            assert get(process.address, "/healthz").status == 200
            took.append(cpu_time(process))
            assert process.stop() == 0
    assert min(took) - min(own_start() for _ in range(3)) < START * MARGIN
