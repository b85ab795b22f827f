"""Limits of the control group: what each kind of hierarchy says, the last minute, and what a process tells of it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pkg.diagnostics.cgroup import Cgroup, Limits, Throttling, read
from tests.support.client import get, wait_for
from tests.support.ports import free_port
from tests.support.processes import Process, ask, running

MIB = 1 << 20
V1_UNLIMITED = "9223372036854771712\n"

# The formats of cgroup-v2.rst, with counters of each kind beside those that are read.
V2_CPU_STAT = """usage_usec 7250000
user_usec 6000000
system_usec 1250000
nice_usec 0
core_sched.force_idle_usec 0
nr_periods {0}
nr_throttled {1}
throttled_usec {2}
nr_bursts 0
burst_usec 0
"""
V2_MEMORY_STAT = f"""anon {40 * MIB}
file {14 * MIB}
kernel {2 * MIB}
shmem {2 * MIB}
inactive_file {8 * MIB}
active_file {4 * MIB}
"""
V2_EVENTS = "low 0\nhigh {0}\nmax 41\noom 3\noom_kill {1}\noom_group_kill 0\n"
V2 = {
    "cpu.max": "50000 100000\n",
    "cpu.stat": V2_CPU_STAT.format(600, 228, 19_500_000),
    "memory.max": f"{64 * MIB}\n",
    "memory.high": "max\n",
    "memory.current": f"{61 * MIB}\n",
    "memory.stat": V2_MEMORY_STAT,
    "memory.events": V2_EVENTS.format(0, 2),
    "memory.oom.group": "1\n",
}
V2_LIMITS = Limits(
    0.5, 7.25, 600, 228, 19.5, 64 * MIB, None, 61 * MIB, 40 * MIB, 12 * MIB, 0, 2, 1
)  # fmt: skip
V2_NONE = {**V2, "cpu.max": "max 100000\n", "memory.max": "max\n"}

V1_CPU = {
    "cpu.cfs_quota_us": "150000\n",
    "cpu.cfs_period_us": "100000\n",
    "cpu.stat": "nr_periods 600\nnr_throttled 228\nthrottled_time 19500000000\nnr_bursts 0\nburst_time 0\n",
}
V1_CPUACCT = {"cpuacct.usage": "7250000000\n", "cpuacct.stat": "user 600\nsystem 125\n"}
V1_MEMORY = {
    "memory.limit_in_bytes": f"{64 * MIB}\n",
    "memory.soft_limit_in_bytes": V1_UNLIMITED,
    "memory.usage_in_bytes": f"{61 * MIB}\n",
    "memory.stat": f"cache {MIB}\nrss {MIB}\nshmem 0\nhierarchical_memory_limit {64 * MIB}\n"
    f"total_cache {14 * MIB}\ntotal_rss {40 * MIB}\ntotal_shmem {2 * MIB}\n",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
}
V1_LIMITS = Limits(
    1.5, 7.25, 600, 228, 19.5, 64 * MIB, None, 61 * MIB, 40 * MIB, 12 * MIB, None, 2, None
)  # fmt: skip
V1_FREE = {"cpu.cfs_quota_us": "-1\n", "cpu.cfs_period_us": "100000\n", "cpu.stat": V1_CPU["cpu.stat"]}

OTHERS = "22 27 0:21 / /proc rw,relatime - proc proc rw\n27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n"


class Tree:
    """A folder in the place of /sys/fs/cgroup, and one in the place of /proc/self."""

    def __init__(self, folder: Path) -> None:
        self.proc, self.mounts = folder / "proc", folder / "sys fs"
        self.proc.mkdir()
        self._mountinfo = OTHERS

    def group(self, path: str, files: dict[str, str]) -> None:
        folder = self.mounts / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (folder / name).write_text(content)

    def mount(self, point: str, kind: str, options: str = "rw", root: str = "/") -> None:
        place = str(self.mounts / point).replace(" ", r"\040")
        tags = "shared:9 master:1 " if root == "/" else ""  # optional fields
        self._mountinfo += f"41 31 0:38 {root} {place} rw,nosuid {tags}- {kind} {kind} {options}\n"

    def of(self, cgroup: str) -> Tree:
        (self.proc / "cgroup").write_text(cgroup)
        (self.proc / "mountinfo").write_text(self._mountinfo)
        return self

    def read(self) -> Limits:
        return read(str(self.proc))


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


# --- v2 ------------------------------------------------------------------------------------------------------------


def v2(tree: Tree, path: str, *groups: tuple[str, dict[str, str]]) -> Limits:
    tree.mount("", "cgroup2", "rw,nsdelegate,memory_recursiveprot")
    for name, files in groups:
        tree.group(name, files)
    return tree.of(f"0::{path}\n").read()


def test_v2_in_a_namespace(tree: Tree) -> None:
    """As in a container: the group is the root of what can be seen."""
    assert v2(tree, "/", (".", V2)) == V2_LIMITS


def test_v2_of_a_unit(tree: Tree) -> None:
    """The root of the machine has no limits, and of the files only cpu.stat and memory.stat."""
    root = {"cpu.stat": "usage_usec 99\nuser_usec 9\nsystem_usec 90\n", "memory.stat": V2_MEMORY_STAT}
    assert v2(tree, "/system.slice/shop.service", (".", root), ("system.slice/shop.service", V2)) == V2_LIMITS


def test_v2_without_limits(tree: Tree) -> None:
    found = v2(tree, "/", (".", V2_NONE))
    assert found == V2_LIMITS._replace(cpu_limit=None, memory_limit=None)


def test_v2_limits_of_outer_groups(tree: Tree) -> None:
    """A pod may have less than its container asks for; its counters are then the ones that tell."""
    pod = {
        **V2,
        "cpu.max": "25000 100000\n",
        "cpu.stat": V2_CPU_STAT.format(900, 700, 1_000_000).replace("7250000", "9999999"),
        "memory.max": f"{48 * MIB}\n",
        "memory.high": f"{40 * MIB}\n",
        "memory.current": f"{47 * MIB}\n",
        "memory.events": V2_EVENTS.format(5, 1),
        "memory.oom.group": "0\n",
    }
    found = v2(tree, "/pod/container", ("pod", pod), ("pod/container", V2))
    assert found == Limits(
        0.25, 7.25, 900, 700, 1.0, 48 * MIB, 40 * MIB, 47 * MIB, 40 * MIB, 12 * MIB, 5, 1, 0
    )  # fmt: skip


def test_v2_the_same_limit_outside(tree: Tree) -> None:
    """The own counters count: a pod with one container has the container's limits."""
    pod = {**V2, "cpu.stat": V2_CPU_STAT.format(0, 0, 0), "memory.events": V2_EVENTS.format(0, 0)}
    assert v2(tree, "/pod/container", ("pod", pod), ("pod/container", V2)) == V2_LIMITS


def test_v2_without_controllers(tree: Tree) -> None:
    found = v2(tree, "/user.slice", ("user.slice", {"cpu.stat": "usage_usec 7250000\n"}))
    assert found == Limits(cpu_seconds=7.25)


@pytest.mark.parametrize(("path", "root"), [("/../other", "/"), ("/", "/.."), ("/", "/../..")])
def test_groups_outside_of_the_namespace(tree: Tree, path: str, root: str) -> None:
    """Whose files are there is not known: rather nothing than another group's limits."""
    tree.mount("", "cgroup2", root=root)
    tree.group(".", V2)
    assert tree.of(f"0::{path}\n").read() == Limits()


# --- v1, and both --------------------------------------------------------------------------------------------------

V1_OF_CONTAINER = "4:memory:{0}\n3:cpuset:/\n2:cpu,cpuacct:{0}\n1:name=systemd:/\n"


def v1(tree: Tree, path: str, inside: str, root: str = "/") -> Limits:
    tree.mount("cpu,cpuacct", "cgroup", "rw,cpu,cpuacct", root)
    tree.mount("memory", "cgroup", "rw,memory", root)
    tree.group(f"cpu,cpuacct/{inside}", V1_CPU | V1_CPUACCT)
    tree.group(f"memory/{inside}", V1_MEMORY)
    return tree.of(V1_OF_CONTAINER.format(path)).read()


@pytest.mark.parametrize(
    ("path", "inside", "root"),
    [
        ("/shop", "shop", "/"),
        ("/kubepods/pod7/c1", "kubepods/pod7/c1", "/"),
        ("/", ".", "/"),  # in a namespace
        ("/docker/c1", ".", "/docker/c1"),  # paths of the host; its group is mounted
        ("/docker/c1/worker", "worker", "/docker/c1"),
        ("/docker/outer/docker/c1", ".", "/docker/c1"),  # of a host that is in a container itself
    ],
)
def test_v1(tree: Tree, path: str, inside: str, root: str) -> None:
    assert v1(tree, path, inside, root) == V1_LIMITS


def test_v1_without_limits_and_nested(tree: Tree) -> None:
    tree.group("cpu,cpuacct", V1_FREE | {"cpuacct.usage": "1\n"})
    tree.group("memory", {**V1_MEMORY, "memory.limit_in_bytes": V1_UNLIMITED, "memory.usage_in_bytes": "1\n"})
    assert v1(tree, "/shop", "shop") == V1_LIMITS, "the root has no limit"
    tree.group("cpu,cpuacct/shop", V1_FREE)
    tree.group("memory/shop", {"memory.limit_in_bytes": V1_UNLIMITED})
    assert tree.read() == V1_LIMITS._replace(cpu_limit=None, memory_limit=None)
    tree.group("cpu,cpuacct", {**V1_CPU, "cpu.cfs_quota_us": "20000\n", "cpu.stat": "nr_periods 3\nnr_throttled 2\n"})
    tree.group("memory", {"memory.limit_in_bytes": f"{32 * MIB}\n"})
    found = tree.read()
    assert (found.cpu_limit, found.cpu_seconds, found.periods, found.throttled_periods) == (0.2, 7.25, 3, 2)
    assert (found.memory_limit, found.memory) == (32 * MIB, 1)


def test_hybrid(tree: Tree) -> None:
    """v1 has the controllers; v2 is there for systemd, without any."""
    tree.mount("unified", "cgroup2")
    tree.group("unified/shop", {"cpu.stat": "usage_usec 1\n"})
    for name, files in (("cpu", V1_CPU), ("cpuacct", V1_CPUACCT), ("memory", V1_MEMORY)):
        tree.mount(name, "cgroup", f"rw,{name}")
        tree.group(f"{name}/shop", files)
    tree.of("3:memory:/shop\n2:cpuacct:/shop\n1:cpu:/shop\n0::/shop\n")
    assert tree.read() == V1_LIMITS


def test_hybrid_with_memory_in_v2(tree: Tree) -> None:
    tree.mount("unified", "cgroup2")
    tree.group("unified/shop", V2)
    tree.mount("cpu", "cgroup", "rw,cpu")
    tree.group("cpu/shop", V1_CPU)
    found = tree.of("1:cpu:/shop\n0::/shop\n").read()
    assert (found.cpu_limit, found.memory_limit, found.oom_group) == (1.5, 64 * MIB, 1)


def test_what_is_missing_or_broken(tree: Tree) -> None:
    assert tree.read() == Limits(), "no /proc"
    assert tree.of("0::/\n").read() == Limits(), "nothing mounted"
    assert tree.of("").read() == Limits(), "a kernel without groups"
    assert v2(tree, "/gone") == Limits(), "the group was removed"
    broken = dict.fromkeys(V2, "\xff what\n \n")
    tree.group("gone", broken)
    assert tree.read() == Limits()
    tree.group("gone", {"cpu.max": "50000 0\n", "memory.stat": "anon -1\nfile\n"})
    assert tree.read() == Limits()
    (tree.mounts / "gone" / "memory.max").unlink()
    (tree.mounts / "gone" / "memory.max").mkdir()
    assert tree.read() == Limits()


def test_without_descriptors(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError(24, os.strerror(24))

    tree.group(".", V2)
    monkeypatch.setattr("builtins.open", refuse)
    assert tree.read() == Limits()


# --- the last minute -----------------------------------------------------------------------------------------------


class Kernel:
    """Ten periods a second, all of which throttle from `since` on; the seconds are the clock's."""

    def __init__(self, since: float = 0.0) -> None:
        self.now, self.since, self.reads = 1000.0, 1000.0 + since, 0

    def limits(self) -> Limits:
        self.reads += 1
        throttled = max(0.0, self.now - self.since)
        return Limits(periods=round(self.now * 10), throttled_periods=round(throttled * 10), high_events=3)


def test_the_last_minute() -> None:
    kernel = Kernel(since=300)
    cgroup = Cgroup(kernel.limits, lambda: kernel.now)
    assert cgroup.look()[1] is None
    shares = {}
    for second in range(1, 421):
        kernel.now += 1
        _, lately = cgroup.look()
        assert lately is not None and lately.seconds <= 65, "no longer, if somebody asks often"
        shares[second] = lately.share
    assert shares[1] == shares[300] == 0.0
    assert shares[330] == pytest.approx(0.5, abs=0.05)
    assert shares[420] == 1.0
    assert len(cgroup._past) <= 15
    assert cgroup.look()[1] == Throttling(lately.seconds, lately.periods, lately.periods, 0)


def test_ticks_read_once_a_minute() -> None:
    kernel = Kernel()
    cgroup = Cgroup(kernel.limits, lambda: kernel.now)
    for _ in range(1200):  # ten minutes
        cgroup.tick()
        kernel.now += 0.5
    assert kernel.reads == 10
    _, lately = cgroup.look()
    assert lately == Throttling(60.0, 600, 600, 0)
    kernel.now += 30
    _, lately = cgroup.look()
    assert lately is not None and lately.seconds == 90.0
    cgroup.tick()
    assert kernel.reads == 12, "nobody reads again for the tick when somebody has just asked"


def test_few_periods_say_nothing() -> None:
    assert Throttling(60.0, 9, 9, 0).share == 0.0
    assert Throttling(60.0, 10, 5, 0).share == 0.5


def test_counters_that_start_anew() -> None:
    """The process was moved to another group."""
    found = [Limits(periods=900, throttled_periods=800, high_events=9), Limits(periods=1), Limits()]
    clock = iter(range(100))
    cgroup = Cgroup(lambda: found.pop(0), lambda: next(clock))
    cgroup.look()
    assert cgroup.look()[1] == Throttling(1, 0, 0, 0)
    assert cgroup.look()[1] == Throttling(2, 0, 0, 0)


# --- as a process --------------------------------------------------------------------------------------------------

APPLICATION = """
import subprocess, sys, threading, time

def burn():
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        sum(range(1000))

EATS = "open('/proc/self/oom_score_adj', 'w').write('1000'); b'x' * (256 << 20)"

def app(environ, start_response):
    said = "done"
    if environ["PATH_INFO"] == "/burn":
        burn()
    if environ["PATH_INFO"] == "/eat":
        said = str(subprocess.run([sys.executable, "-c", EATS]).returncode)
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [said.encode()]
"""


def values(admin: tuple[str, int]) -> dict[str, float]:
    lines = re.findall(r"(?m)^pkg_cgroup_(\w+) (\S+)$", ask(admin, "/metrics")[2])
    return {name: float(value) for name, value in lines}


def removed(group: Path) -> bool:
    """False: the kernel has not yet cleared away a member that has ended."""
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


@pytest.fixture
def groups() -> Iterator[dict[str, Path]]:
    """New groups of the machine's own hierarchies, for the controllers cpu, cpuacct and memory."""
    if os.geteuid() != 0 or not Path("/sys/fs/cgroup/cpu/cpu.cfs_quota_us").exists():
        pytest.skip(
            "needs root and the controllers cpu and memory of cgroup v1; v2 is tested with files in their place"
        )
    found = {name: Path(f"/sys/fs/cgroup/{name}/pkg-{os.getpid()}") for name in ("cpu", "cpuacct", "memory")}
    for folder in found.values():
        folder.mkdir(exist_ok=True)  # cpu and cpuacct may be one
    yield found
    for folder in found.values():
        wait_for(lambda folder=folder: removed(folder), 10, f"{folder} without members")


def test_a_process_in_a_real_group(tmp_path: Path, groups: dict[str, Path]) -> None:
    (groups["cpu"] / "cpu.cfs_period_us").write_text("50000")  # more periods in less time
    (groups["cpu"] / "cpu.cfs_quota_us").write_text("-1")

    class InGroup(Process):
        def command(self, arguments: tuple[str, ...]) -> list[str]:
            join = "; ".join(f"echo $$ >{folder}/cgroup.procs" for folder in groups.values())
            return ["sh", "-ec", f'{join}; exec "$@"', "sh", *super().command(arguments)]

    admin = ("127.0.0.1", free_port())
    with running(tmp_path, APPLICATION, kind=InGroup, PKG_ADMIN=f"127.0.0.1:{admin[1]}") as process:
        assert "Nothing seems to be wrong" in ask(admin, "/statusz")[2]
        before = values(admin)
        assert "cpu_limit_cpus" not in before and "memory_limit_bytes" not in before
        assert before["cpu_seconds_total"] > 0 and before["memory_bytes"] > MIB
        (groups["cpu"] / "cpu.cfs_quota_us").write_text("10000")

        def throttled() -> re.Match[str] | None:
            assert get(process.address, "/burn").body == b"done"
            pattern = r"throttled in (\d+) % of the CPU periods of the last \d+ s: the limit of 0.2 CPU"
            return re.search(pattern, ask(admin, "/statusz")[2])

        assert 25 < int(wait_for(throttled, 15, "the finding")[1]) <= 100
        assert re.search(r"CPU limit +0.2 CPU, stopped in \d+ of \d+ periods", ask(admin, "/statusz")[2])
        after = values(admin)
        assert after["cpu_limit_cpus"] == 0.2
        stat = dict(line.split() for line in (groups["cpu"] / "cpu.stat").read_text().splitlines())
        assert 10 <= after["cpu_periods_total"] <= int(stat["nr_periods"])
        assert 3 <= after["cpu_throttled_periods_total"] <= int(stat["nr_throttled"])
        assert 0 < after["cpu_throttled_seconds_total"] <= int(stat["throttled_time"]) / 1e9
        assert after["cpu_seconds_total"] > before["cpu_seconds_total"]

        (groups["cpu"] / "cpu.cfs_quota_us").write_text("-1")
        used = int((groups["memory"] / "memory.usage_in_bytes").read_text())
        (groups["memory"] / "memory.limit_in_bytes").write_text(str(used * 100 // 93))
        limit = int((groups["memory"] / "memory.limit_in_bytes").read_text())
        assert re.search(r"memory is at 9\d % of its limit of \d+ MiB", ask(admin, "/statusz")[2])
        assert values(admin)["memory_limit_bytes"] == limit
        (groups["memory"] / "memory.limit_in_bytes").write_text(str(used + 32 * MIB))
        assert get(process.address, "/eat").body == b"-9"
        text = ask(admin, "/statusz")[2]
        assert "the kernel has killed 1 process of this container for memory since it started" in text
        assert values(admin)["oom_kills_total"] == 1
        assert process.stop() == 0


def opened_by_a_reader(fifo: Path) -> int | None:
    try:
        return os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:
        return None


def test_a_process_in_a_container(tmp_path: Path, tree: Tree) -> None:
    """v2, with files in the place of the kernel's, as the machine may have none: in a mount namespace of its own the
    process finds them by its own /proc.  Its minute is short."""
    tree.mount("", "cgroup2")
    tree.group(".", {**V2, "cpu.stat": V2_CPU_STAT.format(0, 0, 0), "memory.events": V2_EVENTS.format(0, 0)})
    tree.of("0::/\n")

    class InContainer(Process):
        def command(self, arguments: tuple[str, ...]) -> list[str]:
            mount = "; ".join(
                f"mount --bind {shlex.quote(str(tree.proc / name))} /proc/$$/{name}" for name in ("mountinfo", "cgroup")
            )
            own = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() != 0 else [])]
            return [*own, "sh", "-ec", f'{mount}; exec "$@"', "sh", *super().command(arguments)]

    # Reading the last of the files waits for the test.
    last = tree.mounts / "memory.oom.group"
    last.unlink()
    os.mkfifo(last)
    admin = ("127.0.0.1", free_port())
    source = f"import pkg.diagnostics.cgroup\npkg.diagnostics.cgroup.WINDOW = 0.2\n{APPLICATION}"
    with running(tmp_path, source, kind=InContainer, PKG_ADMIN=f"127.0.0.1:{admin[1]}") as process:
        for why in ("/statusz is rendered at the start", "/metrics is rendered at the start", "a minute has passed"):
            reader = wait_for(lambda: opened_by_a_reader(last), 10, why)
            last.unlink()
            os.mkfifo(last)
            os.close(reader)
        last.unlink()
        tree.group(".", {**V2, "memory.high": f"{60 * MIB}\n", "memory.events": V2_EVENTS.format(7, 2)})
        text = ask(admin, "/statusz")[2]
        assert re.search(r"warning: throttled in 38 % of the CPU periods of the last \d+ s: the limit of 0.5 CPU", text)
        assert re.search(r"7 times in the last \d+ s the kernel has slowed .* below 60 MiB \(memory.high\)", text)
        assert "memory is at 95 % of its limit of 64 MiB: 12 MiB of it are file cache, which" in text
        assert "killed 2 processes of this container for memory since it started; such a kill ends all" in text
        assert re.search(r"CPU limit +0.5 CPU, stopped in 228 of 600 periods", text)
        assert re.search(r"memory +.*; container 61.0 MiB of 64.0 MiB", text)
        assert re.search(r"a kill for memory +ends all processes", text)
        assert values(admin) == {
            "cpu_limit_cpus": 0.5,
            "cpu_seconds_total": 7.25,
            "cpu_periods_total": 600,
            "cpu_throttled_periods_total": 228,
            "cpu_throttled_seconds_total": 19.5,
            "memory_limit_bytes": 64 * MIB,
            "memory_high_bytes": 60 * MIB,
            "memory_bytes": 61 * MIB,
            "memory_anon_bytes": 40 * MIB,
            "memory_file_bytes": 12 * MIB,
            "memory_high_events_total": 7,
            "oom_kills_total": 2,
        }
        assert '"oom_group": 1' in ask(admin, "/statusz?format=json")[2]
        assert process.faults() == []
