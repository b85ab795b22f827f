"""/statusz in a real browser: loads nothing else, readable in light and dark, fits wide and narrow screens."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import Tab, browsing, program
from tests.support.client import get, wait_for
from tests.support.ports import free_port
from tests.support.processes import ask, running

pytestmark = pytest.mark.skipif(program() is None, reason="not installed: chromium (Debian's package)")

APPLICATION = """
import threading
import pkg

@pkg.check("cache", interval=1, required=False)
def cache():
    raise ConnectionError("<b>cache-1.internal</b> refused the connection \\udcff")

def wait_for_a_very_long_name_that_no_browser_can_break_into_lines_by_itself():
    threading.Event().wait()

def app(environ, start_response):
    if environ["PATH_INFO"] != "/":
        wait_for_a_very_long_name_that_no_browser_can_break_into_lines_by_itself()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done"]
"""

# Every text of the page with its colours; the background is that of the nearest element that has one.
COLOURS = """
(() => {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = [];
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || !element.checkVisibility()) continue;
        let behind = element;
        while (behind && getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
        const ground = getComputedStyle(behind).backgroundColor;
        found.push([walker.currentNode.data, getComputedStyle(element).color, ground]);
    }
    return found;
})()
"""
# What reaches over the edge of the screen, but for long tables, which scroll in their box; cards that touch or overlap.
MISFITS = """
(() => {
    const wide = [...document.querySelectorAll("body *")]
        .filter(e => !e.closest(".scroll *") && e.getBoundingClientRect().right > innerWidth + 0.5);
    const cut = [...document.querySelectorAll(".pairs")].filter(e => e.scrollWidth > e.parentElement.clientWidth);
    const cards = [...document.querySelectorAll("section")].map(e => e.getBoundingClientRect());
    const near = cards.flatMap((a, n) => cards.slice(n + 1).map(b => [a, b])).filter(([a, b]) =>
        a.left < b.right + 8 && b.left < a.right + 8 && a.top < b.bottom + 8 && b.top < a.bottom + 8);
    return [...wide.concat(cut).map(e => e.outerHTML.slice(0, 80)), ...near.map(pair => JSON.stringify(pair))];
})()
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Tab, str]]:
    """A browser that has opened /statusz of a service with something wrong, and the listener's URL."""
    admin = ("127.0.0.1", free_port())
    path = "/a/path/without/a/place/to/break/" + "x" * 80
    with contextlib.ExitStack() as stack:
        service = stack.enter_context(
            running(tmp_path_factory.mktemp("statusz"), APPLICATION, PKG_ADMIN=f"127.0.0.1:{admin[1]}")
        )
        stuck = socket.create_connection(service.address, 10)
        stack.callback(stuck.close)
        stuck.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert get(service.address, "/readyz", "User-Agent: kube-probe/1.31\r\n").status == 200
        wait_for(lambda: "refused" in (text := ask(admin, "/statusz")[2]) and path in text)
        tab = stack.enter_context(browsing())
        url = f"http://localhost:{admin[1]}"
        tab.open(f"{url}/statusz")
        yield tab, url


def luminance(colour: str) -> float:
    """WCAG 2.2, "relative luminance", of a computed colour."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(", ")]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_it_loads_nothing_else(page: tuple[Tab, str]) -> None:
    tab, url = page
    requests = [event["request"]["url"] for event in tab.said("Network.requestWillBeSent")]
    assert [request for request in requests if not request.endswith("/favicon.ico")] == [f"{url}/statusz"]
    assert tab.said("Log.entryAdded") == [] and tab.said("Runtime.exceptionThrown") == []
    assert tab.look("document.compatMode") == "CSS1Compat"
    assert tab.look("document.querySelectorAll('b, script').length") == 0, "text is text"
    assert "<b>cache-1.internal</b> refused the connection" in tab.look("document.body.innerText")


@pytest.mark.parametrize("width", [360, 800, 1280, 2560])
def test_it_fits(page: tuple[Tab, str], width: int) -> None:
    tab, _ = page
    tab.show(width, 900, "light")
    assert tab.look("document.documentElement.scrollWidth") <= width
    assert tab.look(MISFITS) == []
    tab.look("document.querySelector('details').open = true")
    assert tab.look(MISFITS) == []
    tab.look("document.querySelector('details').open = false")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read(page: tuple[Tab, str], scheme: str) -> None:
    """WCAG 2.2, 1.4.3: a contrast of 4.5 for every text."""
    tab, _ = page
    tab.show(1280, 900, scheme)
    colours: list[tuple[str, str, str]] = tab.look(COLOURS)
    assert len(colours) > 50
    for text, ink, ground in colours:
        low, high = sorted((luminance(ink), luminance(ground)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ink, ground)
    is_dark = luminance(tab.look("getComputedStyle(document.body).backgroundColor")) < 0.2
    assert is_dark == (scheme == "dark")


def test_every_link_leads_somewhere(page: tuple[Tab, str]) -> None:
    tab, url = page
    tab.open(f"{url}/statusz")
    links: list[str] = tab.look("[...document.links].map(a => a.href)")
    assert {link.removeprefix(url) for link in links} >= {"/debug/threads", "/debug/requests", "/metrics"}
    for link in dict.fromkeys(links):
        tab.open(link.replace("seconds=5", "seconds=0.1"))
        answers = [event["response"]["status"] for event in tab.said("Network.responseReceived")]
        assert answers[0] == 200 and tab.look("document.body.innerText"), link


def test_other_sites_cannot_read_it(page: tuple[Tab, str], tmp_path: Path) -> None:
    """Nor a page that a name leads to the loopback address (DNS rebinding), nor one that shows it in a frame."""
    tab, url = page
    other = tmp_path / "other.html"
    other.write_text(f"<!doctype html><title>other</title><iframe src='{url}/statusz'></iframe>")
    tab.open(other.as_uri())
    answer: dict[str, Any] = tab.call(
        "Runtime.evaluate",
        expression=f"fetch('{url}/statusz').then(() => 'read', () => 'refused')",
        awaitPromise=True,
        returnByValue=True,
    )
    assert answer["result"]["value"] == "refused"
    sent = tab.call(
        "Runtime.evaluate",
        expression=f"fetch('{url}/drain', {{method: 'POST', mode: 'no-cors'}}).then(() => 'sent', () => 'refused')",
        awaitPromise=True,
        returnByValue=True,
    )
    assert sent["result"]["value"] in ("sent", "refused")
    assert '"phase": "ready"' in ask(("127.0.0.1", int(url.rpartition(":")[2])), "/statusz?format=json")[2]
    assert any("frame" in event["entry"]["text"] for event in tab.said("Log.entryAdded"))
