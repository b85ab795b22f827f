"""Names everything that a machine lacks for building this project, all at once; exits 1 if it cannot be built.

    check_machine.py             what building and running need
    check_machine.py --test      and what the tests use: what is missing there is told, and does not stop anything
    check_machine.py --packages  the names of all those Debian packages, for continuous integration

Run by the Makefile with the system's Python before anything is installed, so it uses nothing newer than Python 3.6.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile

# What the tests start, and the Debian package that has it.
TEST_TOOLS = [
    ("psql", "postgresql"),
    ("pgbouncer", "pgbouncer"),
    ("haproxy", "haproxy"),
    ("nginx", "nginx-light"),
    ("chromium", "chromium"),
    ("clang", "clang"),
    ("strace", "strace"),
    ("curl", "curl"),
    ("openssl", "openssl"),
    ("promtool", "prometheus"),
    # The image: built by podman on base images that mmdebstrap makes; without a registry and without a daemon.
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
    """Whether the C compiler takes these lines."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "x.c")
        with open(path, "w") as file:
            file.write(source)
        command = ["cc", *flags, "-c", path, "-o", os.path.join(folder, "x.o")]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def missing():
    """What building lacks: (what, Debian packages), without packages where there are none that help."""
    if sys.version_info < (3, 11):  # noqa: UP036 - whatever Python the machine has runs this
        found = sys.version.split()[0]
        yield f"Python 3.11 or later is needed (this is {found}); name another one: make PYTHON=python3.13", []
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        yield "Python's venv module", ["python3-venv"]
    has_compiler = shutil.which("cc") is not None and compiles("#include <stdio.h>\n")
    if not has_compiler:
        yield "a C compiler and the C library's headers", ["gcc", "libc6-dev"]
    # Without a compiler the headers are looked for where they would be, so that all is named at once.
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
    """The same for what the tests start."""
    for command, package in TEST_TOOLS + CROSS[:1]:
        # Debian keeps servers where only root has them in the path, and PostgreSQL's in a folder of its own.
        path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
        if shutil.which(command, path=path) is None:
            yield command, [package] if (command, package) != CROSS[0] else [name for _, name in CROSS]


def tell(heading, found):
    """One line for what is missing, and one that mends it."""
    what = "; ".join(name for name, _ in found)
    sys.stderr.write(f"{heading}: {what}\n")
    packages = [name for _, names in found for name in names]
    if packages:
        names = " ".join(packages)
        sys.stderr.write(f"  on Debian: apt-get install {names}\n")


def main(arguments):
    if not sys.platform.startswith("linux"):
        where = {"darwin": "macOS", "win32": "Windows", "cygwin": "Windows"}.get(sys.platform, sys.platform)
        sys.stderr.write(f"pkg runs on Linux, not on {where}; in a container it does: {IN_A_CONTAINER}\n")
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
            tell("missing, so the tests that need them are left out or fail", tools)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
