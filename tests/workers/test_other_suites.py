"""Tests of requests and responses, which are written for a single process, with two workers: TEST_WORKERS=2."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = (
    "test_announced_bodies",
    "test_handler_writing",
    "test_response_head",
    "test_responses",
    "test_slow_uploads",
    "test_wsgi",
)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_requests_and_responses() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", "-m", "not slow and not long"]
        + [f"tests/http/{name}.py" for name in FILES],
        cwd=ROOT,
        env=os.environ | {"TEST_WORKERS": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 50
