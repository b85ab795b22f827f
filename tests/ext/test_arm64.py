"""The C core as ARM64 code, run by QEMU: the parser's NEON path against the plain one, and the C tests of the front.

QEMU runs the instructions in the memory order of the machine below it.  That of x86-64 is stricter than that of ARM, so
a missing barrier is not seen here.  Sanitizers do not run in it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.ext.test_c import EXT, HERE, INCLUDES, WARNINGS, cc

COMPILER, QEMU = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
LIBRARIES = "/usr/aarch64-linux-gnu"  # Debian's libc6-arm64-cross
# Those that take a second at most; the others mostly wait, for a minute in all.
FAST = {"test_http1", "test_access_record", "test_front_fork", "test_front_late", "test_front_many"}
# QEMU 7.2 does not pass on SO_BINDTOIFINDEX, without which a front may lose a connection at its end (listener.c).
BEYOND_QEMU = {
    "nobody_is_lost_while_it_closes",
    "quiet_it_closes_soon",
    "nobody_is_lost_without_a_capability",
    "a_unix_socket_closes_without_losing_anybody",
}


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The core's object files."""
    for command in (COMPILER, QEMU):
        if shutil.which(command) is None:
            packages = "gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user-static"
            assert os.environ.get("CI") != "true", f"apt-get install {packages}"
            pytest.skip(f"no {command}; on Debian: apt-get install {packages}")
    folder = tmp_path_factory.mktemp("arm64")
    for source in sorted(EXT.glob("*/*.c")):
        cc(*WARNINGS, "-O2", f"-I{EXT}", "-c", source, "-o", folder / f"{source.stem}.o", compiler=COMPILER)
    return sorted(folder.glob("*.o"))


def run(test: Path, core: list[Path], folder: Path) -> subprocess.CompletedProcess[str]:
    objects = [] if test.name in INCLUDES else core
    cc("-O1", f"-I{EXT}", test, *objects, "-pthread", "-o", folder / "program", compiler=COMPILER)
    return subprocess.run([QEMU, "-L", LIBRARIES, folder / "program"], capture_output=True, text=True)


def test_the_parser_is_the_one_in_neon(core: list[Path], tmp_path: Path) -> None:
    """`tbl` is NEON's table look-up, which gcc does not make of the plain parser."""

    def look_ups(compiled: Path) -> int:
        command = ["aarch64-linux-gnu-objdump", "-d", compiled]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.count("\ttbl\tv")

    plain = tmp_path / "plain.o"
    cc("-O2", "-DHTTP1_PORTABLE", f"-I{EXT}", "-c", EXT / "http/http1.c", "-o", plain, compiler=COMPILER)
    assert look_ups(plain) == 0
    assert sum(look_ups(path) for path in core if path.stem == "http1") > 8


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "test",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in FAST else pytest.mark.long)
        for path in sorted(HERE.glob("test_*.c"))
    ],
)
def test_in_qemu(test: Path, core: list[Path], tmp_path: Path) -> None:
    done = run(test, core, tmp_path)
    failed = set(re.findall(r"^FAIL (\w+) +[\d.]+ s", done.stdout, re.MULTILINE))
    assert failed <= BEYOND_QEMU, done.stdout + done.stderr
    assert done.returncode == bool(failed), done.stdout + done.stderr
    if test.stem == "test_http1":  # each way of reading is held against the plain one
        assert done.stdout.endswith(" 0 failures; portable neon\n")
