"""What is told of worker processes, as one view: rows for /statusz, sums of their numbers, and their findings.

A sum never goes back when a worker is replaced: what one has counted until it was last asked stays in it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from pkg.diagnostics import procfs

__all__ = ["FINDINGS", "MAX_REQUESTS", "TELL", "ProcessRow", "Sums", "Told", "histogram", "lent", "row_of", "tell"]

TELL, FINDINGS = "tell", "findings"  # in place of the target of a page
MAX_REQUESTS = 20  # of each, that /statusz shows

# The numbers that also go down; the others count.
_GAUGES = (
    *("pool_min", "pool_max", "pool_size", "pool_available", "requests_waiting", "connections_used"),
    *("size", "busy", "queued"),  # of an executor
)

Numbers = Mapping[str, Mapping[str, Any]]  # of each pool, for example, by its name


class Told(NamedTuple):
    """What a worker tells of itself, as plain data; or the sums of what all tell.

    `waits`: histograms, "turns" of an event loop and "proxies" (X-Request-Start), each the count of each bucket under
    its place, and "sum".  `executors`: the threads beside an event loop.  `logs`: its lines, under "".  `blocked`:
    seconds for which the event loop has been in its present turn, None without one.
    """

    pools: Numbers
    waits: Numbers
    executors: Numbers
    logs: Numbers
    blocked: float | None


def tell(status: Any) -> Told:
    """For process 1, from the state of a worker."""
    waits = {name: {**dict(enumerate(counts)), "sum": total} for name, (counts, total) in status.waits().items()}
    executors = {it.name: {"size": it.size, "busy": it.busy, "queued": it.queued} for it in status.executors()}
    turns = status.turns()
    blocked = turns.blocked[""] if turns is not None else None
    return Told(status.pools(), waits, executors, {"": status.logs()._asdict()}, blocked)


def histogram(numbers: Mapping[str, Any]) -> tuple[list[int], float]:
    """The counts and the sum of one of `waits`."""
    return [numbers[str(place)] for place in range(len(numbers) - 1)], numbers["sum"]


class ProcessRow(NamedTuple):
    """A worker process, a place that has none, or the template.  Times in seconds, sizes in bytes; `private`:
    memory that no other process has."""

    worker: int  # its place, which its successor gets; 0: the template
    pid: int | None  # None: its place has no process now
    state: str  # starting, serving, leaving; down; template
    is_ready: bool
    age: float = 0.0
    private: int = 0
    shared: int = 0
    cpu: float = 0.0
    open_fds: int | None = None  # None: the kernel does not tell
    max_fds: int = 0
    in_flight: int = 0
    served: int = 0
    deaths: int = 0  # of processes in its place, that the log has named
    pool: str = ""  # "2 of 4": connections that are lent, of those that its pools may have
    reason: str = ""  # why it is not ready


def row_of(process: Any, **more: Any) -> ProcessRow:
    """`process` has a process id `pid`, and the time `born`, in time.monotonic()."""
    cpu = 0.0
    with contextlib.suppress(OSError):  # it has ended
        cpu = procfs.cpu_seconds(procfs.stat(process.pid))
    age = round(time.monotonic() - process.born, 1)
    private, shared = procfs.memory(process.pid)
    opened, most = procfs.descriptors(process.pid)
    return ProcessRow(
        pid=process.pid, age=age, private=private, shared=shared, cpu=cpu, open_fds=opened, max_fds=most, **more
    )


def lent(pools: Numbers) -> str:
    """As in a row; "" without a pool."""
    of = {key: sum(pool.get(key, 0) for pool in pools.values()) for key in ("connections_used", "pool_max")}
    return f"{of['connections_used']} of {of['pool_max']}" if pools else ""


class Sums:
    """The numbers of all workers together."""

    def __init__(self) -> None:
        self._last: dict[int, Numbers] = {}  # by process id
        self._past: dict[str, dict[str, float]] = {}  # by name

    def take(self, answers: Iterable[tuple[int, Numbers | None]]) -> dict[str, dict[str, Any]]:
        """Sums of all workers' answers, by process id; one that does not answer counts as it last did."""
        now = {pid: self._last.get(pid, {}) if numbers is None else numbers for pid, numbers in answers}
        for pid in self._last.keys() - now.keys():
            for name, stats in self._last[pid].items():
                for key, value in stats.items():
                    if isinstance(value, int | float) and key not in _GAUGES:
                        past = self._past.setdefault(name, {})
                        past[key] = past.get(key, 0) + value
        self._last = now
        sums: dict[str, dict[str, Any]] = {name: dict(past) for name, past in self._past.items()}
        for numbers in now.values():
            for name, stats in numbers.items():
                total = sums.setdefault(name, {})
                for key, value in stats.items():
                    if isinstance(value, int | float):
                        total[key] = total.get(key, 0) + value
                    else:
                        total.setdefault(key, value)
        return sums
