"""One outage for several services at the same time, to the bounds of readiness."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from tests.support.client import wait_for
from tests.support.faults.host import Host

__all__ = ["RED", "each", "load", "outage"]

RED, GREEN = 5.0, 3.0  # seconds, as in the matrix of our own pool


@contextlib.contextmanager
def load(hosts: list[Host], target: str = "/query", threads: int = 2) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for host in hosts:
            stack.enter_context(host.load(target, threads=threads))
        yield


def each(hosts: list[Host], status: int) -> list[float]:
    """The times at which they have this status of /readyz."""
    with ThreadPoolExecutor(len(hosts)) as executor:
        return list(executor.map(lambda host: host.wait_ready(status, 15), hosts))


def outage(hosts: list[Host], begin: Callable[[], object], end: Callable[[], object], lasts: float = 1.0) -> None:
    """Readiness must fail and pass again in time; `lasts`: seconds after the last one has failed."""
    threads = [host.threads for host in hosts]
    begun = time.monotonic()
    begin()
    red = [at - begun for at in each(hosts, 503)]
    time.sleep(lasts)
    ended = time.monotonic()
    end()
    green = [at - ended for at in each(hosts, 200)]
    assert max(red) <= RED, red
    assert max(green) <= GREEN, green
    wait_for(lambda: all(host.threads <= n for host, n in zip(hosts, threads, strict=True)), 10, "as many threads")
    for host in hosts:
        assert all(probe.status == 200 for probe in host.probes if probe.path == "/healthz")
