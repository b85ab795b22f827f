"""What is told of worker processes, as one view: rows for /statusz, and sums of their pools.

A sum never goes back when a worker is replaced: what one has counted until it was last asked stays in it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pkg.diagnostics import procfs

__all__ = ["PoolSums", "ProcessRow", "row_of"]

# The numbers of a database that also go down; the others count.
_GAUGES = ("pool_min", "pool_max", "pool_size", "pool_available", "requests_waiting", "connections_used")

Pools = Mapping[str, Mapping[str, Any]]  # the numbers of each pool, by its name


class ProcessRow(NamedTuple):
    """A worker process, or the template.  Times in seconds, sizes in bytes; `private`: memory that no other process
    has."""

    worker: int  # 0: the template
    pid: int
    state: str  # starting, serving, leaving; template
    is_ready: bool
    age: float
    private: int
    cpu: float
    in_flight: int = 0
    served: int = 0
    reason: str = ""  # why it is not ready


def row_of(process: Any, **more: Any) -> ProcessRow:
    """`process` has a process id `pid`, and the time `born`, in time.monotonic()."""
    cpu = 0.0
    with contextlib.suppress(OSError):  # it has ended
        cpu = procfs.cpu_seconds(procfs.stat(process.pid))
    age = round(time.monotonic() - process.born, 1)
    return ProcessRow(pid=process.pid, age=age, private=procfs.private_memory(process.pid), cpu=cpu, **more)


class PoolSums:
    """The pools of all workers together."""

    def __init__(self) -> None:
        self._last: dict[int, Pools] = {}  # by process id
        self._past: dict[str, dict[str, float]] = {}  # by the name of the pool

    def take(self, answers: Iterable[tuple[int, Pools | None]]) -> dict[str, dict[str, Any]]:
        """Sums of all workers' answers, by process id; one that does not answer counts as it last did."""
        now = {pid: self._last.get(pid, {}) if pools is None else pools for pid, pools in answers}
        for pid in self._last.keys() - now.keys():
            for name, stats in self._last[pid].items():
                past = self._past.setdefault(name, {})
                for key, value in stats.items():
                    if isinstance(value, int | float) and key not in _GAUGES:
                        past[key] = past.get(key, 0) + value
        self._last = now
        sums: dict[str, dict[str, Any]] = {name: dict(past) for name, past in self._past.items()}
        for pools in now.values():
            for name, stats in pools.items():
                total = sums.setdefault(name, {})
                for key, value in stats.items():
                    if isinstance(value, int | float):
                        total[key] = total.get(key, 0) + value
                    else:
                        total.setdefault(key, value)
        return sums
