"""Builds the image for ARM64 twice and starts it once, in QEMU.

    python deploy/image/emulate.py python -m tests.image.arm64

Containers of one namespace are not seen from another, so all of this is one process.
"""

from __future__ import annotations

from tests.image.engine import Engine

PLATFORM = "linux/arm64"
TIMEOUT = 3600.0  # of a build, in seconds
# What a user namespace allows of `HARDENED`: it has no control groups.
FLAGS = ("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=65532:65532")
LOADED = "import platform, pkg._core, psycopg; print(platform.machine(), psycopg.pq.__impl__)"


def main() -> None:
    with Engine() as engine:
        image = engine.build("runtime", timeout=TIMEOUT, PLATFORM=PLATFORM)
        assert engine.inspect(image)["Architecture"] == "arm64"
        assert engine.python(image, LOADED, *FLAGS, hardened=False).split() == ["aarch64", "c"]
        with engine.container(image, flags=FLAGS, hardened=False) as container:
            container.wait_until("/healthz", 200)
            container.signal("TERM")
            assert container.wait() == 0, container.log()
        again = engine.build("runtime", "--no-cache", tag="again", timeout=TIMEOUT, PLATFORM=PLATFORM)
        assert engine.digests(again) == engine.digests(image)
        assert engine.inspect(again)["Id"] == engine.inspect(image)["Id"]


if __name__ == "__main__":
    main()
