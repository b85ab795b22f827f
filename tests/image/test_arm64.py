"""The image for ARM64 on a machine that is none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.image.conftest import unavailable
from tests.image.engine import ROOT

EMULATE = ROOT / "deploy/image/emulate.py"


def emulated(*command: str, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    if os.geteuid() != 0 or shutil.which("qemu-aarch64-static") is None:
        unavailable("the image for ARM64 is built by root, with qemu-aarch64-static (on Debian: qemu-user-static)")
    return subprocess.run(
        [sys.executable, str(EMULATE), *command], cwd=ROOT, capture_output=True, text=True, timeout=timeout
    )


def handlers() -> list[str]:
    try:
        return os.listdir("/proc/sys/fs/binfmt_misc")
    except OSError:
        return []


def test_the_machine_stays_as_it_is() -> None:
    before = handlers()
    done = emulated("cat", "/proc/sys/fs/binfmt_misc/qemu-aarch64")
    if done.returncode != 0 and "binfmt_misc" in done.stderr:
        pytest.skip("user namespaces have no handlers of their own before Linux 6.7")
    assert done.stdout.startswith("enabled\ninterpreter "), done.stderr
    assert handlers() == before


@pytest.mark.long
@pytest.mark.timeout(7800)
def test_it_is_built_twice_and_started_in_qemu() -> None:
    """Both builds have the same digests; it answers, and ends by SIGTERM with exit code 0."""
    done = emulated(sys.executable, "-m", "tests.image.arm64", timeout=7700)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
