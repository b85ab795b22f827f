"""Tests that are written for a single process, with two workers: TEST_WORKERS=2.

CI runs a part of each suite, `-m long` all of it.  Tests that look inside one process, or whose requests need the
memory of one (`in_one_process`), are not among them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUICK = ["-m", "not slow and not long"]
HTTP = [f"tests/http/test_{name}.py" for name in ("announced_bodies", "responses", "slow_uploads")]
MORE_HTTP = [
    f"tests/http/test_{name}.py" for name in ("handler_packages", "request_timeout", "static_files", "utf8_targets")
]
FRAMEWORKS = ["tests/http/test_frameworks.py", "tests/asgi/test_frameworks.py"]
CLIENTS = ["tests/asgi/test_clients.py", "tests/asgi/test_more_frameworks.py", "tests/asgi/test_browser.py"]
MATRIX, OUTAGES = "tests/system/test_fault_matrix.py", "tests/system/test_outages.py"
ROWS = ("connection-stopped", "sqlalchemy-SIGSTOP", "asynchronous-black-hole")

# And how many tests pass at least: a selection that has become empty shows nothing.
CI = {
    "requests-and-responses": ([*QUICK, *HTTP], 15),
    "frameworks": ([*QUICK, "-k", "flask or django or fastapi", *FRAMEWORKS], 50),
    "database-faults": (["-k", " or ".join(ROWS), MATRIX], 3),
}
ALL = {
    "requests-and-responses": ([*HTTP, *MORE_HTTP], 35),
    "frameworks": ([*FRAMEWORKS, *CLIENTS], 150),
    "database-faults": ([MATRIX, OUTAGES], 60),
}


@pytest.mark.parametrize(
    ("arguments", "least"),
    [pytest.param(*suite, id=name, marks=pytest.mark.slow) for name, suite in CI.items()]
    + [pytest.param(*suite, id=f"all-{name}", marks=pytest.mark.long) for name, suite in ALL.items()],
)
@pytest.mark.timeout(900)
def test_suite(arguments: list[str], least: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *arguments],
        cwd=ROOT,
        env=os.environ | {"TEST_WORKERS": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) >= least
