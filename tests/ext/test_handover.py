"""The hand-over of connections between the loop and who serves, in every order of its steps (Spin, handover.pml)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("handover.pml")

pytestmark = pytest.mark.skipif(
    shutil.which("spin") is None and os.environ.get("CI") != "true",
    reason="not installed: spin (a package of Debian's)",
)


def check(folder: Path, **definitions: int) -> tuple[int, str]:
    """The number of errors that the model checker finds, and its report.  Without one it has seen every state."""
    flags = [f"-D{name}={value}" for name, value in definitions.items()]
    subprocess.run(["spin", "-a", *flags, MODEL], cwd=folder, check=True, capture_output=True)
    cc = ["cc", "-O2", "-DSAFETY", "-DCOLLAPSE", "pan.c", "-o", "pan"]
    subprocess.run(cc, cwd=folder, check=True, capture_output=True)
    report = subprocess.run(["./pan", "-m20000"], cwd=folder, capture_output=True, text=True).stdout
    assert "max search depth too small" not in report, report
    found = re.search(r"errors: (\d+)", report)
    assert found, report
    assert "Search not completed" not in report or int(found[1]) > 0, report
    return int(found[1]), report


@pytest.mark.parametrize(
    ("clients", "requests", "workers"),
    [(1, 3, 2), (2, 2, 1), pytest.param(2, 2, 2, marks=[pytest.mark.long, pytest.mark.timeout(900)])],
)
def test_each_request_is_answered(tmp_path: Path, clients: int, requests: int, workers: int) -> None:
    errors, report = check(tmp_path, CLIENTS=clients, REQUESTS=requests, WORKERS=workers)
    assert errors == 0, report


@pytest.mark.parametrize(("clients", "requests"), [(2, 1), pytest.param(2, 2, marks=pytest.mark.long)])
def test_each_request_is_answered_while_fewer_workers_are_enough(tmp_path: Path, clients: int, requests: int) -> None:
    errors, report = check(tmp_path, ENOUGH=1, CLIENTS=clients, REQUESTS=requests, WORKERS=2)
    assert errors == 0, report


@pytest.mark.parametrize(("clients", "requests"), [(2, 1), pytest.param(2, 2, marks=pytest.mark.long)])
def test_each_request_is_answered_while_one_worker_at_a_time_comes(tmp_path: Path, clients: int, requests: int) -> None:
    errors, report = check(tmp_path, COMES=1, CLIENTS=clients, REQUESTS=requests, WORKERS=2)
    assert errors == 0, report


@pytest.mark.parametrize(("clients", "requests"), [(1, 2), (2, 1)])
def test_each_request_is_answered_by_an_event_loop(tmp_path: Path, clients: int, requests: int) -> None:
    errors, report = check(tmp_path, EVENTLOOP=1, CLIENTS=clients, REQUESTS=requests, WORKERS=1)
    assert errors == 0, report


@pytest.mark.parametrize("without", ["NO_SEEN", "NO_TOLD", "NO_ROUSE", "NO_RECHECK", "NO_FRESH_NEWS"])
def test_a_rule_of_the_event_loop_less_would_be_noticed(tmp_path: Path, without: str) -> None:
    errors, report = check(tmp_path, EVENTLOOP=1, CLIENTS=1, REQUESTS=2, WORKERS=1, **{without: 1})
    assert errors > 0, report
    assert "invalid end state" in report


@pytest.mark.parametrize(("clients", "requests"), [pytest.param(1, 2, marks=pytest.mark.long), (2, 1)])
def test_each_request_is_answered_by_an_event_loop_that_waits_elsewhere(
    tmp_path: Path, clients: int, requests: int
) -> None:
    errors, report = check(tmp_path, EVENTLOOP=1, ELSEWHERE=1, CLIENTS=clients, REQUESTS=requests, WORKERS=1)
    assert errors == 0, report


@pytest.mark.parametrize(
    "without",
    ["NO_HEEDING_FIRST", *(pytest.param(rule, marks=pytest.mark.long) for rule in ("NO_ROUSE", "NO_SETTLING"))],
)
def test_a_rule_of_waiting_elsewhere_less_would_be_noticed(tmp_path: Path, without: str) -> None:
    errors, report = check(tmp_path, EVENTLOOP=1, ELSEWHERE=1, CLIENTS=1, REQUESTS=2, WORKERS=1, **{without: 1})
    assert errors > 0, report
    assert "invalid end state" in report


@pytest.mark.parametrize("without", ["NO_PENDING", "NO_PIPELINE", "NO_SECOND_LOOK"])
def test_a_rule_less_would_be_noticed(tmp_path: Path, without: str) -> None:
    errors, report = check(tmp_path, CLIENTS=1, REQUESTS=3, **{without: 1})
    assert errors > 0, report
    assert "invalid end state" in report
