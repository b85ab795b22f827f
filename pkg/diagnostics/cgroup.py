"""What the kernel's control group gives the process: its limits of CPU and memory, and how often it ran into them.

It reads when it is asked: by a scrape, by a page, or once a minute by a tick of the checks.  It has no thread.  The
formats are in Linux, Documentation/admin-guide: cgroup-v2.rst, cgroup-v1/memory.rst; and scheduler/sched-bwc.rst.

A limit of an outer group counts as well, as far as its files can be seen: a pod may have one of its own.  The smallest
one is what the process meets, so the periods and the memory in use are told of the group that has it.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

__all__ = ["Cgroup", "Limits", "Throttling", "read"]

WINDOW = 60.0  # seconds back to the counters that the present ones are compared with
SPACING = 5.0  # between the counters that are kept, so that there are few, however often somebody asks
MIN_PERIODS = 10  # a second of them, as periods are 100 ms by default; fewer say nothing
UNLIMITED = 1 << 60  # v1 says "no limit" with the largest number of whole pages

N = TypeVar("N", int, float)


class Limits(NamedTuple):
    """CPU in CPUs and seconds, memory in bytes; None: there is no such limit, or the kernel does not tell.

    `throttled_seconds` adds up the time of all CPUs.  `high`: from there on the kernel slows the process down;
    `high_events`: how often it did.  `file`: cached files, which the kernel takes back when memory is short.
    `oom_kills`: processes killed for want of memory.  `oom_group`: 1 if such a kill ends all processes of the group.
    """

    cpu_limit: float | None = None
    cpu_seconds: float | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_seconds: float | None = None
    memory_limit: int | None = None
    memory_high: int | None = None
    memory: int | None = None
    anon: int | None = None
    file: int | None = None
    high_events: int | None = None
    oom_kills: int | None = None
    oom_group: int | None = None


class Throttling(NamedTuple):
    """What happened lately: in `seconds` so many periods in which the group ran, those in which it was stopped, and how
    often it was slowed down for its memory."""

    seconds: float
    periods: int
    throttled_periods: int
    high_events: int

    @property
    def share(self) -> float:
        """Of the periods that stopped the group; 0 if there are too few to say."""
        return self.throttled_periods / self.periods if self.periods >= MIN_PERIODS else 0.0


# --- files ---------------------------------------------------------------------------------------------------------


def _text(path: str) -> str:
    """The content of a file; "" if there is none, or it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except (OSError, ValueError):
        return ""


def _number(*paths: str) -> int | None:
    """The number in the first of these files that has one."""
    for path in paths:
        text = _text(path).strip()
        if text.removeprefix("-").isdecimal():
            return int(text)
    return None


def _numbers(path: str) -> dict[str, int]:
    """The numbers of a file with a name and a number in each line."""
    pairs = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def _inside(path: str, root: str) -> str | None:
    """The path of a group below the root of a mount; None if it is not below it."""
    if root == "/":
        return path
    return path[len(root) :] if path == root or path.startswith(f"{root}/") else None


def _groups(proc: str) -> dict[str, list[str]]:
    """The folders of the process's group and of those around it, the innermost first, by the controller's name in v1;
    "" is v2.  A controller belongs to one of the two, so in a hybrid system v1 has what v2 does not tell."""
    own = {}
    for line in _text(f"{proc}/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        own.update(dict.fromkeys(names.split(","), path))
    found, others = {}, {}
    for line in _text(f"{proc}/mountinfo").splitlines():  # proc(5)
        before, _, after = line.partition(" - ")
        if not after.startswith(("cgroup ", "cgroup2 ")):
            continue
        kind, *_, options = after.split()
        root, point = (re.sub(r"\\(\d{3})", lambda c: chr(int(c[1], 8)), part) for part in before.split()[3:5])
        for name in [""] if kind == "cgroup2" else options.split(","):
            if name not in own or "/.." in own[name] or "/.." in root:
                continue  # ".." is outside of the cgroup namespace, where the group's name is not known
            if (inside := _inside(own[name], root)) is None:
                others[name] = [point]  # paths of the host, but the container's group is mounted
            else:
                parts = [part for part in inside.split("/") if part]
                found[name] = ["/".join([point, *parts[:n]]) for n in range(len(parts), -1, -1)]
    return others | found


# --- limits --------------------------------------------------------------------------------------------------------


def _cpu_limit(folder: str) -> float | None:
    quota, _, period = _text(f"{folder}/cpu.max").strip().partition(" ")
    quota = quota or str(_number(f"{folder}/cpu.cfs_quota_us"))
    period = period or str(_number(f"{folder}/cpu.cfs_period_us"))
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _memory_limit(folder: str) -> int | None:
    limit = _number(f"{folder}/memory.max", f"{folder}/memory.limit_in_bytes")
    return limit if limit is not None and limit < UNLIMITED else None


def _memory_high(folder: str) -> int | None:
    return _number(f"{folder}/memory.high")


def _smallest(folders: Sequence[str], limit: Callable[[str], N | None]) -> tuple[N | None, str]:
    """The smallest limit and the group that has it; the process's own group if none has one."""
    limits = [(value, folder) for folder in folders if (value := limit(folder)) is not None]
    return min(limits, key=lambda found: found[0]) if limits else (None, folders[0])


def _seconds(number: int | None, per_second: int) -> float | None:
    return number / per_second if number is not None else None


def read(proc: str = "/proc/self") -> Limits:
    """What the files say now.  `proc`: the folder of the process."""
    groups = _groups(proc)
    limits = Limits()
    if cpu := groups.get("cpu", groups.get("")):
        limit, folder = _smallest(cpu, _cpu_limit)
        of_limit, own = _numbers(f"{folder}/cpu.stat"), _numbers(f"{cpu[0]}/cpu.stat")
        used = _seconds(own.get("usage_usec"), 10**6)
        if accounting := groups.get("cpuacct"):
            used = _seconds(_number(f"{accounting[0]}/cpuacct.usage"), 10**9)
        stopped = _seconds(of_limit.get("throttled_usec"), 10**6)
        limits = limits._replace(
            cpu_limit=limit,
            cpu_seconds=used,
            periods=of_limit.get("nr_periods"),
            throttled_periods=of_limit.get("nr_throttled"),
            throttled_seconds=stopped if stopped is not None else _seconds(of_limit.get("throttled_time"), 10**9),
        )
    if memory := groups.get("memory", groups.get("")):
        most, folder = _smallest(memory, _memory_limit)
        high, slowed = _smallest(memory, _memory_high)
        stat, events = _numbers(f"{folder}/memory.stat"), _numbers(f"{folder}/memory.events")
        cached = stat.get("total_cache", stat.get("file"))
        # Memory of tmpfs counts as a file's, but cannot be taken back.
        fixed = stat.get("total_shmem", stat.get("shmem", 0))
        limits = limits._replace(
            memory_limit=most,
            memory_high=high,
            memory=_number(f"{folder}/memory.current", f"{folder}/memory.usage_in_bytes"),
            anon=stat.get("total_rss", stat.get("anon")),
            file=max(0, cached - fixed) if cached is not None else None,
            high_events=_numbers(f"{slowed}/memory.events").get("high"),
            oom_kills=(events or _numbers(f"{folder}/memory.oom_control")).get("oom_kill"),
            oom_group=_number(f"{folder}/memory.oom.group"),
        )
    return limits


# --- the last minute -----------------------------------------------------------------------------------------------


class Cgroup:
    """The limits now and lately.  It keeps few counters of the past, those of the last minute at most."""

    def __init__(self, read: Callable[[], Limits] = read, clock: Callable[[], float] = time.monotonic) -> None:
        self._read, self._clock = read, clock
        self._lock = threading.Lock()
        self._past: list[tuple[float, Limits]] = []  # the first is what the present is compared with

    def look(self) -> tuple[Limits, Throttling | None]:
        """The limits, and what happened since the counters that are a minute old, or the first ones; None at first."""
        with self._lock:
            now, limits = self._clock(), self._read()
            past = self._past
            while len(past) > 1 and past[1][0] <= now - WINDOW:
                del past[0]
            lately = _since(now - past[0][0], past[0][1], limits) if past else None
            if not past or past[-1][0] <= now - SPACING:
                past.append((now, limits))
        return limits, lately

    def tick(self) -> None:
        """Called often; looks if nobody has for a minute."""
        if not self._past or self._past[-1][0] <= self._clock() - WINDOW:
            self.look()


def _since(seconds: float, former: Limits, limits: Limits) -> Throttling:
    def more(name: str) -> int:
        return max(0, (getattr(limits, name) or 0) - (getattr(former, name) or 0))

    return Throttling(seconds, more("periods"), more("throttled_periods"), more("high_events"))
