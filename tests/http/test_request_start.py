"""X-Request-Start of trusted proxies as a histogram: what values mean, who is believed, and clocks that differ."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pkg._core import QUEUE_WAIT_BOUNDS
from pkg.http.request_start import MAX_WAIT, RequestStart, parse_time
from tests.support import balancers
from tests.support.client import get
from tests.support.pages import ROOT
from tests.support.places import Place
from tests.support.ports import free_port
from tests.support.processes import ask, running

NAME = "pkg_request_proxy_duration_seconds"
HELLO = """
def app(environ, start_response):
    start_response("200 OK", [])
    return [b"hello"]
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1700000000", 1700000000.0),
        ("1700000000.123", 1700000000.123),
        ("t=1700000000.123", 1700000000.123),  # nginx: t=${msec}
        ("1700000000123", 1700000000.123),  # Heroku
        ("t=1700000000123", 1700000000.123),
        ("1700000000123.5", 1700000000.1235),
        ("1700000000123456", 1700000000.123456),
        ("t=1700000000123456", 1700000000.123456),  # Apache httpd: t=%t
        ("0", 0.0),
        ("99999999999999000", 99999999999.999),
        ("100000000000000000", None),
        ("1700000000123456789", None),  # nanoseconds
        ("", None),
        ("t=", None),
        ("t=t=1700000000", None),
        (".", None),
        ("1.7.0", None),
        ("-1700000000", None),
        ("+1700000000", None),
        ("1_700_000_000", None),
        ("1.7e9", None),
        ("0x6553f100", None),
        ("nan", None),
        ("inf", None),
        ("t=1700000000, t=1700000001", None),
        ("\u0661\u0667", None),  # digits, but not of HTTP
        ("\u00b2", None),
        ("1" * 10_000, None),
    ],
)
def test_formats(text: str, expected: float | None) -> None:
    found = parse_time(text)
    assert found == (expected if expected is None else pytest.approx(expected, abs=1e-4))


class Request:
    """A request whose head was complete `duration` seconds ago."""

    def __init__(self, duration: float = 0.0, **fields: str) -> None:
        self.duration, self.fields = duration, fields

    def only_header(self, name: bytes) -> str | None:
        return self.fields.get(name.decode().replace("-", "_"))


def counted(*requests: Any) -> tuple[int, float]:
    start = RequestStart()
    for request in requests:
        start(request)
    counts, total = start.waits()
    assert len(counts) == len(QUEUE_WAIT_BOUNDS) + 1
    return sum(counts), total


@pytest.mark.parametrize(
    ("ago", "wait"),
    [
        (2.0, 2.0),
        (MAX_WAIT - 5, MAX_WAIT - 5),
        (MAX_WAIT + 1, None),
        (-0.5, 0.0),  # the proxy's clock is ahead by less than a second
        (-6.0, None),
    ],
)
def test_clocks_that_differ(ago: float, wait: float | None, caplog: pytest.LogCaptureFixture) -> None:
    n, total = counted(*(Request(x_request_start=f"t={time.time() - ago:.3f}") for _ in range(2)))
    assert n == (0 if wait is None else 2)
    assert total == pytest.approx(2 * (wait or 0), abs=4)
    assert wait != 0.0 or total == 0.0
    assert len(caplog.records) == (wait is None)  # once


def test_the_own_queue_does_not_count_again() -> None:
    n, total = counted(Request(duration=3.0, x_request_start=f"{time.time() - 10:.6f}"))
    assert n == 1 and 6.9 < total < 9


def test_the_other_name() -> None:
    now = f"{time.time():.3f}"
    assert counted(Request(x_queue_start=now))[0] == 1
    assert counted(Request(x_request_start=now, x_queue_start=now))[0] == 1
    assert counted(Request())[0] == 0


def test_no_request_of_several_threads_is_lost() -> None:
    start = RequestStart()
    request = Request(x_request_start=f"{time.time():.3f}")
    threads = [threading.Thread(target=lambda: [start(request) for _ in range(2_000)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(start.waits()[0]) == 16_000


# ------------------------------------------------------------------ in the real process


def histogram(admin: tuple[str, int]) -> tuple[int, float] | None:
    """Count and sum of the page; None without the metric."""
    text = ask(admin, "/metrics")[2]
    count = re.search(rf"^{NAME}_count (\d+)$", text, re.MULTILINE)
    total = re.search(rf"^{NAME}_sum (\S+)$", text, re.MULTILINE)
    return (int(count[1]), float(total[1])) if count and total else None


def test_only_trusted_proxies_are_believed(tmp_path: Path) -> None:
    for proxies in "", "192.0.2.0/24", "127.0.0.1/32":
        admin = ("127.0.0.1", free_port())
        with running(tmp_path, HELLO, PKG_ADMIN=f"127.0.0.1:{admin[1]}", PKG_TRUSTED_PROXIES=proxies) as process:
            ago = time.time() - 7
            for value in f"t={ago:.3f}", f"{ago * 1e3:.0f}", f"{ago * 1e6:.0f}":
                assert get(process.address, "/", f"X-Request-Start: {value}\r\n").status == 200
            for fields in "", "X-Request-Start: soon\r\n", 2 * f"X-Request-Start: {ago:.3f}\r\n":
                assert get(process.address, "/", fields).status == 200
            found = histogram(admin)
            if not proxies:
                assert found is None
            elif proxies.startswith("192"):
                assert found == (0, 0.0)
            else:
                assert found is not None
                assert found[0] == 3 and 3 * 6.9 < found[1] < 3 * 27


def lines(language: str) -> list[str]:
    """The lines of the page for this proxy."""
    page = (ROOT / "docs/logs-and-metrics.md").read_text()
    return re.findall(rf"^```{language}\n(.*)\n```$", page, re.MULTILINE)


@pytest.mark.skipif(bool(balancers.missing()), reason="apt-get install haproxy nginx-light")
def test_the_lines_for_proxies(tmp_path: Path) -> None:
    admin = ("127.0.0.1", free_port())
    with running(tmp_path, HELLO, PKG_ADMIN=f"127.0.0.1:{admin[1]}", PKG_TRUSTED_PROXIES="127.0.0.1/32") as process:
        (for_nginx,), (for_haproxy,) = lines("nginx"), lines("haproxy")
        with balancers.nginx([Place(process.address[1])], directive=for_nginx) as proxy:
            assert get(proxy.address, "/", "X-Request-Start: 1\r\n").status == 200
        found = histogram(admin)
        assert found is not None and found[0] == 1 and found[1] < 20
        with balancers.haproxy([Place(process.address[1])], directive=for_haproxy) as proxy:
            assert get(proxy.address, "/", "X-Request-Start: 1\r\n").status == 200
        found = histogram(admin)
        assert found is not None and found[0] == 2 and found[1] < 20
