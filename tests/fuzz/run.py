"""Builds the libFuzzer targets as OSS-Fuzz would and runs each for a time:

    python tests/fuzz/run.py [--coverage] SECONDS [TARGET ...]

With --coverage it then prints how many lines of each file of the core all inputs together have reached, those of the
repository and those found.

Exits 1 if a target finds something, leaving the input that shows it in the folder named; 0 if clang or its libFuzzer is
missing, with a line that says so, except under CI.
"""

from __future__ import annotations

import argparse
import configparser
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
SANITIZERS = "-fsanitize=address,undefined"
COVERAGE = "-fprofile-instr-generate -fcoverage-mapping"


def has_libfuzzer(clang: str) -> bool:
    """Debian has it in a package of its own, libclang-rt-VERSION-dev, without which nothing links."""
    target = "int LLVMFuzzerTestOneInput(const char *data, unsigned long size) { return data != 0 && size > 9; }"
    command = [clang, "-fsanitize=fuzzer,address", "-x", "c", "-", "-o", "/dev/null"]
    return subprocess.run(command, input=target, text=True, capture_output=True).returncode == 0


def build(folder: Path, flags: str) -> Path:
    """The folder of the programs, with what OSS-Fuzz puts beside them."""
    for name in ("src", "work", "out"):
        (folder / name).mkdir(parents=True)
    (folder / "src" / "pkg").symlink_to(ROOT)
    environ = {
        "SRC": str(folder / "src"),
        "WORK": str(folder / "work"),
        "OUT": str(folder / "out"),
        "CC": "clang",
        "CXX": "clang",  # the targets are C, and for those it links libFuzzer's C++ as well
        "CFLAGS": f"-g -O1 -fno-sanitize-recover=all -fsanitize=fuzzer-no-link {flags}",
        "CXXFLAGS": flags,
        "LIB_FUZZING_ENGINE": "-fsanitize=fuzzer",
    }
    subprocess.run([HERE / "oss-fuzz/build.sh"], env={**os.environ, **environ}, check=True)
    return folder / "out"


def corpus(program: Path) -> Path:
    """The inputs that were built with it, unpacked."""
    seeds = program.with_name(f"{program.name}_seeds")
    if not seeds.exists():
        shutil.unpack_archive(f"{program}_seed_corpus.zip", seeds)
    return seeds


def fuzz(program: Path, found: Path, seconds: int) -> bool:
    """Whether it held.  New inputs go to `found`: the corpus in the repository stays small and chosen."""
    found.mkdir()
    findings = Path(tempfile.mkdtemp(prefix=f"{program.name}-"))
    options = configparser.ConfigParser()
    options.read(program.with_name(f"{program.name}.options"))
    dictionary = program.with_name(f"{program.name}.dict")
    command = [program, found, corpus(program), f"-max_total_time={seconds}"]
    command += [f"-{name}={value}" for name, value in options["libfuzzer"].items()]
    command += [f"-dict={dictionary}"] if dictionary.exists() else []
    command += ["-verbosity=0", "-print_final_stats=1", f"-artifact_prefix={findings}/"]
    run = subprocess.run(command, capture_output=True, text=True)
    stats = [line for line in run.stderr.splitlines() if "number_of_executed_units" in line or "average_exec" in line]
    print(f"{program.name}: exit {run.returncode}; {'; '.join(stats)}", flush=True)
    if run.returncode == 0:
        shutil.rmtree(findings)
        return True
    print(run.stderr[-6000:])
    print(f"{program.name}: the input is in {findings}")
    return False


def print_coverage(folder: Path, names: list[str], found: Path) -> None:
    """A line for each file of the core, and one for all."""
    out = build(folder, COVERAGE)
    programs = [out / name for name in names]
    for program in programs:
        subprocess.run(
            [program, found / program.name, corpus(program), "-runs=0", "-verbosity=0"],
            env={**os.environ, "LLVM_PROFILE_FILE": f"{program}.profraw"},
            stderr=subprocess.DEVNULL,
            check=True,
        )
    profile = folder / "all.profdata"
    subprocess.run(["llvm-profdata", "merge", "-o", profile, *(f"{p}.profraw" for p in programs)], check=True)
    # Also what no program needs, which therefore nothing has reached.
    core = sorted((folder / "work" / path.stem).with_suffix(".o") for path in ROOT.glob("ext/*/*.c"))
    objects = [argument for path in (*programs, *core) for argument in ("-object", path)][1:]
    command = ["llvm-cov", "export", "-summary-only", f"-instr-profile={profile}", *objects]
    (report,) = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["data"]
    files = {str(Path(f["filename"]).resolve().relative_to(ROOT)): f["summary"]["lines"] for f in report["files"]}
    own = {name: lines for name, lines in files.items() if name.startswith("ext/") and lines["count"] > 0}
    own["all"] = {key: sum(lines[key] for lines in own.values()) for key in ("covered", "count")}
    print("lines reached:")
    for name, lines in own.items():
        print(f"{name:32}{lines['covered']:6} of {lines['count']:5}{100 * lines['covered'] / lines['count']:7.1f} %")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--coverage", action="store_true", help="print which part of the core was reached")
    parser.add_argument("seconds", nargs="?", type=int, default=60, help="for each target; default: 60")
    parser.add_argument("targets", nargs="*", help="such as front, of fuzz_front.c; default: all")
    options = parser.parse_args()
    clang = shutil.which("clang")
    if clang is None or not has_libfuzzer(clang):
        needed = "apt-get install --install-recommends clang"
        print(f"fuzzing needs clang with libFuzzer; on Debian: {needed}", file=sys.stderr)
        return 1 if os.environ.get("CI") else 0
    names = [f"fuzz_{t}" for t in options.targets] or sorted(path.stem for path in HERE.glob("fuzz_*.c"))
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        out, found = build(folder / "sanitized", SANITIZERS), folder / "found"
        found.mkdir()
        held = [fuzz(out / name, found / name, options.seconds) for name in names]
        if options.coverage and all(held):
            if shutil.which("llvm-cov") is None:
                print("coverage needs llvm-cov; on Debian: apt-get install llvm", file=sys.stderr)
                return 1 if os.environ.get("CI") else 0
            print_coverage(folder / "covered", names, found)
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
