"""Probes while a hundred uploads of 100 MiB are spooled onto a disk that is much slower than they are."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.client import Connection
from tests.support.ports import free_port
from tests.support.processes import Process, ask, running

UPLOADS, SIZE = 100, 100 << 20
RATE = 50_000_000  # bytes per second that the disk takes
SECONDS = 30
GROUP = Path("/sys/fs/cgroup/blkio")

APPLICATION = """
def app(environ, start_response):
    n = len(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [str(n).encode()]
"""

CLIENTS = f"""
import selectors, socket, sys

selector, block = selectors.DefaultSelector(), b"z" * 65536
left = {{}}
for _ in range({UPLOADS}):
    client = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    client.sendall(b"POST / HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: {SIZE}\\r\\n\\r\\n")
    client.setblocking(False)
    left[client] = {SIZE}
    selector.register(client, selectors.EVENT_WRITE)
while left:
    for key, _ in selector.select():
        try:
            left[key.fileobj] -= key.fileobj.send(block[:left[key.fileobj]])
        except BlockingIOError:
            pass
        if left[key.fileobj] == 0:
            selector.unregister(key.fileobj)
            del left[key.fileobj]
"""


@contextlib.contextmanager
def throttled_disk(folder: Path) -> Iterator[Path]:
    """A file system on a loop device, each write to which waits for the disk; for members of the group at RATE."""

    def run(*command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    if os.geteuid() != 0 or not (GROUP / "blkio.throttle.write_bps_device").exists():
        pytest.skip("needs root, loop devices and the blkio controller of cgroups")
    image, mount, group = folder / "image", folder / "disk", GROUP / f"pkg-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        with open(image, "wb") as file:
            file.truncate(UPLOADS * SIZE + (2 << 30))
        run("mkfs.ext4", "-q", "-F", str(image))
        mount.mkdir()
        try:
            device = run("losetup", "-f", "--show", str(image))
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no loop device: {error.stderr}")
        stack.callback(run, "losetup", "-d", device)
        run("mount", "-o", "sync", device, str(mount))
        stack.callback(run, "umount", str(mount))
        group.mkdir()
        stack.callback(group.rmdir)
        number = os.stat(device).st_rdev
        (group / "blkio.throttle.write_bps_device").write_text(f"{os.major(number)}:{os.minor(number)} {RATE}")
        yield mount


@pytest.mark.long
@pytest.mark.timeout(300)
def test_probes_while_a_slow_disk_is_filled(tmp_path: Path) -> None:
    with throttled_disk(tmp_path) as disk:

        class InGroup(Process):
            def command(self, arguments: tuple[str, ...]) -> list[str]:
                members = GROUP / f"pkg-{os.getpid()}" / "cgroup.procs"
                return ["sh", "-c", f'echo $$ >{members} && exec "$@"', "sh", *super().command(arguments)]

        port = free_port()
        settings = {"PKG_BODY_SPOOL": str(disk), "PKG_BODY_SPOOL_SIZE": "11GiB", "PKG_ADMIN": f"127.0.0.1:{port}"}
        with running(tmp_path, APPLICATION, kind=InGroup, **settings) as process:
            clients = subprocess.Popen([sys.executable, "-c", CLIENTS, str(process.address[1])])
            try:
                took, end = [], time.monotonic() + SECONDS
                while time.monotonic() < end:
                    begun = time.monotonic()
                    with Connection(process.address) as probe:
                        assert probe.request("GET", "/healthz", "Connection: close\r\n").status == 200
                    took.append(time.monotonic() - begun)
                    time.sleep(0.02)
                spooled = re.search(r"(?m)^pkg_spool_bytes (\S+)", ask(("127.0.0.1", port), "/metrics")[2])
                assert spooled and float(spooled[1]) > 100e6  # the disk was at work
                assert clients.poll() is None  # and behind
            finally:
                clients.kill()
                clients.wait()
            took.sort()
            p99 = took[len(took) * 99 // 100]
            print(f"{len(took)} probes, p50 {took[len(took) // 2] * 1e3:.2f} ms, p99 {p99 * 1e3:.2f} ms, "
                  f"max {took[-1] * 1e3:.2f} ms; {float(spooled[1]) / 1e6:.0f} MB spooled")  # fmt: skip
            assert p99 < 0.05  # a wide margin: 1 ms on a machine that does nothing else
