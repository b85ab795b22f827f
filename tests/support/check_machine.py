"""Lists everything that is missing on this machine to build this project; exits with 1 if it cannot be built.

    check_machine.py             checks what building and running need
    check_machine.py --test      also checks what the tests need; what is missing there is only reported
    check_machine.py --packages  prints the names of all these Debian packages, for continuous integration

The Makefile runs it with the system's Python before anything is installed, so it uses nothing newer than Python 3.6.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile

# The commands that tests start, each with its Debian package.
TEST_TOOLS = [
    ("psql", "postgresql"),
    ("pgbouncer", "pgbouncer"),
    ("haproxy", "haproxy"),
    ("nginx", "nginx-light"),
    ("chromium", "chromium"),
    ("clang", "clang"),
    ("llvm-cov", "llvm"),
    ("strace", "strace"),
    ("valgrind", "valgrind"),
    ("qemu-aarch64-static", "qemu-user-static"),
    ("spin", "spin"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("promtool", "prometheus"),
    # For the image: podman builds it on base images from mmdebstrap, without a registry or a daemon.
    ("podman", "podman"),
    ("runc", "runc"),
    ("skopeo", "skopeo"),
    ("mmdebstrap", "mmdebstrap"),
    ("kubectl", "kubectl"),
]
CROSS = [("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"), ("", "libc6-dev-arm64-cross")]
IN_A_CONTAINER = "docker compose -f deploy/compose.dev.yaml up"
BUILD = ["gcc", "libc6-dev", "libpq-dev"]


def compiles(source, *flags):
    """Whether the C compiler compiles this source."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "x.c")
        with open(path, "w") as file:
            file.write(source)
        command = ["cc", *flags, "-c", path, "-o", os.path.join(folder, "x.o")]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def missing():
    """What is missing for building: (what, Debian packages); without packages if none of them helps."""
    if sys.version_info < (3, 11):  # noqa: UP036 - whatever Python the machine has runs this
        found = sys.version.split()[0]
        yield f"Python 3.11 or later is required (this is {found}); choose another one: make PYTHON=python3.13", []
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        yield "Python's venv module", ["python3-venv"]
    has_compiler = shutil.which("cc") is not None and compiles("#include <stdio.h>\n")
    if not has_compiler:
        yield "a C compiler and the C library's headers", ["gcc", "libc6-dev"]
    # Without a compiler, look for the headers in their usual folder, so that everything is listed at once.
    include = sysconfig.get_paths()["include"]
    there = os.path.exists(os.path.join(include, "Python.h"))
    if not (compiles("#include <Python.h>\n", "-I" + include) if has_compiler else there):
        yield "Python's headers", ["python3-dev"]
    pg_config, include = shutil.which("pg_config"), "/usr/include/postgresql"
    if pg_config is not None:
        include = subprocess.run([pg_config, "--includedir"], stdout=subprocess.PIPE).stdout.decode().strip()
    there = os.path.exists(os.path.join(include, "libpq-fe.h"))
    if pg_config is None or not (compiles("#include <libpq-fe.h>\n", "-I" + include) if has_compiler else there):
        yield "libpq's headers", ["libpq-dev"]


def missing_test_tools():
    """The same for the commands that tests start."""
    for command, package in TEST_TOOLS + CROSS[:1]:
        # Debian installs servers in folders that only root has in PATH, and PostgreSQL in a separate folder.
        path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
        if shutil.which(command, path=path) is None:
            yield command, [package] if (command, package) != CROSS[0] else [name for _, name in CROSS]


def tell(heading, found):
    """Writes one line about what is missing, and one with the command that installs it."""
    what = "; ".join(name for name, _ in found)
    sys.stderr.write(f"{heading}: {what}\n")
    packages = [name for _, names in found for name in names]
    if packages:
        names = " ".join(packages)
        sys.stderr.write(f"  on Debian: apt-get install {names}\n")


def main(arguments):
    if not sys.platform.startswith("linux"):
        where = {"darwin": "macOS", "win32": "Windows", "cygwin": "Windows"}.get(sys.platform, sys.platform)
        sys.stderr.write(f"pkg runs on Linux, not on {where}; run it in a container: {IN_A_CONTAINER}\n")
        return 1
    if "--packages" in arguments:
        print(" ".join(BUILD + [package for _, package in TEST_TOOLS + CROSS]))
        return 0
    found = list(missing())
    if found:
        tell("missing", found)
    if "--test" in arguments:
        tools = list(missing_test_tools())
        if tools:
            tell("missing, so tests that need them are skipped or fail", tools)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
