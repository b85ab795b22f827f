"""`make` on a machine that lacks things: everything that is missing is named at once, with the command that helps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import check_machine

ROOT = Path(__file__).resolve().parents[2]


def check(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "tests" / "support" / "check_machine.py", *arguments],
        env={"PATH": str(path)},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_bare_machine_is_told_everything_at_once(tmp_path: Path) -> None:
    done = check(tmp_path, "--test")
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("missing: ")
    assert "a C compiler and the C library's headers; " in lines[0]
    assert "libpq's headers" in lines[0]
    named = lines[1].partition("apt-get install ")[2].split()
    assert {"gcc", "libc6-dev", "libpq-dev"} <= set(named)
    assert lines[2].startswith("missing, so tests that need them are skipped or fail: ")
    named = lines[3].partition("apt-get install ")[2].split()
    # Some are looked for in /usr/sbin whatever the path is.
    elsewhere = {
        p for c, p in check_machine.TEST_TOOLS if os.path.exists(f"/usr/sbin/{c}") or os.path.exists(f"/sbin/{c}")
    }
    assert set(named) == {p for _, p in check_machine.TEST_TOOLS + check_machine.CROSS} - elsewhere


def test_missing_test_tools_alone_stop_nothing() -> None:
    done = check(Path("/usr/bin:/bin"), "--test")
    assert done.returncode == 0, done.stderr


def test_continuous_integration_installs_all_of_them() -> None:
    packages = check(Path("/usr/bin:/bin"), "--packages").stdout.split()
    assert {package for _, package in check_machine.TEST_TOOLS} <= set(packages)
    assert {"gcc", "libpq-dev"} <= set(packages)
    assert "check_machine.py --packages" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize(("platform", "name"), [("darwin", "macOS"), ("win32", "Windows"), ("cygwin", "Windows")])
@pytest.mark.parametrize("arguments", [[], ["--test"]])
def test_other_systems_are_told_the_container_in_one_line(
    platform: str, name: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    assert check_machine.main(arguments) == 1
    command = "docker compose -f deploy/compose.dev.yaml up"
    assert capsys.readouterr() == ("", f"pkg runs on Linux, not on {name}; run it in a container: {command}\n")
    assert (ROOT / command.split()[3]).is_file()
