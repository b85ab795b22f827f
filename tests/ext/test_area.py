"""How requests go to worker processes and come back, with a death at each step (area.pml), and their bytes (ring.pml).

Both are models for Spin, which tries every order of steps.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

AREA, RING = (Path(__file__).with_name(name) for name in ("area.pml", "ring.pml"))

pytestmark = pytest.mark.skipif(
    shutil.which("spin") is None and os.environ.get("CI") != "true",
    reason="not installed: spin (a package of Debian's)",
)


def check(folder: Path, model: Path = AREA, **definitions: int) -> tuple[int, str]:
    """The number of errors that the model checker finds, and its report.  Without one it has seen every state."""
    flags = [f"-D{name}={value}" for name, value in definitions.items()]
    subprocess.run(["spin", "-a", *flags, model], cwd=folder, check=True, capture_output=True)
    cc = ["cc", "-O2", "-DSAFETY", "-DCOLLAPSE", "pan.c", "-o", "pan"]
    subprocess.run(cc, cwd=folder, check=True, capture_output=True)
    report = subprocess.run(["./pan", "-m20000"], cwd=folder, capture_output=True, text=True).stdout
    assert "max search depth too small" not in report, report
    found = re.search(r"errors: (\d+)", report)
    assert found, report
    assert "Search not completed" not in report or int(found[1]) > 0, report
    return int(found[1]), report


@pytest.mark.parametrize(
    ("by_reader", "unsafe"),
    [
        (False, 1),
        (True, 0),
        pytest.param(False, 0, marks=pytest.mark.long),
        pytest.param(True, 1, marks=pytest.mark.long),
    ],
)
def test_each_request_gets_one_response(tmp_path: Path, by_reader: bool, unsafe: int) -> None:
    reader = {"BY_READER": 1} if by_reader else {}
    errors, report = check(tmp_path, REQUESTS=1, UNSAFE=unsafe, THREADS=1, BACK=1, **reader)
    assert errors == 0, report


@pytest.mark.parametrize("without", ["NO_RECHECK", "NO_SECOND_LOOK", "NO_SECOND_LOOK COMES", "NO_TAIL"])
def test_a_rule_less_would_be_noticed(tmp_path: Path, without: str) -> None:
    errors, report = check(tmp_path, REQUESTS=1, THREADS=1, BACK=1, **dict.fromkeys(without.split(), 1))
    assert errors > 0, report


@pytest.mark.parametrize(("threads", "back"), [(1, 1), pytest.param(2, 0, marks=pytest.mark.long)])
def test_each_request_gets_one_response_while_one_thread_comes(tmp_path: Path, threads: int, back: int) -> None:
    errors, report = check(tmp_path, COMES=1, REQUESTS=1, THREADS=threads, BACK=back)
    assert errors == 0, report


def test_that_two_threads_compete_for_a_request_is_noticed(tmp_path: Path) -> None:
    errors, report = check(tmp_path, REQUESTS=1, THREADS=2, BACK=0, NO_CAS=1)
    assert errors > 0, report


@pytest.mark.parametrize("inward", [False, True])
@pytest.mark.parametrize(("ring", "size"), [(1, 3), (2, 5), (4, 9)])
def test_all_bytes_arrive_and_nobody_sleeps_on(tmp_path: Path, ring: int, size: int, inward: bool) -> None:
    errors, report = check(tmp_path, RING, RING=ring, BYTES=size, **({"INWARD": 1} if inward else {}))
    assert errors == 0, report


@pytest.mark.parametrize("without", ["NO_ROOM_CHECK", "NO_RECHECK", "NO_RECHECK INWARD", "NO_FULL_CHECK INWARD"])
def test_a_rule_of_the_rings_less_would_be_noticed(tmp_path: Path, without: str) -> None:
    errors, report = check(tmp_path, RING, **dict.fromkeys(without.split(), 1))
    assert errors > 0, report
