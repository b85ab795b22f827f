"""A page in a real browser, with server-sent events and a WebSocket, while the instances behind it are replaced."""

from __future__ import annotations

import contextlib
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support import balancers
from tests.support.browser import Tab, browsing, program
from tests.support.client import wait_for
from tests.support.instances import Instances
from tests.support.places import tcp_places
from tests.support.rolling import INTERVAL, Outcome, Rollout, await_place

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(program() is None, reason="not installed: chromium (a package of Debian's)"),
    pytest.mark.skipif("haproxy" in balancers.missing(), reason="not installed: haproxy (a package of Debian's)"),
]


def test_a_page_connects_again_in_a_rolling_restart(tmp_path: Path) -> None:
    """To the other instance, without a word in its console."""
    app = "tests.support.streaming_application:app"
    instances = Instances(tmp_path, app, PKG_DRAIN_DELAY="0.5", PKG_DRAIN_TIMEOUT="3s")
    outcome, places = Outcome(), tcp_places(2)
    rollout = Rollout(lambda p: instances.start(PORT=str(p.port)), signal.SIGTERM, "/readyz", outcome)
    with contextlib.ExitStack() as stack:
        stack.callback(rollout.kill)
        for place in places:
            rollout.start(place)
        haproxy = stack.enter_context(balancers.haproxy(places, interval=INTERVAL))
        for place in places:
            await_place([haproxy], place)
        tab = stack.enter_context(browsing())
        tab.open(f"http://127.0.0.1:{haproxy.address[1]}/page")
        first = told(tab, events=5, echoes=5)
        for place in places:
            rollout.replace(place)
            await_place([haproxy], place)
        rollout.await_ends()
        last = told(tab, events=first["events"] + 20, echoes=first["echoes"] + 20, streams=2, sockets=2)
        console = [tab.said(name) for name in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")]
    assert last["faults"] == []
    assert set(last["codes"]) == {1001}
    assert console == [[], [], []]
    assert outcome.codes == [0, 0], instances.log()


def told(tab: Tab, **least: int) -> dict[str, Any]:
    """What the page has seen, as soon as it is that much."""

    def look() -> dict[str, Any] | None:
        found: dict[str, Any] = tab.look("told")
        return found if all(found[name] >= count for name, count in least.items()) else None

    found: dict[str, Any] = wait_for(look, 20, f"{least}")
    return found
