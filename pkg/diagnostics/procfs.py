"""A process, or a thread, as /proc shows it."""

from __future__ import annotations

import contextlib
import os
import resource
import time

__all__ = ["cpu_seconds", "descriptors", "memory", "seconds_since", "stat"]


def stat(task: int | str) -> list[bytes]:
    """The fields of /proc/TASK/stat from the state on.  Raises OSError if there is none, or no descriptor is free."""
    with open(f"/proc/{task}/stat", "rb") as file:
        return file.read().rpartition(b") ")[2].split()  # proc(5); the name in parentheses may contain anything


def cpu_seconds(fields: list[bytes]) -> float:
    """Of stat()."""
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def seconds_since(fields: list[bytes]) -> float:
    """How long ago it began, of stat()."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> tuple[int, int]:
    """Bytes that no other process has, and those that others have as well.  Where the kernel does not tell, as in
    gVisor, those that a worker shares with its template count as its own."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
        lines = [(line, int(line.split()[1]) << 10) for line in file if line.startswith((b"Private_", b"Shared_"))]
        private = sum(size for line, size in lines if line.startswith(b"Private_"))
        return private, sum(size for _, size in lines) - private
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            _, resident, shared, *_ = (int(pages) * os.sysconf("SC_PAGE_SIZE") for pages in file.read().split())
    except (OSError, ValueError):
        return 0, 0
    return resident - shared, shared


def descriptors(pid: int) -> tuple[int | None, int]:
    """How many are open, and how many may be; None where the kernel does not tell, or the process has ended."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd")), resource.prlimit(pid, resource.RLIMIT_NOFILE)[0]
    except OSError:
        return None, 0
