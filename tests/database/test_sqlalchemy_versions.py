"""The pool class for SQLAlchemy overrides methods with an underscore: it is tested with the oldest SQLAlchemy that
docs/databases.md names.  With the newest, the whole suite runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# SQLAlchemy 2.0.55 closes a connection whose listener has failed; 2.0.50 leaves it to the garbage collector, which
# gives it back.
DESELECTED = "tests/database/test_service_pool.py::test_a_listener_that_fails_keeps_no_connection"


@pytest.mark.slow
def test_connections_behave_with_the_oldest(tmp_path: Path) -> None:
    found = re.search(r"SQLAlchemy (2\.0\.\d+) or newer", (ROOT / "docs/databases.md").read_text())
    assert found is not None
    oldest = f"sqlalchemy=={found[1]}"
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "old"), oldest]
    subprocess.run(install, check=True, timeout=120)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'old'}{os.pathsep}{ROOT}"}
    version = [sys.executable, "-c", "import sqlalchemy; print(sqlalchemy.__version__)"]
    assert subprocess.run(version, env=environment, capture_output=True, text=True).stdout.strip() == found[1]
    files = [f"tests/database/test_{name}.py" for name in ("service_pool", "engines", "orm_recipes")]
    options = ["-q", "-m", "not long and not slow", "-p", "no:cacheprovider", f"--deselect={DESELECTED}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *files],
        env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ passed", done.stdout, re.MULTILINE)
