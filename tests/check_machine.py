"""Says in one line each what a machine lacks for building this project; exits 1 if anything does.

Run by the Makefile with the system's Python before anything is installed, so it uses nothing newer than Python 3.6.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile


def compiles(source, *flags):
    """Whether the C compiler takes these lines."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "x.c")
        with open(path, "w") as file:
            file.write(source)
        command = ["cc", *flags, "-c", path, "-o", os.path.join(folder, "x.o")]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def missing():
    """What is missing, a line each."""
    if not sys.platform.startswith("linux"):
        yield f"pkg builds and runs on Linux only (this is {sys.platform})"
        return
    if sys.version_info < (3, 11):  # noqa: UP036 - whatever Python the machine has runs this
        found = sys.version.split()[0]
        yield f"Python 3.11 or later is needed (this is {found}); name another one: make PYTHON=python3.13"
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        yield "Python's venv module is missing; on Debian: apt-get install python3-venv"
    if shutil.which("cc") is None:
        yield "a C compiler is missing; on Debian: apt-get install gcc libc6-dev"
        return
    if not compiles("#include <Python.h>\n", "-I" + sysconfig.get_paths()["include"]):
        yield "Python's headers are missing; on Debian: apt-get install python3-dev"
    pg_config = shutil.which("pg_config")
    if pg_config is None:
        yield "libpq's headers are missing (no pg_config); on Debian: apt-get install libpq-dev"
        return
    include = subprocess.run([pg_config, "--includedir"], stdout=subprocess.PIPE).stdout.decode().strip()
    if not compiles("#include <libpq-fe.h>\n", "-I" + include):
        yield "libpq's headers are missing; on Debian: apt-get install libpq-dev"


if __name__ == "__main__":
    lines = list(missing())
    for line in lines:
        sys.stderr.write(line + "\n")
    sys.exit(bool(lines))
