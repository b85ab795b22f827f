#!/usr/bin/env python3
"""Runs a command for which the kernel starts ARM64 programs in QEMU, and changes nothing outside of it.

Docker's builder and Debian's qemu-user-static register QEMU for the whole machine; in a container or a minimal virtual
machine nobody does.  Since Linux 6.7 a user namespace has handlers of its own, so this makes one in which users are
themselves.

    emulate.py COMMAND [ARGUMENTS]

Root, qemu-aarch64-static.  Python's standard library only, that of 3.11.
"""

import ctypes
import os
import shutil
import subprocess
import sys

IDS = 65536  # fewer than there are: runc takes a namespace with all of them for the machine's own
HANDLERS = "/proc/sys/fs/binfmt_misc"
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
# The first 20 bytes of an ELF file for ARM64, and which of their bits are compared, as Debian's package registers it.
MAGIC = rb"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00"
MASK = rb"\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff"


def enter_namespace() -> None:
    """The ids of a new user namespace are written by a process outside of it."""
    begun, begin = os.pipe()
    outside = os.fork()
    if outside == 0:
        os.read(begun, 1)
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{os.getppid()}/{name}", "w") as file:
                file.write(f"0 0 {IDS}")
        os._exit(0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER | CLONE_NEWNS) != 0:
        sys.exit(f"no user namespace: {os.strerror(ctypes.get_errno())}")
    os.write(begin, b"1")
    if os.waitpid(outside, 0)[1] != 0:
        sys.exit("the user namespace got no ids: root only")


def register(qemu: str) -> None:
    """F: the kernel keeps the file open, so it need not be in the container; P, O, C: as for any program."""
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", HANDLERS], check=True)
    with open(f"{HANDLERS}/register", "wb") as file:
        file.write(b":qemu-aarch64:M::%b:%b:%b:FPOC" % (MAGIC, MASK, qemu.encode()))


def main() -> None:
    qemu = shutil.which("qemu-aarch64-static")
    if qemu is None:
        sys.exit("no qemu-aarch64-static; on Debian: apt-get install qemu-user-static")
    enter_namespace()
    register(qemu)
    # podman: it is as little allowed as an ordinary user's, though it is root; mount and mark layers accordingly.
    os.environ |= {"_CONTAINERS_USERNS_CONFIGURED": "done", "_CONTAINERS_ROOTLESS_UID": "0"}
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
