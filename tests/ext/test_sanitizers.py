"""The whole extension, built with sanitizers and used by the tests that go through real sockets.

(The C files alone, without Python, are tested under sanitizers in tests/ext.)
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SUITES = [
    "tests/http/test_wsgi.py",
    "tests/http/test_handler.py",
    "tests/http/test_forwarded.py",
    "tests/http/test_response_head.py",
    # Of the event loop, where threads and owners change; all of it takes a minute more.
    "tests/asgi/test_http.py::test_a_body_comes_as_it_is_sent",
    "tests/asgi/test_http.py::test_the_application_is_told_at_once_that_the_client_has_left",
    "tests/asgi/test_http.py::test_a_rest_that_fits_into_its_buffer_does_not_hold_the_task",
    "tests/asgi/test_http.py::test_readers_that_stop_are_given_up_but_not_too_soon",
    "tests/asgi/test_http.py::test_many_requests_run_at_a_time",
    "tests/asgi/test_http.py::test_pipelined_requests_are_answered_in_order",
    "tests/asgi/test_http.py::test_threads_and_other_descriptors_work_beside_the_front",
]
ALL_OF_THE_EVENT_LOOP = ["tests/asgi"]
# The library that must come first in a process whose main program is not instrumented; what a report ends the run with.
SANITIZERS = {
    "address,undefined": (["libasan.so", "libubsan.so"], "__asan_init"),
    "thread": (["libtsan.so"], "__tsan_init"),
}
WARNING, OUT_OF_MEMORY = "WARNING: ThreadSanitizer", "ThreadSanitizer failed to allocate"


def library(name: str) -> str:
    out = subprocess.run(["cc", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    path = out.stdout.strip()
    if not os.path.isabs(path):
        pytest.fail(f"the compiler has no {name}; on Debian it is in libgcc-N-dev")
    return path


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("sanitizer", SANITIZERS)
@pytest.mark.parametrize(
    "suites",
    [
        pytest.param(SUITES, id="sample", marks=pytest.mark.slow),
        pytest.param(ALL_OF_THE_EVENT_LOOP, id="asgi", marks=pytest.mark.long),
    ],
)
def test_extension(suites: list[str], sanitizer: str, tmp_path: Path) -> None:
    libraries, symbol = SANITIZERS[sanitizer]
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "corpus")
    for name in ("pkg", "ext", "tests"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    environ = {
        **os.environ,
        "CFLAGS": "-O1 -g",
        "PKG_CFLAGS": f"-fsanitize={sanitizer} -fno-omit-frame-pointer -fno-sanitize-recover=all",
        "PKG_LDFLAGS": f"-fsanitize={sanitizer}",
        "PYTHONPATH": str(tmp_path),
        "PYTHONMALLOC": "malloc",
        "TEST_SLOWNESS": "6",
    }
    built = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    (extension,) = (tmp_path / "pkg").glob("_core*.so")
    assert symbol.encode() in extension.read_bytes(), "the build is not instrumented"
    environ |= {
        "LD_PRELOAD": " ".join(map(library, libraries)),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter keeps memory at its end
        "UBSAN_OPTIONS": "print_stacktrace=1",
        # Reports go to a file: a test that captures stderr would take one along.
        "TSAN_OPTIONS": f"exitcode=66 halt_on_error=1 report_signal_unsafe=0 log_path={tmp_path}/report"
        f" suppressions={tmp_path}/suppressions",
    }
    # glibc frees the thread-local memory of an ended thread when it reuses its stack; that order is not seen.
    (tmp_path / "suppressions").write_text("race:_dl_deallocate_tls\n")
    # Without address randomisation: ThreadSanitizer's fixed addresses are at times taken otherwise.
    command = ["setarch", "--addr-no-randomize", sys.executable]
    command += [
        "-m",
        "pytest",
        "-q",
        "-x",
        "-o",
        "timeout=600",
        "-s",
        "-m",
        "not slow and not long",
        "-p",
        "no:cacheprovider",
        *suites,
    ]
    if sanitizer == "thread":  # process 1 gives up nearly all of its memory, and ThreadSanitizer's with it
        command.append("--deselect=tests/asgi/test_supervised.py::test_below_process_1")
    for _ in range(3):
        run = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True)
        reports = [path.read_text() for path in tmp_path.glob("report.*")]
        # In one run of twenty GCC 12's ThreadSanitizer asks the kernel for 500 TB, and ends; that says nothing of us.
        if not reports or not all(OUT_OF_MEMORY in report and WARNING not in report for report in reports):
            break
        for path in tmp_path.glob("report.*"):
            path.unlink()
    assert run.returncode == 0, (run.stdout + run.stderr)[-8000:] + "".join(reports)
    assert not reports
