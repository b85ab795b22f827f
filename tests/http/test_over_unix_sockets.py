"""Tests of what clients do, which are written for TCP, over a Unix socket: slow, vanishing, greedy and many of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Tests of the peer's address, which a Unix socket has not got, and what else the kernel does in another way.
DIFFERENT = {
    "tests/http/test_handler.py": [
        "test_facts",
        "test_log_request_says_nothing_and_log_message_logs",
        "test_a_handler_that_reads_from_its_socket",
    ],
    "tests/http/test_wsgi.py": ["test_environ"],
    # There is no reset; tests/ext/test_front_listeners.c has what there is.
    "tests/http/test_responses.py": ["test_nothing_follows_the_head", "test_a_proxy_without_its_header_is_refused"],
    "tests/http/test_response_head.py": ["test_a_stream_with_a_gap_is_not_continued"],
    # Its one thread writes to all of its clients.  poll() says that one may write to a Unix socket only when three
    # quarters of its buffer are free, so it stalls earlier than over TCP, at a client that waits for a worker.
    "tests/http/test_slow_uploads.py": ["test_slow_uploads_leave_half_of_the_workers_to_others"],
}


def run(*files: str) -> None:
    left_out = [f"--deselect={file}::{name}" for file in files for name in DIFFERENT.get(file, ())]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=short", *left_out, *files],
        cwd=ROOT,
        env=os.environ | {"TEST_OVER_UNIX": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    made = re.search(r"^(\d+) connections over Unix sockets$", done.stdout, re.MULTILINE)
    assert made and int(made[1]) >= 10 * len(files), done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_clients_that_hold_up_or_leave() -> None:
    run("tests/http/test_displacement.py", "tests/http/test_request_timeout.py", "tests/http/test_spooling.py")


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_requests_and_responses() -> None:
    run(
        "tests/http/test_announced_bodies.py",
        "tests/http/test_handler.py",
        "tests/http/test_handler_writing.py",
        "tests/http/test_response_head.py",
        "tests/http/test_responses.py",
        "tests/http/test_slow_uploads.py",
        "tests/http/test_wsgi.py",
    )


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_whole_process() -> None:
    run(
        "tests/service/test_drain.py",
        "tests/service/test_hangup.py",
        "tests/system/test_flood.py",
        "tests/system/test_frozen.py",
        "tests/system/test_process.py",
        "tests/system/test_stuck.py",
    )
