"""The C files alone: warnings are errors, and their own tests run under sanitizers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
EXT = HERE.parent.parent / "ext"
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
# Tests that need nothing but what they include; others are linked with all of the core that they do not include.
INCLUDES = {"test_http1.c"}


def compilers() -> list[str]:
    return [c for c in ("gcc", "clang") if shutil.which(c)]


def cc(*arguments: str | Path, compiler: str = "cc") -> None:
    run = subprocess.run([compiler, "-std=gnu11", *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_there_is_a_compiler() -> None:
    assert compilers()


@pytest.mark.parametrize("compiler", compilers())
@pytest.mark.parametrize("source", sorted(EXT.glob("*/*.c")), ids=lambda p: p.name)
def test_no_warnings(source: Path, compiler: str, tmp_path: Path) -> None:
    cc(*WARNINGS, "-O2", "-c", source, f"-I{EXT}", "-o", tmp_path / "x.o", compiler=compiler)


@pytest.mark.parametrize("source", [*sorted(EXT.glob("*/*.c")), *sorted(HERE.glob("*.c"))], ids=lambda p: p.name)
def test_it_compiles_for_aarch64(source: Path) -> None:
    """Which has other system calls than x86-64, an unsigned char, and none of its vector instructions."""
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    if compiler is None:
        assert os.environ.get("CI") != "true", "apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
        pytest.skip("no compiler for aarch64; on Debian: apt-get install gcc-aarch64-linux-gnu libc6-dev-arm64-cross")
    cc(*(WARNINGS if EXT in source.parents else []), "-fsyntax-only", source, f"-I{EXT}", compiler=compiler)


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sanitizer", ["address,undefined", "thread"])
@pytest.mark.parametrize("test", sorted(HERE.glob("test_*.c")), ids=lambda p: p.name)
def test_under_sanitizers(test: Path, sanitizer: str, tmp_path: Path) -> None:
    text = test.read_text()
    sources = [] if test.name in INCLUDES else [s for s in sorted(EXT.glob("*/*.c")) if f'"front/{s.name}"' not in text]
    program = tmp_path / "program"
    flags = ["-g", "-O1", f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", f"-I{EXT}", "-pthread"]
    cc(*flags, test, *sources, "-o", program)
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, (run.stdout + run.stderr)[-6000:]


def test_the_portable_parser_too(tmp_path: Path) -> None:
    program = tmp_path / "program"
    cc(
        "-g",
        "-O1",
        "-DHTTP1_PORTABLE",
        "-fsanitize=address,undefined",
        f"-I{EXT}",
        HERE / "test_http1.c",
        "-o",
        program,
    )
    run = subprocess.run([program], capture_output=True, text=True)
    assert run.returncode == 0, (run.stdout + run.stderr)[-6000:]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seconds", [pytest.param(4, marks=pytest.mark.slow), pytest.param(60, marks=pytest.mark.long)])
def test_fuzzing(seconds: int) -> None:
    """So long for each target, built as OSS-Fuzz builds it; `make fuzz` takes longer."""
    run = subprocess.run(
        [sys.executable, HERE.parent / "fuzz" / "run.py", "--coverage", str(seconds)], capture_output=True, text=True
    )
    if re.search("needs clang|needs llvm", run.stderr) and run.returncode == 0:
        pytest.skip(run.stderr.strip())
    assert run.returncode == 0, run.stdout + run.stderr
    reached = dict(re.findall(r"^(\S+) +\d+ of +\d+ +([\d.]+) %$", run.stdout, re.MULTILINE))
    assert reached.keys() >= {str(path.relative_to(EXT.parent)) for path in EXT.glob("*/*.c")}, run.stdout
    assert float(reached["all"]) > 50, run.stdout
