"""Rolling restarts of two real instances behind real HAProxy and nginx, under load: no request may be lost.

The instances have no more rights than in the image.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import balancers
from tests.support.rolling import roll, table
from tests.support.unprivileged import describe, unprivileged

# Long enough for HAProxy to have seen two red answers in a row.  If it has not, on a machine that has other things to
# do, it meets a closed port and takes the other instance: nothing is lost for that.
DRAIN_DELAY = 0.5  # seconds

pytestmark = pytest.mark.skipif(
    bool(balancers.missing()), reason=f"not installed: {' '.join(balancers.missing())} (Debian's packages)"
)


@pytest.mark.parametrize(
    ("rounds", "pairs"),
    [
        pytest.param(3, 1, id="few"),
        pytest.param(100, 3, id="hundred", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_no_request_is_lost(rounds: int, pairs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    environ = os.environ | {
        "HOST": "127.0.0.1",
        "PKG_ADMIN": "off",
        "LOG_FORMAT": "json",
        "PKG_ACCESS_LOG": "false",
        "PKG_DRAIN_DELAY": str(DRAIN_DELAY),
    }
    log = tmp_path / "log"

    def start(port: int) -> subprocess.Popen[Any]:
        command = [
            *unprivileged(),
            sys.executable,
            "-m",
            "pkg",
            "tests.support.rolling_application:app",
            "--port",
            str(port),
        ]
        with open(log, "ab") as out:
            return subprocess.Popen(
                command, env=environ, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    outcome = roll(start, rounds=rounds, pairs=pairs, pause=0.01 * pairs)
    with capsys.disabled():
        print(f"\n{rounds} rolling restarts in {outcome.seconds:.0f} s, {describe()}\n{table(outcome)}")
    for name in ("haproxy", "nginx"):
        total = outcome.total(name)
        assert total.sent > 20 * rounds
        assert (total.sent, total.lost) == (total.answered, {}), outcome.logs[name][-3000:] + log.read_text()[-3000:]
    assert outcome.codes == [0] * (2 * rounds)
    assert "could not be stopped" not in log.read_text()
