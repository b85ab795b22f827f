"""Builds the libFuzzer targets and runs each for a time:  python tests/fuzz/run.py SECONDS [TARGET ...]

Exits 1 if a target finds something, leaving the input that shows it in the folder named; 0 if clang or its libFuzzer is
missing, with a line that says so, except under CI.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
EXT = HERE.parent.parent / "ext"
SHARED = {"eventloop": ["front"], "reader": ["front", "eventloop"]}  # inputs in the same language


def has_libfuzzer(clang: str) -> bool:
    """Debian has it in a package of its own, libclang-rt-VERSION-dev, without which nothing links."""
    target = "int LLVMFuzzerTestOneInput(const char *data, unsigned long size) { return data != 0 && size > 9; }"
    command = [clang, "-fsanitize=fuzzer,address", "-x", "c", "-", "-o", "/dev/null"]
    return subprocess.run(command, input=target, text=True, capture_output=True).returncode == 0


def main(arguments: list[str]) -> int:
    seconds = int(arguments[0]) if arguments else 60
    targets = arguments[1:] or sorted(p.stem.removeprefix("fuzz_") for p in HERE.glob("fuzz_*.c"))
    clang = shutil.which("clang")
    if clang is None or not has_libfuzzer(clang):
        needed = "apt-get install --install-recommends clang"
        print(f"fuzzing needs clang with libFuzzer; on Debian: {needed}", file=sys.stderr)
        return 1 if os.environ.get("CI") else 0
    failed = []
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for target in targets:
            program = Path(folder) / target
            sanitizers = "-fsanitize=fuzzer,address,undefined"
            source = HERE / f"fuzz_{target}.c"
            text = source.read_text()
            core = [path for path in sorted(EXT.glob("*/*.c")) if f'#include "{path.relative_to(EXT)}"' not in text]
            corpora = [
                corpus for name in (target, *SHARED.get(target, ())) if (corpus := HERE / "corpus" / name).is_dir()
            ]
            flags = ["-std=gnu11", "-g", "-O1", "-fno-sanitize-recover=all", sanitizers, f"-I{EXT}", "-pthread"]
            subprocess.run([clang, *flags, source, *core, "-o", program], check=True)
            # New inputs go to a folder of their own: the corpus in the repository stays small and chosen.
            found = Path(folder) / f"{target}-found"
            found.mkdir()
            findings = Path(tempfile.mkdtemp(prefix=f"fuzz-{target}-"))
            command = [program, found, *corpora, f"-max_total_time={seconds}"]
            command += [
                "-max_len=8192",
                "-timeout=10",
                "-verbosity=0",
                "-print_final_stats=1",
                f"-artifact_prefix={findings}/",
            ]
            run = subprocess.run(command, capture_output=True, text=True)
            stats = [
                line for line in run.stderr.splitlines() if "number_of_executed_units" in line or "average_exec" in line
            ]
            print(f"{target}: exit {run.returncode}; {'; '.join(stats)}", flush=True)
            if run.returncode != 0:
                failed.append(target)
                print(run.stderr[-6000:])
                print(f"{target}: the input is in {findings}")
            else:
                shutil.rmtree(findings)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
